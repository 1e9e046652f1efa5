"""Terms: data that changes by functions, and losses that read trees of tensors."""

import pytest
import torch
from torch.nn import functional as F

import fcfd
from fcfd import losses, recipes
from fcfd.terms import balanced, entry, masked, multi_level, path_names, present


def test_weights_change_for_all_or_by_kind_and_multiply():
    terms = recipes.fcfd(4, ("sstt",), ("ss>t",))
    twice = fcfd.scaled(fcfd.scaled(terms, 2.0), {"kl": 3.0, "kl/sstt": 5.0, "feature/sst": 7.0})
    assert {name: term.weight for name, term in twice.items()} == {
        "label": 2.0,
        "kl/student": 6.0,
        "feature/ss>t": 2.0,
        "feature/sst": 14.0,
        "pooled/sst": 2.0,
        "kl/sstt": 30.0,
    }
    assert all(term.weight == 1.0 for term in terms.values()), "what was given stays as it is"


def test_a_tensor_may_be_a_weight_and_gets_a_gradient():
    weight = torch.tensor(0.5, requires_grad=True)
    terms = fcfd.scaled(recipes.kd(2), {"kl": weight})
    loss = fcfd.weighted_sum(terms, {"label": torch.tensor(1.0), "kl/student": torch.tensor(4.0)})
    loss.backward()
    assert loss == 3.0
    assert weight.grad == 4.0


def test_a_term_of_weight_zero_is_absent():
    """It is not walked, not evaluated and not summed: other classes, and infinity times zero, do no harm."""
    terms = fcfd.scaled(recipes.kd(2), {"kl": 0.0})
    assert list(present(terms)) == ["label"]
    values = {"ss": torch.zeros(3, 10), "Labels": torch.zeros(3, dtype=torch.long)}
    assert list(fcfd.evaluate(terms, values)) == ["label"]
    parts = {"label": torch.tensor(2.0), "kl/student": torch.tensor(torch.inf)}
    assert fcfd.weighted_sum(terms, parts) == 2.0


def test_losses_are_replaced_by_kind():
    terms = fcfd.replaced(recipes.kd(2), {"kl": losses.kd_bce})
    values = {"ss": torch.randn(3, 5), "tt": torch.randn(3, 5), "Labels": torch.tensor([0, 1, 2])}
    parts = fcfd.evaluate(terms, values)
    torch.testing.assert_close(parts["kl/student"], losses.kd_bce(values["ss"], values["tt"]).mean())
    torch.testing.assert_close(parts["label"], F.cross_entropy(values["ss"], values["Labels"]))


@pytest.mark.parametrize(("change", "value"), [(fcfd.scaled, 2.0), (fcfd.replaced, losses.kl)])
def test_a_kind_that_no_term_has_is_refused(change, value):
    with pytest.raises(ValueError, match=r"no term is of the kind 'hint'; there are label, kl/student"):
        change(recipes.kd(2), {"hint": value})


@pytest.mark.parametrize(
    ("weight", "text"),
    [
        (torch.ones(2), r"\[2\] must be a number"),
        (float("nan"), "nan must be finite"),
        (float("inf"), "inf must be finite"),
        ("2", "'2' must be a number"),
        (None, "None must be a number"),
    ],
)
def test_a_weight_is_one_finite_number(weight, text):
    terms = {"a": fcfd.Term(losses.kl, "s", "t", weight)}
    with pytest.raises((ValueError, TypeError), match=rf"weighted_sum: the weight of term 'a' {text}"):
        fcfd.weighted_sum(terms, {"a": torch.tensor(1.0)})


def test_names_are_read_in_their_long_form():
    assert path_names(("s2>t", "Labels", "s2t")) == ("ss>t", "Labels", "sst")
    assert fcfd.reads([fcfd.Term(losses.kl, "s2t3", "t5")]) == ("ssttt", "ttttt")
    values = {"sss": torch.ones(2), "ttt": torch.zeros(2)}
    assert fcfd.evaluate({"a": fcfd.Term(F.mse_loss, "s3", "t3")}, values)["a"] == 1.0


def test_a_loss_may_read_one_entry_of_several():
    prediction = {"start": torch.randn(2, 7), "end": torch.randn(2, 7)}
    labels = torch.tensor([3, 4])
    loss = entry("end", losses.cross_entropy)(prediction, labels).mean()
    torch.testing.assert_close(loss, F.cross_entropy(prediction["end"], labels))
    pair = (torch.zeros(2, 3), torch.ones(2, 3))
    assert entry(1, F.mse_loss)(pair, pair[::-1]) == 1.0


@pytest.mark.parametrize(
    ("key", "prediction", "text"),
    [
        ("start", torch.ones(2), "the prediction is one tensor and has no entry 'start'"),
        ("start", {"end": torch.ones(2)}, "dict has no entry 'start'"),
        (2, (torch.ones(2),), "tuple has no entry 2"),
    ],
)
def test_an_entry_that_is_not_there_is_refused(key, prediction, text):
    with pytest.raises(ValueError, match=f"^entry: {text}"):
        entry(key, F.mse_loss)(prediction, prediction)


def test_a_value_of_several_tensors_is_named_with_the_way_out():
    values = {"s": (torch.ones(2, 3), torch.ones(2, 3)), "t": torch.ones(2, 3)}
    with pytest.raises(ValueError, match=r"term 'kl', 's' towards 't' \(the prediction is a tuple; read one"):
        fcfd.evaluate({"kl": fcfd.Term(losses.kl, "s", "t")}, values)


def test_a_pyramid_is_the_mean_of_its_levels():
    ours, theirs = [torch.ones(1), torch.ones(2)], [torch.zeros(1), torch.zeros(2)]
    assert multi_level(F.mse_loss)(ours, theirs) == 1.0
    with pytest.raises(ValueError, match="multi_level: the prediction holds 2 tensors as list, the target 1"):
        multi_level(F.mse_loss)(ours, {"a": torch.ones(1)})


def _tokens(length: int = 5) -> tuple[dict, torch.Tensor]:
    torch.manual_seed(0)
    mask = torch.tensor([[1, 1, 1, 0, 0], [1, 1, 0, 0, 0]])
    paths = ("s>t", "t", "ss>t", "tt")
    return {path: torch.randn(2, length, 3, requires_grad="s" in path) for path in paths}, mask


def test_padding_counts_nothing():
    """Every term is that of the tokens alone, whatever stands in the padding, and it gets no gradient."""
    terms = masked(recipes.appearance(3, ("s>t", "ss>t")), {"feature": "Mask", "pooled": "Mask"})
    values, mask = _tokens()
    parts = fcfd.evaluate(terms, values | {"Mask": mask})
    kept = mask.bool()
    difference = values["s>t"][kept] - values["t"][kept]
    torch.testing.assert_close(parts["feature/s>t"], difference.square().mean())
    means = [
        torch.stack([values[path][row, kept[row]].relu().mean(0) for row in range(2)])
        for path in ("ss>t", "tt")
    ]
    torch.testing.assert_close(parts["pooled/ss>t"], (means[0] - means[1]).square().mean())
    sum(parts.values()).backward()
    assert not values["s>t"].grad[~kept].any()
    assert not values["ss>t"].grad[~kept].any()
    for filler in (7.0, float("nan")):
        other = {path: torch.where(kept.unsqueeze(-1), value, filler) for path, value in values.items()}
        torch.testing.assert_close(fcfd.evaluate(terms, other | {"Mask": mask}), parts)


def test_a_mask_is_data_of_the_batch():
    with pytest.raises(ValueError, match=r"masks\['kl'\] is 'mask'; a name of data begins with a capital"):
        masked(recipes.kd(2), {"kl": "mask"})
    with pytest.raises(ValueError, match="masked: no term is of the kind 'feature'"):
        masked(recipes.kd(2), {"feature": "Mask"})


# Parts


def test_balanced_parts_are_as_large_and_pull_in_their_own_direction():
    x = torch.tensor([1.0, 2.0], requires_grad=True)
    parts = {"label": x.sum(), "kl/student": 10 * x[0] ** 2, "none": 0 * x.sum(), "below": -x[1]}
    found = balanced(parts)
    assert [part.item() for part in found.values()] == [3.0, 3.0, 0.0, -3.0]
    for name, factor in {"label": 1.0, "kl/student": 0.3, "none": 1.0, "below": 1.5}.items():
        gradients = [torch.autograd.grad(p[name], x, retain_graph=True)[0] for p in (found, parts)]
        torch.testing.assert_close(gradients[0], factor * gradients[1])
    assert found["label"] is parts["label"]
    assert balanced(parts, like="kl/student")["label"].item() == 10.0


@pytest.mark.parametrize(
    "parts, like, text",
    [
        ({"a": torch.tensor(1.0)}, "label", "like 'label' is none of the parts a"),
        ({"a": torch.ones(2)}, "a", r"parts\['a'\] \[2\] must be a scalar"),
        ({"a": 1.0}, "a", r"parts\['a'\] is of type float"),
        (None, "a", "parts is of type NoneType"),
    ],
)
def test_what_has_no_parts_is_refused(parts, like, text):
    with pytest.raises((TypeError, ValueError), match=f"^balanced: {text}"):
        balanced(parts, like=like)
