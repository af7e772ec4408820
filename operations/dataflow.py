"""A recorded pass as a graph: what made each tensor, each gradient, and what a mistake would make of them.

Forward, a tensor is made by one operation. Backward, its gradient is the sum over all operations that read it, each
of which turns the gradients of its results into that of the tensor. So the way back follows from the way forward.
Tensors that are not known, because a pass only notes them or somebody's dump lacks them, are computed on the way.
"""

import re
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator
from functools import cached_property
from itertools import count, takewhile
from typing import NamedTuple

import numpy as np

from contract.config import ModelConfig
from contract.trace import Named, Node, Trace
from contract.weights import Weights
from numpy_llm import GPT
from operations.catalogue import OPERATIONS
from operations.groups import HEADS_MISREAD
from operations.operation import Mistake
from operations.readers import arguments_after
from operations.replay import GRADIENT, Change, Replay, changed
from operations.uses import WRONG_SUMS


class Wrong(NamedTuple):
    """operation: of which the mistake is one; mistake; value: what it makes of the tensor"""

    operation: str
    mistake: Mistake
    value: np.ndarray


def record(config: ModelConfig) -> Trace:
    """A traced pass of this model, forward and back: its nodes, in the order in which the NumPy twin runs them."""
    trace, model = Trace(), GPT(config, Weights.zeros(config, "float32"))
    tokens, targets = np.zeros((2, 1, 1), np.int64)
    _, _, cache = model.forward(tokens, targets, trace=trace)
    model.backward(cache, trace=trace)
    if config.position == "sinusoidal":
        table = config.context_length, config.d_model, "float64"
        trace.nodes.insert(0, Node("sinusoidal_positions", table, ("positions",)))
    return trace


class Dataflow:
    """nodes: of a forward pass; known: the names of the tensors that have values, all others are computed

    value: name -> tensor, for every known name
    """

    def __init__(self, nodes: list[Node], known: Callable[[str], bool], value: Callable[[str], np.ndarray]):
        self.nodes, self.known, self.value = nodes, known, value
        self.makers = {name: node for node in nodes for name in node.results}
        self.index = {id(node): place for place, node in enumerate(nodes)}
        self.uses: dict[str, list[tuple[Node, str]]] = {}
        for node in nodes:
            for role, argument in zip(OPERATIONS[node.operation].roles, node.arguments, strict=True):
                if isinstance(argument, Named):
                    self.uses.setdefault(argument.name, []).append((node, role))
        self._needed: dict[str, tuple[list[Node], list[Node]]] = {}

    def reading(self, value: Callable[[str], np.ndarray]) -> "Dataflow":
        """The same graph with other values of the known tensors."""
        other = Dataflow(self.nodes, self.known, value)
        other._needed = self._needed
        return other

    def place(self, at: int | str) -> int:
        """Where in the pass a node stands, by its id, or what made the tensor of a gradient; -1 for a weight's."""
        if isinstance(at, int):
            return self.index[at]
        maker = self.makers.get(at.removeprefix(GRADIENT))
        return self.index[id(maker)] if maker else -1

    # What made a tensor

    def hidden(self, name: str) -> bool:
        """Whether a tensor or gradient is computed on the way."""
        return not self.known(name) and (name in self.makers or name.startswith(GRADIENT))

    def backward_uses(self, gradient: str) -> list[tuple[Node, str]]:
        """The operations whose backward passes make this gradient, and the arguments by which they read the tensor."""
        uses = self.uses.get(gradient.removeprefix(GRADIENT), [])
        return [(node, role) for node, role in uses if role in OPERATIONS[node.operation].gradients]

    def steps(self, name: str) -> list[tuple[Node, str]]:
        """The operations between known tensors and this one, first to last, each with the argument that a gradient is
        taken by, "" forward.
        """
        if not name.startswith(GRADIENT):
            return [(node, "") for node in self.needed(name)[0]]
        found, left = {}, [(use, False) for use in reversed(self.backward_uses(name))]
        while left:  # those that a step waits for come before it
            (node, role), ready = left.pop()
            if ready:
                found[id(node), role] = node, role
            elif (id(node), role) not in found:
                left.append(((node, role), True))
                before = [
                    use
                    for each in _gradients(node.results)
                    if self.hidden(each)
                    for use in self.backward_uses(each)
                ]
                left += [(use, False) for use in reversed(before)]
        return list(found.values())

    def needed(self, name: str) -> tuple[list[Node], list[Node]]:
        """The nodes to run, forward and then backward, to compute a tensor or gradient from known ones, in order."""
        if name not in self._needed:
            if name.startswith(GRADIENT):
                seeds = [(node, True) for node, _ in self.backward_uses(name)]
            else:
                seeds = [(self.makers[name], False)]
            self._needed[name] = self._reached(seeds, set())
        return self._needed[name]

    def _reached(self, left: list[tuple[Node, bool]], seen: set) -> tuple[list[Node], list[Node]]:
        """These nodes, each with whether it is to run backward, and all that they need, but for those seen before."""
        found: tuple[list[Node], list[Node]] = [], []
        while left:
            node, back = left.pop()
            if (id(node), back) not in seen:
                seen.add((id(node), back))
                found[back].append(node)
                left += self._needed_by(node, back)
        for back, nodes in enumerate(found):
            nodes.sort(key=lambda node: self.index[id(node)], reverse=bool(back))
        return found

    def _needed_by(self, node: Node, back: bool) -> Iterator[tuple[Node, bool]]:
        read = node.inputs
        if back:
            read = node.results if OPERATIONS[node.operation].cache_of else read
            for gradient in filter(self.hidden, _gradients(node.results)):
                yield from ((use, True) for use, _ in self.backward_uses(gradient))
        yield from ((self.makers[each], False) for each in read if self.hidden(each))

    def inputs(self, name: str) -> list[str]:
        """The known tensors that this one is made of."""
        read, found, seen = [], {}, set()
        for node, role in self.steps(name):
            read += self._read_by(node, role) if role else node.inputs
        for each in dict.fromkeys(read):
            if not self.hidden(each):
                found[each] = None
            elif not each.startswith(GRADIENT):  # of hidden gradients the steps tell
                nodes, _ = self._reached([(self.makers[each], False)], seen)
                found |= {name: None for node in nodes for name in node.inputs if not self.hidden(name)}
        return list(found)

    def _read_by(self, node: Node, role: str) -> Iterator[str]:
        """What a backward pass reads for the gradient of one argument."""
        yield from _gradients(node.results)
        arguments = dict(zip(OPERATIONS[node.operation].roles, node.arguments, strict=True))
        for need in OPERATIONS[node.operation].gradients[role].needs:
            if need == "y":
                yield from node.results
            elif isinstance(arguments[need], Named):
                yield arguments[need].name

    def readers(self, name: str) -> list[str]:
        """The known tensors that are made of this one."""
        found, left, seen = {}, [name], set()
        while left:
            for node, _ in self.uses.get(left.pop(0), []):
                for result in node.results:
                    if self.hidden(result) and result not in seen:
                        left.append(result)
                        seen.add(result)
                    elif not self.hidden(result):
                        found[result] = None
        return sorted(found, key=lambda each: self.index[id(self.makers[each])])

    def title(self, name: str) -> str:
        """The operations that made a tensor, such as "linear, split heads" or "layer norm backward to x"."""
        parts = [
            node.operation.replace("_", " ") + (f" backward to {role}" if role else "")
            for node, role in self._told(name)
        ]
        return ", ".join(dict.fromkeys(parts))

    def equation(self, name: str) -> str:
        """The equations of these operations."""
        equations = [
            (OPERATIONS[node.operation].gradients[role] if role else OPERATIONS[node.operation]).equation
            for node, role in self._told(name)
        ]
        return "; ".join(dict.fromkeys(equations))

    def _told(self, name: str) -> list[tuple[Node, str]]:
        """The steps, without dropout where it does nothing beside another operation."""
        steps = self.steps(name)
        return [step for step in steps if step[0].operation != "dropout" or step[0].arguments[1]] or steps

    def others(self, mistake: Mistake, node: Node) -> dict:
        """What a program with the mistake reads beside the arguments, by the names that it has for it.

        normed: of the norm that reads the stream at this place; an argument, such as scale, of the operation that
        made the first argument, or of the one before that, or of the two that read the result; or any tensor by its
        name.
        """
        first, known = getattr(node.arguments[0], "name", ""), arguments_after(self, node)
        maker = self.makers.get(first)
        for _ in range(2):
            if maker:
                known = dict(zip(OPERATIONS[maker.operation].roles, maker.arguments, strict=True)) | known
                maker = self.makers.get(getattr(maker.arguments[0], "name", ""))
        norms = [Named(each.results[0]) for each, _ in self.uses.get(first, []) if "norm" in each.operation]
        known["normed"] = norms[0] if norms else None
        return {name: known.get(name, Named(name)) for name in mistake.reads}

    def near(self, gradient: str) -> list[str]:
        """The gradients that are at hand where those of a tensor's uses are added up."""
        results = [name for node, _ in self.uses[gradient.removeprefix(GRADIENT)] for name in node.results]
        after = [name for each in results for node, _ in self.uses.get(each, []) for name in node.results]
        return _gradients((*results, *after))

    # Computing it again, rightly and wrongly

    @cached_property
    def pass_again(self) -> Replay:
        """The right computation of what is hidden."""
        return Replay(self)

    def right(self, name: str) -> np.ndarray:
        """The tensor or gradient, computed from known ones."""
        return self.pass_again.make(name)

    def wrong(
        self, name: str, only: Mistake | None = None, sound: Collection[str] = (), *, roundings: bool = False
    ) -> Iterator[Wrong]:
        """What each known mistake makes of it, made in the operations between it and known tensors: in all of a kind,
        in those at the same place of every block, or in one of them.

        only: this mistake, all known ones where it is None
        sound: names of tensors and gradients that are right, and so are the operations on the way to them
        roundings: the mistakes of programs in 16 bits, in place of those of any
        """
        self.right(name)
        for operation, mistake, places in self._candidates(name, sound, roundings):
            groups = [list(places)] if mistake is HEADS_MISREAD else _groups(places)
            for at in groups if only in (None, mistake) else ():
                forms = (Change(mistake, form, frozenset(at)) for form in count())
                values = (changed(self, name, each, self.pass_again) for each in forms)
                for value in takewhile(lambda value: value is not None, values):
                    yield Wrong(operation, mistake, value)

    def suspects(self, name: str, sound: Collection[str] = ()) -> tuple[list[Node], list[Node]]:
        """The nodes between a tensor and known ones, forward and backward, without those that led to a right one."""
        cleared = [self.needed(each) for each in sound]
        found = []
        for back, nodes in enumerate(self.needed(name)):
            right = {id(node) for each in cleared for node in each[back]}
            found.append([node for node in nodes if id(node) not in right])
        return found[0], found[1]

    def _candidates(
        self, name: str, sound: Collection[str], roundings: bool
    ) -> Iterator[tuple[str, Mistake, dict]]:
        """Operation, mistake, and the places where it may have been made, each with its name."""
        forward, backward = self.suspects(name, sound)
        nodes = {False: defaultdict(dict), True: defaultdict(dict)}
        for back, each in ((False, forward), (True, backward)):
            for node in each:
                nodes[back][node.operation][id(node)] = node.results[0]
        for operation in {**nodes[False], **nodes[True]}:
            known = OPERATIONS[operation]
            for mistake in known.roundings if roundings else known.mistakes:
                if places := nodes[mistake.backward].get(operation):
                    yield operation, mistake, places
        if roundings:
            return
        if nodes[False]["scores"] and nodes[False]["weighted_sum"]:
            yield "scores", HEADS_MISREAD, nodes[False]["scores"] | nodes[False]["weighted_sum"]
        sums = {name: name} if name.startswith(GRADIENT) else {}
        sums |= {each: each for node in backward for each in _gradients(node.inputs) if self.hidden(each)}
        sums = {each: each for each in sums if len(self.backward_uses(each)) > 1}
        yield from (("uses", mistake, sums) for mistake in WRONG_SUMS if sums)

    # Reading one tensor for another

    def misread(self, name: str, sound: Collection[str] = ()) -> Iterator[Wrong]:
        """What comes of reading, on the way, another tensor of the same shape: in every block, or once. As `wrong`."""
        self.right(name)
        back, alike = name.startswith(GRADIENT), defaultdict(dict)
        for node in self.suspects(name, sound)[back]:
            for read in dict.fromkeys(self._read_in(node, back)):
                for other in self._interchangeable(node, read):
                    apart = tuple(_from_block(node, each) for each in (node.results[0], read, other))
                    alike[apart][id(node), read] = other
        for reads in alike.values():
            for some in [reads, *({key: reads[key]} for key in reads if len(reads) > 1)]:
                (at, read), other = next(iter(some.items()))
                operation = self.nodes[self.index[at]].operation
                text = f"{operation.replace('_', ' ')} reads {other}; wanted: {read}"
                mistake = Mistake("other_tensor", text, "", back, lambda: None)
                value = changed(self, name, Change(reads=some, backward=back), self.pass_again)
                if value is not None:
                    yield Wrong(operation, mistake, value)

    def _read_in(self, node: Node, back: bool) -> list[str]:
        """The tensors that a node reads, backward from its gradients and its cache."""
        kept = node.results if back and OPERATIONS[node.operation].cache_of else node.inputs
        return [*(_gradients(node.results) if back else ()), *kept]

    def _interchangeable(self, node: Node, read: str) -> Iterator[str]:
        """The tensors, or gradients, of the same shape that are at hand there, of the block itself or one beside it."""
        prefix = GRADIENT if read.startswith(GRADIENT) else ""
        shape, at = self._shape(read.removeprefix(prefix)), self.index[id(node)]
        for other in {**self.makers, **self.uses}:
            made = self.place(other)
            ready = other in self.makers and made >= at if prefix else made < at
            blocks = _block(other), _block(node.results[0])
            near = None in blocks or abs(blocks[0] - blocks[1]) <= 1
            if ready and near and prefix + other != read and self._shape(other) == shape:
                yield prefix + other

    def _shape(self, name: str) -> tuple:
        return np.shape(self.pass_again.get(name))


def _block(name: str) -> int | None:
    found = re.match(r"blocks\.(\d+)\.", name)
    return int(found[1]) if found else None


def _from_block(node: Node, name: str) -> str:
    """A name with its block counted from the node's own."""
    own, block = _block(node.results[0]), _block(name)
    return name if None in (own, block) else f"{block - own} {name.partition('.')[2].partition('.')[2]}"


def _gradients(names: Iterable[str]) -> list[str]:
    return [GRADIENT + name for name in names]


def _groups(places: dict) -> list[list]:
    """All places, those of the same name in every block, each alone, the same set once. places: place -> its name"""
    alike = defaultdict(list)
    for place, name in places.items():
        alike[re.sub(r"blocks\.\d+\.", "", name)].append(place)
    found = [list(places), *alike.values(), *([place] for place in places)]
    return list({frozenset(each): each for each in found}.values())
