"""`generate` with a model that brings its own tokenizer: prompts, ends, special tokens, conversations."""

import json
import subprocess
import sys

import pytest

from contract.presets import preset
from contract.weights import initial_weights
from harness.training.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from harness.training.run_folder import RunFolder, find_checkpoint
from tests.commands.conftest import ROOT

pytest.importorskip("tokenizers", reason="needs tokenizers (pip install -e '.[dev]')")
pytest.importorskip("jinja2", reason="needs jinja2 (pip install -e '.[dev]')")

from tests.small_tokenizers import published

TEMPLATE = """{% for message in messages %}<|im_start|>{{ message.role }}
{{ message.content }}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""
SEED = ("--seed", 2)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A run of random weights whose texts soon end: a quarter of the vocabulary ends them."""
    folder = tmp_path_factory.mktemp("model") / "run"
    tokenizer = published("qwen2")
    tokenizer.settings["chat_template"] = TEMPLATE
    tokenizer.generation["eos_token_id"] = list(range(0, tokenizer.n_vocab, 4))
    config = preset("nano", vocab_size=tokenizer.n_vocab, n_layer=1, context_length=512)
    save_checkpoint(
        RunFolder(folder).latest, Checkpoint(config, initial_weights(config, 3, "float32"), tokenizer)
    )
    return folder


def test_a_text_ends_where_the_model_ends_it(succeed, model):
    """At an end token, unless told to go on; a stop text cuts what would follow."""
    short, _ = succeed("generate", model, "--prompt", "the", *SEED)
    long, _ = succeed("generate", model, "--prompt", "the", *SEED, "--ignore-eos")
    assert long.startswith(short.rstrip("\n"))
    assert len(long) > len(short)
    stop = long[len(short) + 5 : len(short) + 8]
    cut, _ = succeed("generate", model, "--prompt", "the", *SEED, "--ignore-eos", "--stop", stop)
    assert cut == f"the{long[3:].partition(stop)[0]}\n"


def test_several_prompts_are_those_alone(succeed, model, tmp_path):
    alone = [succeed("generate", model, "--prompt", prompt)[0] for prompt in ("the fox", "x")]
    both, _ = succeed("generate", model, "--prompt", "the fox", "--prompt", "x")
    assert both == "".join(alone)
    file = tmp_path / "prompts.txt"
    file.write_text("the fox\n\nx\n", encoding="utf-8")
    assert succeed("generate", model, "--prompts", file)[0] == both


def test_special_tokens_are_text_unless_asked_for(succeed, model):
    as_text, _ = succeed("generate", model, "--prompt", "<|im_start|>fox", *SEED)
    as_token, _ = succeed("generate", model, "--prompt", "<|im_start|>fox", *SEED, "--special")
    assert as_text != as_token


def test_chat_prints_the_reply_alone(succeed, model):
    """What the template's text would be continued with, in either way of saying it."""
    reply, _ = succeed("generate", model, "--chat", "the fox", *SEED)
    text = "<|im_start|>user\nthe fox<|im_end|>\n<|im_start|>assistant\n"
    continued, _ = succeed("generate", model, "--prompt", text, "--special", *SEED)
    assert continued == text + reply
    told, _ = succeed("generate", model, "--chat", "the fox", "--system", "be brief", *SEED)
    assert told != reply


def test_out_and_in_again(succeed, model, tmp_path):
    """An exported model brings its tokenizer back with it: template, special tokens and ends, and so the reply."""
    succeed("export", model, "--out", tmp_path / "out")
    succeed("import-gpt2", tmp_path / "out", "--out", tmp_path / "again")
    before, after = (load_checkpoint(find_checkpoint(folder)) for folder in (model, tmp_path / "again"))
    assert after.tokenizer.to_dict() == before.tokenizer.to_dict()
    config = json.loads((tmp_path / "out" / "config.json").read_text(encoding="utf-8"))
    assert config["eos_token_id"] == before.tokenizer.generation["eos_token_id"]
    chat = ("--chat", "the fox", *SEED)
    assert succeed("generate", tmp_path / "again", *chat) == succeed("generate", model, *chat)


def test_per_token_takes_no_batch_size(run_cli, model):
    code, _, err = run_cli("evaluate", model, "--text", "cli.py", "--per-token", "--batch-size", 2)
    assert code == 2
    assert "--batch-size does not go with --per-token" in err


def test_a_conversation_remembers(model):
    """Each line of stdin is answered with the earlier ones in mind, until an empty one or the end."""

    def talk(lines):
        command = [sys.executable, "cli.py", "generate", str(model), "--chat", "--seed", "2"]
        result = subprocess.run(command, cwd=ROOT, input=lines, capture_output=True, text=True, check=False)
        assert result.returncode == 0, result.stderr
        return result.stdout

    first, both = talk("the fox\n"), talk("the fox\nquick brown\n\nnever read\n")
    assert both.startswith(first)
    assert len(both) > len(first)
    assert both != first + talk("quick brown\n")


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--chat", "a", "--prompt", "b"), ("--chat does not go with a prompt",)),
        (("--chat", "a", "--num-samples", 2), ("--num-samples does not go with --chat",)),
        (("--chat", "a", "--special"), ("--special is of prompts",)),
        (("--system", "a"), ("give --chat too",)),
        (("--stop", ""), ("--stop needs some text",)),
        (("--prompt", "a", "--prompts", "cli.py"), ("--prompt does not go with --prompts",)),
        (("--prompts", "no such file"), ("no such file cannot be read",)),
        (("--repetition-penalty", 0), ("repetition-penalty", "positive")),
    ],
    ids=str,
)
def test_what_does_not_go_together(run_cli, model, flags, words):
    code, out, err = run_cli("generate", model, *flags)
    assert code in (1, 2)
    assert out == ""
    assert err.count("\n") == 1
    for word in words:
        assert word in err


def test_a_run_without_a_template(run_cli, trained):
    code, _, err = run_cli("generate", trained[0], "--chat", "hello")
    assert code == 1
    assert "no chat template" in err


def test_evaluate_gives_each_token(succeed, model, tmp_path):
    """As rows for people and in the JSON, with the mean that is the loss."""
    file = tmp_path / "text.txt"
    file.write_text("the quick brown fox\n", encoding="utf-8")
    found = json.loads(succeed("evaluate", model, "--text", file, "--per-token", "--json")[0])
    rows = found["per_token"]
    assert "".join(row["text"] for row in rows) == "the quick brown fox\n"
    assert rows[0]["log_probability"] is None
    values = [row["log_probability"] for row in rows[1:]]
    assert -sum(values) / len(values) == pytest.approx(found["nats_per_token"], rel=1e-5)
    out, _ = succeed("evaluate", model, "--text", file, "--per-token")
    assert out.splitlines()[-1].endswith(repr(rows[-1]["text"]))


def test_evaluate_gives_each_document_and_a_page(succeed, run_cli, model, trained, tmp_path):
    """Documents end with the end token; the page holds the text; both say where they cannot."""
    file, page = tmp_path / "text.txt", tmp_path / "page.html"
    file.write_text("one two\n---\nthree <four>\n", encoding="utf-8")
    asked = "--text", file, "--separator", "---\n", "--per-document"
    found = json.loads(succeed("evaluate", model, *asked, "--page", page, "--json")[0])
    rows = found["per_document"]
    assert sum(row["tokens"] for row in rows) == found["tokens"]
    total = sum(row["tokens"] * row["nats_per_token"] for row in rows)
    assert total == pytest.approx(found["tokens"] * found["nats_per_token"])
    assert "&lt;" in page.read_text(encoding="utf-8")
    code, _, err = run_cli("evaluate", model, *asked, "--page", page)
    assert (code, "--overwrite" in err) == (1, True)
    code, _, err = run_cli("evaluate", trained[0], "--per-document")
    assert (code, "needs a tokenizer with an end token" in err) == (2, True)
