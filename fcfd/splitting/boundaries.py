"""Where a model may be cut, and where it is cut: by resolutions, by equal groups of blocks, or by names."""

import difflib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from math import log2
from typing import NamedTuple

from torch import nn

from .._text import check_type
from ..layouts import places
from .assemble import features, replaceable, returned
from .graph import behind
from .inject import Cut, features_of
from .network import Boundary
from .record import Record, Recording, both

BY_HAND = "write the stages by hand: split([module, ...])"


class _Feature(NamedTuple):
    """What a cut returns."""

    places: int  # pixels or tokens of its first tensor
    tensors: int


def cuts_of(recording: Recording) -> tuple[str, ...]:
    """The modules that are a boundary by themselves, in the order in which they end."""
    calls = sorted(recording.eval.calls, key=lambda call: call.end)
    return tuple(call.name for call in calls if all(_is_cut(record, call.name) for record in both(recording)))


def _is_cut(record: Record, name: str) -> bool:
    """Whether nothing leads around what a module returns, and it is not the logits yet."""
    found = features(record, (name,))
    return record.graph.results.isdisjoint(found) and not _fault(record, (name,))


def _fault(record: Record, cut: Cut) -> str:
    """Why modules are no boundary, or nothing."""
    read = behind(record.graph, features(record, cut))
    for name in cut:
        calls = record.runs.get(name, ())
        if len(calls) != 1:
            times = f"{len(calls)} times in one forward"
            return f"{name!r} runs {times}; a boundary must run once. Use its parent."
        if not features(record, (name,)):
            return f"{name!r} is not a cut: nothing that it returns depends on the input."
        if not replaceable(record, calls[0], read):
            return f"{name!r} is not a cut: later stages read more of what it returns than features."
    if not read.isdisjoint(record.graph.entries):
        inside = cut[-1].rpartition(".")[0]
        around = f"what enters {inside!r}" if inside else "the input"
        return f"{cut[-1]!r} is not a cut: the output also depends on {around} through another path."
    return ""


def automatic(
    model: nn.Module, recording: Recording, cuts: Sequence[str], count: int | None
) -> tuple[Cut, ...]:
    """One boundary where each resolution ends; or, where blocks share one, where equal groups of them end."""
    wanted = 4 if count is None else count - 1
    sizes = _sizes(model, recording, cuts)
    blocks = _blocks(model, sizes)
    ends = _resolutions(sizes, blocks)
    uniform = len({_octave(sizes[name]) for name in blocks}) == 1 and len(blocks) >= min(wanted, len(ends))
    if uniform or (count is not None and wanted > len(ends)):
        groups = min(wanted, len(blocks)) if count is None else wanted
        chosen = _last_of_groups(blocks, groups)
    else:
        chosen = ends[max(0, len(ends) - wanted) :]
    if wanted and not chosen:
        raise ValueError(
            f"split: {type(model).__name__} has {len(ends)} resolutions and {len(blocks)} blocks, which do "
            f"not tell {wanted} boundaries. Pass at=[names], for example of {_listed(cuts)}; or {BY_HAND}."
        )
    return tuple((name,) for name in chosen)


def _sizes(model: nn.Module, recording: Recording, cuts: Iterable[str]) -> dict[str, int]:
    """How many places the feature of each cut has: maps and tokens, not vectors.

    Cuts that return several tensors count only where all blocks of the model do.
    """
    found: dict[str, _Feature] = {}
    for name in cuts:
        own = features_of(returned(recording, name))
        if places(own[0].shape) > 1:
            found[name] = _Feature(places(own[0].shape), len(own))
    every = {name: feature.places for name, feature in found.items()}
    alone = {name: feature.places for name, feature in found.items() if feature.tensors == 1}
    if not _blocks(model, alone) and _blocks(model, every):
        return every
    return alone or every


def _blocks(model: nn.Module, sizes: Mapping[str, int]) -> list[str]:
    """Modules of modules that have siblings of their own class and resolution."""
    modules = dict(model.named_modules())
    kinds = {}
    for name, size in sizes.items():
        if modules[name]._modules:
            kinds[name] = (name.rpartition(".")[0], type(modules[name]), _octave(size))
    siblings = Counter(kinds.values())
    return [name for name, kind in kinds.items() if siblings[kind] > 1]


def _octave(size: int) -> int:
    """Where a number of places lies among the powers of two: a class token more makes no other resolution."""
    return round(log2(size))


def _resolutions(sizes: Mapping[str, int], blocks: Sequence[str]) -> list[str]:
    """Where each resolution ends: the shallowest module of that size, and of those the last."""
    last: dict[int, str] = {}
    least = max(sizes.values(), default=0)
    for name, size in sizes.items():
        least = min(least, size)
        if size >= 2 * least or any(name.startswith(f"{block}.") for block in blocks):
            continue  # a resolution does not grow again, and does not end inside a block
        if size not in last or name.count(".") <= last[size].count("."):
            last[size] = name
    chosen = set(last.values())
    return [name for name in sizes if name in chosen]


def _last_of_groups(blocks: Sequence[str], groups: int) -> list[str]:
    """The last block of each of some groups of equal size; none where there are fewer blocks.

    Blocks in a block, such as those of an encoder beside a decoder, count where the outer ones are too few.
    """
    if groups > len(blocks):
        return []
    outer = [name for name in blocks if not any(name.startswith(f"{other}.") for other in blocks)]
    blocks = outer if len(outer) >= groups else blocks
    return [blocks[group * len(blocks) // groups - 1] for group in range(1, groups + 1)]


def named(
    model: nn.Module, recording: Recording, cuts: Sequence[str], at: Iterable[Boundary]
) -> tuple[Cut, ...]:
    """The boundaries that the caller names, in the order of the forward pass."""
    modules = dict(model.named_modules(remove_duplicate=False))
    first = {module: name for name, module in model.named_modules()}
    ends: dict[Cut, int] = {}
    for boundary in at:
        check_type("split", "a boundary", boundary, (str, tuple, list), "a name, or a tuple of names")
        names = (boundary,) if isinstance(boundary, str) else tuple(boundary)
        if not names:
            raise ValueError("split: a boundary is an empty tuple; name the modules where a stage ends.")
        for name in names:
            check_type("split", "a name of a boundary", name, str, "the name of a module")
            if name not in modules or not name:
                near = difflib.get_close_matches(name, modules, cutoff=0.4) or cuts
                raise ValueError(
                    f"split: {type(model).__name__} has no module {name!r}. Near: {_listed(near)}."
                )
        cut = tuple(first[modules[name]] for name in names)
        for record in both(recording):
            if fault := _fault(record, cut):
                text = _company(model, record, cut, cuts) or fault + _near(record, cut[-1], cuts)
                raise ValueError(f"split: {text}")
        if cut in ends:
            raise ValueError(f"split: the boundary {boundary!r} is given twice.")
        ends[cut] = max(recording.eval.runs[name][0].end for name in cut)
    return tuple(sorted(ends, key=lambda cut: ends[cut]))


def _company(model: nn.Module, record: Record, cut: Cut, cuts: Sequence[str]) -> str:
    """A module beside the last one, or beside what contains it, that completes the boundary."""
    name = f"{cut[-1]}."
    partner = ""
    for other in record.runs:
        beside = name.startswith(other[: other.rfind(".") + 1])
        apart = not name.startswith(f"{other}.") and not f"{other}.".startswith(name)
        if beside and apart and _fault(record, (other,)) and not _fault(record, (*cut, other)):
            partner = other
            break
    if not partner and cut[-1] in record.runs and _is_block(model, cut[-1]):
        # A block of a decoder, which all read the encoder's output: the last cut before it.
        start = record.runs[cut[-1]][0].start
        ended = [other for other in cuts if record.runs[other][0].end < start]
        partner = ended[-1] if ended and not _fault(record, (ended[-1], *cut)) else ""
    if not partner:
        return ""
    ends = {name: record.runs[name][0].end for name in (*cut, partner)}
    return f"{cut[-1]!r} needs company: {tuple(sorted(ends, key=lambda name: ends[name]))}."


def _is_block(model: nn.Module, name: str) -> bool:
    """Whether a module of modules has siblings of its own class."""
    parent, module = model.get_submodule(name.rpartition(".")[0]), model.get_submodule(name)
    alike = [other for other in parent.children() if type(other) is type(module)]
    listed = isinstance(parent, nn.ModuleList | nn.Sequential)
    return listed and len(alike) > 1 and len(module._modules) > 0


def _near(record: Record, name: str, cuts: Sequence[str]) -> str:
    """The next boundaries behind a module, or else the last ones."""
    end = max((call.end for call in record.runs.get(name, ())), default=0)
    later = [cut for cut in cuts if record.runs[cut][0].end >= end]
    return f" Valid names near it: {_listed(later[:2] or cuts[-2:])}."


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - 8} more" if len(names) > 8 else ""
    return (", ".join(map(repr, names[:8])) or "none") + more


def head(record: Record, boundaries: Iterable[Cut]) -> str:
    """The last module behind the last boundary that no other contains."""
    end = max((record.runs[name][0].end for cut in boundaries for name in cut), default=-1)
    last = "logits"
    for call in sorted(record.calls, key=lambda call: call.end):
        if call.name and "." not in call.name and call.start > end:
            last = call.name
    return last
