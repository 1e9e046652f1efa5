"""The laws that every public function of the loss families obeys; adding a loss is adding a row.

A law that does not hold for a function is a sentence in its row that says why, and the law's other half here
proves that sentence. What a row does not learn or does not return decides which laws speak about it.
"""

import importlib
import inspect
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch import Tensor

from fcfd._tree import tensors
from reference.catalogue import FAMILIES, ROWS, Row, Size

from ..test_waste import NoSynchronisation

HALF = (torch.float16, torch.bfloat16)
REAL = (torch.float32, torch.float64)
SMALL = Size()


# What the laws are about


def name(row: Row) -> str:
    return row.loss.__name__


def every(*conditions: Callable[[Row], Any]) -> Callable[[Any], Any]:
    """Run a law for every row of which the conditions are true."""
    rows = [row for row in ROWS if all(condition(row) for condition in conditions)]
    return pytest.mark.parametrize("row", [pytest.param(row, id=name(row)) for row in rows])


def learns(row: Row) -> bool:
    return bool(row.learns)


def compares(row: Row) -> bool:
    return bool(row.learns and row.targets)


def draw(
    row: Row, size: Size = SMALL, dtype: torch.dtype = torch.float64, seed: int = 0
) -> dict[str, Tensor]:
    size = Size(*map(max, size, row.least))
    return row.inputs(size, torch.Generator().manual_seed(seed), dtype)


def call(row: Row, inputs: dict[str, Tensor], **hyper: Any) -> Tensor:
    return row.read(row.loss(*row.arrange(list(inputs.values())), **{**row.hyper, **hyper}))


def floats(row: Row, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    return {key: x for key, x in inputs.items() if x.is_floating_point()}


def differentiable(row: Row, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same inputs as leaves, of which the learning ones ask for a gradient."""
    return {key: x.detach().clone().requires_grad_(key in row.learns) for key, x in inputs.items()}


def value_and_gradients(row: Row, inputs: dict[str, Tensor], loss: Any = None) -> list[Tensor]:
    """The value and, where something learns, the gradients of a fixed projection of it."""
    leaves = differentiable(row, inputs)
    value = call(row if loss is None else row._replace(loss=loss), leaves)
    if not row.learns:
        return [value.detach()]
    weights = torch.linspace(0.5, 1.5, value.numel(), dtype=value.dtype).reshape(value.shape)
    (value * weights).sum().backward()
    return [value.detach(), *(gradient(leaves[key]) for key in row.learns)]


def gradient(leaf: Tensor) -> Tensor:
    assert leaf.grad is not None
    return leaf.grad


def by_example(row: Row, inputs: dict[str, Tensor], select: Callable[[Tensor], Tensor]) -> dict[str, Tensor]:
    """The inputs with their examples selected or reordered."""
    return {key: x if key in row.shared else select(x) for key, x in inputs.items()}


def per_example(row: Row) -> bool:
    return row.output.startswith(("batch", "..."))


sizes = st.builds(Size, batch=st.integers(1, 6), width=st.integers(2, 9), side=st.integers(1, 5))
shapes = settings(max_examples=8, deadline=None, derandomize=True)


# Values and gradients


@every(learns)
def test_the_gradient_is_the_derivative_unless_a_part_is_held_constant(row: Row) -> None:
    inputs = draw(row, Size(3, 5, 2))
    leaves = [x.requires_grad_() for key, x in inputs.items() if key in row.learns]

    def value(*learned: Tensor) -> Tensor:
        return call(row, {**inputs, **dict(zip(row.learns, learned, strict=True))})

    assert torch.autograd.gradcheck(value, leaves, raise_exception=not row.detaches) != bool(row.detaches)


@every()
@given(size=sizes)
@shapes
def test_the_order_of_the_batch_is_irrelevant_unless_declared(row: Row, size: Size) -> None:
    inputs = draw(row, size._replace(batch=max(size.batch, 4)))
    turn = torch.tensor([2, 0, 3, 1])
    before = call(row, by_example(row, inputs, lambda x: x[:4]))
    after = call(row, by_example(row, inputs, lambda x: x[:4][turn]))
    if per_example(row):
        before = before[turn]
    same = torch.allclose(after, before, rtol=1e-9, atol=1e-12)
    assert same != bool(row.ordered)


@every(per_example)
@given(size=sizes)
@shapes
def test_an_example_has_the_value_that_it_has_alone_unless_declared(row: Row, size: Size) -> None:
    inputs = draw(row, size._replace(batch=max(size.batch, 2, row.least.batch + 1)))
    together = call(row, inputs)
    alone = call(row, by_example(row, inputs, lambda x: x[: row.least.batch]))
    same = torch.allclose(together[: row.least.batch], alone, rtol=1e-9, atol=1e-12)
    assert same != bool(row.couples)


@every(lambda row: not per_example(row))
def test_a_result_without_a_batch_axis_says_why(row: Row) -> None:
    assert row.couples


@every(compares)
@given(size=sizes)
@shapes
def test_equality_is_worth_zero_and_all_else_more_unless_declared(row: Row, size: Size) -> None:
    inputs = draw(row, size._replace(width=max(size.width, 4), batch=max(size.batch, 3)))
    if any(inputs[a].shape != inputs[b].shape for a, b in zip(row.learns, row.targets, strict=False)):
        inputs.update({b: torch.randn_like(inputs[a]) for a, b in zip(row.learns, row.targets, strict=False)})
    equal = {**inputs, **{a: inputs[b].clone() for a, b in zip(row.learns, row.targets, strict=False)}}
    apart, together = call(row, inputs), call(row, equal)
    zero = bool((together.abs() <= 1e-5).all() and (apart > together.abs().max()).all())
    assert zero != bool(row.not_zero)


@every(compares, lambda row: not row.not_zero)
def test_the_gradient_vanishes_at_equality_unless_it_has_a_kink(row: Row) -> None:
    inputs = draw(row)
    inputs.update({a: inputs[b].clone() for a, b in zip(row.learns, row.targets, strict=False)})
    _, *gradients = value_and_gradients(row, inputs)
    assert all(g.isfinite().all() for g in gradients)
    assert all(g.abs().max() <= 1e-5 for g in gradients) != bool(row.kinks)


@every(compares)
def test_a_detached_target_changes_no_students_gradient_and_gets_none(row: Row) -> None:
    inputs = draw(row)
    expected = value_and_gradients(row, inputs)
    both = row._replace(learns=(*row.learns, *row.targets))
    leaves = differentiable(both, inputs)
    detached = {key: x.detach() if key in row.targets else x for key, x in leaves.items()}
    value = call(row, detached)
    weights = torch.linspace(0.5, 1.5, value.numel(), dtype=value.dtype).reshape(value.shape)
    (value * weights).sum().backward()
    assert all(leaves[key].grad is None for key in row.targets)
    for key, wanted in zip(row.learns, expected[1:], strict=True):
        torch.testing.assert_close(leaves[key].grad, wanted, rtol=0, atol=0)


# Precision


@every()
@pytest.mark.parametrize("dtype", [*HALF, *REAL], ids=str)
def test_half_precision_gives_float32_and_the_rest_stays(row: Row, dtype: torch.dtype) -> None:
    inputs = draw(row, dtype=dtype)
    exactly = {key: x.double() if x.is_floating_point() else x for key, x in inputs.items()}
    result = call(row, inputs)
    assert result.dtype == (torch.float32 if dtype in HALF else dtype)
    torch.testing.assert_close(result.double(), call(row, exactly), rtol=2e-3, atol=2e-4)


@every(lambda row: len(floats(row, draw(row))) > 1)
@pytest.mark.parametrize("dtype", [*HALF, torch.float32], ids=str)
def test_of_several_types_the_widest_is_computed_in(row: Row, dtype: torch.dtype) -> None:
    inputs = draw(row)
    for key in floats(row, inputs):
        mixed = {**inputs, key: inputs[key].to(dtype)}
        result = call(row, mixed)
        assert result.dtype == torch.float64
        torch.testing.assert_close(result, call(row, {**mixed, key: mixed[key].double()}))


@every(lambda row: floats(row, draw(row)))
def test_nan_comes_out_wherever_it_goes_in(row: Row) -> None:
    inputs = draw(row, Size(4, 5, 2))
    for key, x in floats(row, inputs).items():
        for at in range(x.numel()):
            spoiled = x.clone()
            spoiled.view(-1)[at] = torch.nan
            results = row.loss(*row.arrange(list({**inputs, key: spoiled}.values())), **row.hyper)
            assert any(result.isnan().any() for result in tensors(results)), (key, at)


@every()
@pytest.mark.parametrize("dtype", [*HALF, torch.float32], ids=str)
@pytest.mark.parametrize("seed", range(3))
def test_extreme_inputs_give_finite_values_and_gradients(row: Row, dtype: torch.dtype, seed: int) -> None:
    inputs = draw(row, seed=seed)
    large = {key: x * row.extreme for key, x in floats(row, inputs).items() if key not in row.shared}
    inputs = {key: x.to(dtype) if x.is_floating_point() else x for key, x in {**inputs, **large}.items()}
    assert all(x.isfinite().all() for x in value_and_gradients(row, inputs))


@every()
def test_constant_and_repeated_inputs_give_finite_values_and_gradients(row: Row) -> None:
    inputs = draw(row, dtype=torch.float32)
    repeated = by_example(row, inputs, lambda x: x[:1].expand_as(x).clone())
    constant = {
        key: torch.full_like(x, 1.0 + (key in row.targets)) if x.is_floating_point() else x
        for key, x in inputs.items()
    }
    finite = all(x.isfinite().all() for i in (repeated, constant) for x in value_and_gradients(row, i))
    assert finite != bool(row.singular)


@every()
def test_autocast_changes_nothing(row: Row) -> None:
    inputs = draw(row, dtype=torch.float32)
    expected = call(row, inputs)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        result = call(row, inputs)
    torch.testing.assert_close(result, expected, rtol=1e-5, atol=1e-6)


# Purity and transforms


@every()
def test_nothing_is_changed(row: Row) -> None:
    inputs = differentiable(row, draw(row))
    before = {key: (x.detach().clone(), x._version, x.requires_grad) for key, x in inputs.items()}
    state = (torch.get_rng_state(), torch.get_default_dtype(), torch.is_grad_enabled())
    value = call(row, inputs)
    if row.learns:
        value.sum().backward()
    for key, (copy, version, requires_grad) in before.items():
        assert torch.equal(inputs[key], copy)
        assert (inputs[key]._version, inputs[key].requires_grad) == (version, requires_grad)
    assert torch.equal(torch.get_rng_state(), state[0])
    assert (torch.get_default_dtype(), torch.is_grad_enabled()) == state[1:]
    assert all(value.data_ptr() != x.data_ptr() for x in inputs.values())


@every()
def test_nothing_waits_for_the_device(row: Row) -> None:
    inputs = differentiable(row, draw(row))
    with NoSynchronisation():
        value = call(row, inputs)
        if row.learns:
            value.sum().backward()


@every()
def test_everything_happens_on_the_device_of_the_inputs(row: Row) -> None:
    inputs = draw(row)
    expected = call(row, inputs)
    with torch.device("meta"):
        assert torch.equal(call(row, inputs), expected)


@every()
def test_the_shape_of_a_result_can_be_asked_without_numbers(row: Row) -> None:
    inputs = differentiable(row, draw(row, dtype=torch.float32))
    value = call(row, {key: x.to("meta") for key, x in inputs.items()})
    expected = call(row, inputs)
    assert (value.device.type, value.shape, value.dtype) == ("meta", expected.shape, expected.dtype)
    assert value.requires_grad == expected.requires_grad


@every()
def test_compiled_as_one_graph_it_gives_the_same_value_and_gradient(row: Row) -> None:
    inputs = draw(row)
    compiled = torch.compile(row.loss, fullgraph=True, backend="aot_eager")
    found, wanted = value_and_gradients(row, inputs, compiled), value_and_gradients(row, inputs)
    torch.compiler.reset()
    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)


@every(learns)
def test_functional_gradients_are_the_gradients(row: Row) -> None:
    inputs = draw(row)
    _, *wanted = value_and_gradients(row, inputs)

    def total(*learned: Tensor) -> Tensor:
        value = call(row, {**inputs, **dict(zip(row.learns, learned, strict=True))})
        return (value * torch.linspace(0.5, 1.5, value.numel(), dtype=value.dtype).reshape(value.shape)).sum()

    found = torch.func.grad(total, argnums=tuple(range(len(wanted))))(*(inputs[key] for key in row.learns))
    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)


@every(lambda row: row.output.startswith("..."))
def test_leading_axes_are_kept(row: Row) -> None:
    inputs = draw(row, Size(batch=6))
    flat = call(row, inputs)
    tokens = call(row, by_example(row, inputs, lambda x: x.reshape(2, 3, *x.shape[1:])))
    torch.testing.assert_close(tokens, flat.reshape(2, 3, *flat.shape[1:]))


@pytest.mark.filterwarnings("ignore:There is a performance drop")  # torch's own, value and gradient are right
@every(lambda row: row.output.startswith("..."))
def test_mapped_over_examples_it_gives_the_batch(row: Row) -> None:
    inputs = draw(row)
    axes = tuple(None if key in row.shared else 0 for key in inputs)
    mapped = torch.func.vmap(lambda *x: call(row, dict(zip(inputs, x, strict=True))), in_dims=axes)
    torch.testing.assert_close(mapped(*inputs.values()), call(row, inputs))


def tensor_hypers(row: Row) -> list[str]:
    """Hyper-parameters that may have one value for each example, as the signature says."""
    parameters = inspect.signature(row.loss).parameters.values()
    return [p.name for p in parameters if p.kind is p.KEYWORD_ONLY and p.annotation == float | Tensor]


@every(per_example, tensor_hypers)
def test_a_hyper_parameter_may_differ_by_example(row: Row) -> None:
    inputs = draw(row, Size(batch=3))
    for key in tensor_hypers(row):
        numbers = (0.3, 0.5, 0.9) if key == "share" else (1.5, 0.5, 3.0)
        found = call(row, inputs, **{key: torch.tensor(numbers, dtype=torch.float64)})
        for example, number in enumerate(numbers):
            torch.testing.assert_close(found[example], call(row, inputs, **{key: number})[example])
        with pytest.raises(ValueError, match=rf"^{name(row)}: {key} \[2\]"):
            call(row, inputs, **{key: torch.ones(2)})


# Errors


def assert_names_both(row: Row, inputs: dict[str, Tensor], changed: str) -> None:
    with pytest.raises(ValueError) as error:
        call(row, inputs)
    message = str(error.value)
    assert message.startswith(name(row) + ": ")
    assert str(list(inputs[changed].shape)) in message
    assert any(str(list(x.shape)) in message for key, x in inputs.items() if key != changed)


@every(lambda row: len(draw(row).keys() - set(row.shared)) > 1)
def test_inputs_of_different_batches_are_refused(row: Row) -> None:
    inputs = draw(row)
    for key in inputs.keys() - set(row.shared):
        assert_names_both(row, {**inputs, key: inputs[key][:-1]}, key)


@every(compares)
def test_inputs_of_different_widths_are_refused_unless_declared(row: Row) -> None:
    inputs = draw(row)
    for target in row.targets:
        narrow = {**inputs, target: inputs[target][..., :-1]}
        if row.free_width:
            assert call(row, narrow).isfinite().all()
        else:
            assert_names_both(row, narrow, target)


@every()
def test_an_empty_batch_is_refused(row: Row) -> None:
    with pytest.raises(ValueError, match=rf"^{name(row)}: .*\[0"):
        call(row, by_example(row, draw(row), lambda x: x[:0]))


# The catalogue


def public_functions(family: str) -> set[str]:
    module = importlib.import_module(f"fcfd.families.{family}")
    members = inspect.getmembers(module, inspect.isfunction)
    return {key for key, f in members if f.__module__ == module.__name__ and not key.startswith("_")}


@pytest.mark.parametrize("family", FAMILIES)
def test_every_public_function_has_one_row(family: str) -> None:
    rows = [name(row) for row in ROWS if row.loss.__module__ == f"fcfd.families.{family}"]
    assert sorted(rows) == sorted(public_functions(family))


@every()
def test_a_row_names_the_parameters_and_reads_in_a_table(row: Row) -> None:
    parameters = inspect.signature(row.loss).parameters.values()
    positional = [p.name for p in parameters if p.kind is not p.KEYWORD_ONLY]
    if row.arrange is tuple:
        assert positional == list(draw(row))
    assert all(p.default is not p.empty for p in parameters if p.kind is p.KEYWORD_ONLY) or row.hyper
    assert row.purpose[0].islower()
    assert not row.purpose.endswith(".")
    assert {*row.learns, *row.targets, *row.shared} <= set(draw(row)) | {"target"}
