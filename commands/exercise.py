"""Backward passes to write yourself: `exercise list`, `exercise start` and `exercise grade`."""

from pathlib import Path
from typing import Annotated

import typer

from commands.options import JsonOption, check_seed, option
from contract.errors import command_line


def list_exercises():
    """List the exercises, easiest first."""
    from commands.console import show
    from learn.exercises.catalogue import COURSE

    width = max(len(exercise.name) for exercise in COURSE)
    for number, exercise in enumerate(COURSE, 1):
        show(f"{number:>2}  {exercise.name:<{width}}  {exercise.title}")


def start(
    name: Annotated[str, typer.Argument(help="Name of the exercise, from `exercise list`.")],
    out: Annotated[
        Path | None, option("File to write; an existing one is never overwritten. [default: NAME.py]")
    ] = None,
    seed: Annotated[int, option("Seed of the shapes and numbers; give each student another.")] = 0,
    hint: Annotated[
        int | None, option("Print this hint and write nothing; 1 is the gentlest. [default: none]")
    ] = None,
):
    """Write an exercise file: equation, shapes, forward pass; the backward pass is blank. Or print a hint."""
    from commands.console import say, show
    from learn.exercises.catalogue import find_exercise
    from learn.exercises.start import default_path, write_starter

    exercise = find_exercise(name)
    if hint is not None:
        show(exercise.hint(hint))
        return
    path = out or default_path(exercise)
    write_starter(exercise, seed, path)
    say(f"{path}: {exercise.title}. To grade it: {command_line('exercise', 'grade', path)}")
    say(f"Stuck? {command_line('exercise', 'start', exercise.name, '--hint', 1)}")


def grade(
    files: Annotated[
        list[Path], typer.Argument(help="Filled-in files of `exercise start`, or folders of them.")
    ],
    seed: Annotated[int | None, option("Seed to grade with. [default: the file's own]")] = None,
    time_limit: Annotated[float, option("Time limit per file, in seconds.")] = 10.0,
    memory_limit: Annotated[int, option("Memory limit per file, in MB, if the system supports one.")] = 1024,
    json: JsonOption = False,
):
    """Compare each output with the reference and finite differences, with a hint if it is wrong.

    Each file runs in its own process, under limits but with your permissions: this is not a sandbox.
    Several files end with a summary. The exit code is 1 unless everything is right.
    """
    from commands.console import say, show
    from learn.exercises.grade import files_of, identify
    from learn.exercises.grade import grade as grade_file
    from learn.exercises.process import Limits
    from learn.exercises.report import as_json, lines, summary_lines

    check_seed(seed)
    limits = Limits(time_limit, memory_limit).check()
    files = [file for path in files for file in files_of(path)]
    for path in files:  # report a wrong name before a class is graded for minutes
        identify(path)
    grades = []
    for path in files:
        grades.append(grade_file(path, seed=seed, limits=limits))
        for line in () if json else lines(grades[-1]):
            show(line)
    if json:
        show(as_json(grades))
    elif len(grades) > 1:
        for line in ("", *summary_lines(grades)):
            show(line)
    elif grades[0].printed:
        say(f"it printed: {grades[0].printed}")
    if not all(each.full for each in grades):
        raise typer.Exit(1)
