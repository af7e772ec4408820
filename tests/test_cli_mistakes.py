"""Wrong uses of the command line: each gets one clear line and the right exit code, and loses nothing."""

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import pytest
import tiktoken

import cli
from data.grammar import corpus

ROOT = Path(__file__).parents[1]
SMALL = "--preset nano --n-layer 1 --n-head 2 --d-model 16 --context-length 8 --batch-size 4"
TRAIN = f"train --text text.txt --out new --steps 2 {SMALL}"

# Arguments, exit code, words of the line on stderr. `run` is a trained run, `text.txt` its text.
MISTAKES = [
    # texts
    ("train --text missing.txt --out new", 1, "missing.txt: no such file"),
    ("train --text empty.txt --out new", 1, "empty.txt: the file is empty"),
    ("train --text binary.dat --out new", 1, "binary.dat: this looks like a binary file"),
    ("train --text latin.txt --out new", 1, "latin.txt: not UTF-8 text (byte 0xe9 at offset 3"),
    ("train --text utf16.txt --out new", 1, "utf16.txt: this looks like UTF-16"),
    ("train --text folder --out new", 1, "folder: this is a folder"),
    ("train --text short.txt --out new --context-length 64", 1, "short.txt has 9 tokens to train on"),
    ("train --text text.bin --out new", 1, "text.json: the token file's JSON cannot be read"),
    ("prepare missing.txt", 1, "missing.txt: no such file"),
    ("prepare latin.txt", 1, "not UTF-8"),
    ("prepare text.txt --out text.txt", 2, "name ends in .bin"),
    ("prepare text.txt --validation-fraction 1", 2, "validation fraction of 1.0"),
    ("prepare text.txt --validation-fraction nan", 2, "validation fraction of nan"),
    ("prepare text.txt --out nowhere/tokens.bin", 1, "tokens.json: cannot be written"),
    ("prepare", 2, "Missing argument"),
    ("tokenizer train text.txt --vocab-size 255", 2, "a vocabulary of 255 tokens cannot be trained"),
    ("tokenizer train text.txt --vocab-size many", 2, "Invalid value for '--vocab-size'"),
    ("tokenizer train text.txt", 2, "--vocab-size"),
    ("tokenizer train missing.txt --vocab-size 300", 1, "missing.txt: no such file"),
    # names
    (f"{TRAIN} --tokenizer gpt3", 2, "unknown tokenizer 'gpt3'"),
    (f"{TRAIN} --tokenizer none.tiktoken", 1, "none.tiktoken: the ranks file cannot be read"),
    (f"{TRAIN} --tokenizer bad.tiktoken", 1, "bad.tiktoken: not a ranks file, line 1"),
    (f"{TRAIN} --preset huge", 2, "unknown preset 'huge'; choose one of tense, nano"),
    (f"{TRAIN} --backend jax", 2, "unknown backend 'jax'; choose numpy or torch"),
    (f"{TRAIN} --activation gelu", 2, "activation 'gelu' is the exact-erf GELU"),
    (f"{TRAIN} --activation tanh", 2, "unknown activation 'tanh'"),
    (f"{TRAIN} --position rotary", 2, "unknown position 'rotary'"),
    (f"{TRAIN} --dtype float16", 2, "dtype must be float32 or float64, got float16"),
    ("fly", 2, "No such command 'fly'"),
    (f"{TRAIN} --wings 2", 2, "No such option"),
    # sizes
    (f"{TRAIN} --n-head 3", 2, "d_model 16 does not divide into n_head 3"),
    (f"{TRAIN} --n-layer 0", 2, "n_layer must be a whole number of at least 1, got 0"),
    (f"{TRAIN} --n-head -1", 2, "n_head must be"),
    (f"{TRAIN} --d-model 0", 2, "d_model must be"),
    (f"{TRAIN} --d-ff 0", 2, "d_ff must be"),
    (f"{TRAIN} --context-length 0", 2, "context_length must be"),
    (
        f"{TRAIN} --d-model 15 --n-head 3 --position sinusoidal",
        2,
        "sinusoidal positions need an even d_model",
    ),
    (f"{TRAIN} --dropout 1", 2, "dropout must be at least 0 and below 1"),
    (f"{TRAIN} --dropout nan", 2, "dropout must be"),
    (f"{TRAIN} --n-layer two", 2, "Invalid value for '--n-layer'"),
    # training
    (f"{TRAIN} --steps 0", 2, "steps must be at least 1, got 0"),
    (f"{TRAIN} --epochs 1", 2, "--steps and --epochs both"),
    (f"train --text text.txt --out new --epochs 0 {SMALL}", 2, "epochs must be"),
    (f"train --text text.txt --out new --epochs nan {SMALL}", 2, "epochs must be"),
    (f"train --text text.txt --out new --epochs inf {SMALL}", 2, "epochs must be"),
    (f"{TRAIN} --batch-size 0", 2, "batch-size must be at least 1, got 0"),
    (f"{TRAIN} --accumulate 3", 2, "batch-size 4 does not divide into --accumulate 3 parts"),
    (f"{TRAIN} --learning-rate 0", 2, "learning-rate must be a positive number"),
    (f"{TRAIN} --learning-rate nan", 2, "learning-rate must be a positive number, got nan"),
    (f"{TRAIN} --min-learning-rate 1", 2, "min-learning-rate must be from 0 to the learning rate"),
    (f"{TRAIN} --warmup-steps -1", 2, "warmup-steps must be at least 0, got -1"),
    (f"{TRAIN} --weight-decay -1", 2, "weight-decay must be at least 0"),
    (f"{TRAIN} --beta1 1", 2, "beta1 must be at least 0 and below 1"),
    (f"{TRAIN} --beta2 2", 2, "beta2 must be at least 0 and below 1"),
    (f"{TRAIN} --clip 0", 2, "clip must be above 0"),
    (f"{TRAIN} --eval-interval 0", 2, "eval-interval must be at least 1"),
    (f"{TRAIN} --seed -1", 2, "seed must be from 0"),
    (f"{TRAIN} --threads 0", 2, "threads must be at least 1, got 0"),
    (f"{TRAIN} --threads -2", 2, "threads must be at least 1, got -2"),
    # runs
    (
        f"train --text text.txt --out run --steps 2 {SMALL}",
        1,
        "run already holds a run; continue it with --resume",
    ),
    ("train --text text.txt --out text.txt --overwrite", 1, "text.txt is a file; choose another --out"),
    ("train --text missing.txt --out run --overwrite", 1, "missing.txt: no such file"),
    (f"train --text text.txt --out run --overwrite {SMALL} --n-head 3", 2, "does not divide"),
    ("train --resume", 2, "--resume needs --out"),
    ("train --resume --out nowhere", 1, "no checkpoint at nowhere"),
    ("train --resume --out run", 1, "has done all its 6 steps"),
    ("train --resume --out run --learning-rate 1", 2, "--learning-rate does not go with --resume"),
    ("train --resume --out run --n-layer 2", 2, "--n-layer does not go with --resume"),
    ("generate nowhere", 1, "no run at nowhere"),
    ("generate folder", 1, "no run at folder: found an empty folder"),
    ("generate truncated", 1, "model.safetensors does not match its hash"),
    ("generate flipped", 1, "model.safetensors does not match its hash"),
    ("generate future", 1, "version 99, but this program reads"),
    ("info truncated", 1, "model.safetensors does not match its hash"),
    ("evaluate future", 1, "version 99"),
    # generation and evaluation
    ("generate", 2, "Missing argument"),
    ("generate run --prompt=", 2, "the prompt is empty"),
    ("generate run --prompt日", 2, "No such option"),
    ("generate run --prompt 日", 1, "has no token for '日' (U+65E5)"),
    ("generate run --max-new-tokens 0", 2, "--max-new-tokens must be at least 1, got 0"),
    ("generate run --num-samples 0", 2, "--num-samples must be at least 1, got 0"),
    ("generate run --temperature -1", 2, "temperature must be 0 (greedy) or a positive number, got -1"),
    ("generate run --temperature nan", 2, "temperature must be"),
    ("generate run --top-k 0", 2, "top-k must be at least 1, got 0"),
    ("generate run --top-p 0", 2, "top-p must be above 0 and at most 1"),
    ("generate run --top-p 1.5", 2, "top-p must be"),
    ("generate run --backend jax", 2, "unknown backend 'jax'"),
    ("evaluate run --text missing.txt", 1, "missing.txt: no such file"),
    ("evaluate run --text one.txt", 1, "nothing to predict in a text of 1 tokens"),
    ("evaluate run --text strange.txt", 1, "has no token for"),
    ("evaluate run --batch-size 0", 2, "batch-size must be at least 1, got 0"),
]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a trained run, damaged copies of it, and every kind of text."""
    folder = tmp_path_factory.mktemp("place")
    text = "".join(f"{sentence}\n" for sentence in corpus()[:200])
    contents = {
        "text.txt": text.encode(),
        "empty.txt": b"",
        "short.txt": b"abcdefghij",
        "one.txt": b"a",
        "strange.txt": "日本".encode(),
        "latin.txt": b"caf\xe9 au lait",
        "utf16.txt": "text".encode("utf-16"),
        "binary.dat": b"ab\x00cd",
        "bad.tiktoken": b"not ranks\n",
        "text.bin": b"ab",
    }
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    (folder / "folder").mkdir()
    for name in ("run", "truncated", "flipped", "future"):
        command = [
            sys.executable,
            ROOT / "cli.py",
            "train",
            "--text",
            "text.txt",
            "--out",
            name,
            "--steps",
            "6",
        ]
        subprocess.run([*command, *SMALL.split()], cwd=folder, check=True, capture_output=True)
        for model in (folder / name).glob("*/model.safetensors"):
            content = bytearray(model.read_bytes())
            if name == "truncated":
                content = content[:-7]
            if name == "flipped":
                content[-100] ^= 4
            model.write_bytes(content)
            if name == "future":
                config = model.with_name("config.json")
                config.write_text(json.dumps(json.loads(config.read_text()) | {"format_version": 99}))
    return folder


def fingerprint(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""
        for path in folder.rglob("*")
    }


@pytest.fixture
def fail(place, capsys, monkeypatch):
    """A function that runs what must fail in the folder: exit code and stderr; nothing may have changed."""
    monkeypatch.chdir(place)

    def fail(*arguments):
        before = fingerprint(place)
        monkeypatch.setattr(sys, "argv", ["cli.py", *arguments])
        code = cli.main()
        out, err = capsys.readouterr()
        assert out == ""
        assert fingerprint(place) == before
        assert err.startswith("error: ")
        assert err.count("\n") == 1
        assert "Traceback" not in err
        return code, err

    return fail


@pytest.mark.parametrize(("arguments", "code", "words"), MISTAKES, ids=[row[0] for row in MISTAKES])
def test_a_mistake_is_one_line(fail, arguments, code, words):
    """The line names what was wrong; the exit code is 2 for usage and 1 for the rest; no file changes."""
    found, err = fail(*arguments.split(" "))
    assert words in err
    assert found == code


def test_a_context_that_the_text_cannot_fill(fail):
    """A text shorter than a context names both lengths and what to change."""
    _, err = fail(*f"{TRAIN} --context-length 100000".split())
    assert "one context takes 100,001; give a longer text or a smaller --context-length" in err


def test_pytorch_is_missing(fail, monkeypatch):
    """Without PyTorch its backend says which extra to install."""
    monkeypatch.setitem(sys.modules, "torch", None)
    monkeypatch.delitem(sys.modules, "harness.torch_backend", raising=False)
    for command in (
        f"{TRAIN} --backend torch",
        "generate run --backend torch",
        "evaluate run --backend torch",
    ):
        code, err = fail(*command.split())
        assert code == 1
        assert 'pip install -c constraints.txt -e ".[torch]"' in err


def test_gpt2_without_a_network(fail, monkeypatch):
    """Where tiktoken cannot download, the line says how to provide the files."""

    def unreachable(name):
        raise OSError("no route to host")

    monkeypatch.setattr(tiktoken, "get_encoding", unreachable)
    for command in (f"{TRAIN} --tokenizer gpt2", "prepare text.txt --tokenizer gpt2"):
        code, err = fail(*command.split())
        assert code == 1
        assert "TIKTOKEN_CACHE_DIR" in err
