"""What is wrong is refused, in words that name the function and the argument, or the result is right.

Every tensor of every row is replaced in turn by each spoil below, and every hyper-parameter by values that it
cannot have. Nothing may come out of a call but a right result, a `TypeError` or a `ValueError`.
"""

import inspect
from collections.abc import Callable
from math import inf, nan
from typing import Any

import pytest
import torch
from torch import Tensor

from reference.catalogue import ROWS, Row, Size

SPOILS: dict[str, Callable[[Tensor], Any]] = {
    "None": lambda x: None,
    "a list": lambda x: x.tolist(),
    "a numpy array": lambda x: x.numpy(),
    "a string": lambda x: "logits",
    "complex": lambda x: x.to(torch.complex64),
    "integers": lambda x: x.long(),
    "bytes": lambda x: x.byte(),
    "bool": lambda x: x != 0,
    "floats": lambda x: x.float(),
    "no axis": lambda x: x.reshape(-1)[0],
    "one axis less": lambda x: x[0],
    "one axis more": lambda x: x.unsqueeze(0),
    "empty": lambda x: x[:0],
    "on another device": lambda x: x.to("meta"),
}

ANY_AXES = "learned_temperature.parameter grad_reverse.x energy_temperature.energies"
ONE_EXAMPLE = "standardize_logits.logits energy.logits entropy.logits taylor_rbf.embedding"
INTEGERS = (
    "dkd.labels nkd.labels wsld.labels ofa.labels wkd_logit.labels cross_entropy.labels tf_nkd.labels "
    "rld.labels topk_nckd.labels topk_kl.ids topk_reverse_kl.ids topk_jsd.ids sampled_kl.ids "
    "uld_hybrid.matched uld_hybrid.target_matched"
)

RIGHT = {
    "integers": "binary_cross_entropy.labels mgd.mask",
    "bytes": "binary_cross_entropy.labels box_deltas.labels mgd.mask prototype_info_nce.labels crd_nce.index "
    "crd_nce.negatives " + INTEGERS,
    "floats": "binary_cross_entropy.labels mgd.mask",
    "no axis": ANY_AXES,
    "one axis less": f"{ANY_AXES} {ONE_EXAMPLE}",
    "one axis more": f"{ANY_AXES} {ONE_EXAMPLE}",
}
"""What is no mistake: other types for integers and for 0 and 1, and other leading axes."""

CLOSED_OVER = {("mgd", "weight")}
"""Not an argument of the function, but of what the row gives it."""


def draw(row: Row) -> dict[str, Tensor]:
    size = Size(*map(max, Size(4, 5, 4), row.least))
    return row.inputs(size, torch.Generator().manual_seed(0), torch.float32)


def called(row: Row, inputs: dict[str, Any]) -> Any:
    return row.loss(*row.arrange(list(inputs.values())), **row.hyper)


def same_kind(a: Tensor, b: Any) -> bool:
    return isinstance(b, Tensor) and (a.dtype, a.shape, a.device) == (b.dtype, b.shape, b.device)


def arguments() -> list[tuple[Row, str, str]]:
    """Every tensor argument with every spoil that changes it, and where one device can be another."""
    found = []
    for row in ROWS:
        inputs = draw(row)
        for key in inputs.keys() - {key for name, key in CLOSED_OVER if name == row.loss.__name__}:
            changing = [spoil for spoil in SPOILS if not same_kind(inputs[key], SPOILS[spoil](inputs[key]))]
            if len(inputs) == 1:
                changing.remove("on another device")
            found += [(row, key, spoil) for spoil in changing]
    return found


def is_right(row: Row, key: str, spoil: str) -> bool:
    return f"{row.loss.__name__}.{key}" in RIGHT.get(spoil, "").split()


def cases(right: bool) -> list[Any]:
    return [
        pytest.param(row, key, spoil, id=f"{row.loss.__name__}.{key} {spoil}")
        for row, key, spoil in sorted(arguments(), key=lambda case: (case[0].loss.__name__, *case[1:]))
        if is_right(row, key, spoil) == right
    ]


@pytest.mark.parametrize("row, key, spoil", cases(right=False))
def test_a_spoiled_argument_is_refused_by_name(row: Row, key: str, spoil: str) -> None:
    inputs = draw(row)
    with pytest.raises((TypeError, ValueError)) as error:
        called(row, {**inputs, key: SPOILS[spoil](inputs[key])})
    text = str(error.value)
    assert text.startswith(f"{row.loss.__name__}: ")
    assert {"student_bank": "banks.student", "teacher_bank": "banks"}.get(key, key) in text
    if spoil == "on another device":
        assert "on cpu" in text
        assert "on meta" in text


@pytest.mark.parametrize("row, key, spoil", cases(right=True))
def test_what_is_no_mistake_has_a_result(row: Row, key: str, spoil: str) -> None:
    inputs = draw(row)
    found = row.read(called(row, {**inputs, key: SPOILS[spoil](inputs[key])}))
    assert found.isfinite().all()
    if SPOILS[spoil](inputs[key]).shape == inputs[key].shape:
        torch.testing.assert_close(found, row.read(called(row, inputs)))


# Hyper-parameters


RANGES: dict[str, tuple[Any, ...]] = {
    "temperature": (0, -1.0, inf),
    "eps": (-1e-3, inf),
    "jsd.beta": (-0.1, 1.1),
    "skew": (-0.1, 1.0),
    "topk_jsd.beta": (-0.1, 1.1),
    "uld_hybrid.beta": (-0.1, 1.1),
    "uld_hybrid.floor": (0.0, 1.0),
    "floor": (-1e-3, 1.0),
    "tail": ("buckets", ""),
    "strategy": ("first",),
    "self_normalized": (1, 0.0),
    "normalize": (1, 0.0),
    "negatives": ("drop",),
    "heads": (0, 1.5, 3),
    "share": (-0.1, 1.1),
    "mu": (-0.1, 1.1),
    "reverse": (-0.1, 1.1),
    "weight": (-0.1, 1.1),
    "k": (-1, 2.5),
    "w0": (inf,),
    "w1": (inf,),
    "w2": (inf,),
    "weight_temperature": (0, -1.0, inf),
    "label_temperature": (0, -1.0, inf),
    "target_temperature": (0, -1.0, inf),
    "gkl.gamma": (0.0, -1.0),
    "kd_quality_focal.beta": (-1.0,),
    "regularization": (0.0, -1.0),
    "iterations": (0, 2.5),
    "keep": (0.0, 1.5, -1.0),
    "p": (0, -2.0, inf),
    "sizes": ((0,), (4, -1), (1.5,), 4),
    "grid": (0, 1.5),
    "order": (-1, 1.5),
    "length": (0, 1.5),
    "hard_dark_rank.beta": (0.0, -3.0),
    "exponent": (0.0, -4.0),
    "momentum": (2.0, -0.1),
    "bound": (0.0, -1.0),
    "low_rate": (-0.1, 1.0),
    "high_rate": (-0.1, 1.0),
    "below": (0.0, -6.0),
    "between": (0.0,),
    "above": (0.0,),
    "alpha": (inf,),
    "beta": (inf,),
    "gamma": (-inf,),
    "kappa": (inf,),
    "scale": (inf,),
    "start": (inf,),
    "span": (inf,),
    "margin": (inf,),
    "mean_weight": (inf,),
    "sample_weight": (inf,),
    "class_weight": (inf,),
}
"""Numbers outside of the range of a hyper-parameter, by its name or by function and name."""

OPTIONAL_TENSORS = ("negatives", "prior", "log_proposal", "prediction_keys", "target_keys", "mask")

HYPER_PARAMETERS = [
    pytest.param(row, name, id=f"{row.loss.__name__}.{name}")
    for row in ROWS
    for name, parameter in inspect.signature(row.loss).parameters.items()
    if parameter.kind is parameter.KEYWORD_ONLY and name not in OPTIONAL_TENSORS
]


@pytest.mark.parametrize("row, key", HYPER_PARAMETERS)
def test_a_hyper_parameter_has_a_kind_and_a_range(row: Row, key: str) -> None:
    name = row.loss.__name__
    arguments = row.arrange(list(draw(row).values()))
    wrong = [True, "four", None, nan, *RANGES.get(f"{name}.{key}", RANGES.get(key, ()))]
    default = inspect.signature(row.loss).parameters[key].default
    if default is None or isinstance(default, bool):
        wrong.remove(None if default is None else True)
    for value in wrong:
        with pytest.raises((TypeError, ValueError), match=f"^{name}: {key} ") as error:
            row.loss(*arguments, **{**row.hyper, key: value})
        kind = bool | None if isinstance(default, str) else bool | str | None
        assert error.type is TypeError or not isinstance(value, kind)
        assert str(value if key != "sizes" else "sizes") in str(error.value)


@pytest.mark.parametrize("row, key", HYPER_PARAMETERS)
def test_a_tensor_of_several_numbers_is_no_hyper_parameter(row: Row, key: str) -> None:
    arguments = row.arrange(list(draw(row).values()))
    for value in (torch.ones(10), torch.ones(1), torch.tensor(1), torch.tensor(True)):
        with pytest.raises((TypeError, ValueError), match=f"^{row.loss.__name__}: {key} "):
            row.loss(*arguments, **{**row.hyper, key: value})


PLAIN = """
    jsd.beta skew_forward_kl_ce.skew skew_reverse_kl.skew wkd_logit.iterations energy_thresholds.low_rate
    energy_thresholds.high_rate energy_temperature.below energy_temperature.between energy_temperature.above
    entropy.eps ea_weight.eps attention_transfer.p hcl.sizes wkd_feature.grid wavelet_compress.keep
    hard_dark_rank.length taylor_rbf.gamma taylor_rbf.order cc_taylor_rbf.gamma cc_taylor_rbf.order
    cka_class_cost.kappa vrm.keep ab_divergence.alpha ab_divergence.beta akl.mu alpha_mixture.alpha
    topk_kl.floor topk_reverse_kl.floor topk_jsd.floor topk_jsd.beta uld_hybrid.beta uld_hybrid.floor
    relation_kl.heads gram.normalize gdkd.k gdkd.reverse gdkd3.k topk_nckd.k sampled_kl.self_normalized
"""
"""What Python itself reads; of a tensor the host would have to wait for it."""


NUMBERS = [
    case
    for case in HYPER_PARAMETERS
    if not isinstance(inspect.signature(case.values[0].loss).parameters[case.values[1]].default, str)
]


@pytest.mark.parametrize("row, key", NUMBERS)
def test_a_tensor_of_one_number_is_that_number_unless_python_reads_it(row: Row, key: str) -> None:
    default = row.hyper.get(key, inspect.signature(row.loss).parameters[key].default)
    default = {"bound": 2.0, "weight": 0.3}[key] if default is None else default
    arguments = row.arrange(list(draw(row).values()))
    expected = row.read(row.loss(*arguments, **{**row.hyper, key: default}))
    hyper = {**row.hyper, key: torch.tensor(default)}
    if f"{row.loss.__name__}.{key}" in PLAIN.split():
        with pytest.raises(TypeError, match=f"^{row.loss.__name__}: {key} "):
            row.loss(*arguments, **hyper)
    else:
        torch.testing.assert_close(row.read(row.loss(*arguments, **hyper)), expected)


SOFTMAXES = ("logits", "divergences", "ranks", "sparse", "vocabularies")
LOGITS = [
    row
    for row in ROWS
    if row.loss.__module__.rpartition(".")[2] in SOFTMAXES and "binary" not in row.loss.__name__
]


@pytest.mark.parametrize("row", LOGITS, ids=lambda row: row.loss.__name__)
def test_one_class_is_refused_where_there_is_a_softmax(row: Row) -> None:
    inputs = {key: x[..., :1] if x.is_floating_point() else 0 * x for key, x in draw(row).items()}
    with pytest.raises(
        ValueError, match=rf"^{row.loss.__name__}: prediction \[4, 1\] has one class.*`squared_error`"
    ):
        called(row, inputs)


@pytest.mark.parametrize("row", LOGITS, ids=lambda row: row.loss.__name__)
def test_a_map_is_refused_where_the_last_axis_is_the_classes(row: Row) -> None:
    inputs = draw(row)
    maps = {
        key: x if key in row.shared else x.unsqueeze(-1).unsqueeze(-1).expand(*x.shape, 3, 3)
        for key, x in inputs.items()
    }
    with pytest.raises(
        ValueError, match=rf"^{row.loss.__name__}: prediction \[4, 5, 3, 3\] must be \[batch, .*`dense"
    ):
        called(row, maps)
