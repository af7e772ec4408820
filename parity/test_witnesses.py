"""The third and the fourth witness: central differences, and the GPT-2 of Hugging Face's `transformers`."""

from parity.passes import Twins
from parity.witnesses import check_differences, check_directions, check_transformers


def test_central_differences():
    """Every gradient of every single weight of a dozen tiny models."""
    check_differences(Twins())


def test_directions_at_nano_size():
    """Every weight's gradient at `nano` size, along a random direction."""
    check_directions(Twins())


def test_transformers():
    """Logits, loss, every weight's gradient and greedy texts, of models in several shapes."""
    check_transformers(Twins())
