"""Walks: every value by its name, computed once, with what it wrote; and the sums on top."""

from collections import Counter

import pytest
import torch
from hypothesis import given, strategies as st
from torch import nn

import fcfd
from fcfd.losses import cross_entropy, kl, squared_error

from .nets import batch, pair
from .purity import assert_unchanged, snapshot


def _letters(counts: Counter):
    """Three networks of five stages and all bridges, whose values are their own paths spelled out."""

    def stage(column):
        def run(params, buffers, x):
            counts[column] += 1
            return (" + ".join(x) if isinstance(x, tuple) else x) + f" {column}", {}

        return run

    columns = [*"abc", *(f"{a}{mark}{b}" for a in "abc" for b in "abc" for mark in ">&" if a != b)]
    stages = {column: tuple(stage(f"{column}{at}") for at in range(5)) for column in columns}
    empty = dict.fromkeys(columns, {})
    return stages, empty


def test_a_path_spells_its_computation():
    stages, empty = _letters(Counter())
    wanted = ["aab", "aa&bb", "abbcc"]
    values, written = fcfd.walk(fcfd.plan(wanted), stages, empty, empty, {"": "x"})
    assert values["aab"] == "x a0 a1 a>b1 b2"
    assert values["aa&bb"] == "x a0 a1 + x b0 b1 a&b1 b2"
    assert values["abbcc"] == "x a0 a>b0 b1 b2 b>c2 c3 c4"
    assert written.keys() == values.keys() - {""}


@given(st.lists(st.sampled_from(fcfd.crossings(5, ("ab", "ba", "ac"))), max_size=6))
def test_nothing_is_computed_twice(paths):
    counts: Counter = Counter()
    stages, empty = _letters(counts)
    planned = fcfd.plan(paths)
    fcfd.walk(planned, stages, empty, empty, {"": "x"})
    assert counts.total() == len(planned)


def test_known_values_are_not_run_again():
    counts: Counter = Counter()
    stages, empty = _letters(counts)
    known, _ = fcfd.walk(("a", "aa"), stages, empty, empty, {"": "x"})
    values, written = fcfd.walk(fcfd.plan(["aab"]), stages, empty, empty, known)
    assert counts == {"a0": 1, "a1": 1, "a>b1": 1, "b2": 1}
    assert values.keys() - known.keys() == written.keys() == {"aa>b", "aab"}
    assert known.keys() == {"", "a", "aa"}


def test_named_inputs_reach_every_later_stage_among_its_buffers():
    def first(params, buffers, x):
        return x["ids"] * 1.0, {}

    def later(params, buffers, x):
        return x * buffers["mask"], {}

    ids, mask = torch.tensor([1, 2]), torch.tensor([1.0, 0.0])
    columns = [{"s": (first, later)}, {"s": {}}, {"s": {}}]
    values, _ = fcfd.walk(("s", "ss"), *columns, {"": {"ids": ids, "mask": mask}})
    assert values["ss"].tolist() == [1.0, 0.0]


def test_networks_may_read_batches_of_their_own():
    def double(params, buffers, x):
        return 2 * x, {}

    def masked(params, buffers, x):
        return x * buffers["mask"], {}

    def first(params, buffers, x):
        return x["ids"], {}

    stages = {"s": (double, double), "t": (first, masked), "s>t": (double,)}
    empty = {column: {} for column in stages}
    batches = {
        "s": torch.tensor([1.0, 2.0]),
        "t": {"ids": torch.tensor([5.0, 6.0]), "mask": torch.tensor([1.0, 0.0])},
    }
    values, _ = fcfd.walk(fcfd.plan(["ss", "tt", "st"]), stages, empty, empty, {"": batches})
    assert values["ss"].tolist() == [4.0, 8.0]
    assert values["tt"].tolist() == [5.0, 0.0]
    assert values["st"].tolist() == [4.0, 0.0]


@pytest.mark.parametrize(
    ("plan", "text"),
    [
        (("x",), "path 'x' needs network 'x'; there are 't', 's', 's>t', 't>s'"),
        (("s", "s>x"), "path 's>x' needs bridges 's>x'; there are"),
        (("s", "s&t"), "path 's&t' needs bridges 's&t'; there are"),
        (
            ("s", "ss", "sss", "ssss", "sssss"),
            "path 'sssss' needs entry 4 of column 's', which ends at entry 3",
        ),
        (("t", "tt", "ttt", "ttt>s"), "path 'ttt>s' needs a bridge 't>s' after stage 2, which was not built"),
    ],
)
def test_what_is_missing_is_named(plan, text):
    *_, nets = pair()
    with pytest.raises(ValueError, match="^walk: ") as error:
        fcfd.walk(plan, *nets.columns, {"": batch()[0]})
    assert text in str(error.value)


def test_a_missing_dict_or_entry_is_named():
    *_, nets = pair()
    values = {"": batch()[0]}
    params = {letter: own for letter, own in nets.params.items() if letter != "s"}
    with pytest.raises(ValueError, match=r"walk: path 's' needs params\['s'\], which is missing"):
        fcfd.walk(("s",), nets.stages, params, nets.buffers, values)
    params["s"] = {name: tensor for name, tensor in nets.params["s"].items() if name != "0.0.weight"}
    with pytest.raises(
        ValueError, match=r"walk: path 's': entry 0 of column 's' .* params lacks '0\.0\.weight'"
    ):
        fcfd.walk(("s",), nets.stages, params, nets.buffers, values)


def test_a_stage_that_cannot_read_its_input_is_named_with_the_shapes():
    *_, nets = pair()
    stages = nets.stages | {"s>t": (lambda params, buffers, x: (x, {}),) * 3}
    with pytest.raises(
        ValueError, match=r"walk: path 'st': entry 1 of column 't' cannot run on \[4, 3, 8, 8\]"
    ):
        fcfd.walk(("s", "s>t", "st"), stages, nets.params, nets.buffers, {"": batch()[0]})


def test_no_memory_is_an_error_of_its_own_class():
    def broken(params, buffers, x):
        raise torch.OutOfMemoryError("no memory")

    with pytest.raises(torch.OutOfMemoryError, match="^walk: path 's': no memory$"):
        fcfd.walk(("s",), {"s": (broken,)}, {"s": {}}, {"s": {}}, {"": torch.ones(1)})


@pytest.mark.parametrize("mode", ["eval", "train"])
def test_statistics_belong_to_the_pure_path(mode):
    teacher, student, nets = pair(teacher_mode=mode)
    images, _ = batch()
    plan = fcfd.plan([*nets.crossings, "tttt", "ssss", "sss>t"])
    values, written = fcfd.walk(plan, *nets.columns, {"": images})
    settled = fcfd.merge_buffers(nets.buffers, written)
    with torch.no_grad():
        for letter, network in (("t", teacher), ("s", student)):
            x = images
            for block in network:
                x = block(x)
            for name, tensor in network.named_buffers():
                torch.testing.assert_close(settled[letter][name], tensor, msg=f"{letter} {name}")
    for column, bridges in nets.bridges.items():
        for at, bridge in bridges.items():
            bridge(values[column[0] * (int(at) + 1)].detach())
        for name, tensor in bridges.named_buffers():
            torch.testing.assert_close(settled[column][name], tensor, msg=f"{column} {name}")
    crossed = written["stt"]["2.1.running_mean"]
    assert torch.equal(crossed, nets.buffers["t"]["2.1.running_mean"]) == (mode == "eval")


def test_merged_buffers_keep_what_was_not_written_and_shares_no_dict():
    before = {"s": {"a": torch.tensor(0), "b": torch.tensor(1)}}
    settled = fcfd.merge_buffers(before, {"s": {"a": torch.tensor(2)}, "ts": {"b": torch.tensor(3)}})
    assert settled == {"s": {"a": torch.tensor(2), "b": torch.tensor(1)}}
    assert before["s"]["a"] == 0
    assert settled["s"] is not before["s"]


def test_a_term_gives_its_target_no_gradient_and_its_prediction_one():
    values = {"s": torch.randn(3, 4, requires_grad=True), "t": torch.randn(3, 4, requires_grad=True)}
    parts = fcfd.evaluate({"hint": fcfd.Term(squared_error, "s", "t")}, values)
    parts["hint"].backward()
    assert values["t"].grad is None
    torch.testing.assert_close(values["s"].grad, (values["s"] - values["t"]).detach() / 6)


def test_a_term_may_read_several_values_and_data_of_the_batch():
    def loss(one, two, target, labels):
        return (one + two - target) * labels

    values = {"s": torch.ones(2), "ss": torch.ones(2) * 2, "t": torch.ones(2), "Labels": torch.tensor([1, 3])}
    term = fcfd.Term(loss, ("s", "ss"), ("t", "Labels"))
    assert fcfd.reads([term]) == ("s", "ss", "t")
    assert fcfd.evaluate({"both": term}, values)["both"] == 4.0


def test_evaluate_names_the_term():
    values = {"ss": torch.zeros(4, 10), "tt": torch.zeros(4, 100)}
    with pytest.raises(
        ValueError, match=r"evaluate: term 'kl/student', 'ss' towards 'tt': kl: .*\[4, 10\].*\[4, 100\]"
    ):
        fcfd.evaluate({"kl/student": fcfd.Term(kl, "ss", "tt")}, values)
    with pytest.raises(ValueError, match="term 'a' reads 'sst', which is missing; add the path to the plan"):
        fcfd.evaluate({"a": fcfd.Term(kl, "sst", "tt")}, values)
    with pytest.raises(
        ValueError, match="term 'label' reads 'Labels', which is missing; give it with the batch"
    ):
        fcfd.evaluate({"label": fcfd.Term(cross_entropy, "ss", "Labels")}, values)


def test_the_weighted_sum_is_the_weighted_sum():
    terms = {name: fcfd.Term(kl, "s", "t", weight) for name, weight in (("a", 2.0), ("b", 0.5))}
    assert fcfd.weighted_sum(terms, {"a": torch.tensor(3.0), "b": torch.tensor(4.0)}) == 8.0
    with pytest.raises(ValueError, match="weighted_sum: there is no term"):
        fcfd.weighted_sum({}, {})


def test_objective_is_pure():
    teacher, student, nets = pair(teacher_mode="train")
    images, labels = batch()
    terms = fcfd.recipes.fcfd(4, nets.crossings, fcfd.bridged(4))
    values = {"": images, "Labels": labels}
    things = teacher, student, nets.bridges, nets.params, nets.buffers, values
    before = snapshot(*things)
    loss, aux = fcfd.objective(terms, *nets.columns, values)
    assert_unchanged(before, *things)
    torch.testing.assert_close(loss, sum(term.weight * aux.parts[name] for name, term in terms.items()))


def test_a_hand_written_network_walks_beside_a_module():
    def double(params, buffers, x):
        return x * params["scale"], {}

    def head(params, buffers, x):
        return x.sum((2, 3)), {}

    network = fcfd.split([nn.Conv2d(3, 3, 1).double(), nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())])
    stages = {"t": network.stages, "h": (double, head), "t>h": (lambda p, b, x: (x, {}),)}
    params = {"t": network.params, "h": {"scale": torch.tensor(2.0)}, "t>h": {}}
    buffers = {"t": network.buffers, "h": {}, "t>h": {}}
    values, _ = fcfd.walk(fcfd.plan(["hh", "th"]), stages, params, buffers, {"": batch()[0]})
    torch.testing.assert_close(values["hh"], 2 * batch()[0].sum((2, 3)))
    torch.testing.assert_close(values["th"], values["t"].sum((2, 3)))


def _one(run):
    """A walk of one stage that does something wrong."""
    return {"s": (run,)}, {"s": {}}, {"s": {}}, {"": torch.ones(1)}


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (
            TypeError("forward() got an unexpected argument"),
            "TypeError: forward() got an unexpected argument",
        ),
        (KeyError("mask"), "KeyError: 'mask'"),
        (AttributeError("no such thing"), "AttributeError: no such thing"),
        (NotImplementedError("not yet"), "NotImplementedError: not yet"),
        (AssertionError("odd"), "AssertionError: odd"),
        (RuntimeError("sizes differ"), "from '': sizes differ"),
    ],
)
def test_every_error_of_a_stage_names_the_path(error, text):
    def broken(params, buffers, x):
        raise error

    with pytest.raises(ValueError, match="^walk: path 's': entry 0 of column 's' cannot run") as found:
        fcfd.walk(("s",), *_one(broken))
    assert text in str(found.value)
    assert found.value.__cause__ is error


@pytest.mark.parametrize("result", [torch.ones(1), (torch.ones(1),), (torch.ones(1), None), None])
def test_a_stage_that_returns_no_pair_is_named(result):
    with pytest.raises(ValueError, match=r"walk: path 's': entry 0 .* a stage returns the pair"):
        fcfd.walk(("s",), *_one(lambda params, buffers, x: result))


def test_what_was_not_computed_is_named():
    *_, nets = pair()
    with pytest.raises(ValueError, match=r"walk: path 's' reads the batch, values\[''\], which is missing"):
        fcfd.walk(("s",), *nets.columns, {})
    with pytest.raises(ValueError, match=r"path 'sstt' reads 'sst', which is not known"):
        fcfd.walk(("sstt",), *nets.columns, {"": batch()[0]})
    with pytest.raises(TypeError, match=r"walk: plan is the string 'sstt'; give fcfd.plan\(\('sstt',\)\)"):
        fcfd.walk("sstt", *nets.columns, {"": batch()[0]})


def test_a_batch_by_network_is_told_from_named_inputs():
    """All names are networks, or it is one batch: a model may well take an input `t`."""

    def first(params, buffers, x):
        return x["x"] * x["t"], {}

    def plain(params, buffers, x):
        return x, {}

    x, t = torch.tensor([2.0]), torch.tensor([3.0])
    empty = {"s": {}, "t": {}}
    values, _ = fcfd.walk(("s",), {"s": (first,), "t": (plain,)}, empty, empty, {"": {"x": x, "t": t}})
    assert values["s"] == 6.0
    stages = {"s": (plain,), "t": (plain,)}
    values, _ = fcfd.walk(("s", "t"), stages, empty, empty, {"": {"s": x, "t": t}})
    assert (values["s"], values["t"]) == (2.0, 3.0)
    with pytest.raises(ValueError, match="the batch is by network, and has none for 's', only for 't'"):
        fcfd.walk(("s",), stages, empty, empty, {"": {"t": t}})


def test_paths_of_deep_networks_may_be_written_short():
    *_, nets = pair()
    images, _ = batch()
    short, _ = fcfd.walk(fcfd.plan(["s2t2"]), *nets.columns, {"": images})
    long, _ = fcfd.walk(fcfd.plan(["sstt"]), *nets.columns, {"": images})
    assert short.keys() == long.keys()
    known = {"": images, "s2": long["ss"]}
    assert torch.equal(fcfd.walk(("s2>t", "s2t"), *nets.columns, known)[0]["sst"], long["sst"])


def test_a_term_whose_loss_fails_is_named_whatever_the_error():
    def loss(prediction, target):
        raise KeyError("no such entry")

    values = {"s": torch.ones(2), "t": torch.ones(2)}
    with pytest.raises(ValueError, match="evaluate: term 'a', 's' towards 't': KeyError: 'no such entry'"):
        fcfd.evaluate({"a": fcfd.Term(loss, "s", "t")}, values)
    with pytest.raises(
        ValueError, match="evaluate: term 'a': its loss returned float, where one floating tensor"
    ):
        fcfd.evaluate({"a": fcfd.Term(lambda a, b: 1.0, "s", "t")}, values)  # type: ignore


def test_records_show_a_short_table():
    *_, nets = pair()
    terms = fcfd.recipes.fcfd(4, nets.crossings, fcfd.bridged(4))
    _, aux = fcfd.objective(terms, *nets.columns, _batch_values())
    for record in (aux, nets, nets.columns):
        assert len(repr(record)) < 3000
    assert "kl/sstt" in repr(aux)
    assert "crossings: sttt, sstt, tsss, ttss" in repr(nets)
    assert "'s>t'" in repr(nets.columns)
    many = fcfd.Aux({f"term {at}": torch.ones(()) for at in range(900)}, {}, {})
    assert len(repr(many)) < 3000
    assert "888 more" in repr(many)


def _batch_values():
    images, labels = batch()
    return {"": images, "Labels": labels}
