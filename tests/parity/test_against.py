"""`check --against transformers`: the first divergence between Hugging Face's class and the twin."""

import json

import pytest

torch = pytest.importorskip("torch", reason="needs PyTorch (pip install -e '.[dev]')")
transformers = pytest.importorskip("transformers", reason="needs transformers (pip install -e '.[dev]')")

from parity.cases import FAMILIES, family_case  # noqa: E402
from parity.golden.against import compare_folder  # noqa: E402
from parity.golden.making import make_pack  # noqa: E402
from parity.golden.published import write_folder  # noqa: E402

MODELS = ["GPT-2", *FAMILIES]


@pytest.fixture(scope="module")
def models(tmp_path_factory, packs):
    """A function that gives a model's pack and its folder, made once."""
    made = {}

    def find(title):
        if title not in made:
            pack, folder = packs["gpt2-tied"], tmp_path_factory.mktemp("model")
            if title != "GPT-2":
                case = family_case(title)
                config = case.config.with_layers(3 if title == "Gemma 3" else 2)
                pack = make_pack("model", config, B=2, T=8, steps=0, seed=case.seed)
            write_folder(pack, "float32", folder)
            made[title] = pack, folder
        return made[title]

    return find


@pytest.mark.parametrize("title", MODELS)
def test_a_right_model_agrees(title, models):
    """Every tensor that hooks see, the weights and the gradients of both, by our names."""
    pack, folder = models(title)
    report = compare_folder(folder, pack).report
    assert report.diverging == []
    names = {row.name for row in report.rows}
    assert {
        "logits",
        "loss",
        "gradient.logits",
        "blocks.1.residual_2",
        "gradient.blocks.0.attention.query",
    } <= names
    assert {"gradient.token_embedding.weight", "gradient.blocks.0.attention.heads"} <= names
    absent = {name.rpartition(".")[2] for name in report.missing if name.startswith("blocks.")}
    assert absent - {"dropout_1", "dropout_2"} <= {
        "scores", "capped_scores", "probabilities", "rotated_query", "rotated_key",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("title", "changes", "tensor"),
    [
        ("GPT-2", {"layer_norm_epsilon": 1e-3}, "blocks.0.norm_1"),
        ("Llama", {"rms_norm_eps": 1e-3}, "blocks.0.norm_1"),
        ("Llama 3", {"rope_parameters": {"rope_type": "default", "rope_theta": 50.0}}, "blocks.0.attention.heads"),
        ("Llama, linear scaling", {"rope_parameters": {"rope_theta": 5e5}}, "blocks.0.attention.heads"),
        ("Mistral", {"sliding_window": 6}, "blocks.0.attention.heads"),
        ("Qwen 2", {"rope_parameters": {"rope_theta": 1e3}}, "blocks.0.attention.heads"),
        ("Qwen 3", {"rms_norm_eps": 1e-3}, "blocks.0.norm_1"),
        ("Gemma 2", {"final_logit_softcapping": None}, "logits"),
        ("Gemma 2", {"query_pre_attn_scalar": 6}, "blocks.0.attention.heads"),
        ("Gemma 3", {"layer_types": ["sliding_attention"] * 3}, "blocks.2.attention.heads"),
        ("Gemma 3", {"hidden_activation": "gelu"}, "blocks.0.feed_forward.activation"),
    ],
    ids=lambda value: value if isinstance(value, str) else next(iter(value)),
)  # fmt: skip
def test_a_changed_model_diverges_where_it_was_changed(title, changes, tensor, models, tmp_path):
    """A field of one side's config: the first divergence is the operation that reads it."""
    pack, folder = models(title)
    fields = json.loads((folder / "config.json").read_text()) | changes
    (tmp_path / "config.json").write_text(json.dumps(fields))
    (tmp_path / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes())
    report = compare_folder(tmp_path, pack).report
    first = report.diverging[0].name
    assert first == tensor or (
        tensor.endswith("heads") and first == tensor.replace("heads", "probabilities_dropout")
    )


def test_a_padding_token_is_a_token(models, tmp_path):
    """A config that names one, as most published ones do: its row has its gradient all the same."""
    pack, folder = models("Llama")
    fields = json.loads((folder / "config.json").read_text()) | {
        "pad_token_id": int(pack.tensors["tokens"][0, 0])
    }
    (tmp_path / "config.json").write_text(json.dumps(fields))
    (tmp_path / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes())
    assert compare_folder(tmp_path, pack).report.diverging == []


def test_the_command(models, run_cli, tmp_path):
    """Exit 0 and what was compared; exit 1 and the first divergence; the same as JSON."""
    _, folder = models("Qwen 3")
    code, stdout, _ = run_cli("check", folder, "--against", "transformers")
    assert code == 0
    title, verdict, *_ = stdout.splitlines()
    assert title == "yours: Qwen3ForCausalLM of transformers; golden: the NumPy twin; both in float64"
    assert "tensors agree" in verdict
    code, stdout, _ = run_cli("check", folder, "--against", "transformers", "--json")
    assert (code, json.loads(stdout)["holds"]) == (0, True)


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["dump.npz"], 2, "--golden"),
        (["dump.npz", "--golden", "llama", "--against", "transformers"], 2, "either"),
        (["an/absent/folder", "--against", "transformers"], 2, "no folder an/absent/folder"),
        (["absent", "--against", "jax"], 2, "--against must be transformers"),
        ([".", "--against", "transformers"], 1, "config.json"),
        ([".", "--against", "transformers", "--precision", "float64"], 2, "--precision"),
    ],
)
def test_a_line_for_each_wrong_use(arguments, code, words, tmp_path, run_cli, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found, stdout, stderr = run_cli("check", *arguments)
    assert (found, stdout) == (code, "")
    assert words in stderr
    assert stderr.count("\n") == 1
