"""What rotary positions turn by: the angles' frequencies, and how a longer context stretches them.

Source: Su et al. 2021 (RoPE), section 3.2.2; the scalings are those of the published Llama and Gemma configurations.
"""

from dataclasses import dataclass

from contract.checks import check_number, check_whole
from contract.errors import ConfigError

SCALINGS = ("none", "linear", "llama3")
_NOT_WRITTEN = ("yarn", "longrope", "dynamic")


@dataclass(frozen=True, kw_only=True)
class Rotary:
    """Pair i of a head, its channels i and i + D/2, turns by theta^(-2i/D) radians per place.

    theta: the base; larger ones turn more slowly
    scaling: "none"; "linear" (every frequency divided by `factor`); "llama3" (only wavelengths longer than
        original_context_length / low_frequency_factor are; those shorter than original_context_length /
        high_frequency_factor stay, and those between go smoothly from one to the other)

    Raises ConfigError naming the field, what was found and what fits.
    """

    theta: float = 10_000.0
    scaling: str = "none"
    factor: float = 1.0
    low_frequency_factor: float = 1.0
    high_frequency_factor: float = 4.0
    original_context_length: int = 8192

    def __post_init__(self):
        if self.scaling in _NOT_WRITTEN:
            raise ConfigError(
                f"scaling {self.scaling!r} is not supported yet; choose {' or '.join(map(repr, SCALINGS))}"
            )
        if self.scaling not in SCALINGS:
            raise ConfigError(
                f"scaling {self.scaling!r} is unknown; choose {' or '.join(map(repr, SCALINGS))}"
            )
        wanted = "a number above 0 and below 1e30"
        for name in ("theta", "factor", "low_frequency_factor", "high_frequency_factor"):
            check_number(name, getattr(self, name), lambda x: 0 < x < 1e30, wanted)
            self._set(name, float(getattr(self, name)))  # JSON knows no number of NumPy's
        check_whole("original_context_length", self.original_context_length, 1)
        self._set("original_context_length", int(self.original_context_length))
        if self.low_frequency_factor >= self.high_frequency_factor:
            raise ConfigError(
                f"low_frequency_factor must be below high_frequency_factor {self.high_frequency_factor}, "
                f"got {self.low_frequency_factor}"
            )

    def _set(self, name: str, value):
        object.__setattr__(self, name, value)  # the dataclass is frozen
