"""Wrong uses of the command line: each gets one clear line and the right exit code, and loses nothing."""

import gzip
import hashlib
import json
import lzma
import os
import shutil
import subprocess
import sys
from base64 import b64encode
from pathlib import Path

import pytest
import tiktoken

import cli
from data.grammar import corpus

ROOT = Path(__file__).parents[2]
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
    ("train --text folder --out new", 1, "folder: this folder holds no file with anything in it"),
    ("train --text short.txt --out new --context-length 64", 1, "short.txt has 9 tokens to train on"),
    ("train --text text.bin --out new", 1, "text.json: the token file's JSON cannot be read"),
    ("prepare missing.txt", 1, "missing.txt: no such file"),
    ("prepare latin.txt", 1, "not UTF-8"),
    ("prepare text.txt --out text.txt", 2, "name ends in .bin"),
    ("prepare text.txt --validation-fraction 1", 2, "validation fraction of 1.0"),
    ("prepare text.txt --validation-fraction nan", 2, "validation fraction of nan"),
    ("prepare text.txt --out nowhere/tokens.bin", 1, "tokens.bin: cannot be written"),
    ("prepare folder", 1, "folder: this folder holds no file with anything in it"),
    ("prepare . --pattern *.rst --out new.bin", 1, ".: this folder holds no file that matches *.rst"),
    ("prepare . --pattern *.dat --out new.bin", 1, "binary.dat: this looks like a binary file"),
    ("prepare text.txt --pattern *.txt", 2, "--pattern is of the files in a folder"),
    ("prepare text.txt --newlines crlf", 2, "unknown newlines 'crlf'; choose keep or lf"),
    ("prepare text.txt --separator ", 2, "--separator is empty"),
    ("prepare - - --out new.bin", 2, "standard input, which can be read only once"),
    ("prepare broken.jsonl", 1, "broken.jsonl: line 3 is not JSON (Expecting value, at '{\"text\": }')"),
    ("prepare list.jsonl", 1, "list.jsonl: line 1 is [1], expected an object with the field 'text'"),
    ("prepare number.jsonl", 1, "number.jsonl: line 1: the field 'text' is 1, expected text"),
    ("prepare half.jsonl", 1, "half.jsonl: line 1: the field 'text' holds U+D800, half of a character"),
    ("prepare half.jsonl --field body", 1, "half.jsonl: line 1 has no field 'body' (its fields: text, id)"),
    ("prepare hollow.jsonl", 1, "hollow.jsonl: no line has any text in its field 'text'"),
    ("prepare text.txt --field text", 1, "text.txt: line 1 is not JSON"),
    ("prepare cut.txt.gz", 1, "cut.txt.gz: the packed file is cut short or damaged (Compressed file ended"),
    ("prepare damaged.txt.gz", 1, "damaged.txt.gz: the packed file is cut short or damaged"),
    ("prepare cut.xz", 1, "cut.xz: the packed file is cut short or damaged (Compressed file ended"),
    ("prepare text.txt --held-out middle", 2, "unknown --held-out 'middle'; choose end, documents or blocks"),
    (
        "prepare text.txt --held-out documents --out new.bin",
        1,
        "no documents make 10 % of the text: it has 1, the shortest",
    ),
    ("prepare text.txt --held-out-seed -1", 2, "--held-out-seed must be from 0 to 2^63 - 1, got -1"),
    ("prepare text.txt --validation none.txt", 1, "none.txt: no such file"),
    ("prepare text.txt --validation one.txt --held-out end", 2, "--validation is a text of its own"),
    ("prepare text.txt --validation strange.txt --out text.txt", 2, "name ends in .bin"),
    ("prepare short.txt --validation words.tiktoken --out words.bin", 2, "words.tiktoken: this is the text"),
    ("train --text tokens.bin --held-out blocks --out new", 2, "tokens.bin is a token file, which says what"),
    (
        "train --text tokens.bin --text text.txt --out new",
        2,
        "tokens.bin is a token file, which is read alone",
    ),
    ("train --text tokens.bin --newlines lf --out new", 2, "tokens.bin is a token file, which is read alone"),
    ("train --resume --out run --text a.bin --text b.bin", 2, "--resume takes one --text"),
    ("train --resume --out run --held-out end", 2, "--held-out does not go with --resume"),
    ("prepare empty.txt", 1, "empty.txt: the file is empty"),
    ("prepare binary.dat", 1, "binary.dat: this looks like a binary file (a NUL byte at offset 2)"),
    ("prepare text.txt --validation-fraction -0.1", 2, "validation fraction of -0.1"),
    ("prepare text.txt --tokenizer words", 2, "unknown tokenizer 'words'"),
    ("prepare strange.txt --tokenizer letters.tiktoken", 1, "has no token for '日' (U+65E5)"),
    ("prepare ranked.txt", 1, "ranked.tiktoken already exists and belongs to no token file"),
    ("prepare words.tiktoken", 2, "words.tiktoken: this is the text, which would be lost"),
    ("prepare text.txt more.txt", 2, "several texts give the output no name"),
    ("prepare text.txt more.txt --out new.bin", 1, "more.txt: no such file"),
    ("prepare", 2, "Missing argument"),
    (
        "tokenizer train words.tiktoken --vocab-size 300 --out words.tiktoken",
        2,
        "words.tiktoken: this is the text",
    ),
    (
        "tokenizer train text.txt --vocab-size 300 --out words.tiktoken",
        1,
        "words.tiktoken already exists; replace",
    ),
    ("tokenizer train text.txt --vocab-size 300 --out text.txt", 2, "text.txt: this is the text"),
    ("tokenizer train text.txt --vocab-size 300 --out no/x.tiktoken", 1, "x.tiktoken: cannot be written"),
    ("tokenizer train text.txt --vocab-size -1", 2, "a vocabulary of -1 tokens cannot be trained"),
    ("tokenizer train text.txt --vocab-size 99999999999", 2, "a vocabulary of 99999999999 tokens"),
    ("tokenizer train empty.txt --vocab-size 300", 1, "empty.txt: the file is empty"),
    ("tokenizer train binary.dat --vocab-size 300", 1, "binary.dat: this looks like a binary file"),
    ("tokenizer train latin.txt --vocab-size 300", 1, "latin.txt: not UTF-8 text"),
    ("tokenizer sing", 2, "No such command 'sing'"),
    ("tokenizer train text.txt --vocab-size 255", 2, "a vocabulary of 255 tokens cannot be trained"),
    ("tokenizer train text.txt --vocab-size many", 2, "Invalid value for '--vocab-size'"),
    ("tokenizer train text.txt", 2, "--vocab-size"),
    ("tokenizer train missing.txt --vocab-size 300", 1, "missing.txt: no such file"),
    ("train --text text.txt --out text.txt/run", 1, "text.txt"),
    ("train --text missing.txt --out new/folders/run", 1, "missing.txt: no such file"),
    ("train --text tokens.bin --tokenizer bytes --out new", 2, "tokens.bin is a token file with a tokenizer"),
    # names
    (f"{TRAIN} --tokenizer gpt3", 2, "unknown tokenizer 'gpt3'"),
    (f"{TRAIN} --tokenizer none.tiktoken", 1, "none.tiktoken: the ranks file cannot be read"),
    (f"{TRAIN} --tokenizer bad.tiktoken", 1, "bad.tiktoken: not a ranks file (line 1: "),
    (f"{TRAIN} --preset huge", 2, "unknown preset 'huge'; choose one of tense, nano"),
    (f"{TRAIN} --backend jax", 2, "unknown backend 'jax'; choose numpy or torch"),
    (f"{TRAIN} --activation gelu", 2, "activation 'gelu' is the exact-erf GELU"),
    (f"{TRAIN} --activation tanh", 2, "unknown activation 'tanh'"),
    (f"{TRAIN} --position rope", 2, "unknown position 'rope'"),
    (f"{TRAIN} --dtype float16", 2, "dtype must be float32, float64 or bfloat16, got float16"),
    ("fly", 2, "No such command 'fly'"),
    (f"{TRAIN} --wings 2", 2, "No such option"),
    # sizes
    (f"{TRAIN} --n-head 3", 2, "d_model 16 does not divide into n_head 3"),
    (f"{TRAIN} --n-layer 0", 2, "n_layer must be a whole number from 1 to 2^63 - 1, got 0"),
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
    (f"{TRAIN} --dropout -0.1", 2, "dropout must be"),
    (f"{TRAIN} --n-layer two", 2, "Invalid value for '--n-layer'"),
    (f"{TRAIN} --n-layer 2.5", 2, "Invalid value for '--n-layer'"),
    (f"{TRAIN} --d-model nan", 2, "Invalid value for '--d-model'"),
    (f"{TRAIN} --n-head 1000000000000", 2, "d_model 16 does not divide into n_head 1000000000000"),
    # more than any machine has
    (f"{TRAIN} --n-layer 100000000000", 2, "n_layer must be at most 10,000, got 100,000,000,000"),
    (f"{TRAIN} --d-model 1000000000000", 1, "GB of memory to train, and this process may use"),
    (f"{TRAIN} --d-ff 1000000000000", 1, "GB of memory to train, and this process may use"),
    (f"{TRAIN} --batch-size 1000000000000", 1, "choose a smaller --batch-size"),
    (f"{TRAIN} --context-length 1000000000000", 1, "one sequence takes 1,000,000,000,001"),
    (f"{TRAIN} --steps 99999999999999999999", 2, "steps must be below 2^63"),
    (f"train --text text.txt --out new --epochs 1e300 {SMALL}", 2, "steps must be below 2^63"),
    (f"{TRAIN} --accumulate 99999999999999999999", 2, "does not divide into --accumulate"),
    (f"{TRAIN} --warmup-steps 99999999999999999999", 2, "warmup-steps must be below 2^63"),
    (f"{TRAIN} --eval-interval 99999999999999999999", 2, "eval-interval must be below 2^63"),
    (f"{TRAIN} --seed 9223372036854775808", 2, "seed must be from 0 to 2^63 - 1"),
    (f"{TRAIN} --learning-rate inf", 2, "learning-rate must be a positive number, got inf"),
    (f"{TRAIN} --weight-decay inf", 2, "weight-decay must be at least 0, got inf"),
    # training
    (f"{TRAIN} --steps 0", 2, "steps must be at least 1, got 0"),
    (f"{TRAIN} --epochs 1", 2, "--steps and --epochs both"),
    (f"train --text text.txt --out new --epochs 0 {SMALL}", 2, "epochs must be"),
    (f"train --text text.txt --out new --epochs nan {SMALL}", 2, "epochs must be"),
    (f"train --text text.txt --out new --epochs inf {SMALL}", 2, "epochs must be"),
    (f"train --text text.txt --out new --epochs -1 {SMALL}", 2, "epochs must be"),
    (f"{TRAIN} --steps -5", 2, "steps must be at least 1, got -5"),
    (f"{TRAIN} --batch-size 0", 2, "batch-size must be at least 1, got 0"),
    (f"{TRAIN} --batch-size -4", 2, "batch-size must be at least 1, got -4"),
    (f"{TRAIN} --accumulate 0", 2, "accumulate must be at least 1, got 0"),
    (f"{TRAIN} --accumulate -1", 2, "accumulate must be at least 1, got -1"),
    (f"{TRAIN} --accumulate 3", 2, "batch-size 4 does not divide into --accumulate 3 parts"),
    (f"{TRAIN} --learning-rate 0", 2, "learning-rate must be a positive number"),
    (f"{TRAIN} --learning-rate nan", 2, "learning-rate must be a positive number, got nan"),
    (f"{TRAIN} --learning-rate -0.1", 2, "learning-rate must be a positive number, got -0.1"),
    (f"{TRAIN} --min-learning-rate -0.1", 2, "min-learning-rate must be from 0"),
    (f"{TRAIN} --min-learning-rate nan", 2, "min-learning-rate must be from 0"),
    (f"{TRAIN} --min-learning-rate 1", 2, "min-learning-rate must be from 0 to the learning rate"),
    (f"{TRAIN} --warmup-steps -1", 2, "warmup-steps must be at least 0, got -1"),
    (f"{TRAIN} --weight-decay -1", 2, "weight-decay must be at least 0"),
    (f"{TRAIN} --weight-decay nan", 2, "weight-decay must be at least 0, got nan"),
    (f"{TRAIN} --beta1 -0.1", 2, "beta1 must be at least 0 and below 1"),
    (f"{TRAIN} --beta1 nan", 2, "beta1 must be at least 0 and below 1"),
    (f"{TRAIN} --beta2 -0.1", 2, "beta2 must be at least 0 and below 1"),
    (f"{TRAIN} --beta2 nan", 2, "beta2 must be at least 0 and below 1"),
    (f"{TRAIN} --clip -1", 2, "clip must be above 0"),
    (f"{TRAIN} --clip nan", 2, "clip must be above 0"),
    (f"{TRAIN} --eval-interval -1", 2, "eval-interval must be at least 1"),
    (f"{TRAIN} --beta1 1", 2, "beta1 must be at least 0 and below 1"),
    (f"{TRAIN} --beta2 2", 2, "beta2 must be at least 0 and below 1"),
    (f"{TRAIN} --clip 0", 2, "clip must be above 0"),
    (f"{TRAIN} --eval-interval 0", 2, "eval-interval must be at least 1"),
    (f"{TRAIN} --seed -1", 2, "seed must be from 0"),
    (f"{TRAIN} --threads 0", 2, "threads must be from 1 to 1024, got 0"),
    (
        f"{TRAIN} --threads 77640008819150451376128",
        2,
        "threads must be from 1 to 1024, got 77640008819150451376128",
    ),
    (f"{TRAIN} --threads -2", 2, "threads must be from 1 to 1024, got -2"),
    # runs
    (
        f"train --text text.txt --out run --steps 2 {SMALL}",
        1,
        "run already holds a run; continue it with --resume",
    ),
    (
        "train --text text.txt --out text.txt --overwrite",
        1,
        "text.txt is a file, expected a folder; choose another --out",
    ),
    ("train --text missing.txt --out run --overwrite", 1, "missing.txt: no such file"),
    (f"train --text text.txt --out run --overwrite {SMALL} --n-head 3", 2, "does not divide"),
    ("train --resume", 2, "--resume needs --out"),
    ("train --resume --out nowhere", 1, "no checkpoint at nowhere"),
    ("train --resume --out run", 1, "has done all its 6 steps"),
    ("train --resume --out run --steps 0", 2, "steps must be at least 1, got 0"),
    ("train --resume --out run --steps 9 --threads 0", 2, "threads must be from 1 to 1024, got 0"),
    ("train --resume --out run --steps 9 --backend jax", 2, "unknown backend 'jax'"),
    ("train --resume --out run --overwrite", 2, "--overwrite does not go with --resume"),
    ("train --resume --out run --epochs 2", 2, "--epochs does not go with --resume"),
    ("train --resume --out run --seed 1", 2, "--seed 1 would change the run in run, which has 0"),
    ("train --resume --out run --text text.txt", 2, "--text does not go with --resume"),
    ("train --resume --out folder", 1, "no checkpoint at folder"),
    ("train --resume --out truncated --steps 9", 1, "model.safetensors does not match its hash"),
    ("train --resume --out future --steps 9", 1, "version 99"),
    ("train --resume --out tokenless --steps 9", 1, "tokens.bin is missing"),
    (
        "train --resume --out run --learning-rate 1",
        2,
        "--learning-rate 1.0 would change the run in run, which has 0.003",
    ),
    ("train --resume --out run --n-layer 2", 2, "--n-layer 2 would change the run in run, which has 1"),
    ("generate nowhere", 1, "no run at nowhere"),
    ("generate folder", 1, "no run at folder: found an empty folder"),
    ("generate truncated", 1, "model.safetensors does not match its hash"),
    ("generate flipped", 1, "model.safetensors does not match its hash"),
    ("generate future", 1, "version 99, but this program reads"),
    ("generate edited", 1, "config.json does not match its checksum"),
    ("generate garbled", 1, "config.json is damaged or not a checkpoint's"),
    ("generate weightless", 1, "model.safetensors is missing from the checkpoint"),
    ("generate rankless", 1, "tokenizer.tiktoken is missing from the checkpoint"),
    ("generate text.txt", 1, "no run at text.txt"),
    ("info nowhere", 1, "no run at nowhere: found nothing"),
    ("info text.txt", 1, "no run at text.txt"),
    ("info garbled", 1, "config.json is damaged or not a checkpoint's"),
    ("info future", 1, "version 99"),
    ("info", 2, "Missing argument"),
    ("evaluate nowhere", 1, "no run at nowhere: found nothing"),
    ("evaluate truncated", 1, "model.safetensors does not match its hash"),
    ("evaluate weightless --json", 1, "model.safetensors is missing from the checkpoint"),
    ("evaluate tokenless", 1, "tokens.bin is missing"),
    ("evaluate", 2, "Missing argument"),
    ("info truncated", 1, "model.safetensors does not match its hash"),
    ("evaluate future", 1, "version 99"),
    # generation and evaluation
    ("generate", 2, "Missing argument"),
    ("generate run --prompt=", 2, "the prompt is empty"),
    ("generate run --prompt日", 2, "No such option"),
    ("generate run --prompt 日", 1, "has no token for '日' (U+65E5)"),
    ("generate run --prompt The日", 1, "has no token for '日' (U+65E5)"),
    ("generate run --prompt The --max-new-tokens -1", 2, "--max-new-tokens must be at least 1, got -1"),
    ("generate run --prompt The --max-new-tokens many", 2, "Invalid value for '--max-new-tokens'"),
    ("generate run --prompt The --num-samples -1", 2, "--num-samples must be at least 1, got -1"),
    ("generate run --prompt The --temperature inf", 2, "temperature must be"),
    ("generate run --prompt The --top-k -1", 2, "top-k must be a whole number of at least 1, got -1"),
    ("generate run --prompt The --top-p nan", 2, "top-p must be"),
    ("generate run --prompt The --top-p -0.5", 2, "top-p must be"),
    ("generate run --prompt The --seed -1", 2, "--seed must be from 0 to 2^63 - 1, got -1"),
    ("generate run --prompt The --seed 9223372036854775808", 2, "--seed must be from 0 to 2^63 - 1"),
    ("generate run --prompt The --threads 0", 2, "threads must be from 1 to 1024, got 0"),
    ("generate run --prompt The --threads -1", 2, "threads must be from 1 to 1024, got -1"),
    ("generate run --max-new-tokens 0", 2, "--max-new-tokens must be at least 1, got 0"),
    ("generate run --num-samples 0", 2, "--num-samples must be at least 1, got 0"),
    ("generate run --temperature -1", 2, "temperature must be 0 (greedy) or a positive number, got -1"),
    ("generate run --temperature nan", 2, "temperature must be"),
    ("generate run --top-k 0", 2, "top-k must be a whole number of at least 1, got 0"),
    ("generate run --top-p 0", 2, "top-p must be above 0 and at most 1"),
    ("generate run --top-p 1.5", 2, "top-p must be"),
    ("generate run --backend jax", 2, "unknown backend 'jax'"),
    ("evaluate run --text missing.txt", 1, "missing.txt: no such file"),
    ("evaluate run --text one.txt", 1, "nothing to predict in a text of 1 tokens"),
    ("evaluate run --text strange.txt", 1, "has no token for"),
    (
        "evaluate run --field body",
        2,
        "--field is of a text in --text; name one, or omit it: the held-out split has",
    ),
    ("evaluate run --separator x", 2, "--separator is of a text in --text"),
    ("evaluate run --text text.txt --newlines cr", 2, "unknown newlines 'cr'; choose keep or lf"),
    ("evaluate run --text text.txt --pattern *.md", 2, "--pattern is of the files in a folder"),
    ("evaluate run --text tokens.bin --field body", 2, "tokens.bin is a token file, which is read alone"),
    ("evaluate run --text empty.txt", 1, "empty.txt: the file is empty"),
    ("evaluate run --text binary.dat", 1, "binary.dat: this looks like a binary file"),
    ("evaluate run --text latin.txt", 1, "latin.txt: not UTF-8 text"),
    ("evaluate run --backend jax", 2, "unknown backend 'jax'"),
    ("evaluate run --threads 0", 2, "threads must be from 1 to 1024, got 0"),
    ("evaluate run --batch-size -1", 2, "batch-size must be at least 1, got -1"),
    ("evaluate run --batch-size few", 2, "Invalid value for '--batch-size'"),
    ("evaluate run --batch-size 0", 2, "batch-size must be at least 1, got 0"),
]


def changed(**values):
    """A function that puts other values into a JSON object."""
    return lambda content: json.dumps(json.loads(content) | values).encode()


# Copies of `run` by name: the damaged files of each and what became of their content, None for its loss.
DAMAGES = {
    "truncated": ("*/model.safetensors", lambda content: content[:-7]),
    "flipped": ("*/model.safetensors", lambda content: content[:-100] + b"!" + content[-99:]),
    "weightless": ("*/model.safetensors", lambda content: None),
    "rankless": ("*/tokenizer.tiktoken", lambda content: None),
    "future": ("*/config.json", changed(format_version=99)),
    "edited": ("*/config.json", changed(step=5)),
    "garbled": ("*/config.json", lambda content: content[: len(content) // 2]),
    "tokenless": ("tokens.bin", lambda content: None),
}


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
        "letters.tiktoken": b"".join(b"%s %d\n" % (b64encode(b"%c" % (97 + i)), i) for i in range(26)),
        "ranked.txt": b"abcab" * 20,
        "ranked.tiktoken": b"YQ== 0\nYg== 1\nYw== 2\nYWI= 3\n",  # a, b, c, ab
        "broken.jsonl": b'{"text": "a"}\n\n{"text": }\n',
        "list.jsonl": b"[1]",
        "number.jsonl": b'{"text": 1}',
        "half.jsonl": b'{"text": "\\ud800", "id": 1}',
        "hollow.jsonl": b'{"text": ""}\n\n',
        "cut.txt.gz": gzip.compress(text.encode())[:-20],
        "damaged.txt.gz": gzip.compress(text.encode())[:-8] + bytes(8),
        "cut.xz": lzma.compress(text.encode())[:-20],
        "words.tiktoken": text.encode(),  # a text by a misleading name
    }
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    (folder / "folder").mkdir()
    for line in ("prepare text.txt --out tokens.bin", f"train --text text.txt --out run --steps 6 {SMALL}"):
        command = [sys.executable, ROOT / "cli.py", *line.split()]
        subprocess.run(command, cwd=folder, check=True, capture_output=True)
    for name, (file, damage) in DAMAGES.items():
        shutil.copytree(folder / "run", folder / name)
        for damaged in (folder / name).glob(file):
            content = damage(damaged.read_bytes())
            if content is None:
                damaged.unlink()
            else:
                damaged.write_bytes(content)
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
    assert "one sequence takes 100,001; give a longer text or a smaller --sequence-length" in err


def test_pytorch_is_missing(fail, monkeypatch):
    """Without PyTorch its backend says which extra to install."""
    monkeypatch.setitem(sys.modules, "torch", None)
    monkeypatch.delitem(sys.modules, "harness.training.torch_backend", raising=False)
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


@pytest.mark.parametrize("command", [f"{TRAIN} --tokenizer gpt2", "prepare text.txt --tokenizer gpt2"])
def test_gpt2_with_every_way_out_closed(place, tmp_path, command):
    """The real tiktoken, without its files and with no way to fetch them, ends as the one line too."""
    proxies = ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY")
    closed = dict.fromkeys(proxies, "http://127.0.0.1:9")
    closed |= {"no_proxy": "", "NO_PROXY": "", "TIKTOKEN_CACHE_DIR": str(tmp_path / "nothing")}
    before = fingerprint(place)
    result = run_program(command, place, env=os.environ | closed)
    assert (result.returncode, result.stdout) == (1, "")
    assert result.stderr.count("\n") == 1
    assert "the gpt2 tokenizer's files could not be downloaded" in result.stderr
    assert fingerprint(place) == before


def run_program(command: str, folder: Path, **settings) -> subprocess.CompletedProcess:
    """Run the program itself in a folder, as a user does."""
    arguments = [sys.executable, ROOT / "cli.py", *command.split()]
    return subprocess.run(arguments, cwd=folder, capture_output=True, text=True, check=False, **settings)


@pytest.mark.parametrize(
    ("command", "code"), [("fly", 2), ("generate nowhere", 1), ("generate run --top-k 0", 2)]
)
def test_the_process_has_the_exit_code(place, command, code):
    """What the program returns is what the shell sees, and stdout stays empty."""
    result = run_program(command, place)
    assert (result.returncode, result.stdout) == (code, "")
    assert result.stderr.startswith("error: ")
    assert result.stderr.count("\n") == 1


@pytest.mark.parametrize(
    "command", [TRAIN, f"{TRAIN} --overwrite --out run", "prepare text.txt --out new.bin"]
)
def test_an_interruption_leaves_nothing(place, capsys, monkeypatch, command):
    """Ctrl-C before the first step: exit code 130, no half-written file, and an old run stays."""

    def interrupt(*arguments):
        raise KeyboardInterrupt

    before = fingerprint(place)
    monkeypatch.chdir(place)
    monkeypatch.setattr("data.token_writer.encode", interrupt)
    monkeypatch.setattr(sys, "argv", ["cli.py", *command.split()])
    assert cli.main() == 130
    assert fingerprint(place) == before
    out, err = capsys.readouterr()
    assert out == ""
    assert err == "error: interrupted\n"


def test_memory_that_runs_out(fail, monkeypatch):
    """Where memory is refused all the same, that is one line too."""

    def refuse(*arguments, **settings):
        raise MemoryError("Unable to allocate 9 TiB")

    monkeypatch.setattr("harness.training.runs.open_backend", refuse)
    for command in (TRAIN, "generate run"):
        assert fail(*command.split()) == (1, "error: not enough memory (Unable to allocate 9 TiB)\n")


def test_a_smaller_machine_refuses_more(fail, monkeypatch):
    """The memory held against the estimate is what this process may use, and both are named."""
    monkeypatch.setattr("harness.training.memory.available_memory", lambda: 10**7)
    code, err = fail(*TRAIN.split())
    assert code == 1
    assert "and this process may use 0.0 GB" in err


def test_ranks_are_replaced_where_nothing_is_lost(place, tmp_path, monkeypatch):
    """Preparing again needs `--overwrite`; the same ranks stay, other ranks need another `--out`."""
    for name in ("ranked.txt", "ranked.tiktoken"):
        shutil.copy(place / name, tmp_path)
    for command, code in (
        ("prepare ranked.txt", 1),
        ("prepare ranked.txt --tokenizer ranked.tiktoken", 0),
        ("prepare ranked.txt --tokenizer ranked.tiktoken", 1),
        ("prepare ranked.txt --tokenizer ranked.tiktoken --overwrite", 0),
        ("prepare ranked.txt --out other.bin", 0),
        ("prepare ranked.txt --out other.bin --tokenizer ranked.tiktoken", 1),
        ("prepare ranked.txt --out other.bin --tokenizer ranked.tiktoken --overwrite", 0),
    ):
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "argv", ["cli.py", *command.split()])
        assert cli.main() == code, command
    ranks = [(tmp_path / name).read_bytes() for name in ("ranked.tiktoken", "other.tiktoken")]
    assert ranks == [(place / "ranked.tiktoken").read_bytes()] * 2


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (
            "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to "
            "allocate 536870912 bytes. Error code 12 (Cannot allocate memory)",
            "not enough memory (tried to allocate 536870912 bytes)",
        ),
        (
            "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 79.11 GiB of which",
            "not enough memory (tried to allocate 2.00 GiB)",
        ),
        ("[enforce fail] DefaultCPUAllocator: not enough memory: you", "not enough memory"),
    ],
)
def test_memory_that_pytorch_does_not_get(fail, monkeypatch, words, told):
    """PyTorch's own error of memory, which is no MemoryError, is one line too; its other errors stay what they are."""

    def refuse(*arguments, **settings):
        raise RuntimeError(words)

    monkeypatch.setattr("harness.training.runs.open_backend", refuse)
    assert fail(*TRAIN.split()) == (1, f"error: {told}\n")
    words = "mat1 and mat2 shapes cannot be multiplied"
    with pytest.raises(RuntimeError, match="mat1"):
        fail(*TRAIN.split())
