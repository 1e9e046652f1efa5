"""Which axis of a feature holds what, as far as the recording knows it.

An operation that knows where channels are says so: a convolution has them on axis 1, a layer norm on the
last. From a feature one walks back over operations that keep the axes, such as sums and activations, and over
permutations, to those that know.
"""

from typing import Any, NamedTuple

from torch import nn

from .graph import reach
from .record import Output, Record, nodes

_SECOND = ("Convolution", "BatchNorm", "GroupNorm", "Pool1D", "Pool2D", "Pool3D", "Upsample", "PixelShuffle")
_LAST = ("LayerNorm", "RmsNorm", "Embedding")
_KEEP = frozenset(
    (
        *("Add", "Sub", "Rsub", "Mul", "Div", "Neg", "Pow", "Sqrt", "Rsqrt", "Exp", "Addcmul", "Clamp"),
        *("Relu", "LeakyRelu", "PreluKernel", "Elu", "Gelu", "Silu", "Mish", "Threshold", "Softplus", "Tanh"),
        *("Sigmoid", "Hardtanh", "Hardswish", "Hardsigmoid", "NativeDropout", "Bernoulli", "MaskedFill"),
        *("Where", "Clone", "ToCopy", "Copy", "Alias", "Cat", "Slice", "Roll", "ConstantPadNd"),
    )
)
_MODULES: dict[Any, int] = {  # that consist of other operations, with the axis of their channels
    nn.Linear.forward: -1,
    nn.MultiheadAttention.forward: -1,
    nn.MaxPool1d.forward: 1,
    nn.AvgPool1d.forward: 1,
    nn.AdaptiveAvgPool1d.forward: 1,
    nn.AdaptiveMaxPool1d.forward: 1,
}
_AXES = {  # by the number of axes, and where channels are
    (2, 1): "b c",
    (3, 1): "b c t",
    (3, 2): "b t c",
    (4, 1): "b c h w",
    (4, 3): "b h w c",
    (5, 1): "b c d h w",
    (5, 4): "b d h w c",
}


class Layout(NamedTuple):
    """What is known of a tensor's axes."""

    axes: str | None  # by einops' letters: batch, channels, tokens or time, depth, height, width
    grid: tuple[int, int] | None  # of tokens that were a map: rows and columns, behind any class tokens


def layout(output: Output, record: Record, model: nn.Module) -> Layout:
    """The layout of what a module returned.

    Args:
        output: It.
        record: The pass in which it did.
        model: The model, for the types of its modules.
    """
    axes = _axes(output, record, _known(record, model))
    return Layout(axes, _grid(output, record, model) if axes == "b t c" else None)


def _known(record: Record, model: nn.Module) -> dict[int, int]:
    """The axis of channels by node, of modules that know it. One with a forward of its own does not count."""
    found = {}
    for call in record.calls:
        axis = _MODULES.get(type(model.get_submodule(call.name)).forward)
        if axis is not None:
            found.update(dict.fromkeys(nodes(call), axis))
    return found


def _axes(output: Output, record: Record, known: dict[int, int]) -> str | None:
    """The axes of a tensor whose first axis is the batch, if all operations that know agree."""
    count, graph = len(output.shape), record.graph
    if output.node is None or not count or output.shape[0] != record.examples:
        return None
    said, seen = set[int](), set[int]()
    stack = [(output.node, tuple(range(count)))]  # a node, and which of its axes each axis of the output is
    while stack:
        node, order = stack.pop()
        operation = graph.operations[node]
        if node in seen:
            continue
        seen.add(node)
        axis = known.get(node)
        if axis is None and any(word in operation for word in _LAST):
            axis = -1
        elif axis is None and any(word in operation for word in _SECOND):
            axis = 1
        if axis is not None:
            said.add(order.index(axis % count))
        elif node in graph.permuted or operation.partition("Backward")[0] in _KEEP:
            inner = _through(order, graph.permuted.get(node, ()))
            stack += [(below, inner) for below in graph.reads[node] if below in graph.depends]
    return _AXES.get((count, said.pop())) if len(said) == 1 else None


def _through(order: tuple[int, ...], dims: tuple[int, ...]) -> tuple[int, ...]:
    """The order of axes before a permutation."""
    count = len(order)
    before = list(range(count))
    if len(dims) == 2 < count:
        first, second = (dim % count for dim in dims)
        before[first], before[second] = second, first
    elif len(dims) == count:
        before = [dim % count for dim in dims]
    return tuple(before[axis] for axis in order)


def _grid(output: Output, record: Record, model: nn.Module) -> tuple[int, int] | None:
    """The rows and columns of the map that tokens were, if there is one such map before them."""
    if output.node is None:
        return None
    before, known = reach(record.graph.reads, [output.node]), _known(record, model)
    grids: dict[int, set[tuple[int, int]]] = {}
    for call in record.calls:
        for made in call.outputs:
            if isinstance(made, Output) and len(made.shape) == 4 and made.node in before:
                axes = _axes(made, record, known)
                if axes is not None:
                    height, width = made.shape[2:] if axes == "b c h w" else made.shape[1:3]
                    grids.setdefault(output.shape[1] - height * width, set()).add((height, width))
    for more in range(6):  # class and distillation tokens, registers
        if more in grids:
            return grids[more].pop() if len(grids[more]) == 1 else None
    return None
