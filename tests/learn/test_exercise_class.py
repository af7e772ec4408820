"""A class: folders in folders, files that are none, points, the table, CSV and JSON, seeds of names, at once."""

import csv
import io
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from exercise_answers import ANSWERS

from learn.exercises.catalogue import EXERCISES
from learn.exercises.grade import grade, identify
from learn.exercises.handed_in import grade_all, seed_of, submissions
from learn.exercises.report import as_csv, as_json, lines

ROOT = Path(__file__).parents[2]


@pytest.fixture
def handed_in(write, tmp_path):
    """A class of six, one of whom is right."""
    norm, answer = EXERCISES["layer-norm"], ANSWERS["layer-norm"]
    for name in ("anna/week2", "ben", "cleo", "dan/notes", "eve", "finn", ".git"):
        (tmp_path / "class" / name).mkdir(parents=True)
    write("return dy * (y > 0)", "class/anna/relu.py")
    write(answer, "class/anna/week2/layer_norm.py", norm)
    write(answer.replace(" - mean", ""), "class/ben/layer_norm.py", norm, seed=4)
    write("raise ValueError", "class/cleo/relu.py")
    (tmp_path / "class/dan/notes/.hidden").touch()
    (tmp_path / "class/dan/notes/relu.txt").write_text('EXERCISE = "relu"\nSEED = 0\n')
    (tmp_path / "class/eve/relu.py").write_text("")
    (tmp_path / "class/finn/scrape.py").write_text("import antigravity\n")
    (tmp_path / "class/.git/hook.py").write_text("")
    return tmp_path / "class"


TABLE = """\
  student  exercise    points
  anna     relu        1 of 1
  anna     layer-norm  3 of 3
  ben      layer-norm  2 of 3
  cleo     relu        0 of 1
  dan      -           not gradable: holds no .py file, but relu.txt
  eve      -           not gradable: the file is empty
  finn     -           not gradable: no line EXERCISE = ... as "exercise start" writes it; put it back
  all                  6 of 8
"""


def test_a_class_in_folders(run_cli, handed_in):
    """Each file, and each folder without one, is a line of the table and stops no other; the exit code is 3."""
    code, out, err = run_cli("grade", handed_in, "--jobs", 1)
    assert (code, err) == (3, "")
    assert f"\n\n{TABLE}\n2 of 7 files have everything right\n" in out
    assert "\n  not gradable: 3\n" in out


def test_a_class_as_csv_and_json(handed_in):
    """Student, exercise and points; the same numbers in both."""
    grades = list(grade_all(submissions([handed_in]), jobs=1))
    rows = list(csv.DictReader(io.StringIO(as_csv(grades))))
    assert [*rows[0]][:4] == ["student", "exercise", "points", "of"]
    assert [row["student"] for row in rows] == ["anna", "anna", "ben", "cleo", "dan", "eve", "finn"]
    for row, file in zip(rows, json.loads(as_json(grades))["files"], strict=True):
        points = row["student"], row["exercise"] or None, int(row["points"]), int(row["of"])
        assert points == tuple(file[name] for name in ("student", "exercise", "points", "of"))
        assert file["gradable"] == bool(file["of"])
    assert rows[2]["problem"].startswith("dx: right shape; your error is constant along the last axis")


def test_what_every_student_owes(run_cli, handed_in):
    """Who has no file of an exercise that is due has none of its points, and the points of a class add up."""
    due = "--exercise", "relu", "--exercise", "layer_norm"
    code, out, _ = run_cli("grade", handed_in, "--jobs", 1, "--csv", *due)
    rows = list(csv.DictReader(io.StringIO(out)))
    assert (code, sum(int(row["points"]) for row in rows), sum(int(row["of"]) for row in rows)) == (
        3,
        6,
        6 * 4,
    )
    missing = [(row["student"], row["exercise"]) for row in rows if row["problem"] == "not handed in"]
    assert missing == [
        *((name, "relu") for name in ("ben", "dan", "eve", "finn")),
        *((name, "layer-norm") for name in ("cleo", "dan", "eve", "finn")),
    ]
    assert run_cli("grade", handed_in / "anna" / "relu.py", "--exercise", "layer-norm", "--jobs", 1)[0] == 1
    assert "did you mean relu" in run_cli("grade", handed_in, "--exercise", "rellu")[2]


def test_the_exit_codes(run_cli, handed_in):
    """0 if all is right, 1 if something is not, 3 if something cannot be graded, whatever else is wrong."""
    right, wrong = handed_in / "anna" / "relu.py", handed_in / "cleo"
    alone = "--jobs", 1
    assert run_cli("grade", right)[0] == 0
    assert run_cli("grade", right, wrong, *alone)[0] == 1
    assert run_cli("grade", wrong, "nobody.py", *alone)[0] == 3
    assert run_cli("grade", handed_in / "dan") == (
        3,
        f"{handed_in / 'dan' / 'notes'}: holds no .py file, but relu.txt\n",
        "",
    )


def test_a_missing_file_stops_no_other(run_cli, write):
    """A name that is no file is a line, and the others are graded."""
    write("return dy * (y > 0)")
    code, out, _ = run_cli("grade", "nobody.py", "relu.py", "--csv", "--jobs", 1)
    assert code == 3
    assert [line.split(",")[1:4] for line in out.splitlines()[1:]] == [["", "0", "0"], ["relu", "1", "1"]]


def test_whose_a_file_is(tmp_path):
    """The first folder below the one given; else the file's name, or its folder's if it is the exercise's own."""
    for name in ("class/ada/a/b/relu.py", "class/ben.py", "cleo/layer_norm.py"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    found = submissions([tmp_path / "class", tmp_path / "cleo", tmp_path / "cleo" / "layer_norm.py"])
    assert [each.student for each in found] == ["ada", "ben", "cleo", "cleo"]


def test_several_at_once_give_the_same(handed_in):
    """Processes beside each other, in the order of the files."""
    found = submissions([handed_in / "cleo", handed_in / "anna" / "relu.py"])
    alone, beside = (list(grade_all(found, jobs=jobs)) for jobs in (1, 2))
    assert alone == beside


# Points


def test_points_add_up(write):
    """Each output is a point, each argument or given pass that was changed takes one, and a crash has none of them."""
    norm, answer = EXERCISES["layer-norm"], ANSWERS["layer-norm"]

    def points(old, new, forward=("", "")):
        path = write(answer.replace(old, new), exercise=norm)
        path.write_text(path.read_text(encoding="utf-8").replace(*forward), encoding="utf-8")
        result = grade(path)
        less = "what was changed takes a point each" in next(lines(result))
        assert less == (result.points < sum(mark.right for mark in result.marks))
        return result.points, result.of, result.full

    assert points("", "") == (3, 3, True)
    assert points("dy.sum(axis=(0, 1))", "dy") == (2, 3, False)
    assert points("dx = ", "normal.fill(1.0)\ndx = ")[1:] == (3, False)
    assert points("return dx,", "dy *= 2\nreturn dx,")[0] <= 2
    assert points("return", "return undefined,") == (0, 3, False)
    assert points("", "", ("y = normal * weight", "y = 2 * normal * weight")) == (2, 3, False)


# Seeds


def test_the_seed_of_a_name(run_cli, write, tmp_path):
    """It is the same on every machine, `start` writes it, and `grade` does not believe the file's."""
    assert seed_of("ada") == 4260250381
    assert run_cli("start", "relu", "--seed-from", "ada", "--out", "ada.py")[0] == 0
    assert identify(tmp_path / "ada.py")[1] == seed_of("ada")
    (tmp_path / "class" / "ada").mkdir(parents=True)
    write("return dy * (y > 0)", "class/ada/relu.py", seed=5)
    for told, name in (("ada", "ada"), ("spring {student}", "spring ada")):
        out = run_cli("grade", "class", "--seed-from", told)[1]
        assert f"relu, seed {seed_of(name)}: 1 of 1 right" in out


def test_a_file_without_a_seed_gets_one(write):
    """Where the seed is given, the file's own line is not needed."""
    path = write("return dy * (y > 0)")
    path.write_text(path.read_text(encoding="utf-8").replace("SEED = 0", ""), encoding="utf-8")
    assert "no line SEED" in grade(path).problem
    assert grade(path, seed=3).full


def test_a_name_is_no_formula(run_cli, tmp_path):
    """A spreadsheet shows what a student called a folder, and does not compute it."""
    (tmp_path / "class" / "=1+1").mkdir(parents=True)
    (tmp_path / "class" / "=1+1" / "relu.py").touch()
    assert run_cli("grade", "class", "--csv")[1].splitlines()[1].startswith("'=1+1,")


# The page


def blocks(kind):
    """The blocks of docs/class.md of one language."""
    page = (ROOT / "docs" / "class.md").read_text(encoding="utf-8")
    return re.findall(rf"^```{kind}\n(.*?)^```", page, re.MULTILINE | re.DOTALL)


def test_gradescope(handed_in, tmp_path):
    """The page's run_autograder, in folders as Gradescope lays them out, writes fields that its specification has."""
    (tmp_path / "twin").symlink_to(ROOT)
    (handed_in / ".git" / "hook.py").unlink()
    handed_in.rename(tmp_path / "submission")
    (tmp_path / "submission_metadata.json").write_text(json.dumps({"users": [{"id": 1234}]}))
    script = blocks("py")[0]
    subprocess.run([sys.executable, "-c", script], env=os.environ | {"AUTOGRADER": str(tmp_path)}, check=True)
    tests = json.loads((tmp_path / "results" / "results.json").read_text())["tests"]
    assert all(set(test) == {"name", "score", "max_score", "output"} for test in tests)
    assert [(test["name"], test["score"], test["max_score"]) for test in tests[:3]] == [
        ("relu", 1, 1),
        ("layer-norm", 3, 3),
        ("layer-norm", 2, 3),
    ]
    assert "the path through the mean is missing" in tests[2]["output"]


def test_the_command_of_github_classroom(run_cli, write):
    """The workflow's command ends with 0 for a right answer and 1 for a wrong one."""
    (workflow,) = blocks("yaml")
    (command,) = re.findall("cli.py exercise (grade .*)", workflow)
    arguments = shlex.split(command.replace("$GITHUB_REPOSITORY", "twin/ada"))
    norm = EXERCISES["layer-norm"]
    write(ANSWERS["layer-norm"], "layer_norm.py", norm)
    assert run_cli(*arguments)[0] == 0
    write(ANSWERS["layer-norm"].replace(" - mean", ""), "layer_norm.py", norm)
    assert run_cli(*arguments)[0] == 1
    assert f"max-score: {norm.points}\n" in workflow


def test_nbgrader_cell(write, monkeypatch, tmp_path):
    """The page's test cell prints each output, and its last line is the points."""
    write(ANSWERS["layer-norm"].replace(" - mean", ""), "layer_norm.py", EXERCISES["layer-norm"])
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TWIN_GPT", f"{sys.executable} {ROOT / 'cli.py'}")
    *lines, last = blocks("py")[1].strip().splitlines()
    names = {}
    exec("\n".join(lines), names)
    assert eval(last, names) == 2
