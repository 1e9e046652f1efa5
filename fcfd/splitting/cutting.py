"""Split a model into stages, without an edit to it.

`split(model)` records two forward passes (`_record`), takes as boundaries modules through whose output every
path from the input to the logits goes, makes a stage of what lies between two of them (`_inject`), and proves
in numbers that the stages compose to the model (`_rehearse`). `split([module, ...])` is the way by hand.
"""

import difflib
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from itertools import accumulate
from math import log2
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from ..layouts import places
from ..stages import Buffers, Column, Params, _run as run_module
from .inject import Cut, Leaf, aliases, leaves, piece, replaceable, returned, run
from .record import Record, features, reach, record_twice
from .verify import BY_HAND, rehearsed

Boundary: TypeAlias = str | tuple[str, ...]
_SIZES = (224, 256, 299, 384, 448, 512, 32, 28)  # of images that are tried where no example is given


class Network(NamedTuple):
    """A model in stages: data only.

    Args:
        stages: The column of stages; the last returns the logits.
        params: The model's parameters themselves, by the names of `named_parameters()`.
        buffers: The model's buffers, by the names of `named_buffers()`.
        names: Where each stage ends: a module, or a tuple of modules; the last is the head.
        shapes: What each stage returned on the example, in the same form; not known of stages by hand.
        cuts: Every module at which the model can be cut alone, in the order of the forward pass.
    """

    stages: Column
    params: dict[str, Tensor]
    buffers: dict[str, Tensor]
    names: tuple[Boundary, ...]
    shapes: tuple[Any, ...]
    cuts: tuple[str, ...]
    layouts: tuple[str | None, ...] = (None,) * 99

    def __str__(self) -> str:
        """The stages as a table, and the cuts, which stages by hand do not have."""
        rows = [("stage", "ends at", "returns")]
        rows += zip(
            map(str, range(len(self.names))), map(str, self.names), map(str, self.shapes), strict=True
        )
        width = max(len(name) for _, name, _ in rows)
        table = [f"{at:<5}  {name:<{width}}  {shape}" for at, name, shape in rows]
        return "\n".join([*table, f"cuts: {', '.join(self.cuts)}"] if self.cuts else table)


def split(
    model: nn.Module | Iterable[Callable[..., Any]],
    at: int | Iterable[Boundary] | None = None,
    *,
    example: Any = None,
    exact: bool = True,
) -> Network:
    """Split a model into stages that run its own forward and compose to it exactly.

    ```
    stages[n](… stages[1](stages[0](batch)))  =  model(batch),    to the last bit, in train and in eval
    ```

    The model is never written to: no hook, no flag, no attribute. Its mode is read at every call of a stage,
    and so is torch's generator, by dropout. A boundary is a module through whose output every path from the
    input to the logits goes; a tuple of modules is one where only together they are passed by every path.

    Args:
        model: Any module. Or a list of modules and functions, each of which is a stage: the way by hand,
            without an example and without a check.
        at: Where to cut: names of modules, each or in tuples. Or how many stages to make. By default one
            stage for each of the last four resolutions, or four equal groups of blocks where they share one,
            and the head.
        example: A batch that the model takes: a tensor for `model(x)`, a tuple for `model(*x)`, a dict for
            `model(**x)`. Its first entry is the input; shapes and a few values matter, not the data. Later
            stages read the entries of a dict among their buffers, where a walk puts them, because masks
            and the like are computed again in every stage. By default images.
        exact: Refuse a split that differs from the model, if only by random numbers that it draws otherwise.

    Returns:
        A `Network`; print it.

    Raises:
        ValueError: A name is no boundary (the text says why, and which are near), the model does not run on
            the example, or the stages do not compose to the model.

    Example:
        >>> from torch.nn import AdaptiveAvgPool2d, Conv2d, Flatten, Linear, ReLU, Sequential
        >>> block = lambda a, b: Sequential(Conv2d(a, b, 3, 2, 1), ReLU())
        >>> head = Sequential(AdaptiveAvgPool2d(1), Flatten(), Linear(8, 5))
        >>> network = split(Sequential(block(3, 4), block(4, 8), head))
        >>> print(network)
        stage  ends at  returns
        0      0        (2, 4, 112, 112)
        1      1        (2, 8, 56, 56)
        2      2        (2, 5)
        cuts: 0.0, 0.1, 0, 1.0, 1.1, 1, 2.0, 2.1
        >>> split(Sequential(block(3, 4), block(4, 8), head), at=["0.0"]).names
        ('0.0', '2')
    """
    if not isinstance(model, nn.Module):
        return _by_hand(tuple(model), at, example)
    _refuse_wrappers(model)
    batch, records = _recorded(model, example)
    cuts = _cuts(records)
    if at is None or isinstance(at, int):
        chosen = _automatic(model, records, cuts, at)
    else:
        chosen = _named(model, records, cuts, at)
    context = tuple(batch) if isinstance(batch, Mapping) else ()
    ends = zip(((), *chosen), (*chosen, ()), strict=True)
    pieces = [piece(model, records, begin, end, context) for begin, end in ends]
    return Network(
        stages=tuple(partial(run, part) for part in rehearsed(model, pieces, batch, example, exact)),
        params=dict(model.named_parameters()),
        buffers=dict(model.named_buffers()),
        names=(*map(_single, chosen), _head(records[0], chosen)),
        shapes=(*(_shape(records, cut) for cut in chosen), _shapes(records[0].logits)),
        cuts=cuts,
    )


def _refuse_wrappers(model: nn.Module) -> None:
    kind = type(model).__name__
    if isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel):
        raise ValueError(f"split: {kind} wraps a model. Split model.module and distribute the training step.")
    if hasattr(model, "_orig_mod"):
        raise ValueError("split: the model is compiled. Split model._orig_mod and compile the stages.")
    if isinstance(model, torch.jit.ScriptModule):
        raise ValueError("split: a scripted model has no forward to cut. Split the model that was scripted.")


def _by_hand(entries: Sequence[Callable[..., Any]], at: Any, example: Any) -> Network:
    """Each entry is a stage; tensors are named as in `nn.Sequential(*entries)`."""
    if not entries or at is not None or example is not None:
        raise ValueError("split: a list of modules is a model in stages; it takes no names and no example.")
    modules = nn.ModuleDict({str(at): one for at, one in enumerate(entries) if isinstance(one, nn.Module)})
    names = aliases(modules)
    return Network(
        stages=tuple(_stage_by_hand(entry, f"{at}.", names) for at, entry in enumerate(entries)),
        params=dict(modules.named_parameters()),
        buffers=dict(modules.named_buffers()),
        names=tuple(str(at) for at in range(len(entries))),
        shapes=("",) * len(entries),
        cuts=(),
    )


def _stage_by_hand(entry: Callable[..., Any], prefix: str, names: Iterable[Mapping[str, str]]) -> Any:
    if not isinstance(entry, nn.Module):
        return partial(_run_function, entry)
    params, buffers = (
        {own.removeprefix(prefix): name for own, name in kind.items() if own.startswith(prefix)}
        for kind in names
    )
    return partial(run_module, entry, params, buffers, True)


def _run_function(
    function: Callable[..., Any], params: Params, buffers: Buffers, x: Any
) -> tuple[Any, dict[str, Tensor]]:
    return function(pytree.tree_map_only(Tensor, torch.clone, x)), {}


def _recorded(model: nn.Module, example: Any) -> tuple[Any, tuple[Record, Record]]:
    """Record the model in eval, and in train with one more example, on fake tensors if it runs on them."""
    batches = (
        [dict(example) if isinstance(example, Mapping) else example]
        if example is not None
        else _images(model)
    )
    errors = []
    for fake in (True, False):
        for batch in batches:
            try:
                return batch, record_twice(model, batch, fake)
            except Exception as error:  # whatever a model's forward raises
                errors.append(error)
    given = "the example" if example is not None else f"an image batch {_shapes(batches[0])}"
    raise ValueError(
        f"split: {type(model).__name__} does not run on {given} ({type(errors[0]).__name__}: {errors[0]}). "
        "Pass example=: a batch that it takes, a tuple for several arguments, or a dict for named ones."
    ) from errors[0]


def _images(model: nn.Module) -> list[Tensor]:
    """Batches for a model of images, in the channels and the type of its first convolution."""
    weights = [weight for weight in model.parameters() if weight.is_floating_point()]
    like = next((weight for weight in weights if weight.ndim == 4), (*weights, torch.zeros(()))[0])
    channels = like.shape[1] if like.ndim == 4 else 3
    return [like.detach().new_zeros(()).expand(2, channels, size, size) for size in _SIZES]


def _cuts(records: Sequence[Record]) -> tuple[str, ...]:
    """The modules that are a boundary by themselves, in the order in which they end."""
    calls = sorted(records[0].calls, key=lambda call: call.end)
    return tuple(call.name for call in calls if all(_is_cut(seen, call.name) for seen in records))


def _is_cut(seen: Record, name: str) -> bool:
    """Whether all paths go through one output: those above it times those below it are all there are."""
    found = features(seen, (name,))
    paths = sum(seen.up[node] for node in seen.results)
    around = len(found) == 1 and seen.down[found[0]] * seen.up[found[0]] != paths
    return not around and not set(found) & set(seen.results) and not _fault(seen, (name,))


def _fault(seen: Record, cut: Cut) -> str:
    """Why modules are no boundary, or nothing."""
    read = reach(seen, seen.results, stop=features(seen, cut))
    for name in cut:
        runs = len(seen.called.get(name, ()))
        if runs != 1:
            return f"{name!r} runs {runs} times in one forward; a boundary must run once. Use its parent."
        if not features(seen, (name,)):
            return f"{name!r} is not a cut: nothing that it returns depends on the input."
        if not replaceable(seen, name, read):
            return f"{name!r} is not a cut: later stages read more of what it returns than features."
    if read & seen.entries:
        inside = cut[-1].rpartition(".")[0]
        around = f"what enters {inside!r}" if inside else "the input"
        return f"{cut[-1]!r} is not a cut: the output also depends on {around} through another path."
    return ""


def _automatic(
    model: nn.Module, records: Sequence[Record], cuts: Sequence[str], count: int | None
) -> tuple[Cut, ...]:
    """One boundary where each resolution ends; or, where blocks share one, where equal groups of them end."""
    wanted = 4 if count is None else count - 1
    tensors = {name: _tensors(records, name) for name in cuts}
    sizes = {name: size for name, found in tensors.items() if (size := places(found[0].shape)) > 1}
    alone = {name: size for name, size in sizes.items() if len(tensors[name]) == 1}
    if _blocks(model, alone) or not _blocks(model, sizes):  # else all blocks return several tensors
        sizes = alone or sizes
    blocks = _blocks(model, sizes)
    least = dict(zip(sizes, accumulate(sizes.values(), min), strict=True))  # a resolution does not grow again
    shallow = [name for name in sizes if not any(name.startswith(f"{block}.") for block in blocks)]
    shallow = [name for name in shallow if sizes[name] < 2 * least[name]]
    last = {sizes[name]: name for name in sorted(shallow, key=lambda name: -name.count("."))}
    resolutions = [name for name in shallow if name in last.values()]
    uniform = len({_octave(sizes[name]) for name in blocks}) == 1
    enough = len(blocks) >= min(wanted, len(resolutions))
    if (uniform and enough) or (count is not None and wanted > len(resolutions)):
        groups = min(wanted, len(blocks)) if count is None else wanted
        steps = blocks if groups <= len(blocks) else []
        chosen = [steps[(at + 1) * len(steps) // groups - 1] for at in range(groups) if steps]
    else:
        chosen = resolutions[max(0, len(resolutions) - wanted) :]
    if wanted and not chosen:
        raise ValueError(
            f"split: {type(model).__name__} has {len(resolutions)} resolutions and {len(blocks)} blocks, "
            f"which do not tell {wanted} boundaries. Pass at=[names], for example of {_listed(cuts)}; or "
            f"{BY_HAND}."
        )
    return tuple((name,) for name in chosen)


def _octave(size: int) -> int:
    """Where a number of places lies among the powers of two: a class token more makes no other resolution."""
    return round(log2(size))


def _blocks(model: nn.Module, sizes: Mapping[str, int]) -> list[str]:
    """Modules of modules that have siblings of their own class and resolution."""
    modules = dict(model.named_modules())
    kinds = {
        name: (name.rpartition(".")[0], type(modules[name]), _octave(size))
        for name, size in sizes.items()
        if modules[name]._modules
    }
    count = Counter(kinds.values())
    return [name for name, kind in kinds.items() if count[kind] > 1]


def _named(
    model: nn.Module, records: Sequence[Record], cuts: Sequence[str], at: Iterable[Boundary]
) -> tuple[Cut, ...]:
    """The boundaries that the caller names, in the order of the forward pass."""
    modules = dict(model.named_modules(remove_duplicate=False))
    first = {module: name for name, module in model.named_modules()}
    chosen = []
    for boundary in at:
        names = (boundary,) if isinstance(boundary, str) else tuple(boundary)
        for name in names:
            if name not in modules or not name:
                near = difflib.get_close_matches(name, modules, cutoff=0.4) or cuts
                raise ValueError(
                    f"split: {type(model).__name__} has no module {name!r}. Near: {_listed(near)}."
                )
        cut = tuple(first[modules[name]] for name in names)
        for seen in records:
            if fault := _fault(seen, cut):
                raise ValueError(f"split: {_company(seen, cut) or fault + _near(seen, cut[-1], cuts)}")
        chosen.append(cut)
    return tuple(sorted(chosen, key=lambda cut: max(records[0].called[name][0].end for name in cut)))


def _company(seen: Record, cut: Cut) -> str:
    """A module beside the last one, or beside what contains it, that completes the boundary."""
    name = f"{cut[-1]}."
    for other in seen.called:
        beside = name.startswith(other[: other.rfind(".") + 1])
        apart = not name.startswith(f"{other}.") and not f"{other}.".startswith(name)
        if beside and apart and _fault(seen, (other,)) and not _fault(seen, (*cut, other)):
            return f"{cut[-1]!r} needs company: {tuple(sorted((*cut, other)))}."
    return ""


def _near(seen: Record, name: str, cuts: Sequence[str]) -> str:
    """The next boundaries behind a module, or else the last ones."""
    end = max((call.end for call in seen.called.get(name, ())), default=0)
    behind = [cut for cut in cuts if seen.called[cut][0].end >= end]
    return f" Valid names near it: {_listed(behind[:2] or cuts[-2:])}."


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - 8} more" if len(names) > 8 else ""
    return (", ".join(map(repr, names[:8])) or "none") + more


def _single(items: Sequence[Any]) -> Any:
    return items[0] if len(items) == 1 else tuple(items)


def _shape(records: Sequence[Record], cut: Cut) -> Any:
    return _single([_single([leaf.shape for leaf in _tensors(records, name)]) for name in cut])


def _tensors(records: Sequence[Record], name: str) -> list[Leaf]:
    return [leaf for leaf in leaves(returned(records, name)) if leaf.feature]


def _shapes(value: Any) -> Any:
    return _single([tuple(leaf.shape) for leaf in pytree.tree_leaves(value) if isinstance(leaf, Tensor)])


def _head(seen: Record, boundaries: Sequence[Cut]) -> str:
    """The last module behind the last boundary that no other contains."""
    end = max((seen.called[name][0].end for cut in boundaries for name in cut), default=-1)
    heads = [call for call in seen.calls if "." not in call.name and call.name and call.start > end]
    return max(heads, key=lambda call: call.end).name if heads else "logits"
