"""Silent corruption: whatever happens to a file's bytes is named, or harmless by proof."""

import json
import random
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from processes import SMALL, run

import cli
from contract.errors import UserError
from data.prepare import open_tokens
from data.tokenizers import identity
from harness.training.checkpoint import load_checkpoint


@pytest.fixture(scope="session")
def trained(text, tmp_path_factory):
    """A finished run."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    result = run("train", "--text", text, "--out", folder, *SMALL, "--steps", 4)
    assert result.returncode == 0, result.stderr
    return folder


def damaged(content: bytes, draws: random.Random) -> bytes:
    """One of: a bit flipped, a byte replaced, the end cut off, a piece doubled or lost, zeros written over."""
    place, length = draws.randrange(len(content)), draws.randrange(1, 64)
    kind = draws.randrange(6)
    if kind == 0:
        return content[:place] + bytes([content[place] ^ 1 << draws.randrange(8)]) + content[place + 1 :]
    if kind == 1:
        return content[:place] + draws.randbytes(1) + content[place + 1 :]
    if kind == 2:
        return content[:place]
    if kind == 3:
        return content[:place] + content[place : place + length] + content[place:]
    if kind == 4:
        return content[:place] + content[place + length :]
    return content[:place] + bytes(len(content[place : place + length])) + content[place + length :]


def assert_names(error: UserError, name: str):
    """One line that names the file."""
    assert name in str(error)
    assert "\n" not in str(error)


def everything(folder: Path):
    """All that a checkpoint gives, to compare."""
    found = load_checkpoint(folder, with_optimizer=True)
    arrays = {f"weights {name}": value for name, value in found.weights.items()} | dict(found.optimizer)
    return (
        found.config,
        found.step,
        found.training,
        found.validation_loss,
        identity(found.tokenizer),
    ), arrays


@pytest.mark.parametrize("count", [100, pytest.param(1000, marks=pytest.mark.endurance)])
def test_a_damaged_checkpoint(trained, tmp_path, count, figure):
    """Each damage is refused in one line that names the file, or loads the very same numbers."""
    folder = tmp_path / "latest"
    shutil.copytree(trained / "latest", folder)
    wanted, wanted_arrays = everything(folder)
    files, draws, named, harmless = sorted(folder.iterdir()), random.Random(count), 0, 0
    for _ in range(count):
        file = draws.choice(files)
        content = file.read_bytes()
        file.write_bytes(damaged(content, draws))
        try:
            found, arrays = everything(folder)
        except UserError as error:
            assert_names(error, file.name)
            named += 1
        else:
            assert found == wanted
            assert arrays.keys() == wanted_arrays.keys()
            for name, value in wanted_arrays.items():
                np.testing.assert_array_equal(arrays[name], value, name)
            harmless += 1
        file.write_bytes(content)
    assert named > 0.9 * count
    figure(f"{count} damages of a checkpoint: {named} named, {harmless} harmless, none unseen")


@pytest.mark.parametrize("count", [100, pytest.param(1000, marks=pytest.mark.endurance)])
def test_a_damaged_token_file(trained, tmp_path, count, figure):
    """So it is with a token file and its JSON."""
    for name in ("tokens.bin", "tokens.json"):
        shutil.copy(trained / name, tmp_path / name)
    path = tmp_path / "tokens.bin"
    wanted = open_tokens(path)
    wanted_info, wanted_tokens = wanted.info, np.array(wanted.train)
    del wanted
    draws, named, harmless = random.Random(count), 0, 0
    for _ in range(count):
        file = tmp_path / draws.choice(["tokens.bin", "tokens.json"])
        content = file.read_bytes()
        file.write_bytes(damaged(content, draws))
        try:
            found = open_tokens(path)
        except UserError as error:
            assert_names(error, "tokens.")
            named += 1
        else:
            assert found.info == wanted_info
            np.testing.assert_array_equal(found.train, wanted_tokens)
            harmless += 1
            del found
        file.write_bytes(content)
    figure(f"{count} damages of a token file: {named} named, {harmless} harmless, none unseen")


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.tiktoken"])
def test_commands_name_the_damage(trained, tmp_path, name, monkeypatch, capsys):
    """Every command that reads a checkpoint ends in one line on stderr, without a traceback."""
    folder = tmp_path / "latest"
    shutil.copytree(trained / "latest", folder)
    content = bytearray((folder / name).read_bytes())
    content[len(content) // 2] ^= 32
    (folder / name).write_bytes(content)
    for command in ("generate", "evaluate", "info"):
        monkeypatch.setattr(sys, "argv", ["cli.py", command, str(folder)])
        assert cli.main() == 1
        out, err = capsys.readouterr()
        assert out == ""
        assert err.startswith("error: ")
        assert err.count("\n") == 1
        assert name in err


def test_no_module_unpickles():
    """Nothing of the project can read a pickle: no such import, and no NumPy or PyTorch loader that would."""
    import ast

    root = Path(__file__).parents[2]
    places = (path.parent for path in root.glob("*/__init__.py") if path.parent.name != "tests")
    files = [root / "cli.py", *(path for place in places for path in place.rglob("*.py"))]
    assert len(files) > 80
    for path in files:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import | ast.ImportFrom):
                names = [alias.name for alias in node.names] + [getattr(node, "module", "") or ""]
                assert not {"pickle", "shelve", "marshal", "joblib", "dill"} & set(names), path
            if isinstance(node, ast.Call) and ast.unparse(node.func) in (
                "np.load",
                "torch.load",
                "numpy.load",
            ):
                assert "allow_pickle=False" in ast.unparse(node) or "weights_only=True" in ast.unparse(
                    node
                ), path


def test_settings_written_by_hand_are_refused(trained, tmp_path):
    """A checkpoint's own record is verified too: a step or a loss edited by hand is not believed."""
    folder = tmp_path / "latest"
    shutil.copytree(trained / "latest", folder)
    config = folder / "config.json"
    record = json.loads(config.read_text())
    config.write_text(json.dumps(record | {"step": 3}))
    with pytest.raises(UserError, match=r"config\.json does not match its checksum"):
        load_checkpoint(folder)
