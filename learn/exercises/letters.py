"""Numbers told in an exercise's own letters: a factor as B·T or learning_rate, a shape's axis as T."""

import re
from itertools import combinations

import numpy as np

from learn.exercises.exercise import Trial


def expression(factors: list[float], trials: list[Trial]) -> str:
    """The factors' magnitude in the exercise's own letters where one expression gives it in every trial, or ""."""
    for name, values in expressions(trials).items():
        if np.allclose(np.abs(factors), values, rtol=1e-7, atol=0):
            return name
    return ""


def expressions(trials: list[Trial]) -> dict[str, np.ndarray]:
    """Expression -> its value in each trial: numbers among the arguments, sizes, products, roots, ratios, inverses."""
    letters = {letter: np.array([trial.sizes[letter] for trial in trials]) for letter in trials[0].sizes}
    given = [trial.inputs | {"dloss": trial.dy} for trial in trials]
    names = [name for name, value in given[0].items() if isinstance(value, float)]
    numbers = {name: np.array([each[name] for each in given]) for name in names}
    numbers |= {
        f"1 - {name}": 1 - numbers[name] for name in names if name.startswith("beta") or name == "rate"
    }
    found = {"2": np.array(2.0), "3": np.array(3.0)} | numbers | letters
    single = letters | {_in_brackets(name): values for name, values in numbers.items()}
    pairs = [pair for pair in combinations(single, 2) if pair != ("H", "D")]  # their product is C
    found |= {f"{one}·{two}": single[one] * single[two] for one, two in pairs}
    found |= {f"√{letter}": np.sqrt(values) for letter, values in letters.items()}
    inverse = {f"1/{_in_brackets(name)}": 1 / values for name, values in found.items()}
    ways = [(over, under) for over in ("B·T", *letters) for under in letters if under not in over]
    known = [("C", "D"), ("C", "H"), ("D", "C"), ("H", "C")]  # ratios that are another letter
    ratios = {
        f"{over}/{under}": found[over] / found[under] for over, under in ways if (over, under) not in known
    }
    return (
        found
        | inverse
        | ratios
        | {f"{one}/(B·T)": found[one] / found["B·T"] for one in letters if one not in "BT"}
    )


def _in_brackets(name: str) -> str:
    return f"({name})" if re.search("[·-]", name) else name


def axis_confused(shape: tuple[int, ...], wanted: tuple[int, ...], sizes: dict[str, int]) -> str:
    """Which axis was summed over in the place of which, where one axis of a shape is another's; else ""."""
    letters = {size: letter for letter, size in sizes.items() if letter in "BTH"}
    if len(shape) != len(wanted):
        return ""
    differing = [(ours, due) for ours, due in zip(shape, wanted, strict=True) if ours != due]
    if len(differing) != 1 or not all(size in letters for size in differing[0]):
        return ""
    left, due = (letters[size] for size in differing[0])
    return f"summed over {due} where {left} is meant"


_BROADCAST = re.compile(
    r"could not broadcast input array from shape (?P<came>\([\d,]+\)) into shape (?P<due>\([\d,]+\))"
    r"|operands could not be broadcast together with shapes (?P<place>\([\d,]+\)) (?P<put>\([\d,]+\)) (?P=place)"
)


def axis_of_error(problem: str, trials: list[Trial]) -> str:
    """`axis_confused` of the shapes that NumPy tells where one array does not fit into another, or ""."""
    match = _BROADCAST.search(problem)
    if not match:
        return ""
    came, due = (
        tuple(map(int, re.findall(r"\d+", match[one] or match[other])))
        for one, other in (("came", "put"), ("due", "place"))
    )
    trial = trials["on other sizes" in problem]
    return axis_confused(came, due, trial.sizes)
