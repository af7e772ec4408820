"""The command line: `python cli.py --help` lists the commands; `commands/` has their code.

Results go to stdout, progress and messages to stderr. A user's mistake is one line and exit code 2 (usage) or
1 (failure). Each command imports what it needs, so that start-up stays fast.
"""

import sys
from pathlib import Path

import typer
from typer.main import get_command

from commands.bench import bench
from commands.corpus import judge, prepare, train_tokenizer, validation, write_corpus
from commands.evaluate import evaluate
from commands.exchange import export, import_model
from commands.exercise import grade, list_exercises, start
from commands.generate import OptionalChatText, generate
from commands.golden import check, list_packs, make
from commands.golden import export as export_golden
from commands.interruption import INTERRUPTED, acknowledge, handle_signals, leave_if_interrupted
from commands.model import info
from commands.parity import parity
from commands.ranks import end_rank
from commands.streams import cap_width, release_stdout, secure_streams
from commands.study import study
from commands.train import train
from contract.errors import ConfigError, UserError, reason_of, refused_memory, visible
from harness.training.ranks import is_leader, rank_count

app = typer.Typer(
    help="A GPT written twice: every gradient by hand in NumPy, and its twin in PyTorch.",
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
for command in (prepare, train, generate, evaluate, info, import_model, export, parity, check, study, bench):
    name = "import" if command is import_model else None
    app.command(name, cls=OptionalChatText if command is generate else None)(command)
app.command("import-gpt2", hidden=True)(import_model)  # its name before it read other families

GROUPS = {
    "tokenizer": ("Train tokenizers.", {"train": train_tokenizer}),
    "corpus": (
        "The default corpus: write it, judge sentences by its grammar.",
        {"write": write_corpus, "judge": judge, "validation": validation},
    ),
    "golden": (
        "Reference tensors to check a port of the model against.",
        {"list": list_packs, "export": export_golden, "make": make},
    ),
    "exercise": (
        "Write backward passes yourself and have them graded.",
        {"list": list_exercises, "start": start, "grade": grade},
    ),
}
for group, (summary, commands) in GROUPS.items():
    group_app = typer.Typer(help=summary, no_args_is_help=True)
    for name, command in commands.items():
        group_app.command(name)(command)
    app.add_typer(group_app, name=group)


def main() -> int:
    """Run the command line. returns: the exit code"""
    cap_width()
    try:
        # Calling the app itself would turn an interrupt or a broken pipe into a silent exit code.
        with get_command(app).make_context(Path(sys.argv[0]).name, sys.argv[1:]) as context:
            if rank_count() > 1 and sys.argv[1] not in ("train", "bench"):
                raise ConfigError(f"{sys.argv[1]} runs in one process; leave torchrun out")
            context.command.invoke(context)
        return 0
    except UserError as error:
        problem, code = str(error), error.exit_code
    except typer.Exit as exit:
        return exit.exit_code
    except SystemExit as exit:
        if isinstance(exit.__context__, BrokenPipeError):  # the reader of a help page has closed the pipe
            return 0
        raise
    except KeyboardInterrupt:
        acknowledge()
        return INTERRUPTED
    except MemoryError as error:  # NumPy's message says how much was requested
        problem, code = f"not enough memory{f' ({error})' if str(error) else ''}", 1
    except RuntimeError as error:
        if (problem := refused_memory(error)) is None:
            raise
        code = 1
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        problem, code = f"{where}{reason_of(error)}", 1
    except Exception as error:
        if not hasattr(error, "format_message"):  # every error of the option parser has it
            raise
        # A group without a command gives an empty message.
        message = error.format_message().rstrip(".") or "a command is missing"
        problem, code = f"{message}; see --help", error.exit_code
    if is_leader():
        print(f"error: {visible(' '.join(problem.split()))}", file=sys.stderr)
    return code


def run():
    """Run the command line as this process, with robust streams and signal handlers, and exit."""
    secure_streams()
    handle_signals()
    try:
        code = main()
        release_stdout()
    except KeyboardInterrupt:
        acknowledge()
        code = INTERRUPTED
    leave_if_interrupted(code)
    if rank_count() > 1:
        end_rank(code)
    sys.exit(code)


if __name__ == "__main__":
    run()
