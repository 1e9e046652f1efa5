"""The grammar of paths: a short string names every value that a walk across networks can compute.

A network is one lower-case letter and a column of stages. Reading a path from the left runs the stages:

| path | value |
|---|---|
| `""` | the batch |
| `"ss"` | the student's feature after two stages |
| `"ss>t"` | that feature bridged into the teacher's space |
| `"ss&t"` | the same by a bridge that also sees the teacher's own feature there, `"tt"` |
| `"sst"` | the teacher's third stage run on `"ss>t"` |
| `"ss&tt"` | the teacher's third stage run on `"ss&t"` |
| `"ssttt"` | of five stages each: the teacher's logits on the student's second feature |

The letter at depth *d* is always stage *d* of its network, so a crossing keeps the depth. Any number of
networks and crossings is a path: `"abbcc"`. Every value has one name: `"ss>tt"` is refused in favour of
`"sst"`. This module imports no torch; it is only about names.
"""

import random
from collections.abc import Iterable, Sequence
from typing import NamedTuple

_MARKS = (">", "&")


class Step(NamedTuple):
    """The last step of a path: run entry `at` of `column` on the values at `reads`."""

    reads: tuple[str, ...]
    column: str
    at: int


def depth(path: str) -> int:
    """How many stages a path has run; a bridge is not a stage.

    Example:
        >>> depth("ss>t"), depth("sst"), depth("ss&tt")
        (2, 3, 3)
    """
    return sum(letter not in _MARKS and path[max(at - 1, 0)] not in _MARKS for at, letter in enumerate(path))


def step(path: str) -> Step:
    """The last step of a path: what it reads, and which entry of which column it runs.

    A stage reads one value, a `>` bridge too; an `&` bridge reads the feature that it bridges and the
    target network's own feature at the same depth. Column `"s"` holds the student's stages, `"s>t"` and
    `"s&t"` the bridges from the student to the teacher; bridge *i* follows stage *i*.

    Args:
        path: Any path but the batch, `""`.

    Returns:
        A `Step`.

    Raises:
        ValueError: The string is not a path, says where and what to write instead.

    Example:
        >>> step("ss")
        Step(reads=('s',), column='s', at=1)
        >>> step("ss>t")
        Step(reads=('ss',), column='s>t', at=1)
        >>> step("ss&t")
        Step(reads=('ss', 'tt'), column='s&t', at=1)
        >>> step("sst")
        Step(reads=('ss>t',), column='t', at=2)
    """
    if path == "":
        raise ValueError("step: the empty path is the batch; no step computes it.")
    letter, before = path[-1], path[:-1]
    if not (letter.isascii() and letter.islower()):
        raise ValueError(
            f"step: {letter!r} ends the path {path!r}, which must end in a network: one letter a-z."
        )
    if before.endswith(_MARKS):
        source, mark = before[:-1], before[-1]
        _check_crossing(path, source, mark, letter)
        peers = (letter * depth(source),) if mark == "&" else ()
        return Step((source, *peers), f"{source[-1]}{mark}{letter}", depth(source) - 1)
    if before == "" or before[-1] == letter:
        if before[-2:-1] == ">":
            raise ValueError(f"step: write {before[:-2] + letter!r} for {path!r}: one name for one value.")
        return Step((before,), letter, depth(before))
    if before[-2:-1] in _MARKS:
        raise ValueError(
            f"step: {path!r} runs network {letter!r} on a feature that was bridged into {before[-1]!r}."
        )
    return Step((f"{before}>{letter}",), letter, depth(before))


def _check_crossing(path: str, source: str, mark: str, letter: str) -> None:
    if source == "" or source[-1] in _MARKS or source[-2:-1] in _MARKS:
        raise ValueError(
            f"step: {path!r} has no stage before {mark!r}; a bridge reads what a stage returned."
        )
    if source[-1] == letter:
        raise ValueError(f"step: {path!r} bridges network {letter!r} into itself.")


def plan(paths: Iterable[str]) -> tuple[str, ...]:
    """Every path that must be computed to reach the given ones: each once, sources first.

    Shared prefixes appear once, so a walk along the plan computes nothing twice. The batch, `""`, is given
    and not part of a plan. A plan of a union is the first plan followed by what the second adds.

    Example:
        >>> plan(["sst", "ss"])
        ('s', 'ss', 'ss>t', 'sst')
        >>> plan(["ss&t"])
        ('s', 'ss', 't', 'tt', 'ss&t')
    """
    ordered: dict[str, None] = {}
    for path in paths:
        _visit(path, ordered)
    return tuple(ordered)


def _visit(path: str, ordered: dict[str, None]) -> None:
    if path != "" and path not in ordered:
        for source in step(path).reads:
            _visit(source, ordered)
        ordered[path] = None


def prefixes(path: str) -> tuple[str, ...]:
    """The values on the way to a path, the path last.

    Example:
        >>> prefixes("sst")
        ('s', 'ss', 'ss>t', 'sst')
    """
    return () if path == "" else (*prefixes(step(path).reads[0]), path)


def crossings(stages: int, directions: Sequence[str] = ("st", "ts"), *, first: int = 1) -> tuple[str, ...]:
    """Every path to the logits that crosses once: what FCFD draws from.

    Of `stages` stages the last is the classifier. A path crosses after stage `first` at the earliest and
    leaves at least one stage before the classifier to the other network, so it reads a feature and not
    only its average: `stages − 1 − first` paths a direction.

    Args:
        stages: The number of stages of each network, the classifier included.
        directions: Pairs of networks, from and to: `("st", "ts")` is FCFD's "bi" (the published default),
            `("st",)` its "s2t", `("ts",)` its "t2s", and `()` none.
        first: The earliest depth of a crossing. The published networks have a separate stem, which is
            never bridged: `first=2` for those.

    Example:
        >>> crossings(5)
        ('stttt', 'ssttt', 'ssstt', 'tssss', 'ttsss', 'tttss')
        >>> crossings(5, ("ab",), first=2)
        ('aabbb', 'aaabb')
    """
    return tuple(
        pair[0] * at + pair[1] * (stages - at) for pair in directions for at in range(first, stages - 1)
    )


def bridged(stages: int, directions: Sequence[str] = ("st",), *, first: int = 1) -> tuple[str, ...]:
    """Every feature of one network bridged into another: what FCFD compares by appearance.

    Example:
        >>> bridged(5, first=2)
        ('ss>t', 'sss>t', 'ssss>t')
    """
    return tuple(f"{pair[0] * at}>{pair[1]}" for pair in directions for at in range(first, stages))


def draw(candidates: Sequence[str], count: int, *, seed: int, step: int) -> tuple[str, ...]:
    """Draw paths for one step: uniform, without replacement, a pure function of its arguments.

    Equal arguments give equal paths on every process, machine and Python version, and after a resume; no
    global generator is read or moved. The result keeps the order of the candidates, so that a set of paths
    is one plan whatever the order of drawing.

    Args:
        candidates: The paths to draw from.
        count: How many; the published default is 2 a batch.
        seed: The run.
        step: The training step.

    Raises:
        ValueError: `count` is negative or larger than the number of candidates.

    Example:
        >>> draw(crossings(5), 2, seed=0, step=0) == draw(crossings(5), 2, seed=0, step=0)
        True
    """
    if not 0 <= count <= len(candidates):
        raise ValueError(f"draw: cannot draw {count} of {len(candidates)} paths without replacement.")
    chosen = random.Random(f"{seed}:{step}").sample(range(len(candidates)), count)
    return tuple(candidates[at] for at in sorted(chosen))
