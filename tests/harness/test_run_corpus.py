"""The text of a run: too short, without a held-out part, moved, named anew; and what the messages advise works."""

import os
import re
import shlex
import shutil
from pathlib import Path

import pytest

from contract.errors import UserError
from data.prepare import open_tokens
from harness.training.checkpoint import load_checkpoint, save_checkpoint
from harness.training.runs import resume_run

SMALL = "--preset nano --n-layer 1 --n-head 2 --d-model 16 --context-length 8 --batch-size 4 --threads 1"


@pytest.fixture(autouse=True)
def place(text, tmp_path, monkeypatch):
    """A folder of its own to work in, with a text."""
    monkeypatch.chdir(tmp_path)
    shutil.copy(text, "text.txt")
    monkeypatch.setattr(
        "harness.training.trainer.plot_metrics", lambda metrics, image: None
    )  # slower than the run
    return tmp_path


@pytest.fixture
def succeed(run_cli):
    def succeed(*arguments):
        code, out, err = run_cli(*arguments)
        assert code == 0, err
        return out

    return succeed


@pytest.fixture
def fail(run_cli):
    """Run what must fail: its one line."""

    def fail(*arguments):
        code, out, err = run_cli(*arguments)
        assert code in (1, 2)
        assert out == ""
        assert err.count("\n") == 1
        return err

    return fail


@pytest.fixture
def run(succeed):
    """A run of two steps on a token file of the user's: data/text.bin and runs/a."""
    Path("data").mkdir()
    succeed("prepare", "text.txt", "--out", "data/text.bin")
    succeed("train", "--text", "data/text.bin", "--out", "runs/a", "--steps", 2, *SMALL.split())
    return Path("runs/a")


def move(name, folder):
    """Move a token file, and what belongs to it, to another folder."""
    Path(folder).mkdir(parents=True, exist_ok=True)
    for suffix in (".bin", ".json", ".tiktoken"):
        Path(name).with_suffix(suffix).rename(Path(folder, Path(name).stem).with_suffix(suffix))


def move_all(place):
    """Move data and run together, so that one still lies beside the other."""
    (place / "moved").mkdir()
    for name in ("data", "runs"):
        Path(name).rename(Path("moved", name))


MOVES = {
    "run and data together": (move_all, "moved/runs/a"),
    "the run alone": (lambda place: Path("runs").rename("elsewhere"), "elsewhere/a"),
    "into the run": (lambda place: move("data/text", "runs/a"), "runs/a"),
    "beside the run": (lambda place: move("data/text", "runs"), "runs/a"),
    "to the current folder": (lambda place: move("data/text", "."), "runs/a"),
}


@pytest.mark.parametrize("kind", MOVES)
def test_data_that_moved_is_found(run, succeed, place, kind):
    """Evaluation and resuming find it, twice; the record follows it."""
    wanted = succeed("evaluate", run, "--json")
    change, path = MOVES[kind]
    change(place)
    assert succeed("evaluate", path, "--json") == wanted
    for steps in (3, 4):
        succeed("train", "--resume", "--out", path, "--steps", steps)
    tokens = Path(load_checkpoint(Path(path, "latest")).training["tokens"])
    assert tokens.exists()
    assert tokens.is_absolute()


def test_data_that_moved_is_named(run, succeed, fail):
    """What is not found is asked for, with all that was looked at; named, it is taken, and found from then on."""
    wanted = succeed("evaluate", run, "--json")
    move("data/text", "far/away")
    Path("far/away/text.bin").rename("far/away/other.bin")
    Path("far/away/text.json").rename("far/away/other.json")
    for command in (("evaluate", run), ("train", "--resume", "--out", run, "--steps", 3)):
        err = fail(*command)
        for looked in (Path("data"), run, run.parent, Path()):
            assert f"{(looked / 'text.bin').absolute()} is missing" in err
        assert "name it with --text" in err
    assert succeed("evaluate", run, "--text", "far/away/other.bin", "--json") == wanted
    succeed("train", "--resume", "--out", run, "--steps", 3, "--text", "far/away/other.bin")
    succeed("train", "--resume", "--out", run, "--steps", 4)
    assert load_checkpoint(run / "latest").step == 4


def test_other_data_is_refused(run, succeed, fail):
    """The hash decides: neither a file of the same name nor one that is named is taken for the run's."""
    Path("data/text.bin").unlink()
    Path("other.txt").write_text(Path("text.txt").read_text()[500:])
    succeed("prepare", "other.txt", "--out", "text.bin")
    resume = ("train", "--resume", "--out", run, "--steps", 3)
    err = fail(*resume)
    assert "data/text.bin is missing" in err
    assert f"{Path('text.bin').absolute()} holds another text than the one that runs/a was trained on" in err
    for command in (resume, ("evaluate", run)):
        assert "text.bin holds another text than the one that" in fail(*command, "--text", "text.bin")
    assert "text.txt is no token file" in fail(*resume, "--text", "text.txt")
    succeed("evaluate", run, "--text", "text.txt")  # as the message for `evaluate` advises
    succeed("train", "--from", run, "--text", "text.txt", "--out", "b", "--steps", 1)  # and that for `train`


def test_another_split_is_refused(run, succeed, fail):
    """The same tokens split otherwise are other data: what was held out would be trained on."""
    succeed("prepare", "text.txt", "--out", "split.bin", "--validation-fraction", "0.2")
    assert "tokens to train on, where runs/a had" in fail("evaluate", run, "--text", "split.bin")


def test_runs_of_earlier_versions(run, succeed):
    """A record without a relative path and a split is enough where the file still lies."""
    checkpoint = load_checkpoint(run / "latest", with_optimizer=True)
    for name in ("tokens_relative", "train_tokens"):
        del checkpoint.training[name]
    save_checkpoint(run / "latest", checkpoint)
    succeed("train", "--resume", "--out", run, "--steps", 3)


def test_a_path_of_the_other_system(run, succeed):
    """Where a run comes from Windows, its token file is found by its name."""
    checkpoint = load_checkpoint(run / "latest", with_optimizer=True)
    checkpoint.training["tokens"] = r"C:\data\text.bin"
    del checkpoint.training["tokens_relative"]
    save_checkpoint(run / "latest", checkpoint)
    move("data/text", "runs")
    succeed("train", "--resume", "--out", run, "--steps", 3)


def test_a_run_keeps_its_own_tokens(succeed, fail):
    """A run on a text has its tokens in its folder: another name is refused, and a copy of it may be evaluated."""
    succeed("train", "--text", "text.txt", "--out", "own", "--steps", 2, *SMALL.split())
    resume = ("train", "--resume", "--out", "own", "--steps", 3)
    for name in ("text.txt", "own/tokens.bin"):
        assert "--text does not go with --resume: own has its own tokens" in fail(*resume, "--text", name)
    Path("own/tokens.bin").rename("away.bin")
    for command in (resume, ("evaluate", "own")):
        assert "own/tokens.bin is missing: the text of own cannot be found; bring it back" in fail(*command)
    Path("away.bin").rename("own/tokens.bin")
    succeed(*resume)


def test_data_that_changes_under_a_training(run):
    """Training stops by the file's name; once the file is put back, as the message says, it goes on."""
    path = Path("data/text.bin")
    content = path.read_bytes()
    trainer = resume_run(run, training={"steps": 5})
    path.write_bytes(bytes(len(content)))
    with pytest.raises(
        UserError, match=r"text\.bin: the token file has changed while it was in use .*; put it back"
    ):
        trainer.train()
    path.write_bytes(content)
    assert resume_run(run, training={"steps": 5}).train().finished


# --- too few tokens ---


def advised(err: str) -> list[str]:
    """The arguments of the command that a message ends with."""
    return shlex.split(re.search(r"python cli\.py (.*)", err)[1])


@pytest.mark.parametrize("tokenizer", ["bytes", "ranks"])
@pytest.mark.parametrize("name", ["my text", "a b;touch x", "-x"])
def test_a_text_without_a_held_out_part(succeed, fail, place, tokenizer, name):
    """What the message advises makes a token file that can be trained on."""
    shutil.copy("text.txt", f"./{name}.txt")
    if tokenizer == "ranks":
        succeed("tokenizer", "train", "text.txt", "--vocab-size", 300, "--out", "some.tiktoken")
        tokenizer = "some.tiktoken"
    options = ["--tokenizer", tokenizer, "--validation-fraction", 0]
    succeed("prepare", f"./{name}.txt", *options, "--out", f"./{name}.bin")
    err = fail("train", f"--text={name}.bin", "--out", "run", "--steps", 1, *SMALL.split())
    assert "leaves 0 tokens to validate on, and at least 2 are needed; prepare it with a part held out" in err
    arguments = advised(err)
    succeed(*arguments)
    assert open_tokens(arguments[-1]).info.validation_tokens > 2
    succeed("train", "--text", arguments[-1], "--out", "run", "--steps", 1, *SMALL.split())


def test_a_held_out_part_that_would_not_help(succeed, fail):
    """Where a tenth is too little to validate on, or the rest to train on, only a longer text helps."""
    Path("short.txt").write_text("abcabcabcabc")
    succeed("prepare", "short.txt", "--validation-fraction", 0)
    err = fail("train", "--text", "short.bin", "--out", "run", *SMALL.split())
    assert err.endswith("at least 2 are needed; give a longer text\n")


def test_advice_with_trained_weights(run, succeed, fail):
    """With --from a shorter sequence is advised, and no other tokenizer, which it refuses."""
    Path("tiny.txt").write_text("The b")
    start = ("train", "--from", run, "--out", "b", "--steps", 1)
    err = fail(*start, "--text", "tiny.txt")
    assert "one sequence takes 9; give a longer text or a smaller --sequence-length\n" in err
    Path("new.txt").write_text(Path("text.txt").read_text() + "日")
    err = fail(*start, "--text", "new.txt")
    assert "has no token for '日' (U+65E5); omit them, or give them tokens with --grow-vocabulary 0\n" in err
    succeed("train", "--text", "new.txt", "--out", "c", "--steps", 1, *SMALL.split())
    for command in (("evaluate", run, "--text", "new.txt"), ("generate", run, "--prompt", "日")):
        assert fail(*command).endswith("has no token for '日' (U+65E5); omit them\n")
    succeed("prepare", "new.txt")
    err = fail(*start, "--text", "new.bin")
    assert "new.bin was made by another tokenizer than the model's; give its text itself\n" in err
    succeed("prepare", "text.txt", "--tokenizer", "data/text.tiktoken", "--out", "again.bin")
    succeed(*start, "--text", "text.txt")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes (Linux or macOS)")
@pytest.mark.parametrize(
    "command", [("prepare", "pipe"), ("tokenizer", "train", "pipe", "--vocab-size", 300)]
)
def test_a_pipe_names_no_file(fail, command):
    """What is written is not named after a pipe, which may stand anywhere."""
    os.mkfifo("pipe")
    assert "name the file to write with --out" in fail(*command)
