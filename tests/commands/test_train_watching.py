"""What `train` shows of a training while it runs and at its end, and `--find-rate`."""

import csv
import re
import sys

import pytest
from typer.main import get_command

from cli import app
from harness.training import trainer as trainer_module
from harness.training.metrics import is_plot
from tests.commands.small_runs import SMALL, config, metrics

FIRST_TEN = [
    "text",
    "tokenizer",
    "preset",
    "steps",
    "batch-size",
    "learning-rate",
    "out",
    "resume",
    "from",
    "backend",
]


@pytest.fixture
def losses(monkeypatch):
    """A function that sets the losses of the evaluations, the first of which is before the first step."""

    def set_losses(*values):
        real, left = trainer_module.evaluate, iter(values)
        monkeypatch.setattr(
            trainer_module, "evaluate", lambda *a, **k: real(*a, **k)._replace(loss=next(left))
        )

    return set_losses


def test_the_options_that_matter_come_first():
    """A newcomer's ten are in the help's first panel, in this order."""
    panels = {}
    for option in get_command(app).commands["train"].params:
        panels.setdefault(option.rich_help_panel, []).append(option.opts[0].removeprefix("--"))
    assert next(iter(panels)) is None
    assert panels[None] == FIRST_TEN
    assert panels["While it trains"] == [
        "eval-interval",
        "eval-tokens",
        "patience",
        "sample-every",
        "tensorboard",
    ]
    assert panels["Learning rate"] == ["find-rate", "schedule", "min-learning-rate", "warmup-steps"]


def test_the_evaluation_before_the_first_step(train):
    """It has the first line of the log."""
    folder, _, err = train("--steps 2")
    first = metrics(folder)[0]["validation_loss"]
    assert err.splitlines()[5].startswith(f"step      0  validation loss {first:.4f} (")


def test_both_checkpoints_are_told(train, losses, run_cli):
    """With their steps and losses; the sample is of the one that `generate` takes."""
    losses(4.0, 2.0, 3.0)
    folder, out, err = train("--steps 10")
    latest, best = folder / "latest", folder / "best"
    assert (
        f"checkpoints {latest} (step 10, validation loss 3.0000) and {best} (step 5, validation loss 2.0000)\n"
        in err
    )
    assert "a sample of the best checkpoint (more: python cli.py generate" in err
    sampling = ("--temperature", "0.8", "--seed", "0", "--max-new-tokens", "100")
    assert run_cli("generate", best, *sampling)[1].strip() == out.strip()
    assert run_cli("generate", latest, *sampling)[1].strip() != out.strip()
    assert "no evaluation was better" not in err


def test_a_training_that_made_it_worse(train, losses):
    """Where the first evaluation was the best, that is told."""
    losses(1.0, 2.0, 1.0)
    _, _, err = train("--steps 10")
    assert "no evaluation was better than the one before the first step, 1.0000\n" in err


def test_patience(train, losses, run_cli):
    """A run that ends early says why and ends well; how to go on is told when that is asked for."""
    losses(4.0, 2.0, 3.0, *[2.5] * 9)
    folder, _, err = train("--steps 20 --patience 1")
    assert "ended early: 1 evaluation without a better one (--patience 1)\n" in err
    assert "trained 10 steps" in err
    code, _, err = run_cli("train", "--resume", "--out", folder)
    assert code == 1
    assert (
        "stopped early, out of --patience 1; name a larger --patience, or 0 for any, to train further" in err
    )
    code, _, err = run_cli("train", "--resume", "--out", folder, "--patience", "9")
    assert code == 0
    assert "steps 10 to 20" in err
    assert "ended early" not in err


def test_samples(train):
    """They are in the log, and in a file of the run."""
    folder, _, err = train("--steps 4 --sample-every 2")
    written = (folder / "samples.txt").read_text()
    assert re.findall(r"^step (\d+)", written, re.M) == ["2", "4"]
    assert re.findall(r"^step +(\d+)  sample:$", err, re.M) == ["2", "4"]
    assert written.splitlines()[1].removeprefix("  ") in err


def test_metrics_as_csv(train, run_cli):
    """`info --csv` prints every row of the log, with nothing where a row lacks a column."""
    folder, _, _ = train("--steps 6")
    code, out, err = run_cli("info", folder, "--csv")
    assert (code, err) == (0, "")
    rows = [{name: value for name, value in row.items() if value} for row in csv.DictReader(out.splitlines())]
    assert rows == [{name: str(value) for name, value in row.items()} for row in metrics(folder)]
    assert out.startswith("step,validation_loss,validation_tokens,loss,learning_rate,gradient_norm\n")
    code, _, err = run_cli("info", folder / "latest", "--csv")
    assert (code, "name the --out folder of a training run" in err) == (1, True)
    code, _, err = run_cli("info", folder, "--csv", "--json")
    assert (code, "--csv does not go with --json" in err) == (2, True)


def test_without_tensorboard(run_cli, text, tmp_path, monkeypatch):
    """Its absence is told before anything is written."""
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    code, _, err = run_cli("train", "--text", text, "--out", tmp_path / "run", "--tensorboard")
    assert (code, len(err.splitlines())) == (1, 1)
    assert "--tensorboard needs tensorboard, which is not installed" in err
    assert list(tmp_path.iterdir()) == []


def test_tensorboard(train, succeed):
    """Its files are in the run's folder, a new one for each session, and a new run replaces them."""
    pytest.importorskip("tensorboard", reason="needs TensorBoard (pip install -e '.[tensorboard]')")
    folder, _, _ = train("--steps 3 --tensorboard")
    succeed("train", "--resume", "--out", folder, "--steps", "4", "--tensorboard")
    assert len(list((folder / "tensorboard").iterdir())) == 2
    train("--steps 3 --tensorboard --overwrite")
    assert len(list((folder / "tensorboard").iterdir())) == 1


def test_find_rate(run_cli, text, tmp_path, monkeypatch):
    """It prints the option to give, draws a plot, and touches neither the run in the folder nor makes one."""
    monkeypatch.chdir(tmp_path)
    command = ("train", "--find-rate", "--text", text, *SMALL.removesuffix("--eval-interval 5").split())
    for flags, folder in ((), "runs/sentences-rates"), (("--out", "run"), "run"):
        code, out, err = run_cli(*command, *flags)
        assert code == 0, err
        assert re.fullmatch(r"--learning-rate 0\.\d+\n", out)
        assert [path.name for path in (tmp_path / folder).iterdir()] == ["rates.png"]
        assert is_plot(tmp_path / folder / "rates.png")
    run_cli(*command[:1], *command[2:], "--steps", "2", "--out", "run")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert run_cli(*command, "--out", "run", "--seed", "3")[0] == 0
    after = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert {path.name for path in before if before[path] != after[path]} == {"rates.png"}
    assert after.keys() == before.keys()


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ("--steps 5", "--steps has no effect with --find-rate; omit it"),
        ("--warmup-steps 5", "--warmup-steps has no effect with --find-rate"),
        ("--resume --out run", "--find-rate does not go with --resume"),
        ("--out file", "file is a file, expected a folder; choose another --out"),
        ("--out taken", "no run drew it; move it away"),
    ],
)
def test_what_does_not_go_with_find_rate(run_cli, text, tmp_path, monkeypatch, flags, words):
    """It is one line, before anything is read or written."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("mine")
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "rates.png").write_text("mine")
    code, out, err = run_cli("train", "--find-rate", "--text", text, *flags.split())
    assert code in (1, 2)
    assert (out, len(err.splitlines())) == ("", 1)
    assert words in err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "taken"]


def test_a_schedule_on_resume(train, run_cli):
    """With more steps it may be given, and it is told how the rate goes on."""
    folder, _, _ = train("--steps 10 --learning-rate 1e-3")
    resume = ("train", "--resume", "--out", folder, "--schedule", "wsd")
    code, _, err = run_cli(*resume)
    assert code == 2
    assert "--schedule wsd would change the run" in err
    code, _, err = run_cli(*resume, "--steps", "20")
    assert code == 0
    assert "up to 1.0e-03: the wsd schedule of steps 10 to 20 ends at 1.0e-04" in err
    training = config(folder)["training"]
    assert (training["schedule"], training["schedule_start"], training["warmup_steps"]) == ("wsd", 10, 0)
