"""`train --find-rate`: which learning rate fits."""

from pathlib import Path
from tempfile import TemporaryDirectory

from commands.console import rate_progress, say, show
from commands.train import run_name, start
from contract.errors import ConfigError
from data.prepare import DEFAULT_TEXT
from harness.training.find_rate import (
    LOWEST,
    STEPS,
    Trial,
    best_trial,
    find_rate,
    plot_rates,
    proposed_rate,
)
from harness.training.metrics import check_plot

# Options that a training has, and a test of the rate has not.
WITHOUT_EFFECT = (
    *("steps", "epochs", "learning_rate", "schedule", "min_learning_rate", "warmup_steps", "overwrite"),
    *("eval_interval", "eval_tokens", "patience", "sample_every", "tensorboard"),
)


def find(options: dict, given: dict):
    """Test rates on the text and the model of the options, draw the losses and print the proposal.

    given: the options of the command line; options: these and all defaults
    """
    for name in WITHOUT_EFFECT:
        if name in given:
            raise ConfigError(f"--{name.replace('_', '-')} has no effect with --find-rate; omit it")
    text = (options["text"] or [DEFAULT_TEXT])[0]
    out = options["out"] or Path("runs") / f"{run_name(text)}-rates"
    if out.exists() and not out.is_dir():
        raise ConfigError(f"{out} is a file, expected a folder; choose another --out")
    image = out / "rates.png"
    check_plot(image)
    trials = _trials(options, given)
    out.mkdir(parents=True, exist_ok=True)
    plot_rates(trials, image)
    say(
        f"plot {image}; the loss was lowest at a rate of {best_trial(trials).rate:.1e}, and a third of it fits:"
    )
    show(f"--learning-rate {proposed_rate(trials):g}")


def _trials(options: dict, given: dict) -> list[Trial]:
    with TemporaryDirectory(ignore_cleanup_errors=True) as folder:  # Windows removes no file that is open
        trainer = start(options | {"out": Path(folder) / "run"}, given)
        say(f"trying learning rates from {LOWEST:g} up, for at most {STEPS} steps")
        try:
            with rate_progress(STEPS) as report:
                return find_rate(trainer, report)
        finally:
            trainer.run.unlock()
