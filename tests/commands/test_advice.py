"""Whoever follows the advice of a message arrives: the command that failed, what it advises, and that it works."""

import json
import re
import shlex
import shutil
from contextlib import nullcontext
from pathlib import Path

import pytest

from contract.files import sha256_of
from contract.schema import checksum

MODEL = "--n-layer 1 --n-head 2 --d-model 8 --context-length 8 --batch-size 2 --steps 4 --eval-interval 2"
TRAIN = f"train --text text.txt {MODEL} --threads 1"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A text and, once a test has asked for it, a run; copied for each test."""
    place = tmp_path_factory.mktemp("advice")
    (place / "text.txt").write_text("One, two, three.\n" * 40)
    return place


@pytest.fixture
def place(folder, tmp_path, monkeypatch, run_cli):
    """A folder of a test's own with a text, a run and a token file, which is the current one."""
    monkeypatch.chdir(folder)
    if not (folder / "run").exists():
        for command in (f"{TRAIN} --out run", "prepare text.txt", "export run --out exported --format npz"):
            assert run_cli(*shlex.split(command))[0] == 0
    shutil.copytree(folder, tmp_path / "place")
    monkeypatch.chdir(tmp_path / "place")
    return tmp_path / "place"


def damage(path: str):
    data = Path(path).read_bytes()
    Path(path).write_bytes(data[: len(data) // 2])


def change_record(change):
    """Change a checkpoint's record and compute its checksum anew."""

    def apply():
        path = Path("run/latest/config.json")
        record = json.loads(path.read_text())
        change(record)
        record["files"] = {name: sha256_of(path.parent / name) for name in record["files"]}
        record.pop("checksum")
        path.write_text(json.dumps(record | {"checksum": checksum(record)}))

    return apply


def nothing():
    pass


# What is done first; the command that fails; the words of its advice; the commands that follow it.
CASES = {
    "prepare again": (
        nothing,
        "prepare text.txt",
        "replace it with --overwrite",
        ["prepare text.txt --overwrite"],
    ),
    "prepare elsewhere": (
        lambda: Path("text.json").write_text("mine"),
        "prepare text.txt --overwrite",
        "choose another --out",
        ["prepare text.txt --out other.bin"],
    ),
    "a damaged JSON of tokens": (
        lambda: damage("text.json"),
        f"train --text text.bin {MODEL}",
        "remove text.bin and text.json, then prepare the text again",
        ["rm text.bin text.json", "prepare text.txt", f"train --text text.bin {MODEL}"],
    ),
    "damaged tokens": (
        lambda: damage("text.bin"),
        f"train --text text.bin {MODEL}",
        "prepare the text again with --overwrite",
        ["prepare text.txt --overwrite", f"train --text text.bin {MODEL}"],
    ),
    "a run in the way, replaced": (
        nothing,
        f"{TRAIN} --out run",
        "replace it with --overwrite",
        [f"{TRAIN} --out run --overwrite"],
    ),
    "a run in the way, left": (
        nothing,
        f"{TRAIN} --out run",
        "choose another --out",
        [f"{TRAIN} --out other"],
    ),
    "a run that is done": (
        nothing,
        "train --resume --out run",
        "name more with --steps",
        ["train --resume --out run --steps 6"],
    ),
    "another rate": (
        nothing,
        "train --resume --out run --learning-rate 1e-4",
        "give more --steps beside it",
        ["train --resume --out run --learning-rate 1e-4 --steps 6"],
    ),
    "no checkpoint yet": (
        lambda: [shutil.rmtree(f"run/{name}") for name in ("latest", "best")],
        "train --resume --out run",
        "start the run again with --overwrite",
        [f"{TRAIN} --out run --overwrite"],
    ),
    "a damaged latest": (
        lambda: damage("run/latest/model.safetensors"),
        "train --resume --out run --steps 6",
        "remove run/latest to go on from there",
        ["rm -r run/latest", "train --resume --out run --steps 6"],
    ),
    "an edited latest": (
        change_record(lambda record: record["training"].pop("backend")),
        "train --resume --out run --steps 6",
        "start a new run with --from",
        ["train --text text.txt --from run/latest --steps 2 --out other"],
    ),
    "a file of the user's in a run": (
        lambda: Path("run/best/notes.txt").write_text("mine"),
        f"{TRAIN} --out run --overwrite",
        "choose another --out",
        [f"{TRAIN} --out other"],
    ),
    "an export in the way": (
        nothing,
        "export run --out exported --format npz",
        "replace an earlier export with --overwrite",
        ["export run --out exported --format npz --overwrite"],
    ),
    "an export that was changed": (
        lambda: Path("exported/config.json").write_text("{}"),
        "export run --out exported --format npz --overwrite",
        "choose another --out",
        ["export run --out other --format npz"],
    ),
    "a tokenizer without a letter": (
        lambda: Path("other.txt").write_text("Zwölf.\n" * 90),
        "train --text other.txt --from run --steps 2 --out other",
        "give them tokens with --grow-vocabulary 0",
        ["train --text other.txt --from run --steps 2 --out other --grow-vocabulary 0"],
    ),
    "a prompt without text": (nothing, "generate run --prompt ''", "omit --prompt", ["generate run"]),
    "a pack in the way": (
        lambda: None,
        "golden export gpt2-tied --out run",
        "choose another --out",
        ["golden export gpt2-tied --out pack", "golden export gpt2-tied --out pack --overwrite"],
    ),
    "heads that do not fit": (
        nothing,
        f"{TRAIN} --d-model 9",
        "choose a d_model that is a multiple of n_head",
        [f"{TRAIN} --d-model 10"],
    ),
    "a short text": (
        lambda: Path("short.txt").write_text("One, two.\n" * 2),
        f"train --text short.txt {MODEL} --context-length 64",
        "give a longer text or a smaller --sequence-length",
        [f"train --text short.txt {MODEL} --context-length 4"],
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_advice_is_followed(place, run_cli, case):
    """The failing command advises in one line, and doing that works."""
    prepare, failing, advice, ways = CASES[case]
    prepare()
    code, _, error = run_cli(*shlex.split(failing))
    assert code in (1, 2)
    assert error.count("\n") == 1
    assert advice in error
    for way in ways:
        if way.startswith("rm "):
            for name in way.split()[1:]:
                if name != "-r":
                    shutil.rmtree(name) if Path(name).is_dir() else Path(name).unlink()
            continue
        code, _, error = run_cli(*shlex.split(way))
        assert code == 0, error


@pytest.mark.parametrize("name", ["run", "a b;touch X", "$(touch X)", "-x"])
def test_a_suggested_command_can_be_pasted(place, run_cli, monkeypatch, name):
    """Whatever a run's folder is called, the command that goes on with it does, and runs nothing else."""
    out = f"./{name}" if name.startswith("-") else name
    monkeypatch.setattr("commands.interruption.finishing", lambda line: nullcontext(lambda: True))
    shutil.rmtree("run")
    code, _, error = run_cli(*shlex.split(TRAIN), "--out", out)
    assert code == 130
    monkeypatch.undo()
    monkeypatch.chdir(place)
    suggested = re.search(r"continue with: python cli\.py (.*)", error)[1]
    assert run_cli(*shlex.split(suggested))[0] == 0
    assert not Path("X").exists()
