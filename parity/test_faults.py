"""Sensitivity: each classic mistake, made in a twin, turns its proof red."""

import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import cache, partial
from itertools import product

import pytest

import numpy_llm
from operations.adamw import MISTAKES, made_in_step
from operations.catalogue import OPERATIONS, UNTRACED
from operations.dataflow import record as dataflow
from operations.operation import Mistake, Operation, made
from parity.cases import CASES, Case
from parity.compare import ParityError
from parity.fault_table import FAULTS
from parity.faults import Fault, injected
from parity.passes import Twins
from parity.proofs import CHECKS

# Mistakes that only one proof can see: training passes have no cached tokens and no micro-batches.
ONLY = {"mask_without_cached": "cache", "position_of_window": "cache", "dloss_ignored": "accumulation"}
# Mistakes that no pass of a model shows: the first needs the norm's result, which no argument holds (and is a fault
# of plumbing therefore); in the second, training passes begin at place 0.
UNSEEN = {
    "residual_of_norm", "dposition_from_zero", "rms_after_rotation", "plus_one_after_rotation",
    "plus_one_of_residual", "silu_of_up", "gelu_of_up",
}  # fmt: skip
# Mistakes that a witness beside the twin must see, too, so that each witness is proved sensitive by itself.
WITNESSES = {
    "differences": (
        "dtable_overwritten", "dlinear_transposed", "dnorm_without_mean", "dnorm_without_variance", "drelu_missing",
        "dgelu_without_three", "dgelu_without_slope", "ddropout_without_mask", "dloss_of_sum", "dsoftmax_without_sum",
        "dscores_without_scale", "dmerge_without_swap", "dscores_transposed",
    ),
    "transformers": (
        "dweight_transposed", "norm_eps_outside", "norm_unbiased", "gelu_erf", "gelu_constants", "loss_unshifted",
        "mask_off_by_one", "scale_missing", "qkv_order", "merge_without_swap",
    ),
    "families": (
        "rotate_interleaved", "drotate_missing", "drotate_same_way", "theta_other", "scaling_ignored", "keys_misread",
        "values_misread", "dkey_of_group", "dvalue_of_group", "rms_eps_other", "rms_with_mean", "drms_without_weight",
        "one_missing", "one_twice", "done_missing", "embedding_unscaled", "window_other", "cap_missing", "cap_times_x",
        "dcap_missing", "silu_is_gelu", "dsilu_gate_alone", "gelu_erf", "dgate_exchanged",
    ),
}  # fmt: skip
# Decay is Adam's and AdamW's difference, so a mistake of AdamW's in it is none of Adam's.
DECAY = {"decay_coupled", "decay_on_vectors", "decay_missing", "decay_without_rate", "decay_after_step"}

EVERY = OPERATIONS | UNTRACED
KNOWN = [(operation, mistake) for operation in EVERY.values() for mistake in operation.mistakes]
ALL = {mistake.name: (operation, mistake) for operation, mistake in KNOWN}


@cache
def operations_of(case: Case) -> set[str]:
    return {node.operation for node in dataflow(case.config).nodes}


def cases_of(operation: str) -> list[Case]:
    """All cases, those first whose models have the operation: there its mistakes are seen at once."""
    return sorted(CASES, key=lambda case: operation not in operations_of(case))


def where_seen(check: str, twins: Twins | None = None, operation: str = "") -> str | None:
    """Where a proof sees a difference; None where it sees none. operation: whose mistake it may be"""
    order = {"cases": cases_of(operation)} if operation and check == "tensors" else {}
    try:
        CHECKS[check](twins or Twins(), **order)
    except ParityError as error:
        return error.where
    return None


def assert_every_form_is_seen(
    make: Callable[[int], AbstractContextManager], check: str, record: Callable, forms: int = 99, operation=""
):
    """Make a mistake in its forms, one after the other, and require that the proof sees each that runs.

    record: takes where a form was seen; operation: the name of that which has the mistake
    """
    form, count, ran = 0, 1, False
    while form < min(count, forms):
        with make(form) as made_in:
            try:
                where = where_seen(check, operation=operation)
            except ValueError:  # shapes that do not fit
                where = ""
        assert made_in, "no call allows it: the proof has a hole, or the catalogue"
        if where != "":
            record(where)
            assert where, f"form {form} survives the check of {check}: the suite has a hole"
            ran = True
        form, count = form + 1, max(count, *made_in)
    assert ran


def proof_of(operation: Operation) -> str:
    """The proof that sees an operation's mistakes."""
    return "blocks" if operation.name in UNTRACED else "tensors"


def make_in(operation: Operation, mistake: Mistake) -> Callable[[int], AbstractContextManager]:
    return partial(made, operation, mistake, **({"scale": 0.5} if "scale" in mistake.reads else {}))


@pytest.mark.parametrize(
    ("operation", "mistake"),
    [pair for pair in KNOWN if pair[1].name not in UNSEEN],
    ids=lambda each: each.name,
)
def test_a_mistake_is_found(operation, mistake, record_fault):
    """Whatever form it takes, and by a ParityError; a form that no array library would run is passed over."""
    check = ONLY.get(mistake.name, proof_of(operation))
    told = partial(record_fault, mistake.name, check)
    assert_every_form_is_seen(make_in(operation, mistake), check, told, operation=operation.name)


@pytest.mark.parametrize(
    ("check", "name"), [(check, name) for check, names in WITNESSES.items() for name in names]
)
def test_a_witness_finds_it_alone(check, name, record_fault):
    assert_every_form_is_seen(make_in(*ALL[name]), check, partial(record_fault, name, check), forms=1)


@pytest.mark.parametrize("name", sorted(UNSEEN))
def test_what_no_pass_shows(name):
    with make_in(*ALL[name])(0):
        assert where_seen("tensors") is None


@pytest.mark.parametrize("mistake", MISTAKES, ids=lambda mistake: mistake.name)
def test_a_mistake_in_a_step_is_found(mistake, record_fault):
    """Each mistake of AdamW and of clipping, those that Adam shares in Adam."""
    check = "adamw" if mistake.name in DECAY else "adam"
    assert_every_form_is_seen(
        partial(made_in_step, mistake), check, partial(record_fault, mistake.name, check)
    )


# What is wrong in any operation


def scaled(operation: Operation, role: str, factor: float) -> Mistake:
    """The gradient of one argument times a factor."""

    def compute(*arguments):
        gradient = operation.differentiate(*arguments)[role]
        return None if gradient is None else {role: factor * gradient}

    return Mistake(f"{operation.name}: d{role} times {factor:g}", "", "", True, compute)


def in_one_call(mistake: Mistake, call: int) -> Mistake:
    """The mistake in one of the calls of a pass that allow it, counted from 0."""
    calls = 0

    def compute(*arguments):
        nonlocal calls
        if mistake.forms(*arguments):
            calls += 1
            return mistake.forms(*arguments)[0] if calls == call + 1 else None
        return None

    return mistake._replace(name=f"{mistake.name}, call {call} alone", compute=compute)


GRADIENTS = [
    (operation, scaled(operation, role, 1.01)) for operation in EVERY.values() for role in operation.gradients
]


@pytest.mark.parametrize(("operation", "mistake"), GRADIENTS, ids=lambda each: each.name)
def test_a_hundredth_is_found(operation, mistake, record_fault):
    """Each gradient that a backward function returns, off by a hundredth."""
    check = proof_of(operation)
    told = partial(record_fault, mistake.name, check)
    assert_every_form_is_seen(partial(made, operation, mistake), check, told, operation=operation.name)


@pytest.mark.parametrize(("role", "call"), list(product(("x", "branch"), (0, 1))))
def test_a_lost_residual_is_found(role, call, record_fault):
    """The gradient of the stream, or of the branch, in one of a block's residual connections alone."""
    operation = OPERATIONS["residual"]
    mistake = in_one_call(scaled(operation, role, 0), call)
    assert_every_form_is_seen(
        partial(made, operation, mistake), "differences", partial(record_fault, mistake.name, "differences")
    )


@pytest.mark.parametrize("call", range(7))
def test_a_lost_mask_is_found(call, record_fault):
    """The mask of one place alone is not applied in the backward pass: two blocks of three, and the embedding."""
    operation, mistake = ALL["ddropout_without_mask"]
    mistake = in_one_call(mistake, call)
    told = partial(record_fault, mistake.name, "tensors")
    assert_every_form_is_seen(partial(made, operation, mistake), "tensors", told, operation=operation.name)


# Plumbing


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.title)
def test_fault_is_found(fault, record_fault):
    """The proof named beside the fault raises ParityError, and no other error."""
    with injected(fault) as twins:
        where = where_seen(fault.check, twins)
    record_fault(fault.title, fault.check, where)
    assert where, f"{fault.title} survives the check of {fault.check}: the suite has a hole"


def test_there_are_many_faults():
    """At least 118 of them, and few that must match a source line."""
    assert len(KNOWN) + len(MISTAKES) + len(GRADIENTS) + len(FAULTS) >= 118
    assert len(FAULTS) <= 37
    assert len(ALL) == len(KNOWN)


@pytest.mark.parametrize("check", CHECKS)
def test_a_copy_without_fault_passes(check):
    """It is the fault that is found, and not the copying."""
    with injected(None) as twins:
        assert twins.reference is not numpy_llm
        CHECKS[check](twins)


def test_the_twins_are_left_alone():
    """The copy has a name of its own, is forgotten afterwards, and changes nothing in the package."""
    before, real = set(sys.modules), numpy_llm.model.block_backward
    with injected(FAULTS[0]) as twins:
        assert twins.reference.GPT is not numpy_llm.GPT
        assert sys.modules["numpy_llm"] is numpy_llm
    assert set(sys.modules) == before
    assert numpy_llm.model.block_backward is real


@pytest.mark.parametrize("name", ["bias_missing", "activation_leaks"])
def test_a_mistake_is_undone(name):
    """Where a mistake was made the right function stands again."""

    def functions():
        return dict(vars(numpy_llm.layers)), dict(numpy_llm.feed_forward.ACTIVATIONS)

    before = functions()
    with make_in(*ALL[name])(0):
        assert functions() != before
    assert functions() == before


@pytest.mark.parametrize(
    ("place", "old"),
    [
        ("numpy_llm.feed_forward.relu_backward", "no such text"),
        ("numpy_llm.norms.layer_norm_backward", "dx"),
        ("numpy_llm.layers.no_such_function", "dx"),
        ("numpy_llm.layers.embedding_backward", "dweight[tokens] = dy"),  # stands in the docstring alone
    ],
)
def test_a_fault_that_no_longer_fits_is_an_error(place, old):
    """Code that was rewritten cannot leave a fault behind that changes nothing."""
    with pytest.raises(LookupError), injected(Fault("gone", place, old, "")):
        pytest.fail("the copy was made")
