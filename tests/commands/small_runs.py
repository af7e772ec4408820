"""A run small enough to train in a test, and what stands in its folder."""

import json
from pathlib import Path

SMALL = (
    "--preset nano --n-layer 1 --n-head 2 --d-model 16 --context-length 8 --batch-size 4 --eval-interval 5"
)


def metrics(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def losses(folder: Path) -> list[float]:
    return [row["loss"] for row in metrics(folder) if "loss" in row]


def config(folder: Path) -> dict:
    return json.loads((folder / "latest" / "config.json").read_text())
