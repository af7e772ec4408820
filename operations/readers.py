"""What a program has at hand when it makes a tensor because it needs it right after."""

from contract.trace import Named, Node
from operations.catalogue import OPERATIONS


def arguments_after(graph, node: Node) -> dict:
    """By name, the arguments of the one operation that reads a node's result, and of the one after that; without the
    results themselves.

    graph: a `Dataflow`
    """
    found, made = {}, []
    for _ in range(2):
        made += node.results
        readers = graph.uses.get(node.results[0], [])
        if len(readers) != 1:
            break
        node = readers[0][0]
        read = zip(OPERATIONS[node.operation].roles, node.arguments, strict=True)
        found |= {role: each for role, each in read if not isinstance(each, Named) or each.name not in made}
    return found
