"""Laws of the grammar, whatever the path."""

import random
import subprocess
import sys
from collections import Counter
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, strategies as st

from fcfd.paths import (
    bridged,
    counterpart,
    crosses,
    crossings,
    depth,
    draw,
    expand,
    is_bridged,
    path_of,
    plan,
    prefixes,
    pure,
    step,
)

LETTERS = "abst"


@st.composite
def paths(draw_from: st.DrawFn) -> str:
    """A path grown step by step: run a stage, or bridge the last stage's value, plainly or seeing."""
    path = draw_from(st.sampled_from(LETTERS))
    for _ in range(draw_from(st.integers(0, 6))):
        here, bridged_already = path[-1], path[-2:-1] in (">", "&")
        if bridged_already and path[-2] == ">":
            path = path[:-2] + here
        elif bridged_already:
            path += here
        else:
            kind = draw_from(st.sampled_from(["run", ">", "&"]))
            other = draw_from(st.sampled_from([letter for letter in LETTERS if letter != here]))
            path += here if kind == "run" else kind + other
    return path


@given(paths())
def test_a_step_reads_shorter_values_at_its_own_depth(path):
    reads, column, at = step(path)
    bridges = len(column) == 3
    assert column[-1] == path[-1]
    assert depth(path) == at + 1
    for source in reads:
        assert depth(source) == at + bridges
        assert source == "" or step(source)


@given(st.lists(paths(), max_size=4))
def test_a_plan_is_closed_and_has_every_path_once_sources_first(wanted):
    planned = plan(wanted)
    assert len(set(planned)) == len(planned)
    assert set(wanted) <= set(planned)
    for at, path in enumerate(planned):
        assert set(step(path).reads) <= {"", *planned[:at]}


@given(st.lists(paths(), max_size=3), st.lists(paths(), max_size=3))
def test_a_plan_of_a_union_is_the_first_plan_and_what_the_second_adds(one, other):
    first = plan(one)
    assert plan(one + other) == first + tuple(path for path in plan(other) if path not in first)
    assert plan(first) == first


@given(st.integers(2, 9), st.integers(1, 3), st.permutations("abstxyz"))
def test_every_crossing_parses_back(stages, first, letters):
    pair = letters[0] + letters[1]
    found = crossings(stages, (pair,), first=first)
    assert len(found) == max(0, stages - 1 - first)
    for path in found:
        assert depth(path) == stages
        crossed = [value for value in prefixes(path) if ">" in value]
        assert len(crossed) == 1
        assert crossed[0] in bridged(stages, (pair,), first=first)
        assert path == "".join(step(value).column for value in plan([path]) if len(step(value).column) == 1)


def test_the_four_published_sets():
    s2t, t2s = crossings(5, ("st",), first=2), crossings(5, ("ts",), first=2)
    assert s2t == ("ssttt", "ssstt")
    assert t2s == ("ttsss", "tttss")
    assert crossings(5, first=2) == s2t + t2s
    assert crossings(5, ()) == ()


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("", "the empty path is the batch"),
        ("ss>tt", "write 'sst' for 'ss>tt'"),
        ("ss>s", "bridges network 's' into itself"),
        (">t", "has no stage before '>'"),
        ("ss>>t", "has no stage before '>'"),
        ("ss>t&s", "has no stage before '&'"),
        ("ss&ts", "runs network 's' on a feature that was bridged into 't'"),
        ("sS", "must end in a network: one letter a-z"),
        ("ss>", "must end in a network: one letter a-z"),
        ("sé", "must end in a network: one letter a-z"),
    ],
)
def test_a_string_that_is_no_path_is_refused(path, text):
    with pytest.raises(ValueError, match="^step: ") as error:
        step(path)
    assert text in str(error.value)


def test_a_fault_inside_a_path_is_found():
    with pytest.raises(ValueError, match=r"write 'sst' for 'ss>tt'"):
        plan(["ss>ttt"])


@given(st.integers(0, 2**40), st.integers(0, 2**40), st.integers(0, 6))
def test_draw_is_a_pure_function_of_its_arguments(seed, at, count):
    state = random.getstate()
    candidates = crossings(5)
    drawn = draw(candidates, count, seed=seed, step=at)
    assert random.getstate() == state
    assert drawn == draw(list(candidates), count, seed=seed, step=at)
    assert len(drawn) == len(set(drawn)) == count
    assert list(drawn) == [path for path in candidates if path in drawn]


def test_draw_is_the_same_in_another_process():
    code = (
        "from fcfd.paths import crossings, draw\n"
        "print([draw(crossings(5), 2, seed=3, step=i) for i in range(20)])"
    )
    runs = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={"PYTHONHASHSEED": seed, "PYTHONPATH": ":".join(sys.path)},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("0", "1")
    }
    assert runs == {f"{[draw(crossings(5), 2, seed=3, step=i) for i in range(20)]}\n"}


def test_draw_is_uniform():
    """Chi-square over the 15 pairs of six crossings; 36.1 is the 0.999 quantile of 14 degrees of freedom."""
    candidates, draws = crossings(5), 6000
    counts = Counter(draw(candidates, 2, seed=0, step=at) for at in range(draws))
    pairs = list(combinations(candidates, 2))
    expected = draws / len(pairs)
    assert sum((counts[pair] - expected) ** 2 / expected for pair in pairs) < 36.1
    assert set(counts) == set(pairs)


def test_draw_differs_by_step_and_by_seed():
    candidates = crossings(9)
    assert len({draw(candidates, 2, seed=0, step=at) for at in range(50)}) > 10
    assert len({draw(candidates, 2, seed=seed, step=0) for seed in range(50)}) > 10


@pytest.mark.parametrize("count", [-1, 7])
def test_draw_refuses_a_count_that_cannot_be(count):
    with pytest.raises(ValueError, match=f"cannot draw {count} of 6 paths without replacement"):
        draw(crossings(5), count, seed=0, step=0)


@given(paths())
def test_the_questions_agree_with_the_steps(path):
    last = step(path)
    assert is_bridged(path) == (len(last.column) == 3)
    assert crosses(path) == (len({letter for letter in path if letter.isalpha()}) > 1)
    assert counterpart(path) == pure(path[-1], depth(path))
    assert len(prefixes(path)) == depth(path) + path.count("&") + sum(
        is_bridged(value) and ">" in value for value in prefixes(path)
    )
    if not crosses(last.reads[0]):
        simple = path_of(last.column, last.at)
        assert step(simple).column == last.column
        assert step(simple).at == last.at


@given(st.lists(st.tuples(st.sampled_from("st"), st.integers(1, 30)), min_size=1, max_size=4))
def test_a_number_repeats_the_letter_before_it(runs):
    short = "".join(f"{letter}{count}" for letter, count in runs)
    long = "".join(letter * count for letter, count in runs)
    assert expand(short) == long == expand(long)
    assert plan([short]) == plan([long])
    assert depth(short) == len(long)
    assert step(short) == step(long)


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("3s", "a number stands behind '3', which is no network"),
        ("ss>3t", "a number stands behind '>'"),
        ("S3", "a number stands behind 'S'"),
        ("s0", "repeats 's' 0 times"),
        ("s1001", "repeats 's' 1001 times"),
    ],
)
def test_a_number_without_a_letter_is_refused(path, text):
    with pytest.raises(ValueError, match="^expand: ") as error:
        plan([path])
    assert text in str(error.value)


@pytest.mark.parametrize("function", [plan, lambda paths: draw(paths, 1, seed=0, step=0)])
def test_one_string_is_no_list_of_paths(function):
    with pytest.raises(ValueError, match=r"paths is the string 'ssttt'; give a tuple of paths: \('ssttt',\)"):
        function("ssttt")


def test_lists_of_paths_are_checked():
    with pytest.raises(TypeError, match="draw: paths is a generator; give a tuple or list of paths"):
        draw((path for path in crossings(5)), 1, seed=0, step=0)
    with pytest.raises(ValueError, match="draw: path 'ssttt' is given twice"):
        draw(("ssttt", "s2t3"), 1, seed=0, step=0)
    with pytest.raises(TypeError, match="expand: a path is a string such as 'ssttt', not int"):
        plan([3])  # type: ignore[list-item]
    with pytest.raises(TypeError, match=r"draw: count 1\.5 must be a whole number"):
        draw(crossings(5), 1.5, seed=0, step=0)
    with pytest.raises(TypeError, match="draw: step True must be a whole number"):
        draw(crossings(5), 1, seed=0, step=True)
    assert draw(crossings(5), np.int64(2), seed=0, step=np.int64(3)) == draw(crossings(5), 2, seed=0, step=3)


@pytest.mark.parametrize("function", [crossings, bridged])
@pytest.mark.parametrize(
    ("arguments", "options", "error", "text"),
    [
        ((0,), {}, ValueError, "depth 0 must be at least 1"),
        ((5,), {"first": 0}, ValueError, "first 0 must be at least 1"),
        ((5.0,), {}, TypeError, r"depth 5\.0 must be a whole number"),
        ((5, "st"), {}, ValueError, "directions is a string; give a tuple of pairs"),
        ((5, ("s",)), {}, ValueError, "direction 's' is no pair of two networks"),
        ((5, ("ss",)), {}, ValueError, "direction 'ss' is no pair of two networks"),
        ((5, ("sT",)), {}, ValueError, "a network is one letter a-z, not 'T'"),
    ],
)
def test_depths_and_directions_are_checked(function, arguments, options, error, text):
    with pytest.raises(error, match=text):
        function(*arguments, **options)


@pytest.mark.parametrize("path", ["s>", "ss>tt", "ss>t&s", "s>s", "S"])
def test_depth_is_of_paths_alone(path):
    with pytest.raises(ValueError, match="^(step|depth): "):
        depth(path)


@given(st.text(alphabet="abst>&S0123 é", max_size=12))
def test_any_string_is_a_path_or_refused(text):
    """Whatever the string: a plan that is closed, or a sentence that begins with who speaks."""
    refused = ""
    try:
        planned = plan([text])
    except ValueError as error:
        refused = str(error)
    if refused:
        assert refused.startswith(("step: ", "expand: "))
        return
    path = expand(text)
    assert path == "" or planned[-1] == path
    assert depth(text) == (0 if path == "" else step(path).at + 1)
    assert plan(planned) == planned
