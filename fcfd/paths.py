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
`"sst"`. Deep networks may be written short, `"s12t12"`, wherever a path is given; `expand` does that, and the
long form is the name of the value.

This module imports no torch; it is only about names.
"""

import random
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from ._text import check_integer, check_type

_MARKS = (">", "&")
_DEEPEST = 1000


class Step(NamedTuple):
    """The last step of a path: run entry `at` of `column` on the values at `reads`."""

    reads: tuple[str, ...]
    column: str
    at: int


# One path


def expand(path: str) -> str:
    """The long form of a path, in which every stage is a letter: what values are called.

    Args:
        path: A path, in which a number repeats the letter before it.

    Raises:
        TypeError: It is no string.
        ValueError: A number has no letter before it, or is 0.

    Example:
        >>> expand("s2t3"), expand("s12>t"), expand("sst")
        ('ssttt', 'ssssssssssss>t', 'sst')
    """
    if not isinstance(path, str):
        raise TypeError(f"expand: a path is a string such as 'ssttt', not {type(path).__name__}.")
    if path.isalpha() or not any(letter in "0123456789" for letter in path):
        return path
    long, at = "", 0
    while at < len(path):
        letter, end = path[at], at + 1
        while end < len(path) and path[end] in "0123456789":
            end += 1
        count = int(path[at + 1 : end] or 1)
        if not ("a" <= letter <= "z" or end == at + 1) or letter in "0123456789":
            raise ValueError(f"expand: in {path!r} a number stands behind {letter!r}, which is no network.")
        if not 1 <= count <= _DEEPEST:
            raise ValueError(f"expand: {path!r} repeats {letter!r} {count} times; write 1 to {_DEEPEST}.")
        long, at = long + letter * count, end
    return long


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
    path = expand(path)
    if path == "":
        raise ValueError("step: the empty path is the batch; no step computes it.")
    letter, before = path[-1], path[:-1]
    if not "a" <= letter <= "z":
        raise ValueError(
            f"step: {letter!r} ends the path {path!r}, which must end in a network: one letter a-z."
        )
    if before.endswith(_MARKS):
        source, mark = before[:-1], before[-1]
        _check_bridge(path, source, mark, letter)
        peers = (pure(letter, _letters(source)),) if mark == "&" else ()
        return Step((source, *peers), f"{source[-1]}{mark}{letter}", _letters(source) - 1)
    if before == "" or before[-1] == letter:
        if before[-2:-1] == ">":
            raise ValueError(f"step: write {before[:-2] + letter!r} for {path!r}: one name for one value.")
        return Step((before,), letter, _letters(before))
    if before[-2:-1] in _MARKS:
        raise ValueError(
            f"step: {path!r} runs network {letter!r} on a feature that was bridged into {before[-1]!r}."
        )
    return Step((f"{before}>{letter}",), letter, _letters(before))


def _check_bridge(path: str, source: str, mark: str, letter: str) -> None:
    if source == "" or source[-1] in _MARKS or source[-2:-1] in _MARKS:
        raise ValueError(
            f"step: {path!r} has no stage before {mark!r}; a bridge reads what a stage returned."
        )
    if source[-1] == letter:
        raise ValueError(f"step: {path!r} bridges network {letter!r} into itself.")


def _letters(path: str) -> int:
    """The depth of a path that is known to be one: a letter is a stage, but not behind a mark."""
    return len(path) - 2 * (path.count(">") + path.count("&"))


def prefixes(path: str) -> tuple[str, ...]:
    """The values on the way to a path, the path last.

    Example:
        >>> prefixes("sst")
        ('s', 'ss', 'ss>t', 'sst')
    """
    found, path = [], expand(path)
    while path != "":
        found.append(path)
        path = step(path).reads[0]
    return tuple(reversed(found))


def depth(path: str) -> int:
    """How many stages a path has run; a bridge is not a stage.

    Raises:
        ValueError: The string is not a path.

    Example:
        >>> depth("ss>t"), depth("sst"), depth("ss&tt"), depth("")
        (2, 3, 3, 0)
    """
    path = expand(path)
    if path.isascii() and path.isalpha() and path.islower():  # letters alone are always a path
        return len(path)
    return _letters(prefixes(path)[-1]) if path else 0


def pure(network: str, depth: int) -> str:
    """The path that stays in one network.

    Example:
        >>> pure("t", 3)
        'ttt'
    """
    if not (isinstance(network, str) and len(network) == 1 and "a" <= network <= "z"):
        raise ValueError(f"pure: a network is one letter a-z, not {network!r}.")
    return network * check_integer("pure", "depth", depth, least=0)


def path_of(column: str, at: int) -> str:
    """The path that ends in entry `at` of a column and crosses nowhere before: `step` backwards.

    Example:
        >>> path_of("s>t", 1), path_of("t", 2)
        ('ss>t', 'ttt')
    """
    return pure(column[0], at + 1) + column[1:]


def counterpart(path: str) -> str:
    """The value of the same depth that the path's last network computes by itself.

    Example:
        >>> counterpart("ss>t"), counterpart("sst"), counterpart("ttss")
        ('tt', 'ttt', 'ssss')
    """
    path = expand(path)
    if path == "":
        raise ValueError("counterpart: the batch, '', is of no network.")
    return pure(path[-1], depth(path))


def is_bridged(path: str) -> bool:
    """Whether a path ends in a bridge rather than in a stage.

    Example:
        >>> is_bridged("ss>t"), is_bridged("ss&t"), is_bridged("sst")
        (True, True, False)
    """
    return expand(path)[-2:-1] in _MARKS


def crosses(path: str) -> bool:
    """Whether a path runs through more than one network.

    Example:
        >>> crosses("sst"), crosses("ss>t"), crosses("sss"), crosses("")
        (True, True, False, False)
    """
    path = expand(path)
    return path.strip(path[:1]) != ""


# Several paths


def listed(function: str, paths: Iterable[str]) -> tuple[str, ...]:
    """Paths that a caller gives, in the long form; `function` is named where they are none.

    Raises:
        TypeError: It is an iterator, which may be used up.
        ValueError: It is one string, or a path stands twice.

    Example:
        >>> listed("example", ["s2t2", "sst"])
        ('sstt', 'sst')
    """
    if isinstance(paths, str):
        raise ValueError(f"{function}: paths is the string {paths!r}; give a tuple of paths: ({paths!r},).")
    if isinstance(paths, Iterator) or not isinstance(paths, Iterable):
        raise TypeError(f"{function}: paths is a {type(paths).__name__}; give a tuple or list of paths.")
    found = tuple([expand(path) for path in paths])
    for at, path in enumerate(found):
        if path in found[:at]:
            raise ValueError(f"{function}: path {path!r} is given twice.")
    return found


def plan(paths: Iterable[str]) -> tuple[str, ...]:
    """Every path that must be computed to reach the given ones: each once, sources first.

    Shared prefixes appear once, so a walk along the plan computes nothing twice. The batch, `""`, is given
    and not part of a plan. A plan of a union is the first plan followed by what the second adds.

    Raises:
        ValueError: One of them is not a path, or `paths` is one string.

    Example:
        >>> plan(["sst", "ss"])
        ('s', 'ss', 'ss>t', 'sst')
        >>> plan(["ss&t"])
        ('s', 'ss', 't', 'tt', 'ss&t')
    """
    ordered: dict[str, None] = {}
    if not isinstance(paths, str):
        check_type("plan", "paths", paths, Iterable, "a tuple of paths")
        paths = tuple(dict.fromkeys(paths))
    for path in listed("plan", paths):
        _visit(path, ordered)
    return tuple(ordered)


def _visit(path: str, ordered: dict[str, None]) -> None:
    """Add a path, and before it what it reads: along its first source, and then what bridges see."""
    way = []
    while path != "" and path not in ordered:
        way.append(path)
        path = step(path).reads[0]
    for value in reversed(way):
        for seen in step(value).reads[1:]:
            _visit(seen, ordered)
        ordered[value] = None


def crossings(depth: int, directions: Sequence[str] = ("st", "ts"), *, first: int = 1) -> tuple[str, ...]:
    """Every path to the logits that crosses once: what FCFD draws from.

    Of `depth` stages the last is the classifier. A path crosses after stage `first` at the earliest and
    leaves at least one stage before the classifier to the other network, so it reads a feature and not
    only its average: `depth − 1 − first` paths a direction.

    Args:
        depth: The number of stages of each network, the classifier included.
        directions: Pairs of networks, from and to: `("st", "ts")` is FCFD's "bi" (the published default),
            `("st",)` its "s2t", `("ts",)` its "t2s", and `()` none.
        first: The earliest depth of a crossing, at least 1. The published networks have a separate stem,
            which is never bridged: `first=2` for those.

    Raises:
        TypeError: A depth is no integer.
        ValueError: A direction is no pair of networks, `directions` is one string, or a depth is below 1.

    Example:
        >>> crossings(5)
        ('stttt', 'ssttt', 'ssstt', 'tssss', 'ttsss', 'tttss')
        >>> crossings(5, ("ab",), first=2)
        ('aabbb', 'aaabb')
    """
    pairs = _pairs("crossings", depth, directions, first)
    return tuple([a * at + b * (depth - at) for a, b in pairs for at in range(first, depth - 1)])


def bridged(depth: int, directions: Sequence[str] = ("st",), *, first: int = 1) -> tuple[str, ...]:
    """Every feature of one network bridged into another: what FCFD compares by appearance.

    Args:
        depth: The number of stages of each network, the classifier included.
        directions: Pairs of networks, from and to.
        first: The earliest depth that is bridged, at least 1.

    Raises:
        TypeError: A depth is no integer.
        ValueError: A direction is no pair of networks, `directions` is one string, or a depth is below 1.

    Example:
        >>> bridged(5, first=2)
        ('ss>t', 'sss>t', 'ssss>t')
    """
    pairs = _pairs("bridged", depth, directions, first)
    return tuple([f"{a * at}>{b}" for a, b in pairs for at in range(first, depth)])


def _pairs(function: str, depth: int, directions: Sequence[str], first: int) -> list[tuple[str, str]]:
    check_integer(function, "depth", depth, least=1)
    check_integer(function, "first", first, least=1)
    if isinstance(directions, str):
        raise ValueError(f"{function}: directions is a string; give a tuple of pairs: ({directions!r},).")
    check_type(function, "directions", directions, Iterable, "a tuple of pairs such as ('st', 'ts')")
    pairs = []
    for pair in directions:
        if not (isinstance(pair, str) and len(pair) == 2 and pair[0] != pair[1]):
            raise ValueError(f"{function}: direction {pair!r} is no pair of two networks such as 'st'.")
        pairs.append((pure(pair[0], 1), pure(pair[1], 1)))
    return pairs


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
        TypeError: A number is no integer.
        ValueError: `count` is negative or larger than the number of candidates, one of them stands twice, or
            they are one string.

    Example:
        >>> draw(crossings(5), 2, seed=0, step=0) == draw(crossings(5), 2, seed=0, step=0)
        True
    """
    candidates = listed("draw", candidates)
    count = check_integer("draw", "count", count)
    seed, step = check_integer("draw", "seed", seed), check_integer("draw", "step", step)
    if not 0 <= count <= len(candidates):
        raise ValueError(f"draw: cannot draw {count} of {len(candidates)} paths without replacement.")
    chosen = random.Random(f"{seed}:{step}").sample(range(len(candidates)), count)
    return tuple([candidates[at] for at in sorted(chosen)])
