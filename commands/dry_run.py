"""`train --dry-run`: what a training would do, and the tokens that it would learn from."""

from pathlib import Path
from tempfile import TemporaryDirectory

from commands.console import say, show
from commands.train import start
from commands.train_report import plan
from data.batches import targets_of
from data.tokenizers import token_bytes

SHOWN = 200  # tokens


def dry_run(options: dict, given: dict):
    """Prepare a training, say what it would do and print its first tokens; nothing is kept.

    given: the options of the command line; options: these and all defaults
    """
    with TemporaryDirectory(ignore_cleanup_errors=True) as folder:  # Windows removes no file that is open
        trainer = start(options | {"out": Path(folder) / "run"}, given)
        try:
            for topic, line in plan(trainer):
                if topic != "run":
                    say(f"{topic:<11} {line}")
            tokens = trainer.windows.tokens
            texts, count = token_bytes(trainer.tokenizer), min(SHOWN, len(tokens))
            say(f"dry run: nothing was trained; the first {count} tokens, + before those that are learnt")
            for id, target in zip(tokens[:count], targets_of(tokens, 0, count), strict=True):
                show(f"{'+' if id == target else ' '} {id:>7}  {texts[id].decode(errors='replace')!r}")
        finally:
            trainer.run.unlock()
