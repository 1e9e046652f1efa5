"""Transforms of columns: functions from stages to stages, which compose, and of which no loss knows."""

from collections.abc import Callable, Sequence
from functools import partial
from types import FunctionType
from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils.checkpoint import checkpoint

from ._text import check_callable, check_integer, check_type
from ._tree import map_tensors, tensors
from .families.heads import Logits
from .layouts import Layout, into_form, is_formed, out_of_form
from .leaning.operations import Lean
from .stages import Buffers, Column, Params, Stage


def check_column(function: str, stages: Any) -> None:
    """A column is a tuple of functions, and neither a network nor a module; those hold one."""
    if hasattr(stages, "stages"):
        raise TypeError(
            f"{function}: stages is a {type(stages).__name__}; give one of its columns: network.stages, or "
            "nets.stages['s']."
        )
    check_type(function, "stages", stages, (tuple, list), "a column: the tuple of a network's stages")
    for at, stage in enumerate(stages):
        if stage is not None:
            check_callable(function, f"stages[{at}]", stage)


def each(stages: Column, run: Callable[..., Any], *given: Any) -> Column:
    """The column of `run(stage, *given, params, buffers, x)`, in which what is missing stays so."""
    return tuple(None if stage is None else partial(run, stage, *given) for stage in stages)


def compiled(stages: Column, **options: Any) -> Column:
    """Compile every stage of a column by itself, in one graph each.

    Walks along every plan then share these graphs: pairs of five stages have 15 plans of two crossings, and
    a stage compiles once for inputs that need a gradient and once for those that do not, whatever the plan.
    A whole objective under one `torch.compile` compiles once a plan instead, and stops at the recompile
    limit, which torch counts by code object. Each stage here has a code object of its own.

    Args:
        stages: A column of a network or of bridges; `None` stays.
        options: Of `torch.compile`: `mode`, `backend`, `dynamic`, ... `fullgraph=True` is set, so that a
            break or the recompile limit is an error and not a silent return to eager.

    Returns:
        A column of the same length. Compilation happens at the first call of each stage.

    Example:
        >>> layer = torch.nn.Linear(2, 2)
        >>> (run,) = compiled((fcfd.stage(layer),), backend="eager")
        >>> run(dict(layer.named_parameters()), {}, torch.ones(1, 2))[0].shape
        torch.Size([1, 2])
    """
    check_column("compiled", stages)
    return tuple(
        stage if stage is None else torch.compile(_private(stage), **{"fullgraph": True, **options})
        for stage in stages
    )


def _private(stage: Stage) -> Stage:
    """The same stage behind a code object of its own: torch counts recompilations by code object."""

    def run(params: Params, buffers: Buffers, x: Any) -> tuple[Any, dict[str, torch.Tensor]]:
        return stage(params, buffers, x)

    return FunctionType(run.__code__.replace(), run.__globals__, run.__name__, None, run.__closure__)


def checkpointed(stages: Column) -> Column:
    """Recompute every stage in the backward pass instead of keeping what it computed.

    Values, gradients and statistics are the same; memory falls to the features between stages, and time
    grows by up to one forward pass. The recomputation reads the parameters and buffers that were passed, not
    the module's, and draws the same random numbers; do not change the module's mode between forward and
    backward. `torch.func.grad` cannot pass through a checkpoint: use `loss.backward()`.

    Args:
        stages: A column of a network or of bridges; `None` stays.

    Returns:
        A column of the same length. `checkpointed(compiled(stages))` recomputes compiled stages.

    Example:
        >>> layer = torch.nn.Linear(2, 2)
        >>> (run,) = checkpointed((fcfd.stage(layer),))
        >>> run(dict(layer.named_parameters()), {}, torch.ones(1, 2))[0].shape
        torch.Size([1, 2])
    """
    check_column("checkpointed", stages)
    return each(stages, _recomputed)


def _recomputed(
    stage: Stage, params: Params, buffers: Buffers, x: Any
) -> tuple[Any, dict[str, torch.Tensor]]:
    if torch.compiler.is_compiling() and isinstance(stage, partial) and stage.func is _lean:
        inner, recompute = stage.args  # Dynamo lets a mode begin around a checkpoint, and not within
        return _lean(partial(_recomputed, inner), recompute, params, buffers, x)
    y, new = checkpoint(stage, params, buffers, x, use_reentrant=False)
    return y, new


def lean(stages: Column, *, recompute: bool = False) -> Column:
    """Let a gradient pass through frozen parameters with nothing kept that it does not read.

    ```
    kept for the gradient of its input      as it is                lean
    convolution                             its input               nothing
    batch norm by stored statistics         its input               nothing
    ReLU, ReLU6, hardtanh, leaky, clamp     input or output         a bit an element
    max pooling                             input, 8 bytes a window 1 to 4 bytes a window
    average pooling, padding by reflection  its input               nothing
    ```

    Values are the same to the last bit, gradients to the last few. An operation runs as it is where a
    parameter needs a gradient or statistics are the batch's, where no gradient is wanted, and where it keeps
    nothing else anyway: linear maps, sums, layer, group and RMS norm, sigmoid, softmax, GELU, attention.
    So it is for a frozen network that a gradient passes, a teacher on crossed paths; a network that learns
    keeps what its own gradients read, and `checkpointed` is what helps there.

    With `recompute`, what a frozen linear map makes is not kept either, where the operation behind it would
    keep it. Of a block of a transformer two tensors of ten stay, the inputs of its norms; queries, keys and
    values, attention and the hidden layer are made again, one at a time, in the backward pass. That is the
    arithmetic of 7 of its 12 square matrices and of the attention once more. What is random is drawn once. A
    compiler's partitioner decides itself what to make again, and for compiled stages it changes nothing.

    Args:
        stages: A column, or a part of one; `None` stays.
        recompute: Whether frozen linear maps run again in the backward pass, for transformers.

    Returns:
        A column of the same length. `compiled(lean(stages))` is one graph a stage as before, and
        `checkpointed(lean(stages))` recomputes; `lean` of either does the same.

    Raises:
        RuntimeError: In a call of the stage: a parameter needs a gradient outside of a `torch.vmap` in which
            it looks frozen.

    Example:
        >>> layer = torch.nn.Conv2d(3, 8, 3, padding=1)
        >>> frozen = fcfd.frozen(dict(layer.named_parameters()))
        >>> (run,) = lean((fcfd.stage(layer),))
        >>> run(frozen, {}, torch.ones(2, 3, 8, 8, requires_grad=True))[0].shape
        torch.Size([2, 8, 8, 8])

    Reference:
        The operations after Bhatia and Dangel, arXiv 2404.12406, who replace modules; here the functions of
        torch are replaced while a stage runs, so that no model is edited and a compiler sees them. To
        recompute parts of a block is from Korthikanti et al., arXiv 2205.05198, who do it to the attention;
        where weights are frozen it pays for products as well.
    """
    check_column("lean", stages)
    check_type("lean", "recompute", recompute, bool, "True or False")
    return tuple(stage if stage is None else _leaned(stage, recompute) for stage in stages)


def _leaned(stage: Stage, recompute: bool) -> Stage:
    """A stage in its lean form; within what recomputes it, since that happens outside of any call."""
    if isinstance(stage, partial) and stage.func is _recomputed:
        return partial(_recomputed, _leaned(stage.args[0], recompute))
    return partial(_lean, stage, recompute)


def _lean(
    stage: Stage, recompute: bool, params: Params, buffers: Buffers, x: Any
) -> tuple[Any, dict[str, torch.Tensor]]:
    wanted = any(each.requires_grad for each in tensors((x, params)))
    if not wanted or not torch.is_grad_enabled():  # torch has faster ways where no mode is on
        return stage(params, buffers, x)
    with Lean(recompute):
        return stage(params, buffers, x)


def deferred(stages: Column, weight: str) -> Column:
    """Let the last stage of a network hand out hidden states and a head instead of the logits.

    The stage runs as it is, but for the product with the head: `fcfd.losses.Logits` come out, which
    `losses.chunked` and `losses.fused` read. The model is not edited, and every path to the logits has them.

    Args:
        stages: The column of a network whose last operation is `torch.nn.functional.linear`, as of
            `torch.nn.Linear`.
        weight: The name of its weight in the dict of parameters: `"lm_head.weight"`, or that of the embedding
            which it is tied to.

    Returns:
        A column of the same length. Its last stage raises a `ValueError` where the weight multiplies nothing,
        or something is done to the product.

    Example:
        >>> layer = torch.nn.Linear(2, 7)
        >>> (run,) = deferred((fcfd.stage(layer, "fc."),), "fc.weight")
        >>> params = {f"fc.{name}": tensor for name, tensor in layer.named_parameters()}
        >>> y, _ = run(params, {}, torch.ones(1, 2))
        >>> type(y).__name__, y.hidden.shape
        ('Logits', torch.Size([1, 2]))
    """
    check_column("deferred", stages)
    check_type("deferred", "weight", weight, str, "the name of the head's weight: 'lm_head.weight'")
    if not stages or stages[-1] is None:
        raise ValueError("deferred: stages has no last stage; give the column of a network.")
    return (*stages[:-1], partial(_deferred, stages[-1], weight))


def _deferred(
    stage: Stage, weight: str, params: Params, buffers: Buffers, x: Any
) -> tuple[Any, dict[str, torch.Tensor]]:
    if weight not in params:
        raise ValueError(
            f"deferred: params lacks {weight!r}. A head that is tied to an embedding goes by its name."
        )
    found: list[tuple[torch.Tensor, Logits]] = []
    with _Product(weight, params[weight], found):
        y, new = stage(params, buffers, x)
    if not found:
        raise ValueError(
            f"deferred: the last stage has no `linear` of {weight!r}. What changes parameters goes around: "
            "fcfd.gathered(fcfd.deferred(...)), and fcfd.cast alike."
        )
    stand_in, logits = found[-1]
    if y is not stand_in:
        raise _altered(weight)
    return logits, new


def _altered(weight: str) -> ValueError:
    return ValueError(
        f"deferred: the last stage does something to the product with {weight!r}, or returns more than it. "
        "Logits that are scaled, capped or cast have to be there."
    )


class _Product(TorchFunctionMode):
    """While it is on, the product with a weight is put off, and a stand-in without memory has its place."""

    def __init__(self, name: str, weight: torch.Tensor, found: list[tuple[torch.Tensor, Logits]]) -> None:
        super().__init__()
        self.name = name
        self.weight = weight
        self.found = found

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if _writes(function.__name__) and any(args[0] is stand_in for stand_in, _ in self.found):
            raise _altered(self.name)
        if function is not torch.nn.functional.linear:
            return function(*args, **(kwargs or {}))
        logits = _of_linear(*args, **(kwargs or {}))
        if logits.weight is not self.weight:
            return function(*args, **(kwargs or {}))
        stand_in = logits.hidden.new_zeros(()).expand(*logits.hidden.shape[:-1], len(logits.weight))
        self.found.append((stand_in, logits))
        return stand_in


def _writes(name: str) -> bool:
    """Whether a function of this name is in place: `mul_`, `__imul__`, `__setitem__`."""
    return name == "__setitem__" or name[:3] == "__i" or (name[-1:] == "_" and name[-2:] != "__")


def _of_linear(input: Any, weight: Any, bias: Any = None) -> Logits:
    return Logits(input, weight, bias)


def laid_out(stages: Column, layouts: Sequence[Layout | None]) -> Column:
    """Let the stages of a network hand out their features in the form that losses and bridges read.

    Every stage arranges what it returns, and the next one arranges it back: the network computes the same.

    Args:
        stages: The column of a network.
        layouts: That of each stage's feature (`fcfd.layouts.parse`), the logits left out. `None` stays.

    Returns:
        A column of the same length.

    Example:
        >>> double = lambda params, buffers, x: (2 * x, {})
        >>> first, second = laid_out((double, double), (fcfd.layouts.parse("b h w c"),))
        >>> first({}, {}, torch.ones(1, 5, 7, 3))[0].shape
        torch.Size([1, 3, 5, 7])
        >>> second({}, {}, torch.ones(1, 3, 5, 7))[0].shape
        torch.Size([1, 5, 7, 3])
    """
    check_column("laid_out", stages)
    check_type("laid_out", "layouts", layouts, Sequence, "the layout of each stage's feature, or None")
    for layout in layouts:
        check_type("laid_out", "a layout", layout, (Layout, type(None)), "a parsed layout, or None")
    around = [None, *(None if one is None or is_formed(one) else one for one in layouts), None]
    return tuple(
        [
            stage if begin is end is None or stage is None else partial(_laid_out, stage, begin, end)
            for stage, begin, end in zip(stages, around, around[1:], strict=False)
        ]
    )


def _laid_out(
    stage: Stage, begin: Layout | None, end: Layout | None, params: Params, buffers: Buffers, x: Any
) -> tuple[Any, dict[str, torch.Tensor]]:
    if begin is not None:
        x = map_tensors(partial(out_of_form, layout=begin), x)
    y, new = stage(params, buffers, x)
    return (y if end is None else map_tensors(partial(into_form, layout=end), y)), new


def joined(stages: Column, ends: Sequence[int]) -> Column:
    """Join neighbouring stages, so that a column has fewer.

    Args:
        stages: The column of a network.
        ends: The depth at which each new stage ends, increasing; the last is the column's own.

    Returns:
        A column of `len(ends)` stages.

    Raises:
        ValueError: The depths do not increase, or do not end where the column does, or a stage is missing.

    Example:
        >>> double = lambda params, buffers, x: (2 * x, {})
        >>> first, second = joined((double, double, double), (1, 3))
        >>> first({}, {}, 1)[0], second({}, {}, 1)[0]
        (2, 4)
    """
    check_column("joined", stages)
    check_type("joined", "ends", ends, Sequence, "the depth at which each new stage ends")
    ends = [check_integer("joined", "a depth of ends", end) for end in ends]
    whole = tuple(stage for stage in stages if stage is not None)
    if sorted({*ends} - {0}) != list(ends) or [*ends][-1:] != [len(whole)] or len(whole) < len(stages):
        raise ValueError(
            f"joined: ends {list(ends)} must increase from at least 1 to {len(stages)}, the number of stages "
            "of a network (bridges are no chain)."
        )
    return tuple(partial(_in_turn, whole[start:end]) for start, end in zip((0, *ends), ends, strict=False))


def _in_turn(
    stages: tuple[Stage, ...], params: Params, buffers: Buffers, x: Any
) -> tuple[Any, dict[str, torch.Tensor]]:
    written: dict[str, torch.Tensor] = {}
    for stage in stages:
        x, new = stage(params, {**buffers, **written} if written else buffers, x)
        written |= new
    return x, written
