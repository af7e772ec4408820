"""Reference tensors for a port of the model: `golden make`, `golden export`, `golden list` and `check`."""

import json
from pathlib import Path
from typing import Annotated

import typer

from commands.options import CONFIG_HELP, JsonOption, option
from contract.errors import ConfigError

TokensOption = Annotated[
    int | None,
    option(
        "Tokens per sequence. [default: context length minus one, at most 64]",
        "--sequence-length",
        "--tokens",
    ),
]


_WORTH_SAYING = 200_000_000  # bytes of a pack


def make(
    name: Annotated[
        str | None, typer.Argument(help=r"Name of the pack. \[default: remake the project's packs]")
    ] = None,
    config: Annotated[Path | None, option(CONFIG_HELP)] = None,
    run: Annotated[Path | None, option("Run or checkpoint to take trained weights from.")] = None,
    out: Annotated[Path | None, option("Folder to write to. [default: parity/golden, or . for NAME]")] = None,
    batch_size: Annotated[int, option("Sequences per batch.")] = 3,
    tokens: TokensOption = None,
    steps: Annotated[int, option("Steps of AdamW; 0 for none.")] = 10,
    beta1: Annotated[float, option("AdamW's decay rate of the mean.")] = 0.9,
    beta2: Annotated[float, option("AdamW's decay rate of the mean square.")] = 0.95,
    eps: Annotated[float, option("AdamW's epsilon; at 1e-8 mistakes in it hide in rounding.")] = 1e-4,
    weight_decay: Annotated[float, option("AdamW's decoupled weight decay.")] = 0.5,
    clip: Annotated[float, option("Maximum gradient norm of a step.")] = 1.0,
    seed: Annotated[int, option("Seed of the batch and of random weights.")] = 3,
    overwrite: Annotated[bool, option("Replace earlier packs of these names.", "--overwrite")] = False,
):
    """Make golden packs: every tensor of a pass, its gradient, and steps of AdamW.

    NAME with --config makes a pack of that model with random weights; NAME with
    --run makes one of a trained model. A large model makes a large pack.
    """
    from commands.console import say
    from parity.golden.making import make_pack
    from parity.golden.packs import GOLDEN, committed, replaceable_pack, save_pack

    if name is None and (config or run):
        raise ConfigError("a pack of your own needs a name: golden make NAME --config FILE")
    if name is None:
        folder, recipes = out or GOLDEN, committed()
        for each in recipes:
            replaceable_pack(each, folder, overwrite)
        packs = [make_pack(each, **recipe._asdict()) for each, recipe in recipes.items()]
    else:
        folder, name = out or Path(), _plain(name)
        replaceable_pack(name, folder, overwrite)
        adamw = {"beta1": beta1, "beta2": beta2, "eps": eps, "weight_decay": weight_decay, "max_norm": clip}
        packs = [_own_pack(name, config, run, B=batch_size, T=tokens, seed=seed, steps=steps, **adamw)]
    for pack in packs:
        save_pack(pack, folder, overwrite=overwrite)
        kilobytes = sum(tensor.nbytes for tensor in pack.tensors.values()) / 1e3
        contents = f"{len(pack.tensors)} tensors, {kilobytes:,.0f} kB, and its .json"
        say(f"{folder / pack.name}.safetensors: {contents}")


def _plain(name: str) -> str:
    from parity.golden.packs import pack_names

    if Path(name).name != name or not name.strip(". "):
        raise ConfigError(f"{name!r} is not a plain file name; choose one, and the folder with --out")
    if name in pack_names():
        raise ConfigError(
            f"{name} is a pack of the project, which `check` would use instead of yours; choose another NAME"
        )
    return name


def _own_pack(name: str, config: Path | None, run: Path | None, **settings):
    from commands.console import say
    from contract.config import ModelConfig, read_config
    from harness.training.checkpoint import load_checkpoint
    from harness.training.run_folder import find_checkpoint
    from parity.golden.making import LARGEST, make_pack, pack_bytes, usual_tokens

    if (config is None) == (run is None):
        raise ConfigError("give either --config, a JSON file, or --run, a trained model")
    if run is not None:
        checkpoint = load_checkpoint(find_checkpoint(run))
        model, weights = checkpoint.config, checkpoint.weights
    else:
        model, weights = ModelConfig.from_dict(read_config(config)), None
    T = settings["T"] or usual_tokens(model)
    size = pack_bytes(model, settings["B"], T, settings["steps"])
    if _WORTH_SAYING < size <= LARGEST:
        say(
            f"{name} will have about {size / 1e9:.1f} GB, and making it takes about four times as much memory"
        )
    return make_pack(name, model, weights=weights, **settings)


def export(
    name: Annotated[str, typer.Argument(help="Name of a pack, from `golden list`, or its path.")],
    out: Annotated[Path | None, option("Folder or file to create. [default: NAME, or NAME.npz]")] = None,
    format: Annotated[str, option("raw, npz, npy or huggingface.")] = "raw",
    dtype: Annotated[
        str | None,
        option(
            "float64 or float32, for the real numbers; of a huggingface export bfloat16 and float16 too. "
            "[default: float64; float32 for huggingface]"
        ),
    ] = None,
    overwrite: Annotated[bool, option("Replace an earlier export in --out.", "--overwrite")] = False,
):
    """Write a pack for other programs.

    raw: little-endian NAME.bin files, a manifest, an index for programs without a
    JSON reader, and a page that explains them.

    huggingface: config.json and model.safetensors with the names and layouts of
    the model's family, for your own loader or transformers, and batch.json with
    the tokens and targets.
    """
    from commands.console import say
    from contract.files import visible_items
    from parity.golden.export import export_pack
    from parity.golden.packs import load_pack

    pack = load_pack(name)
    out = out or Path(f"{pack.name}.npz" if format == "npz" else pack.name)
    export_pack(pack, format, out, dtype=dtype, overwrite=overwrite)
    if format == "huggingface":
        say(f"{out}: {', '.join(visible_items(out))}")
    else:
        say(f"{out}: {len(pack.tensors)} tensors, real numbers in {dtype or 'float64'}")


def list_packs(as_json: JsonOption = False):
    """List the packs that come with the project."""
    from commands.console import show
    from contract.weights import parameter_count
    from parity.golden.packs import load_pack, pack_names
    from parity.golden.published import published_as

    packs = [load_pack(name) for name in pack_names()]
    if as_json:
        rows = [
            {
                "name": pack.name,
                "tensors": len(pack.tensors),
                "huggingface": published_as(pack.config),
                "config": pack.manifest["config"],
            }
            for pack in packs
        ]
        show(json.dumps(rows))
        return
    for pack in packs:
        config, count = pack.config, parameter_count(pack.config)
        words = (
            f"{config.n_layer} layer{'s' * (config.n_layer > 1)}",
            f"{config.n_head} heads",
            f"{config.d_model} channels",
            config.activation,
            f"{config.position} positions",
            "tied" if config.tie_embeddings else "untied",
            "bias" if config.bias else "no bias",
            *([f"published as {kind}"] if (kind := published_as(config)) else []),
        )
        show(f"{pack.name:<16} {len(pack.tensors)} tensors, {count:,} parameters: {', '.join(words)}")


def check(
    dump: Annotated[
        str,
        typer.Argument(
            help="Your tensors: .safetensors, .npz, or a folder of .npy or .bin files; with --against, the model."
        ),
    ],
    golden: Annotated[str | None, option("Name of a pack, from `golden list`, or its path.")] = None,
    against: Annotated[
        str | None,
        option("transformers: trace the published model DUMP, a folder or a name on the hub, by hooks."),
    ] = None,
    precision: Annotated[
        str | None,
        option(
            "Whose limits apply: float64, float32, bfloat16 or float16. [default: the dump's]",
            "--precision",
            "--dtype",
        ),
    ] = None,
    as_json: JsonOption = False,
):
    """Find the first wrong operation in your implementation, and say why.

    DUMP has some or all of the pack's tensors under the pack's names, or under
    those that hooks on transformers give. The exit code is 1 if one diverges.

    With --against transformers, DUMP is a model: Hugging Face's class runs it, and
    its tensors are held against the NumPy twin's at the same weights, in float64.
    """
    from commands.console import show
    from parity.golden.check import check_dump
    from parity.golden.packs import load_pack
    from parity.golden.report import as_record, describe

    if (golden is None) == (against is None):
        raise ConfigError("give either --golden, a pack, or --against transformers and a published model")
    if against is None:
        report, lines = check_dump(Path(dump), load_pack(golden), precision=precision), []
    else:
        report, lines = _against(against, dump, precision)
    if as_json:
        show(json.dumps(as_record(report), allow_nan=False))
    else:
        for line in [*lines, *describe(report)]:
            show(line)
    if report.diverging:
        raise typer.Exit(1)


def _against(other: str, source: str, precision: str | None):
    """returns: the report, and a line that says whose tensors were compared"""
    from parity.golden.against import compare_with

    if precision is not None:
        raise ConfigError("--precision is of a dump; with --against both models run in float64")
    report, model = compare_with(other, source)
    return report, [f"yours: {model} of {other}; golden: the NumPy twin; both in float64"]
