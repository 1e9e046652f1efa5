"""Published methods as data: functions that return `{name: Term}`, and combine with `|`."""

from collections.abc import Iterable
from functools import partial

from .features import pooled_squared_error, squared_error
from .logits import cross_entropy, kl
from .paths import depth, prefixes
from .terms import Term


def kd(
    stages: int,
    *,
    student: str = "s",
    teacher: str = "t",
    temperature: float = 4.0,
    label_weight: float = 1.0,
    kl_weight: float = 1.0,
) -> dict[str, Term]:
    """Knowledge distillation: the labels, and the teacher's softened logits.

    | term | loss | prediction | target |
    |---|---|---|---|
    | `label` | `cross_entropy` | student's logits | labels |
    | `kl/student` | `kl` | student's logits | teacher's logits |

    Args:
        stages: The number of stages, the classifier included.
        student: The letter of the network that learns.
        teacher: The letter of the network that it learns from.
        temperature: T of the divergence; published 4.
        label_weight: Published 1 (FCFD).
        kl_weight: Published 1 (FCFD).

    Example:
        >>> for name, term in kd(2).items():
        ...     print(name, term.prediction, term.target, term.weight)
        label ss Labels 1.0
        kl/student ss tt 1.0
    """
    divergence = partial(kl, temperature=temperature)
    return {
        "label": Term(cross_entropy, student * stages, "Labels", label_weight),
        "kl/student": Term(divergence, student * stages, teacher * stages, kl_weight),
    }


def appearance(stages: int, paths: Iterable[str], *, feature_weight: float = 1.0) -> dict[str, Term]:
    """Numerical similarity: a bridged feature against the other network's own.

    | term | loss | prediction | target |
    |---|---|---|---|
    | `feature/ss>t` | `squared_error` | `ss>t` | `tt` |
    | `pooled/ssss>t` | `pooled_squared_error` | the last feature, bridged | `tttt` |

    Args:
        stages: The number of stages, the classifier included.
        paths: Bridged features, as `fcfd.paths.bridged` gives them. A hint (FitNet) is one of them.
        feature_weight: The weight of every term.

    Example:
        >>> list(appearance(3, ("s>t", "ss>t")))
        ['feature/s>t', 'feature/ss>t', 'pooled/ss>t']
    """
    terms: dict[str, Term] = {}
    for path in paths:
        terms |= _feature_terms(stages, path, path[-1], feature_weight)
    return terms


def function(
    stages: int,
    paths: Iterable[str],
    *,
    teacher: str = "t",
    temperature: float = 4.0,
    feature_weight: float = 5.0,
    path_weight: float = 1.0,
) -> dict[str, Term]:
    """Functional similarity: what later layers make of a bridged feature, at each of them and at the logits.

    | term | loss | prediction | target |
    |---|---|---|---|
    | `feature/sst` | `squared_error` | each teacher stage on the crossed path | the same stage's own output |
    | `pooled/sstt` | `pooled_squared_error` | the last feature of the crossed path | the teacher's own |
    | `kl/ssttt` | `kl` | the crossed path's logits | the teacher's own |

    A path into the student, `"ttsss"`, has the last term only: its stages have no target of their own.

    Args:
        stages: The number of stages, the classifier included.
        paths: Crossed paths to the logits, as `fcfd.paths.draw` gives them.
        teacher: The network whose pure path is the target.
        temperature: T of the divergence; published 4 or 8 on CIFAR-100, 1 on ImageNet.
        feature_weight: The weight of the feature terms, times a warm-up; published 5 (0.02 for two pairs).
        path_weight: The weight of the divergences; published 1 (0.2 for one pair).

    Example:
        >>> list(function(4, ("sttt", "ttss")))
        ['feature/stt', 'feature/sttt'...
    """
    divergence = partial(kl, temperature=temperature)
    terms: dict[str, Term] = {}
    for path in paths:
        for value in prefixes(path):
            crossed = value.strip(teacher) != "" and value[-2:-1] not in (">", "&")
            if crossed and value[-1] == teacher and depth(value) < stages:
                terms |= _feature_terms(stages, value, teacher, feature_weight)
        terms[f"kl/{path}"] = Term(divergence, path, teacher * stages, path_weight)
    return terms


def _feature_terms(stages: int, path: str, target: str, weight: float) -> dict[str, Term]:
    own = target * depth(path)
    terms = {f"feature/{path}": Term(squared_error, path, own, weight)}
    if depth(path) == stages - 1:
        terms[f"pooled/{path}"] = Term(pooled_squared_error, path, own, weight)
    return terms


def fcfd(
    stages: int,
    paths: Iterable[str],
    bridged: Iterable[str],
    *,
    student: str = "s",
    teacher: str = "t",
    temperature: float = 4.0,
    feature_weight: float = 5.0,
    path_weight: float = 1.0,
    label_weight: float = 1.0,
    kl_weight: float = 1.0,
) -> dict[str, Term]:
    """Function-consistent feature distillation: `kd | appearance | function`.

    Args:
        stages: The number of stages, the classifier included.
        paths: The crossed paths of this step.
        bridged: The bridged features to compare by appearance.
        student: The letter of the network that learns.
        teacher: The letter of the network that it learns from.
        temperature: T of every divergence.
        feature_weight: The weight of every feature term, appearance and function alike.
        path_weight: The weight of the crossed paths' divergences.
        label_weight: The weight of the labels.
        kl_weight: The weight of the student's own divergence.

    Reference:
        Liu, Kan, Shan, Chen: Function-Consistent Feature Distillation, ICLR 2023, arXiv 2304.11832.
        Checked against the authors' code by value and gradient.
    """
    return (
        kd(
            stages,
            student=student,
            teacher=teacher,
            temperature=temperature,
            label_weight=label_weight,
            kl_weight=kl_weight,
        )
        | appearance(stages, bridged, feature_weight=feature_weight)
        | function(
            stages,
            paths,
            teacher=teacher,
            temperature=temperature,
            feature_weight=feature_weight,
            path_weight=path_weight,
        )
    )
