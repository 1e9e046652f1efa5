"""Autograd's graph of one forward pass, and what `split` asks of it: what is reached from where.

A node stands for one operation, and reads the nodes of what the operation was given. The logits are at the
top, the input and the parameters at the bottom.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from torch import Tensor
from torch.autograd.graph import Node, get_gradient_edge


class Graph(NamedTuple):
    """The graph of one forward pass. Nodes are numbers, so that it keeps no tensor of the pass alive."""

    reads: list[list[int]]  # what each node reads
    operations: list[str]  # what each node computes
    permuted: dict[int, tuple[int, ...]]  # which axes a node exchanges, or in which order it puts all
    results: frozenset[int]  # of the logits
    entries: frozenset[int]  # where the input enters
    depends: frozenset[int]  # what depends on the input
    wanted: frozenset[int]  # what the logits depend on
    parameters: dict[int, str]  # which node stands for which parameter


def draw(
    results: Sequence[Node], entries: Sequence[Node], others: Sequence[Node], named: Mapping[str, Tensor]
) -> tuple[Graph, dict[Node, int]]:
    """The graph below some nodes, and their numbers in it.

    Args:
        results: The nodes of the logits.
        entries: Where the input enters. One that reads another is none: integers look up tables again in
            later layers, which is not where the input enters.
        others: More nodes to begin at: of outputs on which no logit depends.
        named: The model's parameters.
    """
    leaves = {name: get_gradient_edge(tensor).node for name, tensor in named.items() if tensor.requires_grad}
    numbers: dict[Node, int] = {}
    stack = [*results, *entries, *others, *leaves.values()]
    while stack:
        node = stack.pop()
        if node not in numbers:
            numbers[node] = len(numbers)
            stack += [below for below, _ in node.next_functions if below is not None]
    reads = [[numbers[below] for below, _ in node.next_functions if below is not None] for node in numbers]
    readers: list[list[int]] = [[] for _ in reads]
    for number, below in enumerate(reads):
        for other in below:
            readers[other].append(number)
    top = frozenset(numbers[node] for node in results)
    inputs = {numbers[node] for node in entries}
    depends = reach(readers, inputs)
    graph = Graph(
        reads=reads,
        operations=[node.name() for node in numbers],
        permuted={number: dims for node, number in numbers.items() if (dims := _dims(node))},
        results=top,
        entries=frozenset(node for node in inputs if depends.isdisjoint(reads[node])),
        depends=frozenset(depends),
        wanted=frozenset(reach(reads, top)),
        parameters={numbers[node]: name for name, node in leaves.items()},
    )
    return graph, numbers


def _dims(node: Node) -> tuple[int, ...]:
    """The axes of a permutation, as autograd keeps them: negative ones wrapped around 64 bits."""
    dims: tuple[int, ...] = ()
    if node.name().startswith("PermuteBackward"):
        dims = node._saved_dims  # type: ignore[attr-defined]
    elif node.name().startswith("TransposeBackward"):
        dims = (node._saved_dim0, node._saved_dim1)  # type: ignore[attr-defined]
    return tuple(dim if dim < 2**63 else dim - 2**64 for dim in dims)


def reach(edges: Sequence[Iterable[int]], roots: Iterable[int], stop: Iterable[int] = ()) -> set[int]:
    """Every node that can be reached from the roots, without the nodes at which to stop."""
    seen, closed = set[int](), set(stop)
    stack = list(roots)
    while stack:
        node = stack.pop()
        if node not in seen and node not in closed:
            seen.add(node)
            stack += edges[node]
    return seen


def behind(graph: Graph, boundary: Iterable[int]) -> set[int]:
    """What the logits still depend on where a boundary's nodes are given."""
    return reach(graph.reads, graph.results, stop=boundary)
