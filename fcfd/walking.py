"""Walk a plan across networks, evaluate terms on its values, and add them up."""

from collections import ChainMap
from collections.abc import Container, Iterable, Mapping
from typing import Any, NamedTuple, NoReturn

import torch
from torch import Tensor

from ._text import check_mapping, check_number, check_type, table
from ._tree import detach, moved, shapes, tensors
from .paths import Step, crosses, expand, plan as plan_of, step
from .stages import Buffers, Column, Params, Stage
from .terms import Term, Terms, check_terms, is_batch_data, path_names, present, reads


class Columns(NamedTuple):
    """What every walk takes, by column: `"s"`, `"t"`, `"s>t"`.

    Args:
        stages: The columns of stages.
        params: A flat dict of parameters for each column.
        buffers: The same of buffers.
    """

    stages: Mapping[str, Column]
    params: Mapping[str, Params]
    buffers: Mapping[str, Buffers]

    def __repr__(self) -> str:
        """The columns and how much each holds."""
        rows = [
            (
                repr(name),
                str(len(column)),
                str(len(self.params.get(name, ()))),
                str(len(self.buffers.get(name, ()))),
            )
            for name, column in self.stages.items()
        ]
        return table(("column", "stages", "parameters", "buffers"), rows)


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

    def __repr__(self) -> str:
        """Three tables: the parts with their numbers, the values with their shapes, the buffers."""
        parts = [(name, _number(part)) for name, part in self.parts.items()]
        values = [(repr(path), shapes(value)) for path, value in self.values.items()]
        buffers = [(repr(column), f"{len(own)} tensors") for column, own in self.buffers.items()]
        tables = table(("part", ""), parts), table(("value", ""), values), table(("buffers", ""), buffers)
        return "\n\n".join(tables)


def _number(part: Tensor) -> str:
    """A scalar's number; its shape where there is none to read, as inside a transform."""
    try:
        return f"{part.item():.5g}"
    except RuntimeError:
        return shapes(part)


# The walk


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
            A mapping all of whose names are networks is one by network.

    Returns:
        `(values, written)`: every value by path, the known ones included; and, by path, the buffers as that
        path left them. Nothing that was passed in is changed. `merge_buffers` keeps what belongs to pure
        paths. A stage reads buffers as earlier stages of its network *on its path* left them, so a module
        with buffers may stand in several stages.

    Raises:
        ValueError: A network, stage, bridge, dict or source is missing, a stage cannot read its input, or
            returns no pair; the text names the path. `torch.OutOfMemoryError` keeps its class.

    Example:
        >>> from fcfd import split, walk
        >>> net = split([torch.nn.Linear(2, 3), torch.nn.Linear(3, 2)])
        >>> columns = [{"s": net.stages}, {"s": net.params}, {"s": net.buffers}]
        >>> values, _ = walk(("s", "ss"), *columns, {"": torch.ones(1, 2)})
        >>> [list(values[path].shape) for path in ("", "s", "ss")]
        [[1, 2], [1, 3], [1, 2]]
    """
    if isinstance(plan, str):
        raise TypeError(f"walk: plan is the string {plan!r}; give fcfd.plan(({plan!r},)).")
    check_type("walk", "plan", plan, Iterable, "the paths that fcfd.plan returns")
    for name, columns in (("stages", stages), ("params", params), ("buffers", buffers)):
        check_mapping("walk", name, columns, "a dict by column: {'s': ..., 't': ...}")
    check_mapping("walk", "values", values, "what is known, by path: {'': batch}")
    values = {expand(path): value for path, value in values.items()}
    written: dict[str, dict[str, Tensor]] = {}
    on_the_way: dict[str, dict[str, dict[str, Tensor]]] = {}  # what a path's stages wrote, by column
    for path in map(expand, plan):
        if path not in values:
            last = step(path)
            before = on_the_way.get(last.reads[0], {})
            own = before.get(last.column, {})
            values[path], new = _run(path, last, stages, params, buffers, own, values)
            written[path] = new
            on_the_way[path] = before | {last.column: own | new} if new else before
    return values, written


def _run(
    path: str,
    last: Step,
    stages: Mapping[str, Column],
    params: Mapping[str, Params],
    buffers: Mapping[str, Buffers],
    before: Buffers,
    values: Mapping[str, Any],
) -> tuple[Any, dict[str, Tensor]]:
    """Run the last step of a path, on buffers that earlier stages of the path may have written before."""
    sources, column, at = last
    stage = _stage(path, stages, column, at)
    for kind, dicts in (("params", params), ("buffers", buffers)):
        if column not in dicts:
            raise ValueError(f"walk: path {path!r} needs {kind}[{column!r}], which is missing.")
        check_mapping("walk", f"{kind}[{column!r}]", dicts[column], "a flat dict of tensors by name")
    batch = _batch(path, values, stages)
    inputs = tuple([values[source] if source else batch for source in _known(path, sources, values)])
    layers: list[Any] = [batch] if isinstance(batch, Mapping) else []
    layers += [before] if before else []
    state = ChainMap(*layers, buffers[column]) if layers else buffers[column]  # type: ignore[arg-type]
    try:
        result = stage(params[column], state, inputs[0] if len(inputs) == 1 else inputs)
    except Exception as error:
        said = (
            f": entry {at} of column {column!r} cannot run on {shapes(inputs)} "
            f"from {' and '.join(map(repr, sources))}"
        )
        _reraise(error, f"walk: path {path!r}", said)
    if not (isinstance(result, tuple) and len(result) == 2 and isinstance(result[1], Mapping)):
        raise ValueError(
            f"walk: path {path!r}: entry {at} of column {column!r} returned {type(result).__name__}; a stage "
            "returns the pair (y, new_buffers). fcfd.stage makes one of a module, fcfd.split of functions."
        )
    return result


def _reraise(error: Exception, where: str, what: str) -> NoReturn:
    """Raise an error from inside under the name of where it arose; classes that are looked for stay."""
    if type(error).__module__.startswith("torch._dynamo"):  # torch.compile's own
        raise error
    if isinstance(error, torch.OutOfMemoryError):
        raise torch.OutOfMemoryError(f"{where}: {error}") from error
    plain = type(error) in (
        ValueError,
        RuntimeError,
    )  # the class of others is news: a KeyError says but a key
    raise ValueError(f"{where}{what}: {error if plain else f'{type(error).__name__}: {error}'}") from error


def _batch(path: str, values: Mapping[str, Any], stages: Mapping[str, Column]) -> Any:
    """What the path's last network reads: its own batch where there is one for each, or that of all."""
    batch: Any = values.get("")
    if _is_by_network(batch, stages) and path[-1] not in batch:
        raise ValueError(
            f"walk: path {path!r}: the batch is by network, and has none for {path[-1]!r}, only for "
            f"{', '.join(map(repr, batch))}."
        )
    return batch_of(batch, path[-1], stages)


def _is_by_network(batch: Any, networks: Container[str]) -> bool:
    """Whether a batch is one for each network: then all its names are networks."""
    return isinstance(batch, Mapping) and len(batch) > 0 and all(name in networks for name in batch)


def batch_of(batch: Any, network: str, networks: Container[str]) -> Any:
    """What a network reads of a batch: its own, where there is one for each."""
    return batch.get(network) if _is_by_network(batch, networks) else batch


def _known(path: str, sources: tuple[str, ...], values: Mapping[str, Any]) -> tuple[str, ...]:
    for source in sources:
        if source == "" and source not in values:
            raise ValueError(f"walk: path {path!r} reads the batch, values[''], which is missing.")
        if source not in values:
            raise ValueError(
                f"walk: path {path!r} reads {source!r}, which is not known and not earlier in the plan; "
                f"walk fcfd.plan(({path!r},))."
            )
    return sources


def _stage(path: str, stages: Mapping[str, Column], column: str, at: int) -> Stage:
    if column not in stages:
        kind = "bridges" if len(column) > 1 else "network"
        raise ValueError(
            f"walk: path {path!r} needs {kind} {column!r}; there are {', '.join(map(repr, stages))}."
        )
    check_type("walk", f"stages[{column!r}]", stages[column], (tuple, list), "a tuple of stages")
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


def merge_buffers(
    buffers: Mapping[str, Buffers], written: Mapping[str, Buffers]
) -> dict[str, dict[str, Tensor]]:
    """The buffers after a walk: what pure paths wrote, and what bridges wrote that read a pure path.

    Weights are shared by every path through a stage; statistics belong to the pure path. What a crossed
    path wrote is left out here, and stays under its own name in `written` for a caller who wants it.

    Example:
        >>> before = {"s": {"n": torch.tensor(0)}, "s>t": {}}
        >>> written = {"s": {"n": torch.tensor(1)}, "s>t": {}, "ts": {"n": torch.tensor(9)}}
        >>> merge_buffers(before, written)
        {'s': {'n': tensor(1)}, 's>t': {}}
    """
    check_mapping("merge_buffers", "buffers", buffers, "a dict by column")
    check_mapping("merge_buffers", "written", written, "what fcfd.walk returned as written")
    for name, given in (("buffers", buffers), ("written", written)):
        for key, own in given.items():
            check_mapping("merge_buffers", f"{name}[{key!r}]", own, "a flat dict of tensors by name")
    merged = {column: dict(own) for column, own in buffers.items()}
    for path, own in written.items():
        sources, column, _ = step(path)
        if column not in merged:
            raise ValueError(f"merge_buffers: path {path!r} wrote to {column!r}, which buffers lacks.")
        if not crosses(sources[0]):
            merged[column].update(own)
    return merged


# Terms on the values of a walk


def evaluate(terms: Terms, values: Mapping[str, Any]) -> dict[str, Tensor]:
    """Every term's loss on the values of a walk: unweighted scalars by name, targets detached.

    Terms of weight 0 are left out.

    Raises:
        ValueError: A value that a term reads is missing, or its loss refuses what it reads; the text names
            the term and both paths.

    Example:
        >>> from fcfd.losses import cross_entropy
        >>> from fcfd.terms import Term
        >>> values = {"s": torch.zeros(1, 2), "Labels": torch.tensor([1])}
        >>> evaluate({"label": Term(cross_entropy, "s", "Labels")}, values)
        {'label': tensor(0.6931)}
    """
    check_mapping("evaluate", "values", values, "what a walk returned, by path")
    return _parts(present(check_terms("evaluate", terms)), values)


def _parts(terms: Terms, values: Mapping[str, Any]) -> dict[str, Tensor]:
    return {name: _part(name, term, values) for name, term in terms.items()}


def _part(name: str, term: Term, values: Mapping[str, Any]) -> Tensor:
    predictions = [_value(name, path, values) for path in path_names(term.prediction)]
    targets = [detach(_value(name, path, values)) for path in path_names(term.target)]
    try:
        part = term.loss(*predictions, *_beside(predictions[0], targets))
        if isinstance(part, Tensor) and part.is_floating_point() and part.numel():
            return part.mean()
    except Exception as error:
        said = f", {term.prediction!r} towards {term.target!r}{_several(predictions)}"
        _reraise(error, f"evaluate: term {name!r}", said)
    found = f"{shapes(part)} of {part.dtype}" if isinstance(part, Tensor) else type(part).__name__
    raise ValueError(
        f"evaluate: term {name!r}: its loss returned {found}, where one floating tensor is wanted."
    )


def _beside(prediction: Any, targets: list[Any]) -> list[Any]:
    """Targets on the device of what is compared with them."""
    found = tensors(prediction)
    return [moved(target, found[0].device) for target in targets] if found else targets


def _value(name: str, path: str, values: Mapping[str, Any]) -> Any:
    if path not in values:
        way_out = "give it with the batch" if is_batch_data(path) else "add the path to the plan"
        raise ValueError(f"evaluate: term {name!r} reads {path!r}, which is missing; {way_out}.")
    return values[path]


def _several(predictions: list[Any]) -> str:
    """A hint, where a prediction is no single tensor."""
    kinds = [type(value).__name__ for value in predictions if not isinstance(value, Tensor)]
    return f" (the prediction is a {kinds[0]}; read one tensor of it by fcfd.terms.entry)" if kinds else ""


def weighted_sum(terms: Terms, parts: Mapping[str, Tensor]) -> Tensor:
    """The weighted sum of the terms' parts, a scalar. Terms of weight 0 are left out.

    Raises:
        ValueError: There is no term, or a weight is no finite number and no scalar tensor.

    Example:
        >>> from fcfd import recipes
        >>> terms = recipes.kd(2)
        >>> parts = {"label": torch.tensor(1.0), "kl/student": torch.tensor(2.0)}
        >>> weighted_sum(terms, parts)
        tensor(3.)
    """
    return _sum(present(check_terms("weighted_sum", terms)), parts)


def _sum(terms: Terms, parts: Mapping[str, Tensor]) -> Tensor:
    if not terms:
        raise ValueError("weighted_sum: there is no term to add up.")
    for name, term in terms.items():
        check_number("weighted_sum", f"the weight of term {name!r}", term.weight)
        if not isinstance(parts.get(name), Tensor) or parts[name].ndim > 0:
            raise ValueError(f"weighted_sum: parts[{name!r}] must be a scalar, as fcfd.evaluate returns it.")
    device = parts[next(iter(terms))].device
    return torch.stack([(term.weight * parts[name]).to(device) for name, term in terms.items()]).sum()


def objective(
    terms: Terms,
    stages: Mapping[str, Column],
    params: Mapping[str, Params],
    buffers: Mapping[str, Buffers],
    values: Mapping[str, Any],
) -> tuple[Tensor, Aux]:
    """Walk the paths that some terms read, evaluate the terms, add them up.

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
        ValueError: As `walk`, `evaluate` and `weighted_sum`.
    """
    terms = present(check_terms("objective", terms))
    planned = plan_of(reads(terms.values()))
    values, written = walk(planned, stages, params, buffers, values)
    parts = _parts(terms, values)
    return _sum(terms, parts), Aux(parts, values, merge_buffers(buffers, written))
