"""Low-rank pairs from the command line: train, resume, generate, evaluate, export, study."""

import pytest

from tests.commands.small_runs import config

LORA = ("--lora-rank", 2, "--lora-targets", "up output")
FEW = ("--batch-size", 4, "--sequence-length", 8, "--steps", 4)


@pytest.fixture
def adapted(trained, succeed, text, tmp_path):
    """A run with pairs: its folder, and what training it said."""
    folder = tmp_path / "adapted"
    _, err = succeed("train", "--from", trained[0], "--text", text, "--out", folder, *FEW, *LORA)
    return folder, err


def test_a_run_from_start_to_export(adapted, trained, succeed, text, tmp_path):
    """What is trained is said; the run is used as any other; an export is imported as a model without pairs."""
    folder, err = adapted
    assert "low-rank    rank 2, alpha 4, of output, up: 224 parameters are trained\n" in err  # 2 · (32 + 80)
    fields = config(folder)["model"]
    assert (fields["lora_rank"], fields["lora_alpha"], fields["lora_targets"]) == (2, 4, ["output", "up"])
    assert (
        "224 parameters are trained"
        in succeed("train", "--resume", "--out", folder, "--steps", 6, "--lora-rank", 2)[1]
    )
    written = succeed("generate", folder, "--max-new-tokens", 20, "--temperature", 0)[0]
    assert "lora_rank" in succeed("info", folder)[0]
    assert "lora" not in succeed("info", trained[0])[0]
    succeed("evaluate", folder)
    succeed("export", folder, "--out", tmp_path / "plain")
    succeed("import", tmp_path / "plain", "--out", tmp_path / "merged")
    assert config(tmp_path / "merged")["model"]["lora_rank"] is None
    again = succeed("generate", tmp_path / "merged", "--max-new-tokens", 20, "--temperature", 0)[0]
    assert again == written


def test_what_a_resume_refuses(adapted, run_cli):
    """Pairs of another rank would be another run."""
    code, _, err = run_cli("train", "--resume", "--out", adapted[0], "--steps", 6, "--lora-rank", 3)
    assert (code, "--lora-rank 3 would change the run" in err, err.count("\n")) == (2, True, 1), err


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--lora-rank", 2], "--lora-rank adapts trained weights; name the run that has them with --from"),
        (["--from", "run", "--lora-alpha", 2], "--lora-alpha is of new low-rank pairs; give --lora-rank too"),
        (
            ["--from", "run", *LORA[:2], "--lora-targets", "gate"],
            "a list of query_key_value, output, up, down",
        ),
        (["--from", "run", *LORA[:2], "--lora-targets", ""], "a list of query_key_value, output, up, down"),
        (["--from", "run", "--lora-rank", -1], "lora_rank must be a whole number of at least 1, got -1"),
    ],
)
def test_mistakes(trained, run_cli, text, tmp_path, flags, words):
    """Each is one line, and nothing is written."""
    flags = [trained[0] if each == "run" else each for each in flags]
    code, _, err = run_cli("train", "--text", text, "--out", tmp_path / "out", *FEW, *flags)
    assert (code, words in err, err.count("\n")) == (2, True, 1), err
    assert not (tmp_path / "out").exists()


def test_a_page_of_the_merged_model(adapted):
    """The study page derives what it shows, so it shows the merged model and says so."""
    pytest.importorskip("jinja2", reason="needs the extra 'study' (pip install -e '.[dev]')")
    from learn.study.write import open_subject

    subject = open_subject(adapted[0], "the baby is")
    assert subject.title.endswith("its low-rank pairs merged")
    assert subject.config.lora_rank is None
