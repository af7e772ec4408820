"""Attention in blocks: its equations and what people get wrong in it.

Mistakes are made on blocks of `ROWS` queries and `COLUMNS` keys, so that a short text has several.
"""

from collections.abc import Iterator

import numpy as np

from numpy_llm.attend_in_blocks import attend_in_blocks_backward, attend_in_blocks_forward
from operations.groups import repeated, summed, wrong_sums
from operations.operation import Gradient, Operation, wrong_backward, wrong_forward

ROWS, COLUMNS = 2, 3


def _blocks(T, S, window=None) -> Iterator[tuple[slice, list[slice]]]:
    """Each block of queries, and the blocks of keys from its window's edge to the diagonal."""
    for start in range(0, T, ROWS):
        rows = slice(start, min(start + ROWS, T))
        first = 0 if window is None else max(0, S - T + start + 1 - window)
        stop = S - T + rows.stop
        yield rows, [slice(at, min(at + COLUMNS, stop)) for at in range(first, stop, COLUMNS)]


def _visible(T, S, window=None):
    """Which keys each query sees, (T, S)."""
    behind = np.arange(T)[:, None] + S - T - np.arange(S)  # the key, from the query
    return (behind >= 0) & (behind < (window or S))


def _scores(query, key, scale, visible, cap=None):
    """The scores of all keys, capped, -inf where a query does not see one."""
    scores = query @ repeated(key, query.shape[1]).swapaxes(-1, -2) * scale
    return np.where(visible, scores if cap is None else cap * np.tanh(scores / cap), -np.inf)


def _exponentials(scores, largest):
    """exp(scores - largest), 0 where the row has no visible score so far."""
    return np.where(np.isneginf(scores), 0.0, np.exp(scores - largest))


def _largest(scores):
    return scores.max(axis=-1, keepdims=True)


# Forward: a step takes what was gathered so far, (largest, total, gathered), and a block's scores and values


def _running(rescaled_total=True, rescaled_sum=True):
    """A step with the largest score so far, which may forget to rescale what was summed before."""

    def step(state, scores, values):
        largest, total, gathered = state
        new = np.maximum(largest, _largest(scores))
        exponentials, kept = _exponentials(scores, new), _exponentials(largest, new)
        total = total * (kept if rescaled_total else 1) + exponentials.sum(axis=-1, keepdims=True)
        return new, total, gathered * (kept if rescaled_sum else 1) + exponentials @ values

    return step


def _largest_of_block(state, scores, values):
    _, total, gathered = state
    exponentials = _exponentials(scores, _largest(scores))
    return 0, total + exponentials.sum(axis=-1, keepdims=True), gathered + exponentials @ values


def _normalised(count):
    """A step that adds up heads of single blocks; count: what the sum is divided by, of the blocks so far."""

    def step(state, scores, values):
        _, total, gathered = state
        exponentials = _exponentials(scores, _largest(scores))
        sums = exponentials.sum(axis=-1, keepdims=True)
        heads = exponentials @ values / np.where(sums, sums, 1)
        return 0, count(total), gathered + heads

    return step


def _stepping(*steps):
    """The mistake of taking one of these steps for the right one."""

    def compute(query, key, value, scale, window=None, cap=None):
        T, S = query.shape[2], key.shape[2]
        scores, values = (
            _scores(query, key, scale, _visible(T, S, window), cap),
            repeated(value, query.shape[1]),
        )
        found = [np.empty_like(query) for _ in steps]
        for heads, step in zip(found, steps, strict=True):
            for rows, columns in _blocks(T, S, window):
                state = -np.inf, 0, 0
                for block in columns:
                    state = step(state, scores[..., rows, block], values[..., block, :])
                heads[..., rows, :] = state[2] / state[1]
        return found

    return compute


def _seeing(*masks):
    """The mistake of another mask: one of masks(T, S, window) -> which keys each query sees, or None."""

    def compute(query, key, value, scale, window=None, cap=None):
        found, values = [], repeated(value, query.shape[1])
        for visible in (mask(query.shape[2], key.shape[2], window) for mask in masks):
            if visible is not None:
                scores = _scores(query, key, scale, visible, cap)
                exponentials = _exponentials(scores, _largest(scores))
                found.append(exponentials @ values / exponentials.sum(axis=-1, keepdims=True))
        return found

    return compute


def _seeing_of_last_block(keys):
    """The mistake of seeing these keys, where the last block of keys ends at the last query's place, or is whole.

    keys: (start, end of the last block) -> slice
    """

    def mask(whole):
        def visible(T, S, window):
            seen = _visible(T, S, window)
            for rows, columns in _blocks(T, S, window):
                start = columns[-1].start
                seen[rows, keys(start, start + COLUMNS if whole else columns[-1].stop)] = True
            return seen

        return visible

    return _seeing(mask(False), mask(True))


def _edge_of_block(last):
    """The window's edge of a block's first query, or of its last, for all of its queries."""

    def mask(T, S, window):
        if window is None:
            return None
        seen = _visible(T, S)
        for rows, _ in _blocks(T, S):
            edge = S - T + (rows.stop - 1 if last else rows.start) + 1 - window
            seen[rows, : max(0, edge)] = False
        return seen if seen.any(axis=-1).all() else None

    return mask


# Backward


def _recomputed(cache):
    """The masked scores of the forward pass, with the slope of their cap."""
    T, S = cache.query.shape[2], cache.key.shape[2]
    scores = _scores(cache.query, cache.key, cache.scale, _visible(T, S, cache.window), cache.cap)
    if cache.cap is None:
        return scores, 1.0
    return scores, np.where(np.isneginf(scores), 0.0, 1 - (scores / cache.cap) ** 2)


def _probabilities(cache):
    return np.exp(_recomputed(cache)[0] - cache.log_totals[..., None])


def _of_probabilities(dheads, cache):
    return dheads @ repeated(cache.value, dheads.shape[1]).swapaxes(-1, -2)


def _delta(dheads, cache):
    return (dheads * cache.heads).sum(axis=-1, keepdims=True)


def _dscores(dheads, cache, probabilities, delta):
    return probabilities * (_of_probabilities(dheads, cache) - delta) * _recomputed(cache)[1]


def _to_query_and_key(dscores, cache):
    """dquery and dkey, key's by key head."""
    dquery = dscores @ repeated(cache.key, dscores.shape[1]) * cache.scale
    dkey = dscores.swapaxes(-1, -2) @ cache.query * cache.scale
    return {"query": dquery, "key": summed(dkey, cache.key.shape[1])}


def _with_delta(deltas):
    """The mistake of another delta: one of deltas(dheads, cache)."""
    return lambda dheads, cache: [
        _to_query_and_key(_dscores(dheads, cache, _probabilities(cache), delta), cache)
        for delta in deltas(dheads, cache)
    ]


def _deltas_of_blocks(dheads, cache):
    """Σ dp · p over a block of keys: for each its own, or the first's or the last's for all."""
    products = _of_probabilities(dheads, cache) * _probabilities(cache)
    own, first, last = (np.zeros_like(products) for _ in range(3))
    for rows, columns in _blocks(*products.shape[-2:], cache.window):
        sums = [products[..., rows, block].sum(axis=-1, keepdims=True) for block in columns]
        for block, each in zip(columns, sums, strict=True):
            own[..., rows, block] = each
        first[..., rows, :], last[..., rows, :] = sums[0], sums[-1]
    return [own, first, last]


def _with_probabilities(others):
    """The mistake of other probabilities: one of others(scores, cache)."""

    def compute(dheads, cache):
        found = []
        for probabilities in others(_recomputed(cache)[0], cache):
            dvalue = summed(probabilities.swapaxes(-1, -2) @ dheads, cache.value.shape[1])
            dscores = _dscores(dheads, cache, probabilities, _delta(dheads, cache))
            found.append(_to_query_and_key(dscores, cache) | {"value": dvalue})
        return found

    return compute


def _normalised_by_block(scores, cache):
    found = np.zeros_like(scores)
    for rows, columns in _blocks(*scores.shape[-2:], cache.window):
        for block in columns:
            exponentials = np.exp(scores[..., rows, block])
            sums = exponentials.sum(axis=-1, keepdims=True)
            found[..., rows, block] = exponentials / np.where(sums, sums, 1)
    return [found]


def _without_scale(dheads, cache):
    right = attend_in_blocks_backward(dheads, cache)
    dquery, dkey = (each / cache.scale for each in right[:2])
    return [{"query": dquery}, {"key": dkey}, {"query": dquery, "key": dkey}]


def _last_block_alone(dheads, cache):
    """What of key and value's gradients the last block of queries leaves that sees a key; and query's, of keys."""
    probabilities, K = _probabilities(cache), cache.key.shape[1]
    dscores = _dscores(dheads, cache, probabilities, _delta(dheads, cache))
    of_rows, of_columns = np.zeros(dscores.shape[-2:], bool), np.zeros(dscores.shape[-2:], bool)
    for rows, columns in _blocks(*dscores.shape[-2:], cache.window):
        for block in columns:
            of_rows[:, block] = False
            of_rows[rows, block] = True
        of_columns[rows, columns[-1]] = True
    dkey = _to_query_and_key(dscores * of_rows, cache)["key"]
    dvalue = summed((probabilities * of_rows).swapaxes(-1, -2) @ dheads, K)
    dquery = _to_query_and_key(dscores * of_columns, cache)["query"]
    return [{"key": dkey, "value": dvalue}, {"key": dkey}, {"value": dvalue}, {"query": dquery}]


def _group_not_summed(dheads, cache):
    probabilities, K = _probabilities(cache), cache.key.shape[1]
    dscores = _dscores(dheads, cache, probabilities, _delta(dheads, cache))
    dkeys = wrong_sums(dscores.swapaxes(-1, -2) @ cache.query * cache.scale, K)
    dvalues = wrong_sums(probabilities.swapaxes(-1, -2) @ dheads, K)
    return [{"key": dkey, "value": dvalue} for dkey, dvalue in zip(dkeys, dvalues, strict=True)]


def _without_slope(dheads, cache):
    if cache.cap is None:
        return None
    dscores = _probabilities(cache) * (_of_probabilities(dheads, cache) - _delta(dheads, cache))
    return _to_query_and_key(dscores, cache)


ATTEND_IN_BLOCKS = Operation(
    "attend_in_blocks", attend_in_blocks_forward, attend_in_blocks_backward,
    "heads = softmax(scores + mask) value, scores = query keyᵀ · scale, capped where there is a cap; block by block: "
    "total and sum are multiplied by exp(m - m') where the largest score grows from m to m'",
    {
        "query": Gradient("dquery = dscores key · scale, dscores = p · (dp - delta), delta = dheads · heads", ("key",)),
        "key": Gradient("dkey = dscoresᵀ query · scale, p = exp(scores - log Σ exp(scores))", ("query",)),
        "value": Gradient("dvalue = pᵀ dheads", ("query", "key")),
    },
    (
        wrong_forward("blocks_sum_not_rescaled", _stepping(_running(rescaled_sum=False)),
            "the sum of values is not rescaled when the largest score grows: multiply it by exp(m - m')",
            "when the largest score grows from m to m', what the values were summed to is still in units of exp(m): "
            "multiply it by exp(m - m')"),
        wrong_forward("blocks_total_not_rescaled", _stepping(_running(rescaled_total=False)),
            "the total of the exponentials is not rescaled when the largest score grows: multiply it by exp(m - m')",
            "when the largest score grows from m to m', the total so far is still in units of exp(m): multiply it by "
            "exp(m - m'), as the sum of values"),
        wrong_forward("blocks_not_rescaled", _stepping(_running(False, False)),
            "neither total nor sum is rescaled when the largest score grows: multiply both by exp(m - m')"),
        wrong_forward("blocks_own_maximum", _stepping(_largest_of_block),
            "each block's exponentials have the block's own maximum taken off: blocks can be added up only in the same "
            "units, those of the largest score so far"),
        wrong_forward("blocks_normalised_alone",
            _stepping(_normalised(lambda blocks: 1), _normalised(lambda blocks: blocks + 1)),
            "each block is divided by its own total: divide once, at the end, by the total over all blocks"),
        wrong_forward("blocks_diagonal_unmasked",
            _seeing_of_last_block(slice),
            "the block on the diagonal is not masked: its first queries see keys of their future"),
        wrong_forward("blocks_ahead_seen", _seeing_of_last_block(lambda start, end: slice(end, None)),
            "blocks past the diagonal are computed, and not masked: end at the last query's place"),
        wrong_forward("blocks_window_of_block", _seeing(_edge_of_block(last=False), _edge_of_block(last=True)),
            "the window's edge is that of the block, not of each of its queries: mask the block on the edge, too"),
        wrong_backward("dblocks_without_delta", _with_delta(lambda dheads, cache: [0.0]),
            "delta is left out: dscores = p · (dp - delta), delta = dheads · heads",
            "delta is left out: a score takes part in the total, and so moves every probability of its row: "
            "dscores = p (dp - delta), delta = Σ_d dy · y"),
        wrong_backward("dblocks_delta_of_block", _with_delta(_deltas_of_blocks),
            "delta is summed over one block of keys alone; it runs over all: take dheads · heads, which has them all"),
        wrong_backward("dblocks_without_log_total",
            _with_probabilities(lambda scores, cache: [np.exp(scores), np.exp(scores - _largest(scores))]),
            "the probabilities are not divided by the total: p = exp(score - log_total), not exp(score) or "
            "exp(score - maximum)"),
        wrong_backward("dblocks_without_maximum",
            _with_probabilities(lambda scores, cache: [_probabilities(cache) * np.exp(_largest(scores))]),
            "the log-sum-exp lacks the maximum: log Σ exp(score) = maximum + log(total)"),
        wrong_backward("dblocks_normalised_alone", _with_probabilities(_normalised_by_block),
            "the probabilities are a softmax of the block alone: the total runs over all blocks, and the forward pass "
            "kept its logarithm"),
        wrong_backward("dblocks_without_scale", _without_scale,
            "the scale is left out of dquery or dkey: scores = query keyᵀ · scale, so both have it"),
        wrong_backward("dblocks_overwritten", _last_block_alone,
            "a block's part overwrites the earlier ones: a key is seen by several blocks of queries, and a query sees "
            "several blocks of keys; their parts add up"),
        wrong_backward("dblocks_of_group", _group_not_summed,
            "the gradients of a group's query heads are not summed: a key or value head gets those of all its readers"),
        wrong_backward("dblocks_without_slope", _without_slope,
            "the soft cap's slope is left out: dscores has the factor 1 - (score / cap)²"),
    ),
)  # fmt: skip
