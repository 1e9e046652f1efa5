"""Published methods as data: functions that return `{name: Term}`, and combine with `|`.

`stages` is always the number of stages of each network, the classifier included; `student` and `teacher` are
letters. What a recipe needs of the networks is the paths that its terms read: link those.
"""

from collections.abc import Iterable
from functools import partial

from torch import Tensor

from ._layout import average
from .families.contrastive import info_nce
from .families.features import pooled_squared_error, relative_squared_error, squared_error
from .families.logits import cross_entropy, kl, ofa
from .paths import depth, prefixes
from .terms import Term, each


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


def hints(paths: Iterable[str], *, weight: float = 1.0) -> dict[str, Term]:
    """Hint distillation (FitNet): bridged features against the other network's own, and nothing else.

    | term | loss | prediction | target |
    |---|---|---|---|
    | `hint/ss>t` | `squared_error` | `ss>t` | `tt` |

    Args:
        paths: Bridged features; the paper has one, in the middle.
        weight: The weight of every term; published 100 in RepDistiller, for one hint.

    Example:
        >>> kd(4) | hints(("ss>t",), weight=100.0)
        {'label': Term(...), 'kl/student': Term(...), 'hint/ss>t': Term(...)}

    Reference:
        Romero et al.: FitNets: Hints for Thin Deep Nets, ICLR 2015, arXiv 1412.6550. The paper trains hints
        first and the whole network after; together, in one stage, is the later practice.
    """
    hint = each(squared_error)
    return {f"hint/{path}": Term(hint, path, path[-1] * depth(path), weight) for path in paths}


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
        ['feature/st', 'feature/stt', 'pooled/stt', 'kl/sttt', 'kl/ttss']
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
    terms = {f"feature/{path}": Term(each(squared_error), path, own, weight)}
    if depth(path) == stages - 1:
        terms[f"pooled/{path}"] = Term(each(pooled_squared_error), path, own, weight)
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


def simkd(stages: int, *, student: str = "s", teacher: str = "t", weight: float = 1.0) -> dict[str, Term]:
    """SimKD: the student's last feature learns to feed the teacher's classifier, which is reused.

    | term | loss | prediction | target |
    |---|---|---|---|
    | `feature/ssss>t` | `squared_error` | the last feature, bridged | the teacher's own |

    The network that is deployed is the crossed path `"sssst"`: the student, the bridge and the teacher's
    classifier. Walk it to get its logits; no term reads them in training.

    Args:
        stages: The number of stages.
        student: The letter of the network that learns.
        teacher: The letter of the network whose classifier is reused.
        weight: Published 1.

    Example:
        >>> simkd(3)["feature/ss>t"].target
        'tt'

    Reference:
        Chen et al.: Knowledge Distillation with the Reused Teacher Classifier, CVPR 2022, arXiv 2203.14001.
        Checked against DefangChen/SimKD. The published bridge is three convolutions with a bottleneck; pass
        it to `fcfd.link(..., bridges=...)` for that. It pools the larger map, which the default bridge need
        not.
    """
    path = f"{student * (stages - 1)}>{teacher}"
    return {f"feature/{path}": Term(squared_error, path, teacher * (stages - 1), weight)}


def srrl(
    stages: int,
    *,
    student: str = "s",
    teacher: str = "t",
    feature_weight: float = 1.0,
    logit_weight: float = 1.0,
    label_weight: float = 1.0,
) -> dict[str, Term]:
    """SRRL: the student's last feature should be read by the teacher's classifier as the teacher's own is.

    | term | loss | prediction | target |
    |---|---|---|---|
    | `label` | `cross_entropy` | student's logits | labels |
    | `pooled/ssss>t` | `pooled_squared_error` | the last feature, bridged | the teacher's own |
    | `logits/sssst` | `squared_error` | the teacher's classifier on that feature | the teacher's logits |

    Args:
        stages: The number of stages.
        student: The letter of the network that learns.
        teacher: The letter of the network it learns from.
        feature_weight: Published 1.
        logit_weight: Published 1 by the authors; cls_KD has 5.
        label_weight: Published 1.

    Example:
        >>> list(srrl(3))
        ['label', 'pooled/ss>t', 'logits/sst']

    Reference:
        Yang et al.: Knowledge Distillation via Softmax Regression Representation Learning, ICLR 2021. Checked
        against jingyang2017/KD_SRRL. Features are rectified before pooling here, as the published bridge's
        last layer does.
    """
    feature = f"{student * (stages - 1)}>{teacher}"
    crossed = student * (stages - 1) + teacher
    return {
        "label": Term(cross_entropy, student * stages, "Labels", label_weight),
        f"pooled/{feature}": Term(pooled_squared_error, feature, teacher * (stages - 1), feature_weight),
        f"logits/{crossed}": Term(squared_error, crossed, teacher * stages, logit_weight),
    }


def fula(path: str, *, weights: Iterable[float] | None = None) -> dict[str, Term]:
    """Functional latent alignment: fit a stitch so that every later stage reads it as its own feature.

    | term | loss | prediction | target |
    |---|---|---|---|
    | `latent/ss>t` | `relative_squared_error` | the bridged feature | the same depth of the other network |
    | `latent/sst`, … | `relative_squared_error` | each later stage on it, the logits last | its own output |

    Both networks are frozen and only the bridge learns: pass `fcfd.frozen` dicts for both. The published
    stitch is affine (a 1×1 convolution with bias): pass it to `fcfd.link(..., bridges=...)`.

    Args:
        path: A crossed path to the logits, `"ssttt"`.
        weights: One for each depth from the crossing to the logits; by default equal, adding up to 1.

    Raises:
        ValueError: The number of weights is not that of the depths.

    Example:
        >>> list(fula("sstt"))
        ['latent/ss>t', 'latent/sst', 'latent/sstt']

    Reference:
        Model Stitching by Functional Latent Alignment, 2025. A reconstruction: the weights over depths could
        not be read and are equal here; no parity is claimed.
    """
    values = [value for value in prefixes(path) if set(value) != {path[0]}]
    weights = [1 / len(values)] * len(values) if weights is None else list(weights)
    if len(weights) != len(values):
        raise ValueError(
            f"fula: {len(weights)} weights for the {len(values)} values {values}; give one each."
        )
    return {
        f"latent/{value}": Term(relative_squared_error, value, value[-1] * depth(value), weight)
        for value, weight in zip(values, weights, strict=True)
    }


def hybrid_assistant(
    stages: int,
    *,
    at: int | None = None,
    student: str = "s",
    teacher: str = "t",
    gamma: float = 1.0,
    temperature: float = 0.1,
    logit_weight: float = 1.0,
    feature_weight: float = 1.0,
    label_weight: float = 1.0,
) -> dict[str, Term]:
    """Hybrid assistant (TAS, Fuse Before Transfer): a crossed path learns, and also teaches the student.

    The assistant is the student's first stages, a bridge, and the teacher's rest: the path `"sssTT"` in the
    table. `≺` reads "learns from"; each pair has two terms.

    | pair | `ofa/…` on logits | `nce/…` on pooled last features |
    |---|---|---|
    | assistant ≺ teacher | `sssTT` ← `TTTTT` | `sssT` ← `TTTT` |
    | student ≺ teacher | `sssss` ← `TTTTT` | `ssss>T` ← `TTTT` |
    | student ≺ assistant | `sssss` ← `sssTT` | `ssss>T` ← `sssT` |

    and `label`, the student's cross-entropy. The assistant as a target gets no gradient from the student's
    terms, like every target.

    Args:
        stages: The number of stages.
        at: How many of the student's stages the assistant has; by default all but two.
        student: The letter of the network that learns.
        teacher: The letter of the network it learns from.
        gamma: Of `ofa`.
        temperature: Of `info_nce`; published learnable: bind a tensor for that.
        logit_weight: The weight of the `ofa` terms.
        feature_weight: The weight of the `nce` terms.
        label_weight: The weight of the labels.

    Example:
        >>> for name, term in hybrid_assistant(5).items():
        ...     print(name, term.prediction, term.target)
        label sssss Labels
        ofa/assistant ssstt ('ttttt', 'Labels')
        ofa/student sssss ('ttttt', 'Labels')
        ofa/student-assistant sssss ('ssstt', 'Labels')
        nce/assistant ssst tttt
        nce/student ssss>t tttt
        nce/student-assistant ssss>t ssst

    Reference:
        TAS, 2024, later Fuse Before Transfer, 2025. A reconstruction: the weights could not be read and are 1
        here; no parity is claimed. Leaving out assistant ≺ teacher is known to break the method.
    """
    at = stages - 2 if at is None else at
    assistant = student * at + teacher * (stages - at)
    logits = {"assistant": assistant, "student": student * stages}
    last = {"assistant": assistant[:-1], "student": f"{student * (stages - 1)}>{teacher}"}
    match = partial(ofa, gamma=gamma)
    find = partial(_pooled_info_nce, temperature=temperature)
    return {
        "label": Term(cross_entropy, student * stages, "Labels", label_weight),
        "ofa/assistant": Term(match, logits["assistant"], (teacher * stages, "Labels"), logit_weight),
        "ofa/student": Term(match, logits["student"], (teacher * stages, "Labels"), logit_weight),
        "ofa/student-assistant": Term(match, logits["student"], (assistant, "Labels"), logit_weight),
        "nce/assistant": Term(find, last["assistant"], teacher * (stages - 1), feature_weight),
        "nce/student": Term(find, last["student"], teacher * (stages - 1), feature_weight),
        "nce/student-assistant": Term(find, last["student"], last["assistant"], feature_weight),
    }


def _pooled_info_nce(prediction: Tensor, target: Tensor, *, temperature: float | Tensor) -> Tensor:
    """`info_nce` of features averaged over space, or over tokens."""
    return info_nce(average(prediction), average(target), temperature=temperature)


def multi_teacher(
    stages: int,
    paths: Iterable[str],
    bridged: Iterable[str],
    *,
    student: str = "s",
    teachers: Iterable[str] = ("a", "b"),
    temperature: float = 4.0,
    feature_weight: float = 5.0,
    path_weight: float = 1.0,
    label_weight: float = 1.0,
    kl_weight: float = 1.0,
) -> dict[str, Term]:
    """FCFD from several teachers: the labels once, and every other term once for each teacher.

    | term | is |
    |---|---|
    | `label` | as in `kd` |
    | `a/kl/student`, `a/feature/…`, `a/kl/…` | the terms of `fcfd(..., teacher="a")` |

    Args:
        stages: The number of stages, the same for all networks.
        paths: Crossed paths between the student and any of the teachers.
        bridged: Bridged features of the student, into any of the teachers.
        student: The letter of the network that learns.
        teachers: The letters of the networks it learns from. Weights are not divided by their number.
        temperature: T of every divergence.
        feature_weight: The weight of every feature term.
        path_weight: The weight of the crossed paths' divergences.
        label_weight: The weight of the labels.
        kl_weight: The weight of the student's own divergences.

    Example:
        >>> list(multi_teacher(3, ("bss",), ("s>a",)))
        ['label', 'a/kl/student', 'a/feature/s>a', 'b/kl/student', 'b/kl/bss']
    """
    paths, bridged = tuple(paths), tuple(bridged)
    terms = {"label": Term(cross_entropy, student * stages, "Labels", label_weight)}
    for teacher in teachers:
        own = fcfd(
            stages,
            [path for path in paths if teacher in path],
            [path for path in bridged if path[-1] == teacher],
            student=student,
            teacher=teacher,
            temperature=temperature,
            feature_weight=feature_weight,
            path_weight=path_weight,
            kl_weight=kl_weight,
        )
        terms |= {f"{teacher}/{name}": term for name, term in own.items() if name != "label"}
    return terms
