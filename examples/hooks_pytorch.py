"""Every tensor of a PyTorch model, by hooks, in a file for `check`.

    python cli.py golden export llama --format huggingface --out folder
    python examples/hooks_pytorch.py folder dump.npz
    python cli.py check dump.npz --golden llama

The model is the class of `transformers` that `folder` names. For yours, load it in `load` instead and return its logits
from `run`. Modules called as in `transformers` are recognised; others are listed as not in the pack, and can be renamed
below. `parity/golden/hooks.py` needs PyTorch and NumPy alone, and can be copied.
"""

import json
import sys
from pathlib import Path

import numpy as np
import torch

from parity.golden.hooks import record

# Your name: the pack's, or that of `transformers`.
RENAMED: dict[str, str] = {}


def load(folder: Path) -> torch.nn.Module:
    from transformers import AutoModelForCausalLM

    # Eager attention has its probabilities at hand.
    return AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").eval()


def main(folder: Path, out: Path):
    batch = json.loads((folder / "batch.json").read_text())
    tokens, targets = (torch.tensor(batch[name]) for name in ("tokens", "targets"))

    def run(model: torch.nn.Module) -> dict[str, torch.Tensor]:
        logits = model(tokens, use_cache=False).logits
        loss = torch.nn.functional.cross_entropy(logits.float().flatten(0, 1), targets.flatten())
        return {"logits": logits, "loss": loss}

    found = record(load(folder), run)
    np.savez(out, **{RENAMED.get(name, name): tensor for name, tensor in found.items()})
    print(f"{out}: {len(found)} tensors")


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit("usage: python examples/hooks_pytorch.py FOLDER OUT.npz")
    main(*map(Path, sys.argv[1:]))
