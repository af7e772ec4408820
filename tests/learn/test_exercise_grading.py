"""Grading in a process of its own: full marks, hostile files, files that an earlier version started."""

import importlib
import json
import os
import pkgutil
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from exercise_answers import ANSWERS, filled_in

import numpy_llm
from contract.errors import UserError
from learn.exercises.catalogue import COURSE, EXERCISES
from learn.exercises.grade import grade
from learn.exercises.process import Limits
from learn.exercises.refusals import COMPOSED
from learn.exercises.report import lines
from operations.catalogue import OPERATIONS

ROOT = Path(__file__).parents[2]
RELU = EXERCISES["relu"]
EARLIER = sorted(
    Path(__file__).with_name("earlier_exercises").glob("*.py")
)  # as the first version started them
# Where the pair that an exercise asks for stands in the project, or is put together.
PAIRS = {
    exercise.name: f"{operation.forward.__module__.rpartition('.')[2]}.{operation.name}"
    for exercise in COURSE
    for operation in exercise.operations
    if f"{operation.name}_backward" in exercise.withheld
} | {"softmax": "attention.softmax"}  # fmt: skip
PUT_TOGETHER = (
    "residual", "split-heads", "merge-heads", "scores", "attention", "tied-output", "block", "attention-in-blocks",
    "dropout", "rotary", "qk-norm", "swiglu", "grouped-queries", "modern-block",
)  # fmt: skip
STEPS = ("adam", "gradient-clipping", "accumulation", "key-value-cache")


EMPTY_REPLY = {"problem": "", "memory_bounded": True, "trials": 0, "problems": {}, "changed": []}


def forged(reply):
    """An answer that writes the runner's reply itself and leaves."""
    return (
        f"import os, pathlib\nnp.savez('reply.npz')\npathlib.Path('reply.json').write_text({json.dumps(reply)!r})\n"
        "os._exit(0)"
    )


# The answer of relu_backward, or what stands above it, and the one line that it must get.
HOSTILE = {
    "blank": ("raise NotImplementedError('write this function')", "relu_backward is still blank"),
    "hangs": ("while True:\n    pass", "took longer than 1 s"),
    "starts another program": ("import subprocess\nsubprocess.run(['sleep', '9999'])", "calls subprocess.Popen"),
    "hangs in a thread": (
        "import threading, time\nthreading.Thread(target=time.sleep, args=(9999,)).start()\nreturn dy * (y > 0)",
        "",
    ),
    "ignores signals and hangs": (
        "import signal\nfor each in (signal.SIGTERM, signal.SIGINT):\n    signal.signal(each, signal.SIG_IGN)\n"
        "while True:\n    try:\n        import time; time.sleep(9999)\n    except BaseException:\n        pass",
        "took longer than 1 s",
    ),
    "floods": (
        "while True:\n    try:\n        print('dx' * 500)\n    except OSError:\n        pass",
        "prints more than 100 kB",
    ),
    "floods and returns": ("print('dx' * 100_000)\nreturn dy", "prints more than 100 kB"),
    "raises": ("return dy * undefined", "line 39: NameError: name 'undefined' is not defined"),
    "raises at length": ("raise ValueError('so\\n\\x1b[31m' + 'long ' * 10**6)", "ValueError: so [31mlong long"),
    "raises what cannot be told": (
        "class Silent(Exception):\n    def __str__(self):\n        raise ValueError\nraise Silent",
        "Silent, whose message cannot be read",
    ),
    "exits": ("import sys\nsys.exit(0)", "ends the program itself"),
    "exits at once": ("import os\nos._exit(0)", "gives no answer: take out exit"),
    "crashes": ("import ctypes\nctypes.string_at(0)", "crashed Python itself (SIGSEGV)"),
    "kills": ("import os\nos.kill(os.getpid(), 9)", "calls os.kill; an exercise has no use for another process"),
    "forks": ("import os\nos.fork()\nreturn dy * (y > 0)", "calls os.fork; an exercise"),
    "runs a command": ("import os\nos.system('sleep 9999')", "calls os.system"),
    "recurses": ("return relu_backward(dy, cache)", "calls itself without end"),
    "asks": ("return float(input('dx? '))", "waits for input"),
    "returns nothing": ("dx = dy * (y > 0)", "returns None where 1 array (dx) are due"),
    "returns text": ("return 'dy'", "a str came, which is no array of numbers"),
    "returns ragged": ("return [[1, 2], [3]]", "ValueError: setting an array element with a sequence"),
    "returns functions": ("return np.array([relu_forward])", "no array of numbers"),
    "returns complex numbers": ("return dy * 1j", "complex numbers came"),
    "returns a dict": ("return {'dx': dy}", "a dict of 1 came, which is no array of numbers"),
    "returns several": ("return dy, dy", "returns a tuple of 2 where 1 array (dx) are due"),
    "returns not a number": ("return np.log(-np.abs(dy))", "numbers are not finite, the first nan at [0, 0, 0]"),
    "returns the infinite": ("return np.full_like(dy, np.inf)", "not finite, the first inf"),
    "returns nan the second time": (
        "global np\nseen = getattr(np, 'seen', 0)\nnp.seen = 1\nreturn dy * (y > 0) + (np.nan if seen else 0)",
        "numbers are not finite",
    ),
    "returns the huge": ("return np.full_like(dy, 1e308)", "the largest error is at"),
    "returns a scalar": ("return 1.0", "shape (), wanted (2, "),
    "returns too much": ("return np.zeros(2**21)", "far too large"),
    "changes dy": ("dy *= y > 0\nreturn dy", "dy changed in place"),
    "calls the answer": (
        "from numpy_llm.feed_forward import relu_backward as answer\nreturn answer(dy, cache)",
        "calls the project's own relu_backward, which is the answer",
    ),
    "takes the answer from a table": (
        "from numpy_llm.feed_forward import ACTIVATIONS\nreturn ACTIVATIONS['relu'][1](dy, cache)",
        "calls the project's own relu_backward, which is the answer",
    ),
    "imports the answer": ("from learn.exercises.catalogue import COURSE", "No module named 'learn"),
    "replaces json": ("import json\njson.dumps = lambda *a: '[nonsense'\nreturn dy * (y > 0)", ""),
    "replaces NumPy": ("np.asarray = np.savez = None\nreturn dy * (y > 0)", "gives no answer: take out exit"),
    "replaces a maximum": ("np.maximum = np.add\nreturn dy * (y > 0)", "the forward pass was given"),
    "replaces what Python is made of": (
        "import builtins\nbuiltins.isinstance = builtins.len = builtins.open = None\nreturn dy * (y > 0)",
        "gives no answer",
    ),
    "closes what it prints to": ("import sys\nsys.stdout.close()\nsys.stderr = None\nreturn dy * (y > 0)", ""),
    "replies with a pipe": ("import os\nos.mkfifo('reply.json')\nos._exit(0)", "gives no answer"),
    "replies without end": (
        "import os\nos.symlink('/dev/zero', 'reply.json')\nnp.savez('reply.npz')\nos._exit(0)",
        "gives no answer",
    ),
    "replies with a bomb": (
        "import os, zipfile\nwith zipfile.ZipFile('reply.npz', 'w', zipfile.ZIP_DEFLATED) as archive:\n"
        "    with archive.open('0/dx.npy', 'w') as member:\n"
        "        for _ in range(300):\n            member.write(bytes(1 << 20))\n"
        "open('reply.json', 'w').write('{}')\nos._exit(0)",
        "gives no answer",
    ),
    "imports autograd": ("import torch\nreturn dy", "imports torch, which differentiates by itself (autograd)"),
    "imports autograd otherwise": (
        "import importlib\nreturn importlib.import_module('jax.numpy')", "imports jax, which differentiates by itself",
    ),
    "tries autograd": (
        "try:\n    from autograd import grad\nexcept ImportError:\n    pass", "imports autograd, which differentiates",
    ),
    "reloads the answer": (
        "import importlib\nfrom numpy_llm import feed_forward\nimportlib.reload(feed_forward)\n"
        "return feed_forward.relu_backward(dy, cache)",
        "loads the project's own code anew (importlib.reload?), which holds the answer",
    ),
    "imports the answer anew": (
        "import sys\ndel sys.modules['numpy_llm.feed_forward']\n"
        "from numpy_llm.feed_forward import relu_backward as answer\nreturn answer(dy, cache)",
        "loads the project's own code anew",
    ),
    "takes the answers of the tests": ("from tests.exercise_answers import ANSWERS", "tests"),
    "takes the answers of the proof": ("from parity.golden import check", "parity"),
    "takes the answers of the operations": ("from operations.relu import RELU", "operations"),
    "forges half a reply": (forged({"problem": "", "trials": []}), "gives no answer"),
    "forges an empty reply": (forged(EMPTY_REPLY), "gives no answer"),
    "forges a message": (
        forged(EMPTY_REPLY | {"problem": "\x1b[2J" + "long " * 999}),
        "[2Jlong long",
    ),
    "hides its sizes": (
        "return dy.reshape(2, 5, 12) * (y > 0)", "on other sizes than yours: line 39 (dy (3, 4, 10), y (3, 4, 10))",
    ),
}  # fmt: skip


# Full marks


@pytest.mark.parametrize("exercise", COURSE, ids=EXERCISES)
def test_a_right_file_gets_full_marks(exercise, write):
    """Each answer in its starter is right in a process of its own, with the project's answers withheld."""
    result = grade(write(None, exercise=exercise, seed=5))
    assert (result.problem, [mark for mark in result.marks if not mark.right]) == ("", [])
    assert result.full
    assert all(mark.error < 1e-12 for mark in result.marks)
    differences = [mark.difference_error for mark in result.marks if mark.name != "y"]
    assert exercise.backward is None or max(differences) < 1e-7


def adapted(name):
    """A file's text that hands the calls to the catalogue's reference, which calls the project's functions."""
    stem = name.replace("-", "_")
    return (
        f"from learn.exercises.catalogue import EXERCISES\n\nOWN = EXERCISES[{name!r}]\n\n\n"
        f"def {stem}_forward(**inputs):\n    return OWN.forward(**inputs)\n\n\n"
        f"def {stem}_backward(dy, cache):\n"
        "    found = OWN.backward(dy, cache)\n"
        "    if any('.' in name for name in found):\n"
        "        return found.pop('dx'), {name[1:]: value for name, value in found.items()}\n"
        "    return tuple(found.values())\n"
    )


def taken(name, pair):
    """A file's text that takes the project's pair as it is."""
    stem, (module, _, theirs) = name.replace("-", "_"), pair.partition(".")
    ways = ", ".join(f"{theirs}_{way} as {stem}_{way}" for way in ("forward", "backward"))
    return f"from numpy_llm.{module} import {ways}"


def step(name):
    """A file's text that takes the reference of an exercise without a backward pass."""
    return (
        f"from learn.exercises.catalogue import EXERCISES\n\n\ndef {name.replace('-', '_')}(**inputs):\n"
        f"    return tuple(EXERCISES[{name!r}].forward(**inputs).values())\n"
    )


PROJECT_ANSWERS = {
    **{name: taken(name, pair) for name, pair in PAIRS.items()},
    **{name: adapted(name) for name in PUT_TOGETHER},
    **{name: step(name) for name in STEPS},
}


@pytest.mark.parametrize("name", PROJECT_ANSWERS)
def test_the_projects_own_functions_get_full_marks(name, tmp_path):
    """The reference solution of every exercise, run as a student's file would be."""
    path = tmp_path / "reference.py"
    path.write_text(f'EXERCISE = "{name}"\nSEED = 3\n{PROJECT_ANSWERS[name]}\n', encoding="utf-8")
    result = grade(path, trusted=True)
    assert result.problem == ""
    assert [mark for mark in result.marks if not mark.right] == []
    assert result.marks


def test_every_exercise_has_a_reference_solution():
    """The list above leaves none out."""
    assert set(PROJECT_ANSWERS) == set(EXERCISES)


# Files that hang, crash, flood or return nonsense


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_hostile_file_gets_one_line(kind, write, capfd):
    """Whatever a file does, grading ends before it would, in one printable line, and no byte reaches the terminal."""
    answer, line = HOSTILE[kind]
    result = grade(write(answer), limits=Limits(1 if "took longer" in line else 600))
    said = [result.problem] if result.problem else [mark.hint for mark in result.marks if not mark.right]
    assert len(said) == (1 if line else 0), said
    if line:
        assert line in said[0]
        assert said[0].isprintable()
        assert len(said[0]) <= 300
    assert capfd.readouterr() == ("", "")


FUSED = {
    "scores": "from numpy_llm.attend_in_blocks import attend_in_blocks_backward as fused",
    "swiglu": "from numpy_llm.feed_forward import gated_backward as fused",
    "modern-block": "from numpy_llm.feed_forward import gated_backward as fused",
}


@pytest.mark.parametrize("name", FUSED)
def test_a_fused_backward_pass_is_refused(name, write):
    """What differentiates several steps at once is no answer; what the given pass calls is lent, with all it calls."""
    result = grade(write(f"{FUSED[name]}\nreturn fused(dy, cache)", exercise=EXERCISES[name]))
    assert "which differentiates several steps at once (fused); write them in the file" in result.problem
    assert result.points == 0


def test_the_composed_functions_are_known():
    """Every backward function of numpy_llm is one operation's or is refused as composed."""
    modules = [
        importlib.import_module(f"numpy_llm.{each.name}") for each in pkgutil.iter_modules(numpy_llm.__path__)
    ]
    found = {name for module in modules for name in vars(module) if re.fullmatch("[a-z]\\w*_backward", name)}
    known = {f"{name}_backward" for name in (*OPERATIONS, "softmax")}
    assert found - known == set(COMPOSED)


CHANGES = {
    "layer-norm": ("normal.fill(1.0)", "cache.normal"),
    "linear": ("rows += 1", "x"),
    "scores": ("softmax_cache.y[:] *= 2", "cache.softmax_cache.y"),
    "swiglu": ("sigmoid *= 2", "cache.sigmoid"),
    "rotary": ("dy *= 2", "dy"),
    "grouped-queries": ("keys += 1", "cache.keys"),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_changed_cache_or_argument_is_told(name, write):
    """Each array that an answer changes in place is named, right outputs or not, and no other cause is told for it."""
    change, told = CHANGES[name]
    result = grade(write(f"{change}\n{ANSWERS[name].strip()}", exercise=EXERCISES[name]))
    (mark,) = [mark for mark in result.marks if mark.name == "arguments"]
    assert mark.hint == f"{told} changed in place; the caller still needs it: work on a copy"
    assert not result.full


@pytest.mark.parametrize("sums", ["=", "+="])
def test_a_sum_over_the_wrong_axis_that_does_not_fit(sums, write):
    """Where NumPy refuses the shapes, they tell which axis was meant."""
    answer = ANSWERS["position"].replace("= dy.sum(axis=0)", f"{sums} dy.sum(axis=1)")
    problem = grade(write(answer, exercise=EXERCISES["position"])).problem
    assert problem.endswith("; is something summed over T where B is meant?")


def test_the_value_at_the_kink(write):
    """The text states the slope at 0; a file whose cache holds x and that takes another is told so."""
    path = write("return dy * (cache >= 0)")
    text = (
        path.read_text(encoding="utf-8")
        .replace("return y, ReLUCache(y)", "return y, x")
        .replace("y = cache.y", "pass")
    )
    path.write_text(text, encoding="utf-8")
    (mark,) = grade(path).marks
    assert "at the kink, x = 0, the slope is 0" in mark.hint


def test_a_cause_is_told_once(write):
    """The outputs that share a cause are marked, and it is told at the first."""
    softmax = "softmax_backward(dprobabilities, softmax_cache)"
    answer = ANSWERS["attention"].replace(softmax, "dprobabilities")
    told = [*lines(grade(write(answer, exercise=EXERCISES["attention"])))]
    assert [line.count("the softmax is skipped") for line in told[1:4]] == [1, 0, 0]
    assert told[2].endswith("wrong  the same cause as dx")


def test_memory_is_bounded(write):
    """A file that takes memory without end is stopped, where the system can."""
    result = grade(
        write("hoard = []\nwhile True:\n    hoard.append(np.ones(10**6))"), limits=Limits(600, 512)
    )
    assert "needs more memory" in result.problem or result.note


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("", "the file is empty"),
        ("x = 1\n", "no line EXERCISE"),
        ('EXERCISE = "relu"\n', "no line SEED"),
        ('EXERCISE = "flight"\nSEED = 0\n', "unknown exercise 'flight'"),
        ('EXERCISE = "layer norm"\nSEED = 0\n', "did you mean layer-norm"),
        ('EXERCISE = "relu"\nSEED = 9999999999999999999\n', "SEED must be from 0"),
        ('EXERCISE = "relu"\nSEED = 0\ndef relu_forward(x)\n', "line 3: not Python: expected ':'"),
        ('EXERCISE = "relu"\nSEED = 0\n', "no function relu_forward"),
        ('EXERCISE = "relu"\nSEED = 0\nimport torchvision_of_mine\n', "line 3: ModuleNotFoundError"),
        ('EXERCISE = "relu"\nSEED = 0\ndef relu_forward(x):\n    return x\n', "not y and a cache"),
        ('EXERCISE = "relu"\nSEED = 0\n\0', "null bytes"),
    ],
)
def test_a_file_that_is_no_exercise(tmp_path, text, line):
    """What cannot be run is named, with its line where it has one."""
    path = tmp_path / "file.py"
    path.write_text(text)
    assert line in grade(path).problem


def test_a_changed_forward_pass_is_named(tmp_path):
    """The forward pass was given: where y is no longer right, that is what the student hears."""
    path = tmp_path / "relu.py"
    path.write_text(filled_in(RELU, 0).replace("np.maximum(x, 0)", "2 * np.maximum(x, 0)"), encoding="utf-8")
    (mark,) = [mark for mark in grade(path).marks if not mark.right]
    assert (mark.name, mark.hint) == ("y", "the forward pass was given and has changed; put it back")


def test_a_size_written_as_a_number(write):
    """Right on the shapes that the student saw and wrong on others: the hint says so."""
    exercise = EXERCISES["cross-entropy"]
    tokens = exercise.trials(0)[0].inputs["targets"].size
    result = grade(write(ANSWERS["cross-entropy"].replace("/ N", f"/ {tokens}"), exercise=exercise))
    assert "a size is written as a number" in result.marks[0].hint


@pytest.mark.timeout(600)
def test_a_pipe_is_no_file(tmp_path):
    """What is no file is not waited for."""
    path = tmp_path / "pipe.py"
    os.mkfifo(path)
    with pytest.raises(UserError, match=r"cannot be read \(it is a pipe or a device, not a regular file\)"):
        grade(path)


def test_grading_needs_no_pytorch():
    """The exercises stand on NumPy, the contract and the reference alone."""
    program = "import sys, learn.exercises.report; print(*{name.partition('.')[0] for name in sys.modules})"
    result = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert not {"torch", "torch_llm", "harness", "tiktoken"} & set(result.stdout.split())


def test_the_reference_is_not_sent(monkeypatch, write):
    """What the process gets holds arguments alone; no right gradient is among them."""
    sent = {}

    def look(path, folder, limits):
        with np.load(folder / "request.npz") as file:
            sent.update(file)
        return "looked", ""

    monkeypatch.setattr("learn.exercises.process._run", look)
    grade(write(None, exercise=EXERCISES["layer-norm"]))
    assert {name.partition("/")[2] for name in sent} == {"x", "weight", "bias", "eps", "dy"}


@pytest.mark.parametrize("path", EARLIER, ids=[path.stem for path in EARLIER])
def test_a_file_that_an_earlier_version_started(path):
    """It still runs, with functions where they stood then and caches without names, and gets full marks."""
    result = grade(path)
    assert (result.problem, [mark for mark in result.marks if not mark.right]) == ("", [])
    assert result.full


def test_an_earlier_name_of_the_answer_is_withheld(tmp_path):
    """GELU's backward function is refused by the name that it had, too."""
    text = filled_in(EXERCISES["gelu"], 0, "return gelu_backward_of_theirs(dy, cache)")
    path = tmp_path / "gelu.py"
    path.write_text(
        text.replace(
            "import numpy",
            "from numpy_llm.layers import gelu_backward as gelu_backward_of_theirs\nimport numpy",
        )
    )
    assert "calls the project's own gelu_tanh_backward" in grade(path).problem
