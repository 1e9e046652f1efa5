"""The losses that run through networks: stage callables and parameter dicts in, `(loss, aux)` out.

They are pure: what `torch.func.grad(..., has_aux=True)` expects, and one graph under `torch.compile`.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from . import recipes
from ._text import check_callable, check_mapping
from ._tree import shape, tensors
from .paths import crosses, is_bridged, pure
from .stages import Buffers, Column, Params
from .terms import Terms, check_terms, path_names, scaled
from .walking import Aux, objective


def appearance(
    stages: Mapping[str, Column],
    params: Mapping[str, Params],
    buffers: Mapping[str, Buffers],
    images: Any,
    *,
    student: str = "s",
    teacher: str = "t",
) -> tuple[Tensor, Aux]:
    """Numerical similarity: bridge every student's feature and compare it with the teacher's own.

    ```
    L_app = Σ_k MSE(B_k(F_s^k), F_t^k) + MSE(pool(B(F_s)), pool(F_t)) at the last feature
    ```

    Args:
        stages: The columns of stages and bridges. Every bridge from the student to the teacher counts.
        params: A flat dict of parameters for each column; detach the teacher's (`fcfd.frozen`).
        buffers: The same of buffers.
        images: The batch that both networks read.
        student: The letter of the network that learns.
        teacher: The letter of the network that it learns from.

    Returns:
        `(loss, aux)`; see `fcfd.Aux`.

    Raises:
        ValueError: The batch is empty or of integers, or something is missing; the text names the path.
    """
    _check_images("appearance", images)
    depth = _depth("appearance", stages, student, teacher)
    _check_roles("appearance", params, student, teacher)
    terms = recipes.appearance(depth, _bridged(stages, student, teacher))
    if not terms:
        raise ValueError(f"appearance: no bridge was built from {student!r} to {teacher!r}; link some.")
    return objective(terms, stages, params, buffers, {"": images})


def function(
    stages: Mapping[str, Column],
    params: Mapping[str, Params],
    buffers: Mapping[str, Buffers],
    images: Any,
    *,
    paths: Iterable[str],
    student: str = "s",
    teacher: str = "t",
    temperature: float = 4.0,
    feature_weight: float = 5.0,
    path_weight: float = 1.0,
) -> tuple[Tensor, Aux]:
    """Functional similarity: run later stages on bridged features; compare at each of them and the logits.

    ```
    student → teacher:  G^k = B(F_s^k), G^j = teacher stage j on G^(j−1), p = its logits
                        feature_weight · [Σ_j MSE(G^j, F_t^j) + MSE(pool(G), pool(F_t))]
                        + path_weight · KL(p_t ‖ p)
    teacher → student:  p = the student's later stages on B(F_t^k)
                        path_weight · KL(p_t ‖ p)
    ```

    Args:
        stages: The columns of stages and bridges.
        params: A flat dict of parameters for each column; detach the teacher's (`fcfd.frozen`).
        buffers: The same of buffers.
        images: The batch that both networks read.
        paths: Crossed paths to the logits, as `fcfd.draw` gives them.
        student: The letter of the network that learns.
        teacher: The letter of the network that it learns from.
        temperature: T of the divergence.
        feature_weight: The weight of the feature terms; published 5, times a warm-up.
        path_weight: The weight of the divergences; published 1.

    Returns:
        `(loss, aux)`; see `fcfd.Aux`.

    Raises:
        ValueError: As `fcfd`.
    """
    _check_images("function", images)
    depth = _depth("function", stages, student, teacher)
    _check_roles("function", params, student, teacher)
    terms = recipes.function(depth, paths, teacher=teacher, temperature=temperature)
    if not terms:
        raise ValueError("function: there is no path; give at least one, as fcfd.draw does.")
    terms = scaled(terms, _by_name(terms, feature_weight, path_weight))
    return objective(terms, stages, params, buffers, {"": images})


def fcfd(
    stages: Mapping[str, Column],
    params: Mapping[str, Params],
    buffers: Mapping[str, Buffers],
    images: Any,
    labels: Tensor | Mapping[str, Any],
    *,
    paths: Iterable[str],
    student: str = "s",
    teacher: str = "t",
    temperature: float = 4.0,
    feature_weight: float = 5.0,
    path_weight: float = 1.0,
    label_weight: float = 1.0,
    kl_weight: float = 1.0,
    crossed: float | Tensor = 1.0,
    change: Callable[[Terms], Terms] | None = None,
) -> tuple[Tensor, Aux]:
    """Function-consistent feature distillation: the whole objective over sampled paths.

    ```
    L = label_weight · CE + kl_weight · KL + feature_weight · L_app
        + crossed · (feature_weight · Σ L2 of paths + path_weight · Σ KL of paths)
    ```

    Args:
        stages: The columns of stages and bridges, as `fcfd.link` gives them. Every bridge from the student
            to the teacher takes part in L_app.
        params: A flat dict of parameters for each column; a gradient flows into each that is not detached.
            Detach the teacher's (`fcfd.frozen`, as `fcfd.link` does).
        buffers: The same of buffers. The teacher's BatchNorm follows its module's mode: in eval it uses its
            running statistics (the usual practice), in train the batch's (the authors' code).
        images: The batch that both networks read, floating.
        labels: Integer classes `[batch]`, or probabilities `[batch, classes]`. With data that other terms
            read, such as a mask, a mapping: `{"Labels": labels, "Mask": mask}`.
        paths: Crossed paths to the logits, as `fcfd.draw` gives them; published, two a batch. None: `()`.
        student: The letter of the network that learns.
        teacher: The letter of the network that it learns from.
        temperature: T of every divergence; published 4 or 8 on CIFAR-100, 1 on ImageNet.
        feature_weight: The weight of every feature term; published 5 (0.02 for two pairs), times
            `fcfd.schedules.linear_warmup`.
        path_weight: The weight of the crossed paths' divergences; published 1 (0.2 for one pair).
        label_weight: The weight of the labels; published 1.
        kl_weight: The weight of the student's own divergence; published 1.
        crossed: The factor of all that is compared on crossed paths. Published 1 throughout; recommended
            is `fcfd.schedules.linear_warmup` over the first third of training, because a path through a
            bridge that has learned nothing is noise. At 0 the paths are not computed.
        change: From the terms to the terms that count: other losses, weights and masks, by
            `fcfd.replaced`, `fcfd.scaled` and the like. By default they stay.

    Returns:
        `(loss, aux)`: `aux.parts` the unweighted terms by name, `aux.values` every feature and logit by
        path, `aux.buffers` the new statistics by column (see `fcfd.write_buffers_`).

    Raises:
        ValueError: The batch is empty or of integers; labels or class counts do not fit; a path names an
            unknown network, or is too long or too short; a bridge or a dict's entry is missing. The text
            names the path and what to do.

    Reference:
        Liu, Kan, Shan, Chen: Function-Consistent Feature Distillation, ICLR 2023, arXiv 2304.11832. Checked
        against the authors' code by value, gradient and statistics. Deviations: every path shares the
        running statistics of the pure path and none but the pure path writes them, where the authors keep
        a copy for each path that nothing reads; probing shapes moves no statistic.
    """
    _check_images("fcfd", images)
    depth = _depth("fcfd", stages, student, teacher)
    _check_roles("fcfd", params, student, teacher)
    bridged = _bridged(stages, student, teacher)
    terms = recipes.fcfd(depth, paths, bridged, student=student, teacher=teacher, temperature=temperature)
    weights = _by_name(terms, feature_weight, path_weight)
    terms = scaled(terms, weights | {"label": label_weight, "kl/student": kl_weight})
    terms = scaled(terms, dict.fromkeys(_on_crossed_paths(terms), crossed))
    if change is not None:
        check_callable("fcfd", "change", change)
        terms = check_terms("fcfd: change", change(terms))
    data = labels if isinstance(labels, Mapping) else {"Labels": labels}
    if "" in data:
        raise ValueError("fcfd: labels has an entry '', which is the batch; give that as images.")
    return objective(terms, stages, params, buffers, {"": images, **data})


def _by_name(terms: Terms, feature: float | Tensor, path: float | Tensor) -> dict[str, float | Tensor]:
    """The weight of every term: one for divergences, one for what compares features."""
    return {name: path if name.startswith("kl/") else feature for name in terms}


def _on_crossed_paths(terms: Terms) -> list[str]:
    """The names of the terms that compare what a network makes of another's bridged feature."""
    predictions = {name: path_names(term.prediction) for name, term in terms.items()}
    return [
        name
        for name, paths in predictions.items()
        if any(crosses(path) and not is_bridged(path) for path in paths)
    ]


def _check_images(function: str, images: Any) -> None:
    if not tensors(images):
        raise TypeError(
            f"{function}: images is of type {type(images).__name__} and holds no tensor; give a batch."
        )
    for leaf in tensors(images):
        if leaf.numel() == 0:
            raise ValueError(f"{function}: the batch {shape(leaf)} is empty.")
        if leaf.ndim > 2 and not leaf.is_floating_point():
            raise ValueError(
                f"{function}: images {shape(leaf)} are {leaf.dtype}; make them floats, normalised, first."
            )


def _depth(function: str, stages: Mapping[str, Column], student: str, teacher: str) -> int:
    check_mapping(function, "stages", stages, "a dict of columns, as fcfd.link makes: *nets.columns")
    for letter in (student, teacher):
        if letter not in stages:
            raise ValueError(
                f"{function}: there is no network {letter!r}; stages has {', '.join(map(repr, stages))}."
            )
    if len(stages[student]) != len(stages[teacher]):
        raise ValueError(
            f"{function}: network {student!r} has {len(stages[student])} stages, {teacher!r} has "
            f"{len(stages[teacher])}; cut them alike."
        )
    return len(stages[student])


def _check_roles(function: str, params: Mapping[str, Params], student: str, teacher: str) -> None:
    """Refuse a frozen student beside a teacher that is not: the roles are exchanged, nothing would learn."""
    check_mapping(function, "params", params, "a dict by column: {'s': ..., 't': ...}")
    for letter in (student, teacher):
        own = params.get(letter, {})
        check_mapping(function, f"params[{letter!r}]", own, "a flat dict of tensors by name")
    learns, teaches = (
        any(tensor.requires_grad for tensor in params.get(letter, {}).values())
        for letter in (student, teacher)
    )
    if torch.is_grad_enabled() and teaches and params.get(student) and not learns:
        raise ValueError(
            f"{function}: the parameters of student {student!r} are detached, those of teacher {teacher!r} "
            f"are not, so nothing would learn. Exchange the roles, or pass params | {{{student!r}: "
            f"dict(student.named_parameters()), {teacher!r}: fcfd.frozen(params[{teacher!r}])}}."
        )


def _bridged(stages: Mapping[str, Column], student: str, teacher: str) -> tuple[str, ...]:
    """The student's features that have a bridge to the teacher."""
    column = stages.get(f"{student}>{teacher}", ())
    return tuple(
        [f"{pure(student, at + 1)}>{teacher}" for at, stage in enumerate(column) if stage is not None]
    )
