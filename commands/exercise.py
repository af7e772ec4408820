"""Learning by doing: `exercise list`, `exercise start` and `exercise grade`."""

from pathlib import Path
from typing import Annotated

import typer

from commands.options import JsonOption, option
from contract.errors import ConfigError


def list_exercises():
    """List the exercises, the easiest first."""
    from commands.console import write
    from exercises.catalogue import COURSE

    width = max(len(exercise.name) for exercise in COURSE)
    for number, exercise in enumerate(COURSE, 1):
        write(f"{number:>2}  {exercise.name:<{width}}  {exercise.title}\n")


def start(
    name: Annotated[str, typer.Argument(help="Exercise, as `exercise list` names it.")],
    out: Annotated[Path | None, option("File to write, never over another. [default: NAME.py]")] = None,
    seed: Annotated[int, option("Of the instance: shapes and numbers. A student each.")] = 0,
    hint: Annotated[
        int | None, option("Write nothing, and tell this hint: 1 is the gentlest. [default: none]")
    ] = None,
):
    """Write an exercise's file: equation, shapes, the forward pass given, the backward pass blank. Or give a hint."""
    from commands.console import say, write
    from exercises.catalogue import find_exercise
    from exercises.start import default_path, write_starter

    exercise = find_exercise(name)
    if hint is not None:
        write(f"{exercise.hint(hint)}\n")
        return
    path = out or default_path(exercise)
    write_starter(exercise, seed, path)
    say(f"{path}: {exercise.title}. When it is written: python cli.py exercise grade {path}")
    say(f"Stuck? python cli.py exercise start {exercise.name} --hint 1")


def grade(
    files: Annotated[
        list[Path], typer.Argument(help="Files that `exercise start` wrote, filled in, or folders of them.")
    ],
    seed: Annotated[int | None, option("Instance to grade on. [default: the file's own]")] = None,
    time_limit: Annotated[float, option("Seconds that a file may take.")] = 10.0,
    memory_limit: Annotated[int, option("MB that a file may use, where the system bounds it.")] = 1024,
    json: JsonOption = False,
):
    """Judge each output against the reference and finite differences, with a hint where it is wrong.

    Each file runs in a process of its own, under limits but with your rights: this is no sandbox.
    Several files end with a summary. The exit code is 1 unless everything is right.
    """
    from commands.console import say, write
    from exercises.grade import Limits, files_of, identify
    from exercises.grade import grade as grade_file
    from exercises.report import as_json, lines, summary_lines

    if seed is not None and not 0 <= seed < 2**63:
        raise ConfigError(f"--seed must be from 0 to 2^63 - 1, got {seed}")
    limits = Limits(time_limit, memory_limit).check()
    files = [file for path in files for file in files_of(path)]
    for path in files:  # a name that is no file is told before a class is graded for minutes
        identify(path)
    grades = []
    for path in files:
        grades.append(grade_file(path, seed=seed, limits=limits))
        if not json:
            for line in lines(grades[-1]):
                write(f"{line}\n")
        if grades[-1].printed and len(files) == 1 and not json:
            say(f"it printed: {grades[-1].printed}")
    if json:
        write(as_json(grades) + "\n")
    elif len(grades) > 1:
        write("\n")
        for line in summary_lines(grades):
            write(f"{line}\n")
    if not all(each.full for each in grades):
        raise typer.Exit(1)
