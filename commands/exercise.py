"""Backward passes to write yourself: `exercise list`, `exercise start` and `exercise grade`."""

from pathlib import Path
from typing import Annotated

import typer

from commands.options import JsonOption, check_seed, option
from contract.errors import ConfigError, command_line


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
    seed_from: Annotated[str | None, option("Take the seed of this name, such as a student's.")] = None,
    hint: Annotated[
        int | None, option("Print this hint and write nothing; 1 is the gentlest. [default: none]")
    ] = None,
):
    """Write an exercise file: equation, shapes, forward pass; the backward pass is blank. Or print a hint."""
    from commands.console import say, show
    from learn.exercises.catalogue import find_exercise
    from learn.exercises.handed_in import seed_of
    from learn.exercises.start import default_path, write_starter

    exercise = find_exercise(name)
    seed = seed if seed_from is None else seed_of(seed_from)
    if hint is not None:
        show(exercise.hint(hint))
        return
    path = out or default_path(exercise)
    write_starter(exercise, seed, path)
    say(f"{path}: {exercise.title}. To grade it: {command_line('exercise', 'grade', path)}")
    say(f"Stuck? {command_line('exercise', 'start', exercise.name, '--hint', 1)}")


def grade(
    files: Annotated[
        list[Path], typer.Argument(help="Filled-in files of `exercise start`, or folders of folders.")
    ],
    seed: Annotated[int | None, option("Seed to grade with. [default: the file's own]")] = None,
    seed_from: Annotated[
        str | None,
        option("Grade with this name's seed, not the file's own; {student} in it is each student's name."),
    ] = None,
    exercise: Annotated[
        list[str],
        option("Exercise that every student owes, 0 points if it is missing; may be repeated."),
    ] = [],  # noqa: B006  Typer copies it
    time_limit: Annotated[float, option("Time limit per file, in seconds.")] = 10.0,
    memory_limit: Annotated[int, option("Memory limit per file, in MB, if the system supports one.")] = 1024,
    jobs: Annotated[int | None, option("Files graded at once. [default: one per CPU]")] = None,
    json: JsonOption = False,
    csv: Annotated[bool, option("Print a CSV line per file: student, exercise, points.", "--csv")] = False,
):
    """Compare each output with the reference and finite differences, with a hint if it is wrong.

    Each file runs in its own process, under limits but with your permissions: this is not a sandbox.
    Several files end with a table and a summary. The exit code is 0 if everything is right, 1 if something is not,
    3 if a file is missing, empty or no exercise.
    """
    from commands.console import say, show
    from learn.exercises import report
    from learn.exercises.catalogue import find_exercise
    from learn.exercises.handed_in import grade_all, not_handed_in, submissions
    from learn.exercises.process import Limits

    check_seed(seed)
    limits = Limits(time_limit, memory_limit).check()
    if jobs is not None and jobs < 1:
        raise ConfigError(f"--jobs must be at least 1, got {jobs}")
    if seed is not None and seed_from is not None:
        raise ConfigError("--seed and --seed-from both name a seed; give one of them")
    if json and csv:
        raise ConfigError("--json and --csv both print the result; give one of them")
    owed = [find_exercise(name) for name in exercise]
    grades = []
    for each in grade_all(submissions(files), jobs=jobs, seed=seed, seed_from=seed_from, limits=limits):
        grades.append(each)
        for line in () if json or csv else report.lines(each):
            show(line)
    grades += not_handed_in(grades, owed)
    if json or csv:
        show(report.as_json(grades) if json else report.as_csv(grades))
    elif len(grades) > 1:
        for line in ("", *report.table_lines(grades), "", *report.summary_lines(grades)):
            show(line)
    elif grades[0].printed:
        say(f"it printed: {grades[0].printed}")
    if not all(each.full for each in grades):
        raise typer.Exit(1 if all(each.gradable for each in grades) else 3)
