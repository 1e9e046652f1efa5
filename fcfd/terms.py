"""A term: one value of a walk is pulled towards another. Terms are dicts of data, and change by functions."""

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor

from ._text import check_callable, check_mapping, check_number, check_type, listing
from ._tree import flatten, shape
from .families.positions import masked as masked_loss
from .paths import expand

Loss: TypeAlias = Callable[..., Tensor]


class Term(NamedTuple):
    """Pull the value at `prediction` towards the value at `target`, which gets no gradient.

    Args:
        loss: `loss(prediction, target) -> Tensor`; what it returns is averaged to a scalar. Bind
            hyper-parameters with `functools.partial`.
        prediction: A path, or a tuple of paths for a loss that reads several values.
        target: The same; or `"Labels"`, or any other name that begins with a capital: data of the batch
            that is given with it and computed by no stage. Several targets follow in order.
        weight: The factor of this term in the total. A term of weight 0 is absent: it is not computed.
    """

    loss: Loss
    prediction: str | tuple[str, ...]
    target: str | tuple[str, ...]
    weight: float | Tensor = 1.0


Terms: TypeAlias = Mapping[str, Term]


def balanced(parts: Mapping[str, Tensor], *, like: str = "label") -> dict[str, Tensor]:
    """The parts of an objective, each as large as one of them: weights that no one has to tune.

    ```
    out = part · stopgrad(|parts[like]| / |part|)        a part that is 0 stays 0
    ```

    Args:
        parts: Scalars by name, `aux.parts`.
        like: The one that stays as it is.

    Returns:
        New scalars, whose weights are constants for the gradient. Train on their sum, or on each times a
        weight of yours. What balances gradients, not values, reads `parts` itself.

    Raises:
        TypeError: A part is no tensor.
        ValueError: There is no part of that name, or a part is no scalar.

    Example:
        >>> parts = {"label": torch.tensor(2.0), "kl/student": torch.tensor(0.1)}
        >>> balanced(parts)
        {'label': tensor(2.), 'kl/student': tensor(2.)}
    """
    check_mapping("balanced", "parts", parts, "a dict of scalars, as in `aux.parts`")
    for name, part in parts.items():
        check_type("balanced", f"parts[{name!r}]", part, Tensor, "a scalar tensor")
        if part.ndim:
            raise ValueError(f"balanced: parts[{name!r}] {shape(part)} must be a scalar, [].")
    if like not in parts:
        raise ValueError(f"balanced: like {like!r} is none of the parts {listing(list(parts))}.")
    size = parts[like].detach().abs()
    return {name: part if name == like else part * _ratio(size, part) for name, part in parts.items()}


def _ratio(size: Tensor, part: Tensor) -> Tensor:
    own = part.detach().abs()
    return torch.where(own == 0, 1.0, size / torch.where(own == 0, 1.0, own))


# From terms to terms


def scaled(terms: Terms, weights: float | Tensor | Mapping[str, float | Tensor]) -> dict[str, Term]:
    """The same terms with other weights: all of them by one factor, or each kind by its own.

    A kind is a part of a term's name, or all of it: `"feature"` and `"feature/ss>t"` both say `feature/ss>t`.

    Args:
        terms: A recipe: `{name: Term}`.
        weights: The factor of every term, or factors by kind; the other terms stay as they are.

    Raises:
        ValueError: No term is of a kind.

    Example:
        >>> from fcfd import recipes
        >>> terms = recipes.kd(2) | scaled(recipes.hints(("s>t",)), 100.0)
        >>> [(name, term.weight) for name, term in scaled(terms, {"kl": 0.5}).items()]
        [('label', 1.0), ('kl/student', 0.5), ('hint/s>t', 100.0)]
    """
    changed = check_terms("scaled", terms)
    if not isinstance(weights, Mapping):
        check_number("scaled", "weights", weights)
        return {name: _weighted(term, weights) for name, term in changed.items()}
    for kind, weight in weights.items():
        check_number("scaled", f"weights[{kind!r}]", weight)
        for name in _of_kind("scaled", terms, kind):
            changed[name] = _weighted(changed[name], weight)
    return changed


def _weighted(term: Term, factor: float | Tensor) -> Term:
    if _is_zero(factor):
        return term._replace(weight=0.0)
    plain_one = not isinstance(term.weight, Tensor) and term.weight == 1
    return term._replace(weight=factor if plain_one else factor * term.weight)


def replaced(terms: Terms, losses: Mapping[str, Loss]) -> dict[str, Term]:
    """The same terms with other losses: how a recipe serves other labels and outputs.

    Args:
        terms: A recipe: `{name: Term}`.
        losses: The new loss of each kind that changes.

    Raises:
        ValueError: No term is of a kind.

    Example:
        >>> from fcfd import losses, recipes
        >>> terms = replaced(recipes.kd(5), {"kl": losses.kd_bce})
        >>> terms["kl/student"].loss is losses.kd_bce
        True
    """
    changed = check_terms("replaced", terms)
    check_mapping("replaced", "losses", losses, "a dict of losses by kind: {'kl': loss}")
    for kind, loss in losses.items():
        check_callable("replaced", f"losses[{kind!r}]", loss)
        for name in _of_kind("replaced", terms, kind):
            changed[name] = changed[name]._replace(loss=loss)
    return changed


def masked(terms: Terms, masks: Mapping[str, str]) -> dict[str, Term]:
    """The same terms over the positions that a mask keeps: padding counts nothing.

    ```
    feature, kl, …:  Σ_i mask_i · loss(prediction_i, target_i) / Σ_i mask_i
                     i over batch and positions
    pooled:          loss of the means over the positions that the mask keeps
    ```

    Args:
        terms: A recipe: `{name: Term}`.
        masks: The name of the mask `[batch, positions]` by kind, data of the batch: `{"feature": "Mask"}`.
            Pass it to `fcfd.losses.fcfd` as `labels={"Labels": labels, "Mask": mask}`.

    Raises:
        ValueError: No term is of a kind, or a mask's name does not begin with a capital.

    Example:
        >>> from fcfd import recipes
        >>> terms = masked(recipes.appearance(3, ("s>t",)), {"feature": "Mask"})
        >>> terms["feature/s>t"].target
        ('t', 'Mask')
    """
    changed = check_terms("masked", terms)
    check_mapping("masked", "masks", masks, "a dict of names by kind: {'feature': 'Mask'}")
    for kind, mask in masks.items():
        if not (isinstance(mask, str) and is_batch_data(mask)):
            raise ValueError(f"masked: masks[{kind!r}] is {mask!r}; a name of data begins with a capital.")
        for name in _of_kind("masked", terms, kind):
            term = changed[name]
            pooled = "pooled" in name.split("/")
            loss = partial(_pooled_by, term.loss) if pooled else masked_loss(term.loss)
            changed[name] = term._replace(loss=loss, target=(*path_names(term.target), mask))
    return changed


def _pooled_by(loss: Loss, prediction: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    """A loss of means over places: what the mask leaves out is 0, and the rest weighs as much more."""
    check_type("masked", "the mask", mask, Tensor, "a tensor [batch, positions]")
    for feature in (prediction, target):
        check_type("masked", "a pooled feature", feature, Tensor, "tokens [batch, positions, channels]")
        if feature.ndim != 3 or feature.shape[:2] != mask.shape:
            raise ValueError(
                f"masked: a pooled feature {shape(feature)} must be tokens [batch, positions, channels], and "
                f"the mask {shape(mask)} one of these positions. Where features are maps, mask no `pooled`."
            )
    kept = mask.bool().unsqueeze(-1)
    share = mask.shape[1] / mask.bool().sum(1).clamp(min=1).view(-1, 1, 1)
    return loss(*(torch.where(kept, feature, 0.0) * share for feature in (prediction, target)))


def check_terms(function: str, terms: Any) -> dict[str, Term]:
    """Terms as a dict of their own, or a TypeError that says what is none."""
    check_mapping(function, "terms", terms, "a recipe: {name: Term}")
    for name, term in terms.items():
        check_type(function, f"terms[{name!r}]", term, Term, "a Term")
        check_callable(function, f"the loss of term {name!r}", term.loss)
        for paths in (term.prediction, term.target):
            check_type(function, f"a path of term {name!r}", paths, (str, tuple), "a string or a tuple")
            if paths == ():
                raise ValueError(f"{function}: term {name!r} reads an empty tuple of paths; give one.")
    return dict(terms)


def _of_kind(function: str, terms: Terms, kind: str) -> list[str]:
    found = [name for name in terms if name == kind or kind in name.split("/")]
    if not found:
        raise ValueError(
            f"{function}: no term is of the kind {kind!r}; there are {', '.join(terms) or 'none'}."
        )
    return found


def present(terms: Terms) -> dict[str, Term]:
    """The terms that count: those whose weight is not the number 0.

    Example:
        >>> from fcfd import recipes
        >>> list(present(scaled(recipes.kd(2), {"kl": 0.0})))
        ['label']
    """
    return {name: term for name, term in terms.items() if not _is_zero(term.weight)}


def _is_zero(weight: float | Tensor) -> bool:
    """Whether a weight is the number 0. A tensor is not read: the host would wait for it."""
    return not isinstance(weight, Tensor) and weight == 0


# From losses to losses


def multi_level(loss: Loss) -> Loss:
    """Measure a loss on every tensor of features that have several, and take the mean.

    A pyramid of maps is such a feature. Features of one tensor go to the loss as they are.

    Args:
        loss: `loss(prediction, target) -> Tensor`.

    Returns:
        A loss of trees (tuples, dicts) of tensors. It raises a `ValueError` where the two differ in form.

    Example:
        >>> loss = multi_level(torch.nn.functional.mse_loss)
        >>> loss([torch.ones(1), torch.ones(2)], [torch.ones(1), torch.zeros(2)])
        tensor(0.5000)
    """
    check_callable("multi_level", "loss", loss)
    return partial(_multi_level, loss)


def _multi_level(loss: Loss, prediction: Any, target: Any) -> Tensor:
    if isinstance(prediction, Tensor) and isinstance(target, Tensor):
        return loss(prediction, target)
    (ours, ours_form), (theirs, theirs_form) = flatten(prediction), flatten(target)
    if ours_form != theirs_form:
        raise ValueError(
            f"multi_level: the prediction holds {len(ours)} tensors as {type(prediction).__name__}, the "
            f"target {len(theirs)} as {type(target).__name__}. Bridge to the target's form."
        )
    if not ours:
        raise ValueError("multi_level: prediction and target hold no tensor.")
    return torch.stack([loss(own, other).mean() for own, other in zip(ours, theirs, strict=True)]).mean()


def entry(key: str | int, loss: Loss) -> Loss:
    """Measure a loss on one entry of values that are tuples, dicts or records with fields.

    Targets that are tensors, such as labels, go to the loss as they are.

    Args:
        key: The name or the place of the entry.
        loss: `loss(prediction, *targets) -> Tensor`.

    Returns:
        A loss of values that hold the entry. It raises a `ValueError` where the prediction has none.

    Example:
        >>> loss = entry("start", torch.nn.functional.mse_loss)
        >>> prediction = {"start": torch.ones(1), "end": torch.ones(1)}
        >>> loss(prediction, {"start": torch.zeros(1), "end": None})
        tensor(1.)
    """
    check_callable("entry", "loss", loss)
    return partial(_entry, key, loss)


def _entry(key: str | int, loss: Loss, prediction: Any, *targets: Any) -> Tensor:
    if isinstance(prediction, Tensor):
        raise ValueError(f"entry: the prediction is one tensor and has no entry {key!r}.")
    return loss(_read(prediction, key), *(t if isinstance(t, Tensor) else _read(t, key) for t in targets))


def _read(value: Any, key: str | int) -> Any:
    try:
        return value[key] if isinstance(value, Mapping) or isinstance(key, int) else getattr(value, key)
    except (LookupError, TypeError, AttributeError) as error:
        raise ValueError(f"entry: {type(value).__name__} has no entry {key!r}.") from error


def unless_empty(loss: Loss) -> Loss:
    """A loss that is 0, and has a graph, where the prediction holds no example.

    A detector may find no region, or an image may hold no object. The gradient is 0 then and not missing, as
    processes that share gradients need it.

    Args:
        loss: `loss(prediction, *targets) -> Tensor`.

    Example:
        >>> from fcfd.losses import squared_error
        >>> loss = unless_empty(squared_error)
        >>> some, none = torch.ones(1, 4), torch.ones(0, 4)
        >>> loss(some, 2 * some), loss(none, none)
        (tensor([1.]), tensor(0.))
    """
    check_callable("unless_empty", "loss", loss)
    return partial(_unless_empty, loss)


def _unless_empty(loss: Loss, prediction: Tensor, *targets: Any) -> Tensor:
    check_type("unless_empty", "the prediction", prediction, Tensor, "a tensor [examples, ...]")
    if len(prediction):
        return loss(prediction, *targets)
    for target in targets:
        if isinstance(target, Tensor) and len(target):
            raise ValueError(
                f"unless_empty: the prediction {shape(prediction)} is empty, the target {shape(target)} not."
            )
    return prediction.sum() * 0


# What terms read


def path_names(paths: str | tuple[str, ...]) -> tuple[str, ...]:
    """The names that a term gives, as a tuple; paths in their long form.

    Example:
        >>> path_names(("s3", "Labels"))
        ('sss', 'Labels')
    """
    names = (paths,) if isinstance(paths, str) else paths
    return tuple([name if is_batch_data(name) else expand(name) for name in names])


def is_batch_data(name: str) -> bool:
    """Whether a name is data of the batch (it begins with a capital) rather than a path."""
    return name[:1].isupper()


def reads(terms: Iterable[Term]) -> tuple[str, ...]:
    """Every path that some term reads, each once, in order: what a plan is made of.

    Example:
        >>> from fcfd.losses import cross_entropy, kl
        >>> reads([Term(cross_entropy, "ss", "Labels"), Term(kl, "ss", "tt")])
        ('ss', 'tt')
    """
    check_type("reads", "terms", terms, Iterable, "terms, as those of a recipe: recipe.values()")
    read: dict[str, None] = {}
    for term in terms:
        check_type("reads", "a term", term, Term, "terms, as those of a recipe: recipe.values()")
        for name in (*path_names(term.prediction), *path_names(term.target)):
            if not is_batch_data(name):
                read[name] = None
    return tuple(read)
