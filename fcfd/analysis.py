"""What later layers make of a feature: their Jacobian by products with vectors, and how far it moves them.

A feature is read by a function: `tail` gives that of a path. No Jacobian is ever held whole. A feature may
be one tensor or a tree of them; its floating-point tensors vary, and what else it holds stays as it is.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from ._rows import Space, check_alike, leaves_with, lengths, parts_of, rows_of, space_of, tree_of, varying
from ._text import check_callable, check_integer, check_mapping, check_number, check_type, table
from ._tree import shape, shapes
from .paths import expand, listed, plan, step
from .stages import Buffers, Column, Params
from .terms import Loss
from .walking import Columns, walk

Function: TypeAlias = Callable[[Any], Any]


class Spectrum(NamedTuple):
    """The Jacobian of a function at the feature of each example, by its strongest and weakest directions.

    Args:
        gains: The largest singular values `[batch, count]`, falling: how much a small step is stretched.
        directions: The directions of these steps, `count` of them, each of the feature's form and of norm 1
            for each example.
        errors: `[batch, count]`: some singular value lies within so much of each gain. It is 0 where the
            gain is exact.
        random_gain: `[batch]`: the root of the mean squared gain of random directions, an estimate from
            `count` of them; its expectation is that of `‖J‖_F / √n` for `n` numbers a feature.
        bottom_gain: `[batch]`: the least gain that was found, an upper bound of the smallest.
        bottom: Its direction.
    """

    gains: Tensor
    directions: tuple[Any, ...]
    errors: Tensor
    random_gain: Tensor
    bottom_gain: Tensor
    bottom: Any

    def __repr__(self) -> str:
        """The gains, averaged over the examples."""
        rows = [(str(at + 1), f"{gain.item():.4g}") for at, gain in enumerate(self.gains.mean(0))]
        rows += [("random", f"{self.random_gain.mean().item():.4g}")]
        rows += [("bottom", f"{self.bottom_gain.mean().item():.4g}")]
        return table(("direction", f"gain, mean of {len(self.gains)}"), rows)


# The function


def tail(
    source: str,
    target: str,
    stages: Mapping[str, Column],
    params: Mapping[str, Params],
    buffers: Mapping[str, Buffers],
    values: Mapping[str, Any] | None = None,
) -> Function:
    """The function from one value of a path to a later one: what reads a feature.

    Args:
        source: The path of what the function reads, such as `"tt"`; `""` is the batch.
        target: The path of what it returns, such as `"ttttt"`. A crossed path goes through its bridge.
        stages: The columns of stages.
        params: A flat dict of parameters for each column; detach a teacher's (`fcfd.frozen`).
        buffers: The same of buffers. What stages write to them is dropped.
        values: What else the stages on the way read: a batch of named inputs at `""`, or a feature that an
            `&` bridge sees. Values that depend on the source are computed anew, not read here.

    Returns:
        A function of the value at `source`.

    Raises:
        ValueError: `source` is not on the way to `target`.

    Example:
        >>> from torch.nn import Linear, ReLU
        >>> net = fcfd.split([Linear(2, 3), ReLU(), Linear(3, 4)])
        >>> columns = {"t": net.stages}, {"t": net.params}, {"t": net.buffers}
        >>> tail("t", "ttt", *columns)(torch.ones(5, 3)).shape
        torch.Size([5, 4])
    """
    source, target = expand(source), expand(target)
    known: Mapping[str, Any] = {} if values is None else values
    check_mapping("tail", "values", known, "what is known, by path: {'': batch}")
    known = {expand(path): value for path, value in known.items()}
    run, varies = _between(source, target, known)
    kept = {path: value for path, value in known.items() if path not in varies}
    return partial(_run_tail, run, source, target, Columns(stages, params, buffers), kept)


def _between(source: str, target: str, known: Mapping[str, Any]) -> tuple[list[str], set[str]]:
    """The paths to run from one value to another, in order, and all that depend on the first."""
    varies, run = {source}, list[str]()
    planned = plan((target,)) if target else ()
    for path in planned:
        if path != source and not varies.isdisjoint(step(path).reads):
            varies.add(path)
    if target not in varies:
        raise ValueError(
            f"tail: {source!r} is not on the way to {target!r}; on it are {', '.join(map(repr, planned))}."
        )
    wanted = {target}
    for path in reversed(planned):
        if path in wanted and path != source and (path in varies or path not in known):
            run.append(path)
            wanted.update(step(path).reads)
    return run[::-1], varies


def _run_tail(
    run: list[str], source: str, target: str, columns: Columns, known: Mapping[str, Any], feature: Any
) -> Any:
    values, _ = walk(run, *columns, {**known, source: feature})
    return values[target]


# How it reads a feature


def distance(prediction: Any, target: Any) -> Tensor:
    """The length of the difference of two values: features, logits, or trees of them.

    ```
    d[b] = ‖prediction[b] − target[b]‖, over all numbers of an example
    ```

    `distance(f(B(F_s)), f(F_t))` with `f = tail(...)` is the function distance of two features.

    Args:
        prediction: `[batch, ...]`, or a tree of such tensors.
        target: The same form and shapes.

    Returns:
        `[batch]`, in float32 at least. Its gradient at equality is 0.

    Raises:
        ValueError: The forms or shapes differ.

    Example:
        >>> distance(torch.tensor([[3.0, 4.0]]), torch.zeros(1, 2))
        tensor([5.])
    """
    ours, theirs = space_of("distance", "prediction", prediction), space_of("distance", "target", target)
    check_alike("distance", "prediction", ours, "target", theirs)
    return lengths(rows_of(varying(ours)) - rows_of(varying(theirs)))


def linearized(function: Function, loss: Loss = distance) -> Loss:
    """A loss of features by what later layers make of them, to first order.

    ```
    L(prediction, target) = loss(f(target) + J · (prediction − target), f(target))
    J = ∂f/∂feature at the target
    ```

    One forward-mode pass through `f` at the target. With `distance` it is the first-order function distance
    `‖J · (B F_s − F_t)‖`; with `losses.squared_error` its mean square; with `losses.kl` and logits the
    divergence that the linearised layers see. As a term: `Term(linearized(f), "ss>t", "tt")`.

    `torch.compile` takes it, but for functions with batch norm, whose forward derivative torch 2.13 cannot
    trace: an error.

    Args:
        function: What reads the feature: `tail("tt", "ttttt", ...)`, of plain stages: one that is compiled is
            refused, and the gradient of one that is checkpointed fails. In train mode, batch norm couples
            the examples, and each is then moved by all.
        loss: `loss(prediction, target) -> Tensor` of what the function returns.

    Returns:
        `loss(prediction, target, *others)` of two features of one form. The gradient flows to the
        prediction, and to what the function itself reads that is not detached.

    Raises:
        ValueError: The features differ in form or shape.

    Example:
        >>> loss = linearized(lambda x: x.square())
        >>> loss(torch.tensor([[4.0]]), torch.tensor([[3.0]]))
        tensor([6.])
    """
    check_callable("linearized", "function", function)
    check_callable("linearized", "loss", loss)
    return partial(_linearized, function, loss)


def _linearized(function: Function, loss: Loss, prediction: Any, target: Any, *others: Any) -> Tensor:
    here, there = space_of("linearized", "prediction", prediction), space_of("linearized", "target", target)
    check_alike("linearized", "prediction", here, "target", there)
    steps = [own.to(other.dtype) - other for own, other in zip(varying(here), varying(there), strict=True)]
    with _differentiable("linearized"):
        out, moved = _pushed("linearized", function, there, steps)
    arrived = [own + more for own, more in zip(varying(out), moved, strict=True)]
    base = [own.detach() for own in varying(out)]
    return loss(tree_of(out, arrived), tree_of(out, base), *others)


def response(function: Function, feature: Any, direction: Any, *, size: float | Tensor) -> Tensor:
    """How far a perturbation of a feature moves what later layers return.

    ```
    r[b] = ‖f(feature + size · direction / ‖direction‖) − f(feature)‖
    ```

    Args:
        function: What reads the feature: `tail("tt", "ttttt", ...)`.
        feature: `[batch, ...]`, or a tree of such tensors.
        direction: The same form and shapes, of any norm: an entry of `Spectrum.directions`, or random.
        size: The norm of the perturbation, a number or one for each example `[batch]`.

    Returns:
        `[batch]`.

    Raises:
        ValueError: The direction does not have the feature's form, or is 0 for some example.

    Example:
        >>> feature, direction = torch.zeros(1, 2), torch.tensor([[0.0, 5.0]])
        >>> response(lambda x: 3 * x, feature, direction, size=2.0)
        tensor([6.])
    """
    check_callable("response", "function", function)
    space = space_of("response", "feature", feature)
    towards = space_of("response", "direction", direction)
    check_alike("response", "direction", towards, "feature", space)
    rows = rows_of(varying(towards))
    norms = torch.linalg.vector_norm(rows, dim=1)
    if not bool((norms > 0).all() & norms.isfinite().all()):
        raise ValueError("response: direction is 0 or not finite for some example, and leads nowhere.")
    if not isinstance(size, Tensor) or size.ndim == 0:
        check_number("response", "size", size)
    elif size.shape != norms.shape:
        raise ValueError(
            f"response: size {shape(size)} must be a number, or one for each example, {shape(norms)}."
        )
    steps = parts_of(rows * (size / norms).unsqueeze(1), varying(space))
    moved = [own + more for own, more in zip(varying(space), steps, strict=True)]
    return distance(function(tree_of(space, moved)), function(feature))


@torch.no_grad()
def spectrum(
    function: Function, feature: Any, *, count: int = 8, iterations: int = 4, seed: int = 0
) -> Spectrum:
    """The singular values of a function's Jacobian at each example's feature, by sketches.

    ```
    J = ∂f/∂feature at one example = U diag(gains) Vᵀ
    Q ⊇ span{Ω, JᵀJ Ω, …, (JᵀJ)^iterations Ω}, orthonormal, Ω random of `count` columns
    J Q = U diag(gains) Wᵀ, directions = Q W
    ```

    It takes `count · (iterations + 1)` products with `J` (`torch.func.jvp`) and about as many with `Jᵀ`
    (`torch.func.vjp`), of all examples at once. It is exact where the columns of `Q` span all that `f` reads:
    where a feature, or what `f` returns, has at most `count` numbers, as ten logits have.

    Args:
        function: What reads the feature: `tail("tt", "ttttt", ...)`. It treats every example by itself:
            batch norm in eval mode, no dropout.
        feature: `[batch, ...]`, or a tree of such tensors.
        count: How many singular values.
        iterations: How often the sketch is refined. `errors` tells whether it was enough.
        seed: Of the random start, the same on every device; no global generator is read.

    Returns:
        A `Spectrum`, in float32 at least, without gradient.

    Raises:
        ValueError: There are fewer than `count` singular values; examples are not treated by themselves; the
            function is random, or its derivatives are not finite.

    Example:
        >>> weight = torch.diag(torch.tensor([3.0, 2.0, 1.0]))
        >>> found = spectrum(lambda x: x @ weight, torch.ones(1, 3), count=2)
        >>> found.gains
        tensor([[3.0000, 2.0000]])
        >>> found.directions[0].abs().round(decimals=3)
        tensor([[1., 0., 0.]])

    Reference:
        Halko, Martinsson, Tropp: Finding Structure with Randomness, SIAM Review 2011; with all powers kept
        (block Krylov), as Musco and Musco, NeurIPS 2015. Checked against dense Jacobians.
    """
    check_callable("spectrum", "function", function)
    count = check_integer("spectrum", "count", count, least=1)
    iterations = check_integer("spectrum", "iterations", iterations, least=0)
    generator = torch.Generator().manual_seed(check_integer("spectrum", "seed", seed))
    space = space_of("spectrum", "feature", feature)
    with _differentiable("spectrum"):
        push, pull, returned = _products(function, space)
        wide = rows_of(varying(space))
        most = min(wide.shape[1], returned)
        if count > most:
            raise ValueError(
                f"spectrum: count is {count}, but a Jacobian from {wide.shape[1]} numbers to {returned} has "
                f"{most} singular values."
            )
        _check_apart(push, wide)
        start = torch.randn(wide.shape[1], count, generator=generator, dtype=torch.float64)
        basis = torch.linalg.qr(start.to(wide).expand(len(wide), -1, -1))[0]
        images = latest = _each(push, basis)
        random_gain = images.square().sum((1, 2)).div(count).sqrt()
        for _ in range(iterations):
            # Orthonormal before each product, so that no gain is squared: weak directions survive.
            pulled = _each(pull, torch.linalg.qr(latest)[0])
            fresh = torch.linalg.qr(torch.cat([basis, pulled], 2))[0][:, :, basis.shape[2] :]
            if fresh.shape[2] == 0:
                break
            latest = _each(push, fresh)
            basis, images = torch.cat([basis, fresh], 2), torch.cat([images, latest], 2)
        # All of the small side, so that directions of no gain are among the turned ones.
        left, gains, turned = torch.linalg.svd(images, full_matrices=returned < images.shape[2])
        right = basis @ turned.mT
        gains, left = gains[:, :count], left[:, :, :count]
        errors = (_each(pull, left) - gains.unsqueeze(1) * right[:, :, :count]).norm(dim=1)
        bottom_gain = (images @ turned.mT[:, :, -1:]).norm(dim=(1, 2))
    columns = [tree_of(space, parts_of(right[:, :, at], varying(space))) for at in (*range(count), -1)]
    return Spectrum(gains, tuple(columns[:-1]), errors, random_gain, bottom_gain, columns[-1])


@torch.no_grad()
def crossed_accuracy(
    stages: Mapping[str, Column],
    params: Mapping[str, Params],
    buffers: Mapping[str, Buffers],
    images: Any,
    labels: Tensor,
    *,
    paths: Iterable[str],
) -> dict[str, Tensor]:
    """The share of examples that each path's logits classify correctly.

    Put networks and bridges in eval mode first, to read them as they would be used.

    Args:
        stages: The columns of stages and bridges.
        params: A flat dict of parameters for each column.
        buffers: The same of buffers.
        images: The batch.
        labels: Integer classes `[batch]`.
        paths: Paths to logits: `nets.crossings`, and the pure paths to compare with.

    Returns:
        A scalar for each path, in float64, without gradient.

    Raises:
        ValueError: A path does not lead to logits `[batch, classes]`, or a label is none of the classes.

    Example:
        >>> from torch.nn import Linear
        >>> own = lambda: fcfd.split([Linear(4, 4), Linear(4, 4), Linear(4, 3)])
        >>> nets = fcfd.link({"s": own(), "t": own()}, example=torch.randn(2, 4))
        >>> batch = torch.randn(6, 4), torch.zeros(6, dtype=torch.long)
        >>> list(crossed_accuracy(*nets.columns, *batch, paths=nets.crossings))
        ['stt', 'tss']
    """
    paths = listed("crossed_accuracy", paths)
    check_type("crossed_accuracy", "labels", labels, Tensor, "integer classes [batch]")
    if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
        raise TypeError(
            f"crossed_accuracy: labels {shape(labels)} of {labels.dtype} must be integer classes [batch]."
        )
    values, _ = walk(plan(paths), stages, params, buffers, {"": images})
    return {path: _accuracy(path, values[path], labels) for path in paths}


def _accuracy(path: str, logits: Any, labels: Tensor) -> Tensor:
    if not isinstance(logits, Tensor) or logits.ndim != 2 or logits.shape[:1] != labels.shape:
        raise ValueError(
            f"crossed_accuracy: path {path!r} returns {shapes(logits)} for labels {shape(labels)}; it must "
            "lead to logits [batch, classes], and labels be [batch]."
        )
    if len(labels) == 0 or not 0 <= int(labels.min()) <= int(labels.max()) < logits.shape[1]:
        raise ValueError(
            f"crossed_accuracy: path {path!r} has {logits.shape[1]} classes, 0 to {logits.shape[1] - 1}; "
            f"some of the {len(labels)} labels is none of them, or there is none."
        )
    return (logits.argmax(1) == labels).double().mean()


# Products with a Jacobian


@contextmanager
def _differentiable(name: str) -> Iterator[None]:
    """Attention by the formula: the fused kernels have no forward derivative, in torch 2.13 at least."""
    if torch.compiler.is_compiling():
        with sdpa_kernel(SDPBackend.MATH):
            yield
        return
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    except Exception as error:
        if type(error).__module__.startswith("torch._dynamo") or "saved tensor hooks" in str(error):
            raise ValueError(
                f"{name}: torch.func cannot differentiate the function. Give plain stages: neither compiled "
                "nor checkpointed."
            ) from error
        raise
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)


def _pushed(name: str, function: Function, space: Space, steps: list[Tensor]) -> tuple[Space, list[Tensor]]:
    """What a function returns, and by how much it moves to first order when its argument takes a step."""
    form: list[Any] = []

    def run(*tensors: Tensor) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        returned = function(tree_of(space, list(tensors)))
        if isinstance(returned, Tensor):
            _check_returned(name, (returned,), len(tensors[0]))
            return (returned,), ()
        out = space_of(name, "what the function returns", returned)
        _check_returned(name, varying(out), len(tensors[0]))
        form[:] = [out]
        still = tuple(
            [leaf for at, leaf in enumerate(out.leaves) if at not in out.places and isinstance(leaf, Tensor)]
        )
        return tuple(varying(out)), still

    found: Any = torch.func.jvp(run, tuple(varying(space)), tuple(steps), has_aux=True)
    values, moved, still = found
    if not form:
        return space_of(name, "what the function returns", values[0]), list(moved)
    (out,) = form
    rest = iter(still)
    leaves = [
        next(rest) if isinstance(leaf, Tensor) and at not in out.places else leaf
        for at, leaf in enumerate(out.leaves)
    ]
    out = out._replace(leaves=leaves)
    return out._replace(leaves=leaves_with(out, list(values))), list(moved)


def _products(
    function: Function, space: Space
) -> tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor], int]:
    """`v ↦ J v` and `u ↦ Jᵀ u` on rows `[batch, numbers]`, and how many numbers an example returns."""
    own = varying(space)

    def run(*tensors: Tensor) -> tuple[Tensor, ...]:
        out = space_of("spectrum", "what the function returns", function(tree_of(space, list(tensors))))
        _check_returned("spectrum", varying(out), len(tensors[0]))
        return tuple(varying(out))

    found: Any = torch.func.vjp(run, *own)
    values, back = found
    again = run(*own)
    if not _agree(rows_of(values), rows_of(again)):
        raise ValueError(
            "spectrum: the function returned other values when it was called again, or none that are finite; "
            "put its modules in eval mode."
        )

    def push(rows: Tensor) -> Tensor:
        return _finite(rows_of(torch.func.jvp(run, tuple(own), tuple(parts_of(rows, own)))[1]))

    def pull(rows: Tensor) -> Tensor:
        return _finite(rows_of(back(tuple(parts_of(rows, values)))))

    return push, pull, rows_of(values).shape[1]


def _check_returned(name: str, returned: Iterable[Tensor], batch: int) -> None:
    for tensor in returned:
        if not tensor.is_floating_point() or tensor.ndim == 0 or len(tensor) != batch:
            raise ValueError(
                f"{name}: the function returned {shape(tensor)} of {tensor.dtype} for {batch} examples; it "
                "must return floating-point numbers whose first axis is the batch."
            )


def _agree(values: Tensor, others: Tensor) -> bool:
    tolerance = 1e-2 * torch.linalg.vector_norm(values)
    return bool(torch.linalg.vector_norm(values - others) <= tolerance)


def _check_apart(push: Callable[[Tensor], Tensor], like: Tensor) -> None:
    """Raise where one example's step moves another: any two differ in some binary digit of their places."""
    places = torch.arange(len(like), device=like.device)
    generator = torch.Generator().manual_seed(0)
    for digit in range(max(len(like) - 1, 0).bit_length()):
        for moves in ((places >> digit) & 1 == 1, (places >> digit) & 1 == 0):
            rows = torch.randn(like.shape, generator=generator).to(like) * moves.unsqueeze(1)
            if bool(push(rows)[~moves].any()):
                raise ValueError(
                    "spectrum: what one example returns depends on another example's feature, as by batch "
                    "norm in train mode; put the modules in eval mode, or give one example."
                )


def _each(product: Callable[[Tensor], Tensor], columns: Tensor) -> Tensor:
    """A product with each of some columns `[batch, numbers, columns]`."""
    return torch.stack([product(columns[:, :, at]) for at in range(columns.shape[2])], 2)


def _finite(rows: Tensor) -> Tensor:
    if not bool(rows.isfinite().all()):
        raise ValueError("spectrum: a derivative of the function at this feature is not finite.")
    return rows
