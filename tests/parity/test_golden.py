"""Golden packs: what they hold, that they can be made again, and how they reach other programs."""

import json
import os
import re
import subprocess
import sys
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from contract.config import ModelConfig
from contract.errors import UserError
from contract.numbers import SIXTEEN_BITS
from contract.trace import Trace
from contract.weights import initial_weights, weight_table
from data.prepare import DEFAULT_RANKS
from data.tokenizers import load_ranks
from harness.training.checkpoint import Checkpoint, save_checkpoint
from numpy_llm import GPT
from parity.golden.making import SAMPLING, make_pack
from parity.golden.manifest import origins
from parity.golden.origins import pass_origins
from parity.golden.packs import GOLDEN, Pack, committed, load_pack, pack_names, save_pack
from parity.golden.tensors import Tensors
from parity.tolerances import limit, observe

ROOT = Path(__file__).parents[2]
COMMITTED = committed()
PACKS = sorted(COMMITTED)
MEASURED = ("float32", *SIXTEEN_BITS)  # limits that are


# What a pack holds


def test_committed_packs_are_small():
    """Ten models, under 3 MB together."""
    assert pack_names() == PACKS
    assert len(PACKS) >= 10
    files = [path for name in PACKS for path in GOLDEN.glob(f"{name}.*")]
    assert sum(path.stat().st_size for path in files) < 3_000_000


@pytest.mark.parametrize("name", PACKS)
def test_remaking_agrees(name, packs):
    """A pack made here has the committed numbers to 1e-12 of each tensor's size, on this machine's BLAS."""
    _assert_same(make_pack(name, **COMMITTED[name]._asdict()), packs[name])


def test_remaking_agrees_on_another_blas(tmp_path, packs):
    """Other kernels add in another order: those of a processor of 2004 change last digits, and no more than that."""
    subprocess.run(
        [sys.executable, ROOT / "cli.py", "golden", "make", "--out", tmp_path],
        env=os.environ | {"OPENBLAS_CORETYPE": "Prescott"}, check=True, capture_output=True,
    )  # fmt: skip
    for name, reference in packs.items():
        _assert_same(load_pack(str(tmp_path / name)), reference)


def _assert_same(made: Pack, committed: Pack):
    assert made.tensors.keys() == committed.tensors.keys()
    for row in committed.manifest["tensors"]:
        wanted, found = committed.tensors[row["name"]], made.tensors[row["name"]]
        assert found.dtype == wanted.dtype
        assert found.shape == wanted.shape
        if row["float64"] == 0:
            assert np.array_equal(found, wanted), row["name"]
        else:
            error = float(np.abs(found - wanted).max()) / row["scale"]
            assert error <= limit("golden", "float64"), row["name"]
            observe("golden", "float64", error)
    assert _without_digits(made.manifest) == _without_digits(committed.manifest)
    for ours, theirs in zip(made.manifest["tensors"], committed.manifest["tensors"], strict=True):
        for each in MEASURED:
            # How far honest passes stray is a matter of last bits, and one number can make a limit.
            assert (ours.get(each) is None) == (theirs.get(each) is None)
            assert ours.get(each) is None or theirs[each] / 2 <= ours[each] <= 2 * theirs[each]


def _without_digits(manifest: dict) -> dict:
    """The manifest without what depends on the last digits of the numbers; an absent field has its default.

    Nor the words for what made a tensor, which later versions may choose otherwise.
    """
    words = {"sha256": None, "scale": None, "operation": None, "inputs": None}
    words |= dict.fromkeys(MEASURED)  # which `_assert_same` compares
    rows = [row | words for row in manifest["tensors"]]
    config = ModelConfig.from_dict(manifest["config"])
    return manifest | {"tensors": rows, "config": config, "operations": None}


def test_the_same_bytes_each_time(tmp_path):
    recipe = COMMITTED["relu-sinusoidal"]
    for folder in ("one", "two"):
        save_pack(make_pack("relu-sinusoidal", **recipe._asdict()), tmp_path / folder)
    for path in (tmp_path / "one").iterdir():
        assert path.read_bytes() == (tmp_path / "two" / path.name).read_bytes()


@pytest.mark.parametrize("name", PACKS)
def test_packs_show_every_mistake(name, packs):
    """Tokens repeat, some steps are clipped and some not, texts vary, no choice and no kink is a close call."""
    pack = packs[name]
    assert len(np.unique(pack.tensors["tokens"])) < pack.tensors["tokens"].size
    if COMMITTED[name].steps:
        norms = pack.tensors["adamw.gradient_norm"]
        assert 0 < (norms > pack.manifest["adamw"]["max_norm"]).sum() < len(norms) == 10
    assert len(np.unique(pack.tensors["greedy.tokens"])) > 2
    assert not np.array_equal(pack.tensors["greedy.tokens"], pack.tensors["sampled.tokens"])
    best = np.sort(pack.tensors["greedy.logits"])[:, -2:]
    assert (best[:, 1] - best[:, 0]).min() > 0.05
    for each in pack.tensors:
        if each.endswith("feed_forward.up") and "gradient" not in each and pack.config.activation == "relu":
            assert np.abs(pack.tensors[each]).min() > 1e-3
    for each in weight_table(pack.config):
        assert np.array_equal(pack.tensors[each].astype(np.float32), pack.tensors[each])


@pytest.mark.parametrize("name", PACKS)
def test_continuations_are_what_the_model_writes(name, packs):
    pack = packs[name]
    model = GPT(pack.config, dtype="float64")
    for each, weight in model.weights.items():
        weight[...] = pack.tensors[each]
    for title, settings in (("greedy", {"temperature": 0}), ("sampled", SAMPLING)):
        prompt, tokens = pack.tensors[f"{title}.prompt"].tolist(), pack.tensors[f"{title}.tokens"].tolist()
        assert len(prompt) + len(tokens) > pack.config.context_length  # the window slides
        assert model.generate(prompt, len(tokens), **settings) == tokens


# The dataflow

CONFIGS = [recipe.config for recipe in COMMITTED.values()] + [
    ModelConfig(
        vocab_size=5, context_length=4, n_layer=3, n_head=1, d_model=4, d_ff=3, activation="relu",
        position="learned", tie_embeddings=False, dropout=0.3,
    )
]  # fmt: skip


@pytest.mark.parametrize("config", CONFIGS)
def test_operations_are_those_of_a_trace(config):
    """Every traced name and gradient and every weight's gradient has its operation, and no other name has."""
    model, trace = GPT(config, dtype="float64"), Trace()
    _, _, cache = model.forward(np.zeros((1, 3), int), np.ones((1, 3), int), trace=trace)
    gradients = model.backward(cache, trace=trace)
    operations = list(pass_origins(config)[1])
    forward = [name for name in operations if not name.startswith("gradient.") and name != "positions"]
    assert forward == list(trace.activations)
    backward = [name.removeprefix("gradient.") for name in operations if name.startswith("gradient.")]
    assert [name for name in backward if name in trace.gradients] != []
    assert {*backward} == {*trace.gradients, *gradients}
    assert len(backward) == len({*backward})


@pytest.mark.parametrize("name", PACKS)
def test_operations_give_the_golden_numbers(name, packs):
    """Each tensor is its operation applied to the inputs that the dataflow names, all of which come before it."""
    tensors = Tensors(packs[name], "float64", packs[name].tensors)
    before = set(tensors.given)
    for each in tensors.order:
        origin = tensors.origins.get(each)
        if origin is not None and origin.right:
            assert {n for n in origin.inputs if not n.startswith("adamw.gradient.")} <= before, each
            error = np.abs(origin.right() - tensors.golden[each]).max() / tensors.scales[each]
            assert error < 1e-13, each
        before.add(each)
    assert {*tensors.origins} <= before


@pytest.mark.parametrize("name", PACKS)
def test_the_manifest_describes_every_tensor(name, packs):
    pack = packs[name]
    rows = {row["name"]: row for row in pack.manifest["tensors"]}
    assert rows.keys() == pack.tensors.keys()
    assert list(rows) == list(origins(pack.config, pack.tensors))
    for row in rows.values():
        axes = 0 if row["layout"].startswith("a number") else len(_axes(row["layout"]))
        assert axes == len(row["shape"]), row
        assert row["operation"] == "given" or pack.manifest["operations"][row["operation"]]
        for each in row["inputs"]:
            assert each in rows or each.endswith("of the step before"), row
        assert (row["float32"] > row["float64"]) == (row["dtype"] == "float64")
    described = {row["operation"] for row in rows.values()} - {"given"}
    assert described == pack.manifest["operations"].keys()


def _axes(words: str) -> list[str]:
    return re.sub(r"\(.*?\)", "", words).split(",")


# Made, exported and read


def test_nothing_needs_torch(tmp_path):
    """A pack is made, exported and checked in a process that has no PyTorch."""
    program = (
        "import sys; sys.modules['torch'] = None\n"
        "import cli\n"
        "for words in (['golden', 'make', '--out', 'made'], ['golden', 'export', 'made/gpt2-tied', '--out', 'raw'],\n"
        "              ['check', 'raw', '--golden', 'made/gpt2-tied']):\n"
        "    sys.argv = ['cli.py', *words]\n"
        "    assert cli.main() == 0, words\n"
    )
    program = f"import sys; sys.path.insert(0, {str(ROOT)!r})\n{program}"
    result = subprocess.run(
        [sys.executable, "-W", "error", "-c", program],
        cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert "all 232 tensors agree" in result.stdout


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("format", ["raw", "npz", "npy"])
def test_exports_come_back(format, dtype, tmp_path, run_cli, packs):
    out = tmp_path / ("pack.npz" if format == "npz" else "pack")
    arguments = ("golden", "export", "untied-no-bias", "--format", format, "--dtype", dtype, "--out", out)
    assert run_cli(*arguments)[0] == 0
    code, stdout, _ = run_cli("check", out, "--golden", "untied-no-bias")
    assert code == 0
    assert stdout.startswith(f"untied-no-bias, {dtype}: all 172 tensors agree\nnearest to its limit: ")
    code, _, stderr = run_cli(*arguments)
    assert code == 1
    assert "--overwrite" in stderr
    assert run_cli(*arguments, "--overwrite")[0] == 0


def test_a_raw_export_explains_itself(tmp_path, run_cli, packs):
    """Numbers alone in the files, an index that a C program reads with scanf, and a page."""
    run_cli("golden", "export", "gpt2-tied", "--out", tmp_path / "raw")
    pack, sizes = packs["gpt2-tied"], {}
    for line in (tmp_path / "raw" / "index.txt").read_text().splitlines():
        kind, name, *words = line.split()
        assert kind in ("config", "adamw", "tensor")
        if kind == "tensor":
            shape = () if words[1] == "scalar" else tuple(map(int, words[1].split("x")))
            sizes[name] = shape
            numbers = np.fromfile(
                tmp_path / "raw" / f"{name}.bin", {"float64": "<f8", "int64": "<i8"}[words[0]]
            )
            assert np.array_equal(numbers.reshape(shape), pack.tensors[name])
    assert sizes.keys() == pack.tensors.keys()
    page = (tmp_path / "raw" / "README.txt").read_text()
    assert "little-endian" in page
    assert "norm_eps = 1e-05" in page
    for each in pack.manifest["operations"].values():
        assert each in page
    assert "out (query then key then value; each head after head), in" in page
    assert len(page.splitlines()) < 180


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_a_raw_export_is_a_pack(dtype, tmp_path, run_cli):
    """The folder that `golden export` makes can be checked against, by its path."""
    run_cli("golden", "export", "gpt2-tied", "--out", tmp_path / "pack", "--dtype", dtype)
    run_cli("golden", "export", "gpt2-tied", "--format", "npz", "--out", tmp_path / "dump.npz")
    code, stdout, _ = run_cli("check", tmp_path / "dump.npz", "--golden", tmp_path / "pack")
    assert (code, stdout.splitlines()[0]) == (0, "gpt2-tied, float64: all 232 tensors agree")
    (tmp_path / "pack" / "logits.bin").write_bytes(b"12345678")
    code, _, stderr = run_cli("check", tmp_path / "dump.npz", "--golden", tmp_path / "pack")
    assert (code, "logits.bin has 8 bytes" in stderr) == (1, True)


def test_a_pack_of_ones_own(tmp_path, run_cli):
    """From a configuration, and from a trained run, whose weights it then holds."""
    config = {"vocab_size": 768, "context_length": 8, "n_layer": 1, "n_head": 2, "d_model": 8, "d_ff": 8,
              "activation": "relu", "position": "learned", "dropout": 0.1}  # fmt: skip
    (tmp_path / "model.json").write_text(json.dumps(config))
    make = ("golden", "make", "mine", "--out", tmp_path, "--steps", 2, "--batch-size", 2, "--tokens", 4)
    assert run_cli(*make, "--config", tmp_path / "model.json")[0] == 0
    pack = load_pack(str(tmp_path / "mine"))
    assert pack.tensors["tokens"].shape == (2, 4)
    assert len(pack.tensors["adamw.loss"]) == 2
    assert pack.config.dropout == 0

    model = ModelConfig.from_dict({**pack.config.to_dict(), "dropout": 0.1})
    weights = initial_weights(model, 5, "float32")
    save_checkpoint(tmp_path / "run", Checkpoint(model, weights, load_ranks(DEFAULT_RANKS)))
    code, _, stderr = run_cli(*make, "--run", tmp_path / "run")
    assert (code, "--overwrite" in stderr) == (1, True)
    make += ("--overwrite",)
    assert run_cli(*make, "--run", tmp_path / "run")[0] == 0
    pack = load_pack(str(tmp_path / "mine.safetensors"))
    assert np.array_equal(pack.tensors["token_embedding.weight"], weights["token_embedding.weight"])
    assert run_cli(*make, "--run", tmp_path / "run", "--steps", 0)[0] == 0
    code, stdout, _ = run_cli("check", tmp_path / "mine.safetensors", "--golden", tmp_path / "mine")
    assert code == 0, stdout


def test_a_configuration_is_never_overwritten(tmp_path, run_cli, tiny_config):
    """The manifest of a pack called as its configuration's file would stand in that file's place."""
    path = tmp_path / "mine.json"
    path.write_text(json.dumps(tiny_config().to_dict()))
    before = path.read_bytes()
    code, _, stderr = run_cli("golden", "make", "mine", "--config", path, "--out", tmp_path, "--overwrite")
    assert (code, "another NAME" in stderr) == (1, True)
    assert path.read_bytes() == before
    assert sorted(tmp_path.iterdir()) == [path]


def test_list(run_cli):
    code, stdout, _ = run_cli("golden", "list")
    assert code == 0
    assert [line.split()[0] for line in stdout.splitlines()] == PACKS
    rows = json.loads(run_cli("golden", "list", "--json")[1])
    assert [row["name"] for row in rows] == PACKS
    published = ["gemma3_text", "gpt2", "llama", None, "gemma2", "qwen2", "qwen3", "gpt2", None, "gpt2"]
    assert [row["huggingface"] for row in rows] == published
    assert "published as gemma3_text" in stdout


BIG = {"vocab_size": 50257, "context_length": 1024, "n_layer": 12, "n_head": 12, "d_model": 768, "d_ff": 3072,
       "activation": "gelu_tanh", "position": "learned"}  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["golden", "make", "mine"], 2, "--config"),
        (["golden", "make", "--config", "x.json"], 2, "needs a name"),
        (["golden", "make", "../mine", "--config", "x.json"], 2, "plain file name"),
        (["golden", "make", "mine", "--config", "absent.json"], 1, "absent.json"),
        (["golden", "make", "mine", "--config", "text.json"], 1, "not a JSON object"),
        (["golden", "make", "mine", "--config", "list.json"], 1, "expected an object"),
        (["golden", "make", "mine", "--config", "part.json"], 2, "missing field"),
        (["golden", "make", "mine", "--config", "big.json"], 2, "fewer --steps"),
        (
            ["golden", "make", "mine", "--config", "small.json", "--tokens", "9"],
            2,
            "--sequence-length 9 is more than the model's context of 4",
        ),
        (["golden", "make", "mine", "--config", "small.json", "--batch-size", "0"], 2, "--batch-size"),
        (["golden", "make", "mine", "--config", "small.json", "--seed", "-1"], 2, "--seed"),
        (["golden", "make", "mine", "--run", "absent"], 1, "absent"),
        (["golden", "export", "nothing"], 1, "gpt2-tied"),
        (["golden", "export", "gpt2-tied", "--format", "xml"], 2, "npz"),
        (["golden", "export", "gpt2-tied", "--dtype", "int8"], 2, "float32"),
        (["golden", "export", "gpt2-tied", "--out", "text.json"], 1, "is a file"),
    ],
)
def test_mistakes_are_one_line(arguments, code, words, tmp_path, monkeypatch, run_cli, tiny_config):
    monkeypatch.chdir(tmp_path)
    small = tiny_config().to_dict()
    for name, text in (("text", "{"), ("list", "[1]"), ("part", '{"n_head": 2}'), ("big", json.dumps(BIG)),
                       ("small", json.dumps(small))):  # fmt: skip
        (tmp_path / f"{name}.json").write_text(text)
    found, stdout, stderr = run_cli(*arguments)
    assert (found, stdout) == (code, "")
    assert words in stderr
    assert stderr.count("\n") == 1


def test_a_damaged_pack_is_refused(tmp_path):
    """A changed number, a lost tensor, another version, no JSON: each is named."""
    recipe = COMMITTED["relu-sinusoidal"]._replace(steps=1)
    save_pack(make_pack("pack", **recipe._asdict()), tmp_path)
    path, manifest_path = tmp_path / "pack.safetensors", tmp_path / "pack.json"
    tensors, manifest = load_file(path), manifest_path.read_text()
    for change, words in (
        (lambda: save_file(tensors | {"logits": tensors["logits"] + 1e-9}, path), "logits is not what"),
        (lambda: save_file({"logits": tensors["logits"]}, path), "damaged"),
        (lambda: path.write_bytes(b"\0" * 20), "damaged"),
        (lambda: manifest_path.write_text(manifest.replace("golden-1", "golden-9")), "golden-9"),
        (lambda: manifest_path.write_text("[]"), "damaged"),
        (path.unlink, "pack.safetensors"),
    ):
        change()
        with pytest.raises((UserError, OSError), match=words):
            load_pack(str(tmp_path / "pack"))
        save_file(tensors, path)
        manifest_path.write_text(manifest)
    with pytest.raises(UserError, match="no golden pack"):
        load_pack("")


# A manifest is not to be trusted


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A pack on disk, to be copied and damaged."""
    folder = tmp_path_factory.mktemp("made")
    recipe = COMMITTED["relu-sinusoidal"]._replace(steps=2)
    save_pack(make_pack("pack", **recipe._asdict()), folder)
    return folder


def _without(row, name):
    return {each: value for each, value in row.items() if each != name}


def _rows(change):
    """A change to a manifest that changes the first row of its tensors."""
    return lambda record: {"tensors": [change(record["tensors"][0]), *record["tensors"][1:]]}


@pytest.mark.parametrize("sealed", [False, True], ids=["edited", "edited with its checksum"])
@pytest.mark.parametrize(
    "change",
    [
        lambda record: {"config": 5},
        lambda record: {"config": record["config"] | {"n_layer": 2}},
        lambda record: {"config": record["config"] | {"d_ff": 9}},
        lambda record: {"adamw": {}},
        lambda record: {"adamw": record["adamw"] | {"steps": 3}},
        lambda record: {"adamw": record["adamw"] | {"steps": 0}},
        lambda record: {"adamw": record["adamw"] | {"max_norm": -1.0}},
        lambda record: {"sampling": None},
        lambda record: {"seed": "x"},
        lambda record: {"name": "../pack"},
        lambda record: {"name": ".."},
        lambda record: {"tensors": []},
        lambda record: {"tensors": 5},
        lambda record: {"tensors": [1]},
        lambda record: {"tensors": record["tensors"][1:]},
        _rows(lambda row: _without(row, "name")),
        _rows(lambda row: _without(row, "float32")),
        _rows(lambda row: _without(row, "scale")),
        _rows(lambda row: row | {"float64": float("nan")}),
        _rows(lambda row: row | {"scale": 10**400}),
        _rows(lambda row: row | {"name": ["logits"]}),
        _rows(lambda row: row | {"name": "other"}),
        _rows(lambda row: row | {"shape": 5}),
    ],
)
def test_an_edited_manifest_is_refused(change, sealed, made, tmp_path, run_cli):
    """In one line, whatever the edit, even where its author has computed the checksum anew."""
    record = json.loads((made / "pack.json").read_text())
    record |= change(record)
    if sealed:
        record.pop("checksum", None)
        record["checksum"] = sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()
    (tmp_path / "pack.json").write_text(json.dumps(record))
    (tmp_path / "pack.safetensors").write_bytes((made / "pack.safetensors").read_bytes())
    code, stdout, stderr = run_cli("check", made / "pack.safetensors", "--golden", tmp_path / "pack")
    assert (code, stdout, stderr.count("\n")) == (1, "", 1)
    assert stderr.startswith(f"error: {tmp_path / 'pack.json'} is not a golden pack or is damaged (")
    assert stderr.endswith("; make it again\n")


def test_a_manifest_has_a_checksum(made, tmp_path):
    """A limit that was widened by hand would let a wrong port pass."""
    text = (made / "pack.json").read_text()
    (tmp_path / "pack.safetensors").write_bytes((made / "pack.safetensors").read_bytes())
    (tmp_path / "pack.json").write_text(text)
    load_pack(str(tmp_path / "pack"))
    for old, new in (('"float32":1e-05', '"float32":1e+05'), ('"layout":"out, in"', '"layout":"in, out"')):
        assert old in text
        (tmp_path / "pack.json").write_text(text.replace(old, new, 1))
        with pytest.raises(UserError, match="checksum"):
            load_pack(str(tmp_path / "pack"))
    (tmp_path / "pack.json").write_text("[" * 200_000)
    with pytest.raises(UserError, match="damaged"):
        load_pack(str(tmp_path / "pack"))


@pytest.mark.parametrize("name", PACKS)
def test_the_projects_names_are_taken(name, tmp_path, run_cli, tiny_config):
    """`check --golden gpt2-tied` takes the committed pack: a pack of one's own needs another name."""
    (tmp_path / "model.json").write_text(json.dumps(tiny_config().to_dict()))
    arguments = ("golden", "make", name, "--config", tmp_path / "model.json", "--out", tmp_path / "out")
    code, stdout, stderr = run_cli(*arguments, "--overwrite")
    assert (code, stdout) == (2, "")
    assert "choose another NAME" in stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda record: record.update(format="golden-0"), "of format 'golden-0'"),
        (lambda record: record["tensors"].pop(7), "is missing"),
        (lambda record: record["tensors"][7].pop("scale"), "scale is missing"),
    ],
)
def test_a_damaged_export_is_no_pack(run_cli, tmp_path, change, words):
    """A raw export serves as a pack only where its manifest is whole."""
    assert run_cli("golden", "export", "relu-sinusoidal", "--out", tmp_path / "pack")[0] == 0
    assert run_cli("check", tmp_path / "pack", "--golden", tmp_path / "pack")[0] == 0
    manifest = tmp_path / "pack" / "manifest.json"
    record = json.loads(manifest.read_text())
    change(record)
    manifest.write_text(json.dumps(record))
    code, _, err = run_cli("check", tmp_path / "pack", "--golden", tmp_path / "pack")
    assert (code, err.count("\n")) == (1, 1)
    assert words in err
