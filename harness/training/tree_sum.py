"""Sums in one fixed order, whoever adds what: neighbours first, then neighbouring pairs, and so on.

Rounding makes a sum depend on its order. In a binary tree, 2^k neighbouring parts are a subtree, so that processes with
2^k parts each can add up their own and then exchange sums: the total has the same bits on any number of them.
"""

from collections.abc import Callable, Iterable


def tree_sum(parts: Iterable, add: Callable):
    """The sum of one part or more, taken one by one: at most log2(n) + 1 sums of n parts exist at once.

    add: of two sums, which it may overwrite; the first is of the earlier parts
    A number of parts that is no power of two gives a tree with subtrees of different sizes.
    """
    sums = []  # of subtrees, each with its size: 4, 2, 1 after seven parts
    for part in parts:
        size = 1
        while sums and sums[-1][0] == size:
            part = add(sums.pop()[1], part)
            size *= 2
        sums.append((size, part))
    total = sums.pop()[1]
    while sums:
        total = add(sums.pop()[1], total)
    return total
