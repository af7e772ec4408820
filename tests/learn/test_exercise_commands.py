"""The commands of the exercises: what they print, a class and its summary, JSON, and each wrong use."""

import json

import pytest
from exercise_answers import ANSWERS

from learn.exercises.catalogue import EXERCISES
from learn.exercises.grade import grade
from learn.exercises.report import summary
from learn.exercises.start import starter


def test_list(run_cli):
    """Every exercise, a line each, in order."""
    code, out, err = run_cli("list")
    assert (code, err) == (0, "")
    assert [line.split()[1] for line in out.splitlines()] == list(EXERCISES)


def test_start_overwrites_nothing(run_cli, tmp_path):
    """The file is what `starter` makes; a second start leaves it alone and is one line of error."""
    code, out, _ = run_cli("start", "layer-norm", "--seed", 4)
    path = tmp_path / "layer_norm.py"
    assert (code, out) == (0, "")
    assert path.read_text(encoding="utf-8") == starter(EXERCISES["layer-norm"], 4)
    path.write_text("mine")
    code, _, err = run_cli("start", "layer-norm")
    assert code == 1
    assert err.startswith("error: layer_norm.py already exists")
    assert err.count("\n") == 1
    assert path.read_text() == "mine"
    assert run_cli("start", "relu", "--out", "mine.py")[0] == 0
    assert (tmp_path / "mine.py").exists()


def test_hints_are_told_one_by_one(run_cli, tmp_path):
    """A hint is asked for by its number, and asking writes no file."""
    for number, hint in enumerate(EXERCISES["layer-norm"].hints, 1):
        assert run_cli("start", "layer-norm", "--hint", number) == (0, f"{number} of 4: {hint}\n", "")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "code", "line"),
    [
        ("start flight", 2, "unknown exercise 'flight'; choose one of relu"),
        ("start layernorm", 2, "unknown exercise 'layernorm'; did you mean layer-norm?"),
        ("start crossentropy", 2, "did you mean cross-entropy?"),
        ("start heads", 2, "did you mean split-heads or merge-heads?"),
        ("start relu --seed -1", 2, "--seed must be from 0"),
        ("start relu --hint 0", 2, "--hint must be from 1 to 2 for relu, got 0"),
        ("start relu --hint 3", 2, "--hint must be from 1 to 2 for relu, got 3"),
        ("start relu --out no/relu.py", 1, "cannot be written (No such file or directory)"),
        ("grade missing.py --jobs 0", 2, "--jobs must be at least 1, got 0"),
        ("grade missing.py --seed 1 --seed-from ada", 2, "--seed and --seed-from both name a seed"),
        ("grade missing.py --json --csv", 2, "--json and --csv both print the result"),
        ("grade missing.py --time-limit 0", 2, "--time-limit must be above 0"),
        ("grade missing.py --time-limit nan", 2, "--time-limit must be above 0"),
        ("grade missing.py --memory-limit 1", 2, "--memory-limit must be from 256"),
        ("grade missing.py --seed -3", 2, "--seed must be from 0"),
        ("grade", 2, "Missing argument"),
    ],
)
def test_a_wrong_use_is_one_line(run_cli, tmp_path, arguments, code, line):
    """Exit code and message of each mistake at the command line; nothing is left behind."""
    found, out, err = run_cli(*arguments.split())
    assert (found, out) == (code, "")
    assert line in err
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_a_class(run_cli, write):
    """Several files: a block for each, a summary with the commonest hints; the same as JSON; exit code 1."""
    write("return dy * (y > 0)", "anna.py")
    write("return dy * (dy > 0)", "ben.py", seed=2)
    write("print('here')\nreturn dy * (dy > 0)", "cleo.py", seed=3)
    write("raise NotImplementedError('write this function')", "dan.py")
    names = [f"{name}.py" for name in ("anna", "ben", "cleo", "dan")]
    code, out, err = run_cli("grade", *names)
    assert (code, err) == (1, "")
    assert "anna.py: relu, seed 0: 1 of 1 right\n  dx  right  error" in out
    assert "ben.py: relu, seed 2: 0 of 1 right\n  dx  wrong  right shape; you let dy through" in out
    assert "dan.py: relu, seed 0: relu_backward is still blank\n" in out
    assert "1 of 4 files have everything right\n  relu: 1 of 4\n    2 x dx: right shape; you let dy" in out

    code, out, err = run_cli("grade", *names, "--json", "--seed", 9)
    assert (code, err) == (1, "")
    found = json.loads(out)
    assert [each["file"] for each in found["files"]] == names
    assert [each["full"] for each in found["files"]] == [True, False, False, False]
    assert {each["seed"] for each in found["files"]} == {9}
    assert found["files"][2]["printed"].split() == ["here", "here"]
    assert found["files"][0]["outputs"][0]["error"] == 0
    assert found["summary"]["relu"]["files"] == 4
    assert found["summary"]["relu"]["hints"][0]["files"] == 2


def test_a_class_is_told_causes(run_cli, write):
    """A cause counts once a file, without what follows from it and without the numbers of one student's instance."""
    attention, answer = EXERCISES["attention"], ANSWERS["attention"]
    dheads, softmax = "dheads = dmerged", "softmax_backward(dprobabilities, softmax_cache)"
    for seed, (old, new) in enumerate(
        [(dheads, "dmerged = np.tanh(dmerged)\ndheads = dmerged")] * 3 + [(softmax, "dprobabilities")] * 2
    ):
        write(answer.replace(old, new), f"{seed}.py", attention, seed)
    write("return undefined", "5.py", attention)
    write("\nreturn undefined", "6.py", attention)
    write("print('x' * 200_000)", "7.py", attention)
    write("return dy", "8.py", attention)
    names = [f"{number}.py" for number in range(9)]
    out = run_cli("grade", *names)[1]
    assert out.partition("0 of 9 files have everything right\n")[2].splitlines() == [
        "  attention: 0 of 9",
        "    3 x dquery_key_value.bias: wrong in a way that no known mistake explains; doutput.weight comes before it "
        "and is right: the fault lies between them",
        "    2 x dx: right shape; the softmax is skipped on the way back: bring the gradient of the probabilities to "
        "the scores with softmax_backward",
        "    2 x NameError: name 'undefined' is not defined",
        "    and 2 other causes",
    ]
    found = json.loads(run_cli("grade", *names, "--json")[1])
    assert found["summary"]["attention"]["others"] == 2
    causes = {each["name"]: each["cause"] for each in found["files"][0]["outputs"]}
    assert causes["dx"] == causes["doutput.bias"] == ""


def test_a_part_of_a_cause_is_not_another(write):
    """The bias, which one of two miscounted ways reaches, is no cause beside that of both."""
    attention, answer = EXERCISES["attention"], ANSWERS["attention"]
    file = write(answer.replace("/ np.sqrt(D)", "/ np.sqrt(D) * 2"), exercise=attention)
    (told,) = summary([grade(file)])["attention"]["hints"]
    assert "the path through query counts 2 times instead of once and the path through key" in told["hint"]


@pytest.mark.parametrize(
    ("old", "new", "cause"),
    [
        ("dy.sum(axis=(0, 1))", "dy", "dbias: wrong shape: not summed over the leading 2 axes; summed, it would be"),
        ("dy.sum(axis=(0, 1))", "dy.sum(axis=(0, 1)) / 7 * len(dy)", "dbias: right shape; it is off by a constant "
         "factor of a wrong size, or one written as a number; all else is right"),
        ("dx = ", "dx = np.nan * ", "dx: numbers that are not finite: a division by 0, a root or logarithm of a "
         "negative number, or inf - inf"),
        ("(dnormal - mean", "(np.tanh(dnormal) - mean", "dx: wrong in a way that no known mistake explains"),
        ("dx = ", "dx = np.ones((2, 3)) @ ", "ValueError: matmul: "),
    ],
)  # fmt: skip
def test_equal_causes_group(write, old, new, cause):
    """Students whose instances have other sizes and numbers, but who made the same mistake, are counted together."""
    exercise = EXERCISES["layer-norm"]
    answer = ANSWERS["layer-norm"].replace(old, new)
    grades = [grade(write(answer, f"{seed}.py", exercise, seed)) for seed in range(3)]
    (told,) = summary(grades)["layer-norm"]["hints"]
    assert told["files"] == 3
    assert told["hint"].startswith(cause)


def test_one_right_file(run_cli, write):
    """All right is exit code 0, and what the file printed goes to stderr."""
    write("print('dy has shape', dy.shape)\nreturn dy * (y > 0)")
    code, out, err = run_cli("grade", "relu.py")
    assert code == 0
    assert "1 of 1 right" in out
    assert err.startswith("it printed: dy has shape (2")


def test_what_a_file_prints_cannot_steer_the_terminal(write):
    """Control characters are taken out of what is shown."""
    assert grade(write("print('\\x1b[2Jdone')\nreturn dy * (y > 0)")).printed.startswith("?[2Jdone")


def test_a_files_name_cannot_steer_the_terminal(run_cli, write):
    """Nor can a name with control characters, in the judgement or in an error."""
    write("return dy * (y > 0)", "\x1b[2Jrelu.py")
    code, out, err = run_cli("grade", "\x1b[2Jrelu.py")
    assert (code, err) == (0, "")
    assert out.startswith("[2Jrelu.py: relu, seed 0: 1 of 1 right\n")
    assert run_cli("grade", "\x1b[2J")[1] == "[2J: cannot be read (no such file)\n"
