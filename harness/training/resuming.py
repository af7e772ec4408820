"""What a run goes on with: its checkpoint, and its settings, of which few may change."""

import os

from contract.errors import ConfigError, UserError
from contract.schema import require
from harness.training.checkpoint import Checkpoint, checkpoint_exists, checkpoint_files, load_checkpoint
from harness.training.run_folder import RunFolder
from harness.training.settings import ADDED_LATER, Machine, TrainingSettings

# Settings that --resume may change: how far the run goes and how it is evaluated; with more steps, the rates too, and
# with a schedule of its own for these steps, its warm-up.
CHANGEABLE = ("steps", "eval_interval", "eval_tokens", "patience", "sample_every")
CHANGEABLE_RATES = ("learning_rate", "min_learning_rate", "schedule")
# What a checkpoint must say for its training to go on.
RESUMABLE = {
    **dict.fromkeys(("backend", "device", "tokens_sha256"), str),
    **dict.fromkeys(("steps", "batch_size", "threads"), range(1, 2**63)),
    "evaluated": range(2**63),
}


def latest_checkpoint(run: RunFolder) -> Checkpoint:
    """The checkpoint to continue from. Raises UserError if it is damaged or something else has its name."""
    if run.holds_a_run() and not checkpoint_exists(run.resumable):
        raise UserError(
            f"{run.path} has no checkpoint yet to go on from; start the run again with --overwrite"
        )
    try:
        checkpoint = load_checkpoint(run.resumable, with_optimizer=True)
    except UserError as error:
        try:
            step = load_checkpoint(run.best, with_optimizer=True).step
        except UserError:
            raise error from None
        raise UserError(
            f"{error}. The best one, of step {step}, is whole: remove {run.latest} to go on from there"
        ) from None
    for place in (run.latest, run.best):
        if os.path.lexists(place) and checkpoint_files(place) is None:
            raise UserError(f"{place} is in the place of a checkpoint, but is none; move it away, then go on")
    return checkpoint


def resumed_machine(kept: dict, given: dict) -> Machine:
    """The run's machine with the fields given now; another backend is on the CPU and compiles nothing unless asked."""
    given = {name: value for name, value in given.items() if value is not None}
    run = {name: kept[name] for name in Machine._fields if name in kept}
    moved = given.get("backend", run["backend"]) != run["backend"]
    return Machine(**run | ({"device": "cpu", "compile": False} if moved else {}) | given)


def training_record(run: RunFolder, checkpoint: Checkpoint) -> dict:
    """A checkpoint's training record and model. Raises UserError if training cannot continue from them."""
    kept = checkpoint.training | checkpoint.config.to_dict()
    try:
        require(kept, RESUMABLE)
        if missing := TrainingSettings.__dataclass_fields__.keys() - kept.keys() - ADDED_LATER:
            raise ValueError(f"it has no {min(missing)}")
    except ValueError as error:
        raise UserError(
            f"{run.resumable} does not say what its training goes on with ({error}); start a new run with --from"
        ) from None
    return kept


def resumed_settings(
    run: RunFolder, checkpoint: Checkpoint, given: dict, overrides: dict
) -> TrainingSettings:
    """The settings of a checkpoint with those given again, or a ConfigError naming one that would change the run."""

    def require_same(name: str, value, found, kept, way: str = ""):
        if found != kept:
            raise ConfigError(
                f"--{name.replace('_', '-')} {value} would change the run in {run.path}, which has "
                f"{'none' if kept is None else kept}; omit it{way}, or start a new run with --from"
            )

    for name, value in overrides.items():
        require_same(name, value, value, getattr(checkpoint.config, name))
    earlier = TrainingSettings.from_dict(checkpoint.training)
    settings = TrainingSettings(**earlier.to_dict() | _following(earlier, given, checkpoint.step) | given)
    changeable = CHANGEABLE + (CHANGEABLE_RATES if settings.steps > earlier.steps else ())
    changeable += ("warmup_steps",) if settings.schedule_start != earlier.schedule_start else ()
    for name, value in given.items():
        if name not in changeable:
            way = ", or give more --steps beside it" if name in CHANGEABLE_RATES else ""
            require_same(name, value, getattr(settings, name), getattr(earlier, name), way)
    return settings


def _following(earlier: TrainingSettings, given: dict, step: int) -> dict:
    """What settings given on resume bring with them: other rates or another schedule have a minimum of their own."""
    if "schedule" in given and given.get("steps", 0) > earlier.steps:  # it covers the steps from here on
        return {"min_learning_rate": None, "warmup_steps": 0, "schedule_start": step}
    shape = ("learning_rate", "schedule")
    same = all(given.get(name, getattr(earlier, name)) == getattr(earlier, name) for name in shape)
    return {} if same else {"min_learning_rate": None}
