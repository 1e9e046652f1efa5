"""Walk a plan across networks, measure terms on its values, and add them up."""

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ._tree import detach, shapes
from .paths import plan as plan_of, step
from .stages import Buffers, Column, Params, Stage
from .terms import Terms, given, names, reads


class Aux(NamedTuple):
    """What an objective computed besides its value.

    Args:
        parts: The unweighted terms by name, each a scalar.
        values: Every feature and logit by path, the batch and its data included.
        buffers: The new statistics by column: those of the pure paths and of the bridges on them.
    """

    parts: dict[str, Tensor]
    values: dict[str, Any]
    buffers: dict[str, dict[str, Tensor]]


def walk(
    plan: Iterable[str],
    stages: Mapping[str, Column],
    params: Mapping[str, Params],
    buffers: Mapping[str, Buffers],
    values: Mapping[str, Any],
) -> tuple[dict[str, Any], dict[str, dict[str, Tensor]]]:
    """Run every path of a plan once.

    Args:
        plan: Paths, sources first, as `fcfd.paths.plan` gives them.
        stages: The columns of stages: `{"s": ..., "t": ..., "s>t": ..., "t>s": ...}`.
        params: A flat dict of parameters for each column.
        buffers: The same of buffers.
        values: What is known before: `{"": images}`, and any path computed earlier, which is not run again.
            A batch that is a mapping of named inputs is seen by every later stage, among its buffers. Where
            networks read different batches, it is a mapping by network: `{"": {"s": small, "t": large}}`.

    Returns:
        `(values, written)`: every value by path, the known ones included; and, by path, the buffers as that
        path left them. Nothing that was passed in is changed. `settle` keeps what belongs to pure paths.

    Raises:
        ValueError: A network, stage, bridge or dict is missing, or a stage cannot read its input; the
            text names the path.

    Example:
        >>> from fcfd import split, walk
        >>> net = split([torch.nn.Linear(2, 3), torch.nn.Linear(3, 2)])
        >>> columns = [{"s": net.stages}, {"s": net.params}, {"s": net.buffers}]
        >>> values, _ = walk(("s", "ss"), *columns, {"": torch.ones(1, 2)})
        >>> [list(values[path].shape) for path in ("", "s", "ss")]
        [[1, 2], [1, 3], [1, 2]]
    """
    values, written = dict(values), {}
    for path in plan:
        if path not in values:
            values[path], written[path] = _run(path, stages, params, buffers, values)
    return values, written


def _run(
    path: str,
    stages: Mapping[str, Column],
    params: Mapping[str, Params],
    buffers: Mapping[str, Buffers],
    values: Mapping[str, Any],
) -> tuple[Any, dict[str, Tensor]]:
    sources, column, at = step(path)
    stage = _stage(path, stages, column, at)
    for kind, dicts in (("params", params), ("buffers", buffers)):
        if column not in dicts:
            raise ValueError(f"walk: path {path!r} needs {kind}[{column!r}], which is missing.")
    batch = _batch(values.get(""), column[-1])
    inputs = tuple(values[source] if source else batch for source in sources)
    state = {**buffers[column], **batch} if isinstance(batch, Mapping) else buffers[column]
    try:
        return stage(params[column], state, inputs[0] if len(inputs) == 1 else inputs)
    except (ValueError, RuntimeError) as error:
        if type(error) not in (ValueError, RuntimeError):
            raise
        raise ValueError(
            f"walk: path {path!r}: entry {at} of column {column!r} cannot run on {shapes(inputs)} "
            f"from {' and '.join(map(repr, sources))}: {error}"
        ) from error


def _batch(batch: Any, letter: str) -> Any:
    """What a network reads: its own batch where there is one for each, or else the batch of all."""
    return batch[letter] if isinstance(batch, Mapping) and letter in batch else batch


def _stage(path: str, stages: Mapping[str, Column], column: str, at: int) -> Stage:
    if column not in stages:
        kind = "bridges" if len(column) > 1 else "network"
        raise ValueError(
            f"walk: path {path!r} needs {kind} {column!r}; there are {', '.join(map(repr, stages))}."
        )
    if at >= len(stages[column]):
        raise ValueError(
            f"walk: path {path!r} needs entry {at} of column {column!r}, which ends at entry "
            f"{len(stages[column]) - 1}; the path is too long for it."
        )
    stage = stages[column][at]
    if stage is None:
        raise ValueError(
            f"walk: path {path!r} needs a bridge {column!r} after stage {at}, which was not built; "
            "name the path when you link the networks."
        )
    return stage


def settle(buffers: Mapping[str, Buffers], written: Mapping[str, Buffers]) -> dict[str, dict[str, Tensor]]:
    """The buffers after a walk: what pure paths wrote, and what bridges wrote that read a pure path.

    Weights are shared by every path through a stage; statistics belong to the pure path. What a crossed
    path wrote is left out here, and stays under its own name in `written` for a caller who wants it.

    Example:
        >>> before = {"s": {"n": torch.tensor(0)}, "s>t": {}}
        >>> settle(before, {"s": {"n": torch.tensor(1)}, "s>t": {}, "ts": {"n": torch.tensor(9)}})
        {'s': {'n': tensor(1)}, 's>t': {}}
    """
    settled = {column: dict(own) for column, own in buffers.items()}
    for path, own in written.items():
        sources, column, _ = step(path)
        if len(set(sources[0])) <= 1:
            settled[column].update(own)
    return settled


def measure(terms: Terms, values: Mapping[str, Any]) -> dict[str, Tensor]:
    """Every term's loss on the values of a walk: unweighted scalars by name, targets detached.

    Raises:
        ValueError: A value that a term reads is missing, or its loss refuses the shapes; the text names
            the term and both paths.

    Example:
        >>> from fcfd.logits import cross_entropy
        >>> from fcfd.terms import Term
        >>> values = {"s": torch.zeros(1, 2), "Labels": torch.tensor([1])}
        >>> measure({"label": Term(cross_entropy, "s", "Labels")}, values)
        {'label': tensor(0.6931)}
    """
    parts = {}
    for name, term in terms.items():
        for read in (*names(term.prediction), *names(term.target)):
            if read not in values:
                way_out = "give it with the batch" if given(read) else "add the path to the plan"
                raise ValueError(f"measure: term {name!r} reads {read!r}, which is missing; {way_out}.")
        predictions = [values[path] for path in names(term.prediction)]
        targets = [detach(values[path]) for path in names(term.target)]
        try:
            parts[name] = term.loss(*predictions, *targets).mean()
        except ValueError as error:
            raise ValueError(
                f"measure: term {name!r}, {term.prediction!r} towards {term.target!r}: {error}"
            ) from error
    return parts


def total(terms: Terms, parts: Mapping[str, Tensor]) -> Tensor:
    """The weighted sum of the terms' parts, a scalar.

    Raises:
        ValueError: There is no term.
    """
    if not terms:
        raise ValueError("total: there is no term to add up.")
    return torch.stack([term.weight * parts[name] for name, term in terms.items()]).sum()


def objective(
    terms: Terms,
    stages: Mapping[str, Column],
    params: Mapping[str, Params],
    buffers: Mapping[str, Buffers],
    values: Mapping[str, Any],
) -> tuple[Tensor, Aux]:
    """Walk the paths that some terms read, measure the terms, add them up.

    This is the whole of every method in this library: `losses.fcfd` is it with the terms of FCFD.

    Args:
        terms: A recipe: `{name: Term}`. Recipes are dicts and combine with `|`.
        stages: The columns of stages.
        params: A flat dict of parameters for each column; a gradient flows into every one that is not
            detached (`fcfd.frozen`).
        buffers: The same of buffers.
        values: `{"": images, "Labels": labels}`, and what else is known or read by a term.

    Returns:
        `(loss, aux)`, as `torch.func.grad(..., has_aux=True)` expects.

    Raises:
        ValueError: As `walk` and `measure`.
    """
    values, written = walk(plan_of(reads(terms.values())), stages, params, buffers, values)
    parts = measure(terms, values)
    return total(terms, parts), Aux(parts, values, settle(buffers, written))
