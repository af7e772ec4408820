"""The table of components: both twins have its weights, tensors and choices, and nothing else."""

import pytest
import torch

import numpy_llm.feed_forward
import numpy_llm.norms
import numpy_llm.positions
import torch_llm.feed_forward
import torch_llm.norms
import torch_llm.positions
from contract.components import COMPONENTS, Part, Tensor, Weight, letters, rows, shape, sizes, traced_numbers
from contract.config import ModelConfig
from contract.errors import ConfigError
from contract.trace import Trace
from contract.weights import weight_table
from parity.cases import CASES

TWINS = {
    "position": (numpy_llm.positions.POSITIONS, torch_llm.positions.POSITIONS),
    "norm": (numpy_llm.norms.NORMS, torch_llm.norms.NORMS),
    "activation": (numpy_llm.feed_forward.ACTIVATIONS, torch_llm.feed_forward.ACTIVATIONS),
    "feed_forward": (numpy_llm.feed_forward.FEED_FORWARDS, torch_llm.feed_forward.FEED_FORWARDS),
    "block": (numpy_llm.block.BLOCKS, torch_llm.block.BLOCKS),
}


def numpy_pass(case):
    inputs, trace = case.inputs("float64"), Trace()
    model = numpy_llm.GPT(case.config, inputs.weights)
    *_, cache = model.forward(inputs.tokens, inputs.targets, dropout=inputs.dropout, trace=trace)
    return trace, model.backward(cache, trace=trace)


def torch_pass(case):
    inputs, trace = case.inputs("float64"), Trace()
    model = torch_llm.GPT(case.config, inputs.weights)
    tokens, targets = torch.tensor(inputs.tokens), torch.tensor(inputs.targets)
    model(tokens, targets, dropout=inputs.dropout, trace=trace)[1].backward()
    return trace, {name: weight.grad for name, weight in model.named_parameters()}


@pytest.mark.parametrize("run", [numpy_pass, torch_pass])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.title)
def test_both_twins_trace_the_table(case, run):
    """The tensors and weights of each parity case have the names, order and shapes of the table, gradients too."""
    trace, gradients = run(case)
    table = rows(case.config)
    expected = {name: shape(case.config, name, case.B, case.T) for name in table}
    tensors = {name: expected[name] for name, row in table.items() if isinstance(row, Tensor)}
    weights = {name: expected[name] for name, row in table.items() if isinstance(row, Weight)}
    assert list(trace.activations) == list(tensors)
    assert {name: tensor.shape for name, tensor in trace.activations.items()} == tensors
    assert {name: tensor.shape for name, tensor in trace.gradients.items()} == tensors
    assert {name: tuple(gradient.shape) for name, gradient in gradients.items()} == weights
    numbers = sum(tensor.size for tensor in trace.activations.values())
    assert traced_numbers(case.config, case.B, case.T) == numbers


@pytest.mark.parametrize("slot", TWINS)
def test_choices(slot, tiny_config):
    """Both twins and the configuration know exactly the table's choices."""
    for twin in TWINS[slot]:
        assert list(twin) == list(COMPONENTS[slot])
    for choice in COMPONENTS[slot]:
        assert getattr(tiny_config(**{slot: choice}, head_size=4), slot) == choice
    with pytest.raises(
        ConfigError, match=f"unknown {slot} 'other'; choose {' or '.join(map(repr, COMPONENTS[slot]))}"
    ):
        tiny_config(**{slot: "other"})


def test_parts_are_slots_and_letters_have_sizes(tiny_config):
    """Every part names a slot of the table, and every letter has a size."""
    all_rows = [row for choices in COMPONENTS.values() for choice in choices.values() for row in choice]
    assert {row.slot for row in all_rows if isinstance(row, Part)} == COMPONENTS.keys() - {"model"}
    used = {letter for row in all_rows if not isinstance(row, Part) for letter in row.letters.split()}
    assert used <= sizes(tiny_config()).keys() | {"…", "N"}  # of what a part stands over


def test_letters_and_sizes():
    """Letters of names, and their sizes, where every dimension has another size."""
    config = ModelConfig(
        vocab_size=29, context_length=23, n_layer=4, n_head=2, d_model=10, d_ff=17, activation="relu",
        position="learned", head_size=3,
    )  # fmt: skip
    assert letters(config, "blocks.3.attention.scores") == ("B", "H", "T", "S")
    assert letters(config, "blocks.0.attention.query_key_value.bias") == ("(H+2K)·D",)
    assert letters(config, "loss") == ()
    assert shape(config, "blocks.3.attention.scores", B=5, T=7) == (5, 2, 7, 7)
    assert shape(config, "blocks.3.attention.scores", B=5, T=1, S=7) == (5, 2, 1, 7)
    assert shape(config, "blocks.0.attention.query_key_value.weight") == (18, 10)
    assert shape(config, "blocks.0.attention.output.weight") == (10, 6)
    assert shape(config, "position_embedding.weight") == (23, 10)
    assert shape(config, "logits", B=5, T=7) == (5, 7, 29)


@pytest.mark.parametrize("name", ["blocks.1.norm_1", "norm_1", "blocks.0.norm_1.scale", "output.weight", ""])
def test_an_unknown_name_is_an_error(name, tiny_config):
    """A name that the model does not have has no shape, not even a likely one."""
    with pytest.raises(ConfigError, match="no weight or tensor called"):
        letters(tiny_config(), name)


def test_weights_are_the_tables(tiny_config):
    """The weight table has the table's weights in order, and a bias only if the configuration has them."""
    for bias in (True, False):
        config = tiny_config(bias=bias, n_layer=2)
        names = [name for name, row in rows(config).items() if isinstance(row, Weight)]
        assert list(weight_table(config)) == names
        assert any(name.endswith("bias") for name in names) == bias
