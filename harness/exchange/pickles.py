"""Checkpoints that are never read, since they are pickles or of one program alone: how their owner converts them."""

import shlex
import zipfile
from contextlib import suppress
from pathlib import Path

SUFFIXES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
_LLM_C = 20240326  # the first number of a model that llm.c wrote
_PUBLISHED = """
from transformers import AutoModelForCausalLM as M, AutoTokenizer as T
for C in (M, T): C.from_pretrained({source!r}).save_pretrained({out!r})
"""
# nanoGPT computes the exact GELU unless it was started from GPT-2's weights before 2023, which its owner knows.
_NANOGPT = """
import torch, transformers as t; c = torch.load({source!r}, map_location="cpu"); a = c["model_args"]; \
m = t.GPT2LMHeadModel(t.GPT2Config(n_positions=a["block_size"], activation_function="gelu", \
**{{k: a[k] for k in ("vocab_size", "n_layer", "n_head", "n_embd")}}))
s = {{k.removeprefix("_orig_mod."): v for k, v in c["model"].items()}}; \
print(m.load_state_dict({{k: v.T if k.endswith(("c_attn.weight", "c_proj.weight", "c_fc.weight")) else v \
for k, v in s.items()}}, strict=False)); m.save_pretrained({out!r})
"""


def conversion(source: str | Path) -> str:
    """Two lines that convert what `source` names, a file, a folder or a name on the hub, to a folder that is read."""
    path = Path(source)
    out = f"{path.stem if path.is_file() else path.name}-safetensors"
    if _is_llm_c(path):
        return (
            f"llm.c's own program converts it: in its folder run: python dev/eval/export_hf.py --input {path} "
            f"--output {out}; then here: python cli.py import {out} --out runs/{path.stem}"
        )
    nano = _is_nanogpt(path)
    source = path.parent if path.is_file() and not nano else source
    lines = (_NANOGPT if nano else _PUBLISHED).strip().format(source=str(source), out=out)
    program = "$'" + lines.replace("\\", "\\\\").replace("'", "\\'").replace("\n", "\\n") + "'"
    exact = (
        " (nanoGPT computes the exact GELU, which is refused here; where its model has the tanh form, "
        'say "gelu_new")'
    )
    return (
        f"convert it where PyTorch and transformers are: python -c {program}{exact * nano}; "
        f"then import {shlex.quote(out)}"
    )


def _is_llm_c(path: Path) -> bool:
    with suppress(OSError), path.open("rb") as file:
        return int.from_bytes(file.read(4), "little") == _LLM_C
    return False


def _is_nanogpt(path: Path) -> bool:
    """Whether the names in a pickle, which is not run, are those of nanoGPT's checkpoints."""
    with suppress(OSError, zipfile.BadZipFile, KeyError), zipfile.ZipFile(path) as archive:
        pickle = next(name for name in archive.namelist() if name.endswith("data.pkl"))
        with archive.open(pickle) as file:
            return b"model_args" in file.read(1 << 24)
    return False
