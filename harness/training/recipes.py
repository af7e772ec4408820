"""The recipes of `bench`: models, pieces of work, and the matrix products that these consist of."""

from collections import Counter
from dataclasses import dataclass, replace

from contract.components import shape, sizes, weight_rows
from contract.config import ModelConfig
from contract.presets import preset


@dataclass(frozen=True)
class Recipe:
    """A measured piece of work: a training step of B = `batch_size`, or generating if there are `new_tokens`.

    batch_size: sequences of a step, or samples generated at once
    temperature, top_k: see `contract.sampling.sample`
    """

    name: str
    config: ModelConfig
    batch_size: int = 1
    prompt_tokens: int = 0
    new_tokens: int = 0
    temperature: float = 0.0
    top_k: int | None = None

    @property
    def tokens(self) -> int:
        """Those of a unit of work: of a step, or generated."""
        return self.batch_size * (self.new_tokens or self.config.context_length)

    @property
    def layers(self) -> Counter[tuple[int, int]]:
        """How often each shape (out, in) of a linear layer occurs, the output layer included."""
        config = self.config
        linear = [shape(config, name) for name, row in weight_rows(config).items() if row.linear]
        matrices = [each for each in linear if len(each) == 2]
        return Counter([*matrices, (config.vocab_size, config.d_model)])

    @property
    def rows(self) -> int:
        """Tokens that go through a linear layer at once."""
        return self.batch_size if self.new_tokens else self.tokens

    @property
    def linear_flops(self) -> int:
        """Multiplications and additions of the linear layers in a unit of work.

        Per weight and token 6 in training (forward 2, backward 4), 2 in generating.
        """
        weights = sum(out * into * count for (out, into), count in self.layers.items())
        return (2 if self.new_tokens else 6) * weights * self.tokens

    @property
    def flops(self) -> int:
        """Multiplications and additions of the matrix products of a unit of work.

        Those of the linear layers, and in training 12 · L · T · H · D per token for attention, causal or not.
        Source: Chowdhery et al. 2022 (PaLM), appendix B.
        """
        size = sizes(self.config)
        attention = 0 if self.new_tokens else 12 * size["L"] * size["P"] * size["H·D"]
        return self.linear_flops + attention * self.tokens


def _bytes_model(n_layer: int, context_length: int) -> ModelConfig:
    """`nano`'s kind of model with 384 channels."""
    shape = {"n_layer": n_layer, "n_head": 6, "d_model": 384, "context_length": context_length}
    return preset("nano", vocab_size=65, **shape)


_GPT2 = preset("gpt2", vocab_size=50257)
_RECIPES = (
    Recipe("nano", preset("nano", vocab_size=65), batch_size=12),
    Recipe("modern", preset("modern", vocab_size=65), batch_size=12),
    Recipe("tense", preset("tense", vocab_size=768), batch_size=64),
    Recipe("medium", _bytes_model(6, 256), batch_size=4),
    Recipe("long", _bytes_model(6, 1024), batch_size=2),
    Recipe("longer", _bytes_model(4, 2048), batch_size=1),
    Recipe("gpt2", replace(_GPT2, context_length=64), batch_size=4),
    Recipe("gpt2-long", _GPT2, batch_size=16),
    Recipe("decode", _GPT2, prompt_tokens=16, new_tokens=64),
    Recipe("samples", _GPT2, batch_size=16, prompt_tokens=16, new_tokens=64, temperature=0.8, top_k=40),
)
RECIPES = {recipe.name: recipe for recipe in _RECIPES}
ACCELERATED = ("gpt2-long",)  # those for an accelerator, whose step takes a minute on a CPU
