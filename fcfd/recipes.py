"""Published methods as data: functions that return `{name: Term}`, and combine with `|`.

`depth` is always the number of stages of each network, the classifier included; `student` and `teacher` are
letters. What a recipe needs of the networks is the paths that its terms read: link those. Every term has the
weight 1 (`fula` divides it among depths); `fcfd.scaled` gives other weights, `fcfd.replaced` other losses.
"""

from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any

from torch import Tensor

from ._text import check_integer, check_mapping, check_number
from ._tree import leaves, shape
from .families.contrastive import info_nce
from .families.detection import box_deltas, generalized_iou, kd_quality_focal
from .families.features import pooled_squared_error, relative_squared_error, squared_error
from .families.logits import binary_cross_entropy, binary_kl, cross_entropy, kl, ofa
from .layouts import average
from .paths import counterpart, crosses, depth as depth_of, expand, is_bridged, listed, prefixes, pure
from .terms import Term, Terms, check_terms, entry, multi_level, unless_empty


def kd(depth: int, *, student: str = "s", teacher: str = "t", temperature: float = 4.0) -> dict[str, Term]:
    """Knowledge distillation: the labels, and the teacher's softened logits.

    | term | loss | prediction | target |
    |---|---|---|---|
    | `label` | `cross_entropy` | student's logits | labels |
    | `kl/student` | `kl` | student's logits | teacher's logits |

    Args:
        depth: The number of stages, the classifier included.
        student: The letter of the network that learns.
        teacher: The letter of the network that it learns from.
        temperature: T of the divergence; published 4.

    Raises:
        ValueError: There is no stage, or both letters are one.

    Example:
        >>> for name, term in kd(2).items():
        ...     print(name, term.prediction, term.target, term.weight)
        label ss Labels 1.0
        kl/student ss tt 1.0
    """
    _check_networks("kd", depth, student, teacher, least=1)
    check_number("kd", "temperature", temperature, above=0)
    divergence = partial(kl, temperature=temperature)
    return {
        "label": Term(cross_entropy, pure(student, depth), "Labels"),
        "kl/student": Term(divergence, pure(student, depth), pure(teacher, depth)),
    }


def hints(paths: Iterable[str]) -> dict[str, Term]:
    """Hint distillation (FitNet): bridged features against the other network's own, and nothing else.

    | term | loss | prediction | target |
    |---|---|---|---|
    | `hint/ss>t` | `squared_error` | `ss>t` | `tt` |

    Args:
        paths: Bridged features; the paper has one, in the middle.

    Raises:
        ValueError: A path does not end in a bridge.

    Example:
        >>> from fcfd import scaled
        >>> kd(4) | scaled(hints(("ss>t",)), 100.0)
        {'label': Term(...), 'kl/student': Term(...), 'hint/ss>t': Term(...)}

    Reference:
        Romero et al.: FitNets: Hints for Thin Deep Nets, ICLR 2015, arXiv 1412.6550. The paper trains hints
        first and the whole network after; together, in one stage, is the later practice. RepDistiller
        weighs its one hint by 100.
    """
    hint = multi_level(squared_error)
    return {f"hint/{path}": Term(hint, path, counterpart(path)) for path in _bridged("hints", paths)}


def appearance(depth: int, paths: Iterable[str]) -> dict[str, Term]:
    """Numerical similarity: a bridged feature against the other network's own.

    | term | loss | prediction | target |
    |---|---|---|---|
    | `feature/ss>t` | `squared_error` | `ss>t` | `tt` |
    | `pooled/ssss>t` | `pooled_squared_error` | the last feature, bridged | `tttt` |

    Args:
        depth: The number of stages, the classifier included.
        paths: Bridged features, as `fcfd.paths.bridged` gives them. A hint (FitNet) is one of them.

    Raises:
        ValueError: A path does not end in a bridge, or is too long.

    Example:
        >>> list(appearance(3, ("s>t", "ss>t")))
        ['feature/s>t', 'feature/ss>t', 'pooled/ss>t']
    """
    check_integer("appearance", "depth", depth, least=1)
    terms: dict[str, Term] = {}
    for path in _bridged("appearance", paths, depth):
        terms |= _feature_terms(depth, path)
    return terms


def function(
    depth: int, paths: Iterable[str], *, teacher: str = "t", temperature: float = 4.0
) -> dict[str, Term]:
    """Functional similarity: what later layers make of a bridged feature, at each of them and at the logits.

    | term | loss | prediction | target |
    |---|---|---|---|
    | `feature/sst` | `squared_error` | each teacher stage on the crossed path | the same stage's own output |
    | `pooled/sstt` | `pooled_squared_error` | the last feature of the crossed path | the teacher's own |
    | `kl/ssttt` | `kl` | the crossed path's logits | the teacher's own |

    A path into the student, `"ttsss"`, has the last term only: its stages have no target of their own.

    Args:
        depth: The number of stages, the classifier included.
        paths: Crossed paths to the logits, as `fcfd.paths.draw` gives them.
        teacher: The network whose pure path is the target.
        temperature: T of the divergence; published 4 or 8 on CIFAR-100, 1 on ImageNet.

    Raises:
        ValueError: A path stays in one network, or is no path to the logits.

    Example:
        >>> list(function(4, ("sttt", "ttss")))
        ['feature/st', 'feature/stt', 'pooled/stt', 'kl/sttt', 'kl/ttss']
    """
    check_number("function", "temperature", temperature, above=0)
    divergence = partial(kl, temperature=temperature)
    terms: dict[str, Term] = {}
    for path in _crossed("function", paths, depth):
        for value in prefixes(path):
            read_by_teacher = value[-1] == teacher and crosses(value) and not is_bridged(value)
            if read_by_teacher and depth_of(value) < depth:
                terms |= _feature_terms(depth, value)
        terms[f"kl/{path}"] = Term(divergence, path, pure(teacher, depth))
    return terms


def _feature_terms(depth: int, path: str) -> dict[str, Term]:
    terms = {f"feature/{path}": Term(multi_level(squared_error), path, counterpart(path))}
    if depth_of(path) == depth - 1:
        terms[f"pooled/{path}"] = Term(multi_level(pooled_squared_error), path, counterpart(path))
    return terms


def fcfd(
    depth: int,
    paths: Iterable[str],
    bridged: Iterable[str],
    *,
    student: str = "s",
    teacher: str = "t",
    temperature: float = 4.0,
) -> dict[str, Term]:
    """Function-consistent feature distillation: `kd | appearance | function`.

    Weights are 1 here. Published: 5 for `feature` and `pooled` (0.02 for two pairs), times a warm-up, and 1
    for the rest; `fcfd.losses.fcfd` has these.

    Args:
        depth: The number of stages, the classifier included.
        paths: The crossed paths of this step.
        bridged: The bridged features to compare by appearance.
        student: The letter of the network that learns.
        teacher: The letter of the network that it learns from.
        temperature: T of every divergence.

    Raises:
        ValueError: As `kd`, `appearance` and `function`.

    Example:
        >>> from fcfd import recipes, scaled
        >>> published = scaled(recipes.fcfd(5, ("ssttt",), ("ssss>t",)), {"feature": 5.0})
        >>> published["feature/sst"].weight
        5.0

    Reference:
        Liu, Kan, Shan, Chen: Function-Consistent Feature Distillation, ICLR 2023, arXiv 2304.11832.
        Checked against the authors' code by value and gradient.
    """
    _check_networks("fcfd", depth, student, teacher, least=1)
    paths, bridged = _crossed("fcfd", paths, depth), _bridged("fcfd", bridged, depth)
    return (
        kd(depth, student=student, teacher=teacher, temperature=temperature)
        | appearance(depth, bridged)
        | function(depth, paths, teacher=teacher, temperature=temperature)
    )


def simkd(depth: int, *, student: str = "s", teacher: str = "t") -> dict[str, Term]:
    """SimKD: the student's last feature learns to feed the teacher's classifier, which is reused.

    | term | loss | prediction | target |
    |---|---|---|---|
    | `feature/ssss>t` | `squared_error` | the last feature, bridged | the teacher's own |

    The network that is deployed is the crossed path `"sssst"`: the student, the bridge and the teacher's
    classifier. Walk it to get its logits; no term reads them in training.

    Args:
        depth: The number of stages, at least 2.
        student: The letter of the network that learns.
        teacher: The letter of the network whose classifier is reused.

    Raises:
        ValueError: There is no feature before the classifier, or both letters are one.

    Example:
        >>> simkd(3)["feature/ss>t"].target
        'tt'

    Reference:
        Chen et al.: Knowledge Distillation with the Reused Teacher Classifier, CVPR 2022, arXiv 2203.14001.
        Checked against DefangChen/SimKD. The published bridge is three convolutions with a bottleneck; pass
        it to `fcfd.link(..., bridges=...)` for that. It pools the larger map, which the default bridge need
        not.
    """
    _check_networks("simkd", depth, student, teacher)
    path = f"{pure(student, depth - 1)}>{teacher}"
    return {f"feature/{path}": Term(squared_error, path, counterpart(path))}


def srrl(depth: int, *, student: str = "s", teacher: str = "t") -> dict[str, Term]:
    """SRRL: the student's last feature should be read by the teacher's classifier as the teacher's own is.

    | term | loss | prediction | target |
    |---|---|---|---|
    | `label` | `cross_entropy` | student's logits | labels |
    | `pooled/ssss>t` | `pooled_squared_error` | the last feature, bridged | the teacher's own |
    | `logits/sssst` | `squared_error` | the teacher's classifier on that feature | the teacher's logits |

    Args:
        depth: The number of stages, at least 2.
        student: The letter of the network that learns.
        teacher: The letter of the network that it learns from.

    Raises:
        ValueError: There is no feature before the classifier, or both letters are one.

    Example:
        >>> list(srrl(3))
        ['label', 'pooled/ss>t', 'logits/sst']

    Reference:
        Yang et al.: Knowledge Distillation via Softmax Regression Representation Learning, ICLR 2021. Checked
        against jingyang2017/KD_SRRL; cls_KD weighs the logits' term by 5. Features are rectified before
        pooling here, as the published bridge's last layer does.
    """
    _check_networks("srrl", depth, student, teacher)
    feature = f"{pure(student, depth - 1)}>{teacher}"
    crossed = pure(student, depth - 1) + teacher
    return {
        "label": Term(cross_entropy, pure(student, depth), "Labels"),
        f"pooled/{feature}": Term(pooled_squared_error, feature, counterpart(feature)),
        f"logits/{crossed}": Term(squared_error, crossed, pure(teacher, depth)),
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
        ValueError: The number of weights is not that of the depths, or the path does not cross.

    Example:
        >>> list(fula("sstt"))
        ['latent/ss>t', 'latent/sst', 'latent/sstt']

    Reference:
        Model Stitching by Functional Latent Alignment, 2025. A reconstruction: the weights over depths could
        not be read and are equal here; no parity is claimed.
    """
    values = [value for value in prefixes(path) if crosses(value)]
    if not values:
        raise ValueError(f"fula: path {path!r} stays in one network; a stitch leads into another.")
    weights = [1 / len(values)] * len(values) if weights is None else list(weights)
    for weight in weights:
        check_number("fula", "a weight", weight)
    if len(weights) != len(values):
        raise ValueError(
            f"fula: {len(weights)} weights for the {len(values)} values {values}; give one each."
        )
    return {
        f"latent/{value}": Term(relative_squared_error, value, counterpart(value), weight)
        for value, weight in zip(values, weights, strict=True)
    }


def hybrid_assistant(
    depth: int,
    *,
    at: int | None = None,
    student: str = "s",
    teacher: str = "t",
    gamma: float = 1.0,
    temperature: float = 0.1,
) -> dict[str, Term]:
    """Hybrid assistant (TAS, Fuse Before Transfer): a crossed path learns, and also teaches the student.

    The assistant is the student's first stages, a bridge, and the teacher's rest: the path `"sssTT"` in the
    table. `≺` reads "learns from"; each pair has two terms.

    | pair | `ofa/…` on logits | `nce/pooled/…` on pooled last features |
    |---|---|---|
    | assistant ≺ teacher | `sssTT` ← `TTTTT` | `sssT` ← `TTTT` |
    | student ≺ teacher | `sssss` ← `TTTTT` | `ssss>T` ← `TTTT` |
    | student ≺ assistant | `sssss` ← `sssTT` | `ssss>T` ← `sssT` |

    and `label`, the student's cross-entropy. The assistant as a target gets no gradient from the student's
    terms, like every target.

    Args:
        depth: The number of stages, at least 3.
        at: How many of the student's stages the assistant has, from 1 to `depth − 2`; by default that many.
        student: The letter of the network that learns.
        teacher: The letter of the network it learns from.
        gamma: Of `ofa`.
        temperature: Of `info_nce`; published learnable: bind a tensor for that.

    Raises:
        ValueError: There is no stage to cross after, or both letters are one.

    Example:
        >>> for name, term in hybrid_assistant(5).items():
        ...     print(name, term.prediction, term.target)
        label sssss Labels
        ofa/assistant ssstt ('ttttt', 'Labels')
        ofa/student sssss ('ttttt', 'Labels')
        ofa/student-assistant sssss ('ssstt', 'Labels')
        nce/pooled/assistant ssst tttt
        nce/pooled/student ssss>t tttt
        nce/pooled/student-assistant ssss>t ssst

    Reference:
        TAS, 2024, later Fuse Before Transfer, 2025. A reconstruction: the weights could not be read and are 1
        here; no parity is claimed. Leaving out assistant ≺ teacher is known to break the method.
    """
    _check_networks("hybrid_assistant", depth, student, teacher, least=3)
    check_number("hybrid_assistant", "gamma", gamma, above=0)
    check_number("hybrid_assistant", "temperature", temperature, above=0)
    at = depth - 2 if at is None else check_integer("hybrid_assistant", "at", at)
    if not 1 <= at <= depth - 2:
        raise ValueError(f"hybrid_assistant: at is {at}; of {depth} stages the student has 1 to {depth - 2}.")
    own, target, assistant = pure(student, depth), pure(teacher, depth), student * at + teacher * (depth - at)
    bridged, last = f"{own[:-1]}>{teacher}", target[:-1]
    match = partial(ofa, gamma=gamma)
    find = partial(_pooled_info_nce, temperature=temperature)
    return {
        "label": Term(cross_entropy, own, "Labels"),
        "ofa/assistant": Term(match, assistant, (target, "Labels")),
        "ofa/student": Term(match, own, (target, "Labels")),
        "ofa/student-assistant": Term(match, own, (assistant, "Labels")),
        "nce/pooled/assistant": Term(find, assistant[:-1], last),
        "nce/pooled/student": Term(find, bridged, last),
        "nce/pooled/student-assistant": Term(find, bridged, assistant[:-1]),
    }


def _pooled_info_nce(prediction: Tensor, target: Tensor, *, temperature: float | Tensor) -> Tensor:
    """`info_nce` of features averaged over space, or over tokens."""
    return info_nce(average(prediction), average(target), temperature=temperature)


def fcfd_detection(
    *,
    paths: Iterable[str] = ("st", "ts"),
    bridged: Iterable[str] = ("s>t",),
    masks: bool = False,
    student: str = "s",
    teacher: str = "t",
    temperature: float = 1.0,
) -> dict[str, Term]:
    """FCFD of detectors of two stages: the pyramid by appearance, and what both box heads make of it.

    All heads read the student's own sampled regions (`fcfd.detection`).

    | term | loss | prediction | target |
    |---|---|---|---|
    | `label/classes` | `cross_entropy` | the student's classes of regions | labels |
    | `label/boxes` | `box_deltas` | its box deltas | labels |
    | `feature/s>t` | `squared_error`, summed over levels | the pyramid, bridged | the teacher's own |
    | `kl/ss`, `kl/st`, `kl/ts` | `kl` | classes of regions, on each path | the teacher's own |
    | `delta/ss`, … | `squared_error` | box deltas | the teacher's own |

    With `masks`, `label/masks` is `binary_cross_entropy` and `mask/ss`, … are `binary_kl`, a mean over
    pixels, of each object's own class. Where there is no region or no object, a term is 0, with a graph. The
    losses of the region proposals are not among the terms: add `found.losses`.

    Args:
        paths: The paths that cross between pyramid and heads. Without any, it is logits and appearance.
        bridged: The bridged pyramids to compare by appearance.
        masks: Whether the detectors have mask heads.
        student: The letter of the network that learns.
        teacher: The letter of the network that it learns from.
        temperature: T of the divergence of classes; published 1.

    Raises:
        ValueError: A path does not cross or does not end in the heads, or both letters are one.

    Example:
        >>> [name for name in fcfd_detection() if not name.startswith("label")]
        ['feature/s>t', 'kl/ss', 'delta/ss', 'kl/st', 'delta/st', 'kl/ts', 'delta/ts']

    Reference:
        Liu, Kan, Shan, Chen: Function-Consistent Feature Distillation, ICLR 2023, arXiv 2304.11832, section
        on detection. Every weight is 1, without warm-up. Box deltas are compared in all classes and all
        regions, as the authors' code does. Masks are not theirs.
    """
    _check_networks("fcfd_detection", 2, student, teacher)
    check_number("fcfd_detection", "temperature", temperature, above=0)
    own, target = pure(student, 2), pure(teacher, 2)
    terms = {
        "label/classes": Term(entry("classes", unless_empty(cross_entropy)), own, "Labels"),
        "label/boxes": Term(_label_boxes, own, "Labels"),
    }
    if masks:
        terms["label/masks"] = Term(_label_masks, own, "Labels")
    for path in _bridged("fcfd_detection", bridged, 2):
        terms[f"feature/{path}"] = Term(_sum_of_levels, path, counterpart(path))
    divergence = entry("classes", unless_empty(partial(kl, temperature=temperature)))
    for path in (own, *_crossed("fcfd_detection", paths, 2)):
        terms[f"kl/{path}"] = Term(divergence, path, target)
        terms[f"delta/{path}"] = Term(entry("boxes", unless_empty(squared_error)), path, target)
        if masks:
            terms[f"mask/{path}"] = Term(_mask_kl, path, (target, "Labels"))
    return terms


def _sum_of_levels(prediction: Any, target: Any) -> Tensor:
    return multi_level(squared_error)(prediction, target) * len(leaves(target))


def _label_boxes(prediction: Any, labels: Mapping[str, Tensor]) -> Tensor:
    return unless_empty(box_deltas)(prediction["boxes"], labels["boxes"], labels["classes"])


def _label_masks(prediction: Any, labels: Mapping[str, Tensor]) -> Tensor:
    drawn = _of_own_class(prediction, labels["mask_classes"])
    return unless_empty(binary_cross_entropy)(drawn, labels["masks"].flatten(1))


def _mask_kl(prediction: Any, target: Any, labels: Mapping[str, Tensor]) -> Tensor:
    pair = [_of_own_class(value, labels["mask_classes"]) for value in (prediction, target)]
    return unless_empty(binary_kl)(*pair) / pair[0].shape[1]


def _of_own_class(value: Mapping[str, Tensor], labels: Tensor) -> Tensor:
    """Of masks with one for each class, that of each object's class: `[objects, pixels]`."""
    if "masks" not in value:
        raise ValueError("fcfd_detection: a network's value has no entry 'masks'; leave out masks=True.")
    rows = value["masks"].flatten(2)
    return rows.gather(1, labels[:, None, None].expand(-1, 1, rows.shape[2])).squeeze(1)


def crosskd(path: str = "ss&tt", *, teacher: str = "t") -> dict[str, Term]:
    """CrossKD of detectors of one stage: the teacher's head, from a block on, reads the student's towers.

    | term | loss | prediction | target |
    |---|---|---|---|
    | `classes/ss&tt` | `kd_quality_focal` | class logits of the crossed path | the teacher's own |
    | `boxes/ss&tt` | `generalized_iou` | its decoded boxes | the teacher's own |

    ```
    classes:  Σ over anchors and classes [counts] · loss / positives
    boxes:    Σ over anchors [counts] · max_c σ(teacher's logit) · loss / positives
    ```

    `counts` and `positives` are what the labels say of the student's anchors (`fcfd.detection.labels`), given
    as `"Labels"`. The published bridge gives the student's features the teacher's statistics: link with
    `bridges={"ss&t": MatchStatistics()}`. The detector's own losses are not among the terms: add
    `found.losses`.

    Args:
        path: The crossed path to the outputs. `"sst"` has a learned bridge, for towers of other widths.
        teacher: The letter of the network whose head is reused.

    Raises:
        ValueError: The path does not cross, or does not end in the teacher.

    Example:
        >>> crosskd()["classes/ss&tt"].target
        ('ttt', 'Labels')

    Reference:
        Wang et al.: CrossKD: Cross-Head Knowledge Distillation for Object Detection, CVPR 2024, arXiv
        2306.11369. Compared with jbwang1997/CrossKD `CrossKDRetinaNet` by reading: cut after the third
        convolution, before its activation; both weights 1. Deviation: its FCOS divides by the labels'
        centernesses.
    """
    pure(teacher, 1)
    path = expand(path)
    if not crosses(path) or is_bridged(path) or path[-1] != teacher:
        raise ValueError(
            f"crosskd: path {path!r} does not cross into the head of {teacher!r}, as 'ss&tt' does."
        )
    target = counterpart(path)
    return {
        f"classes/{path}": Term(_crossed_classes, path, (target, "Labels")),
        f"boxes/{path}": Term(_crossed_boxes, path, (target, "Labels")),
    }


def _crossed_classes(prediction: Any, target: Any, labels: Mapping[str, Tensor]) -> Tensor:
    errors = kd_quality_focal(prediction["cls_logits"], target["cls_logits"]).sum(-1)
    return _by_positives(errors, labels)


def _crossed_boxes(prediction: Any, target: Any, labels: Mapping[str, Tensor]) -> Tensor:
    errors = generalized_iou(prediction["boxes"], target["boxes"])
    score = target["cls_logits"].sigmoid().amax(-1)
    return _by_positives(errors * score, labels)


def _by_positives(errors: Tensor, labels: Mapping[str, Tensor]) -> Tensor:
    counts = labels["counts"]
    if errors.shape != counts.shape:
        raise ValueError(
            f"crosskd: the labels are of the student's anchors {shape(counts)}, and the teacher has "
            f"{shape(errors)}. Give it images of the same sizes: prepare(teacher, images, "
            "sizes=ours.inputs['sizes']), and both the same anchors."
        )
    return (errors * counts).sum() / labels["positives"]


def multi_teacher(recipes: Mapping[str, Terms]) -> dict[str, Term]:
    """Several teachers: the labels once, and every other term once for each teacher.

    | term | is |
    |---|---|
    | `label` | that of the first recipe |
    | `a/kl/student`, `a/feature/…`, `a/kl/…` | the other terms of the recipe of teacher `a` |

    Args:
        recipes: The terms of each teacher by its letter, `{"a": recipes.fcfd(..., teacher="a"), ...}`.
            Weights are not divided by the number of teachers.

    Raises:
        ValueError: There is no recipe.

    Example:
        >>> from fcfd import recipes
        >>> a = recipes.fcfd(3, (), ("s>a",), teacher="a")
        >>> b = recipes.fcfd(3, ("bss",), (), teacher="b")
        >>> list(multi_teacher({"a": a, "b": b}))
        ['label', 'a/kl/student', 'a/feature/s>a', 'b/kl/student', 'b/kl/bss']
    """
    check_mapping("multi_teacher", "recipes", recipes, "a dict of recipes by the teacher's letter")
    if not recipes:
        raise ValueError("multi_teacher: there is no recipe; give one for each teacher by its letter.")
    terms: dict[str, Term] = {}
    for teacher, own in recipes.items():
        for name, term in check_terms("multi_teacher", own).items():
            if name != "label":
                terms[f"{teacher}/{name}"] = term
            elif "label" not in terms:
                terms["label"] = term
    return terms


def _check_networks(function: str, depth: int, student: str, teacher: str, least: int = 2) -> None:
    check_integer(function, "depth", depth, least=least)
    for name, letter in (("student", student), ("teacher", teacher)):
        if not (isinstance(letter, str) and len(letter) == 1 and "a" <= letter <= "z"):
            raise ValueError(f"{function}: {name} is {letter!r}; a network is one letter a-z.")
    if student == teacher:
        raise ValueError(f"{function}: student and teacher are both {student!r}; no network teaches itself.")


def _bridged(function: str, paths: Iterable[str], depth: int | None = None) -> tuple[str, ...]:
    """Paths that end in a bridge, checked."""
    found = listed(function, paths)
    if depth is not None:
        check_integer(function, "depth", depth, least=1)
    for path in found:
        if not is_bridged(path):
            raise ValueError(
                f"{function}: path {path!r} does not end in a bridge; write '{path}>t' or the like."
            )
        if depth is not None and depth_of(path) >= depth:
            raise ValueError(
                f"{function}: path {path!r} runs {depth_of(path)} stages; of {depth}, features to bridge are "
                f"at depths 1 to {depth - 1}."
            )
    return found


def _crossed(function: str, paths: Iterable[str], depth: int) -> tuple[str, ...]:
    """Paths to the logits that cross, checked."""
    found = listed(function, paths)
    check_integer(function, "depth", depth, least=1)
    for path in found:
        if depth_of(path) != depth or is_bridged(path):
            raise ValueError(
                f"{function}: path {path!r} runs {depth_of(path)} stages; a path to the logits runs {depth}."
            )
        if not crosses(path):
            raise ValueError(f"{function}: path {path!r} stays in one network; a crossed path has two.")
    return found
