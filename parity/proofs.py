"""The proofs by name. Each takes the twins, or copies with an injected fault, and raises ParityError."""

from collections.abc import Callable, Iterable, Iterator
from functools import partial

import numpy as np
import torch

from contract.weights import Weights
from parity.cases import CASES, Case
from parity.compare import Comparison, compare
from parity.decoding import PROMPTS, check_cache, check_generation, check_samples
from parity.families import check_families
from parity.optimizers import check_adam, check_adamw
from parity.passes import Twins, compare_case, compare_in_blocks, reference_pass
from parity.witnesses import TINY_CASES, check_differences, check_transformers


def check_tensors(twins: Twins, cases: Iterable[Case] = CASES):
    """Every tensor of every case of the table, in float64."""
    for case in cases:
        compare_case(case, "float64", twins).require()


def check_blocks(twins: Twins):
    """What an untraced pass of the reference computes, attention in blocks, in float64."""
    for case in CASES:
        compare_in_blocks(case, twins).require()


def check_accumulation(twins: Twins):
    """The gradients of a batch cut into micro-batches, each with its share, are those of the whole batch."""
    case = next(case for case in CASES if case.title == "dropout")._replace(B=5)
    whole = reference_pass(twins.reference, case.config, case.inputs("float64")).weight_gradients
    for parts in range(1, case.B + 1):
        for accumulate, package in ((_accumulate, twins.reference), (_accumulate_twin, twins.twin)):
            title = f"gradients of {parts} micro-batches in {package.__name__}"
            rows = compare("accumulation", whole, accumulate(package, case, parts), "float64")
            Comparison(title, "float64", case.seed, rows).require()


def _micro_batches(case: Case, parts: int) -> Iterator[tuple]:
    inputs, first = case.inputs("float64"), 0
    for tokens in np.array_split(inputs.tokens, parts):
        rows = slice(first, first + len(tokens))
        key = inputs.dropout._replace(first_sequence=inputs.dropout.first_sequence + first)
        yield tokens, inputs.targets[rows], key, len(tokens) / case.B
        first = rows.stop


def _accumulate(package, case, parts) -> dict[str, np.ndarray]:
    model = package.GPT(case.config, case.inputs("float64").weights)
    gradients = Weights.zeros(case.config, "float64")
    for tokens, targets, dropout, share in _micro_batches(case, parts):
        _, _, cache = model.forward(tokens, targets, dropout=dropout)
        model.backward(cache, dloss=share, gradients=gradients)
    return dict(gradients)


def _accumulate_twin(package, case, parts) -> dict[str, np.ndarray]:
    model = package.GPT(case.config, case.inputs("float64").weights)
    for tokens, targets, dropout, share in _micro_batches(case, parts):
        _, loss = model(torch.tensor(tokens), torch.tensor(targets), dropout=dropout)
        (share * loss).backward()
    return {name: weight.grad.numpy() for name, weight in model.named_parameters()}


# A few prompts and tiny models, of both decoders, all lengths and the parts that have mistakes: many changed twins are
# held against them. The twins themselves are held against all of them by `test_generation.py` and `test_witnesses.py`.
_FEW_PROMPTS, _FEW_TINY = range(0, PROMPTS, 7), TINY_CASES[1::4]

CHECKS: dict[str, Callable[[Twins], None]] = {
    "tensors": check_tensors,
    "blocks": check_blocks,
    "accumulation": check_accumulation,
    "adam": check_adam,
    "adamw": check_adamw,
    "cache": check_cache,
    "generation": partial(check_generation, numbers=_FEW_PROMPTS),
    "samples": check_samples,
    "differences": partial(check_differences, cases=_FEW_TINY),
    "transformers": check_transformers,
    "families": check_families,
}
