"""Losses between relations: how the examples of a batch lie to each other in either network.

Embeddings are ``[batch, ...]`` and flattened by example, so that the networks' dimensions may differ. The
losses couple the batch and return a scalar; memory grows with batch² unless stated. They relate the examples
of one process: gather the embeddings first where a batch is spread over several.
"""

from math import exp, factorial

import torch
from torch import Tensor
from torch.nn import functional as F

from .._text import check_integer, check_number, check_plain
from .._tree import shape
from ._checks import agreeing, alike, check_finite, floats
from ._numerics import (
    crossed,
    exact,
    poisoned,
    safe_inverse,
    safe_normalize,
    safe_sqrt,
    where_above_0,
)

_EXAMPLES = "Give both networks the same examples."


def rkd_distance(prediction: Tensor, target: Tensor) -> Tensor:
    """Relational distillation of distances, each batch measured by its own mean distance.

    ```
    loss = mean_ij huber(d_ij(prediction) / μ − d_ij(target) / μ')
    μ = mean of d_ij over i ≠ j
    ```

    `huber(x)` is ½x² up to |x| = 1 and |x| − ½ beyond.

    Args:
        prediction: Embeddings `[batch, ...]`.
        target: Embeddings of the same examples, of any dimensions.

    Returns:
        A scalar; the mean is over batch², the diagonal of zeros included. It is 0 for two examples.

    Raises:
        ValueError: The examples differ, or there are fewer than two.

    Example:
        >>> line, bent = torch.tensor([[0.0], [1.0], [2.0]]), torch.eye(3)
        >>> losses = [rkd_distance(7 * line, line), rkd_distance(bent, line)]
        >>> torch.stack(losses).round(decimals=4)
        tensor([0.0000, 0.0417])

    Reference:
        Park et al.: Relational Knowledge Distillation, CVPR 2019, arXiv 1904.05068. Checked against
        lenscloth/RKD `RkdDistance`. Deviations: equal rows have the distance 0 with the gradient 0, where
        the code has 1e-6 with a gradient of up to a million; a batch of equal rows has the loss 0, where
        the code has NaN; the target is not detached. Published weights: 25 in RepDistiller, with 50 for
        `rkd_angle`.
    """
    student, teacher = _rows("rkd_distance", 2, prediction=prediction, target=target)

    def relative(rows: Tensor) -> Tensor:
        distances = safe_sqrt(_squared_distances(rows))
        mean = distances.sum() / (len(rows) * (len(rows) - 1))
        return distances / torch.where(mean <= 0, 1.0, mean)

    return F.smooth_l1_loss(relative(student), relative(teacher))


def rkd_angle(prediction: Tensor, target: Tensor) -> Tensor:
    """Relational distillation of angles: the cosine at every example between every pair of others.

    ```
    loss = mean_kij huber(⟨v_ki, v_kj⟩ − ⟨v'_ki, v'_kj⟩)
    v_ki = (e_i − e_k) / ‖e_i − e_k‖
    ```

    `v` is of the prediction, `v'` of the target; the mean is over all batch³ triples, those with equal
    members (a cosine of 0 or 1) included.

    Args:
        prediction: Embeddings `[batch, ...]`.
        target: Embeddings of the same examples, of any dimensions.

    Returns:
        A scalar. The cosines come from the distances by the law of cosines, so that time grows with
        batch² · dimensions + batch³. They are visited a few vertices at a time and their gradient is found
        on the way, so that memory grows with batch² only, here and for the backward pass. Differentiate it
        once: its second derivatives are taken for zero.

    Raises:
        ValueError: The examples differ, or there are fewer than two.

    Example:
        >>> corner = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
        >>> losses = [rkd_angle(3 * corner, corner), rkd_angle(torch.eye(3), corner)]
        >>> torch.stack(losses).round(decimals=4)
        tensor([0.0000, 0.0124])

    Reference:
        Park et al.: Relational Knowledge Distillation, CVPR 2019, arXiv 1904.05068. Checked against
        lenscloth/RKD `RkdAngle`, which holds all batch³ angles and detaches the target. As in `rkd_distance`,
        equal rows are exactly that.
    """
    student, teacher = _rows("rkd_angle", 2, prediction=prediction, target=target)
    squares = [_squared_distances(student), _squared_distances(teacher)]
    sides = [(safe_sqrt(square), square) for square in squares]
    with exact(prediction):
        loss, gradients = _angle_loss([[side.detach() for side in network] for network in sides])
    # Adds zero to the value, and the gradient that is already known.
    for network, known in zip(sides, gradients, strict=True):
        for side, gradient in zip(network, known, strict=True):
            loss = loss + (gradient * (side - side.detach())).sum()
    return loss / len(student) ** 3


def hard_dark_rank(
    prediction: Tensor, target: Tensor, *, alpha: float = 3.0, beta: float = 3.0, length: int = 4
) -> Tensor:
    """Likelihood, in the student's distances, of the order of the teacher's nearest neighbours.

    ```
    loss = −mean_b Σ_{k=1..length} (s_b[π_k] − log Σ_{m=k..length} exp s_b[π_m])
    s = −alpha · d(prediction)^beta,    d as in rkd_distance
    ```

    `π` are the `length` nearest other examples in the teacher, nearest first.

    Args:
        prediction: Embeddings `[batch, ...]`.
        target: Embeddings of the same examples, of any dimensions.
        alpha: Sharpness; published 3.
        beta: Exponent of the distances; published 3.
        length: How many neighbours are ranked; published 4.

    Returns:
        A scalar, 0 for one neighbour. The target gets no gradient: only its order is read.

    Raises:
        ValueError: The examples differ, or there are not more than `length` of them.

    Example:
        >>> line = torch.tensor([[0.0], [1.0], [3.0]])
        >>> flipped = line.flip(0)
        >>> hard_dark_rank(line, line, length=2) < hard_dark_rank(flipped, line, length=2)
        tensor(True)

    Reference:
        Chen, Wang, Zhang: DarkRank: Accelerating Deep Metric Learning via Cross Sample Similarities
        Transfer, AAAI 2018, arXiv 1707.01220. Checked against lenscloth/RKD `HardDarkRank`. As in
        `rkd_distance`, equal rows have the distance 0.
    """
    name = "hard_dark_rank"
    check_number(name, "alpha", alpha)
    check_number(name, "beta", beta, above=0)
    check_integer(name, "length", length, least=1)
    student, teacher = _rows(name, length + 1, prediction=prediction, target=target)
    others = _squared_distances(teacher.detach()).fill_diagonal_(torch.inf)
    order = others.topk(length, largest=False).indices
    squares = _squared_distances(student)
    equal = squares <= 0
    powers = torch.where(equal, 0.0, torch.where(equal, 1.0, squares) ** (beta / 2))
    scores = (-alpha * powers).gather(1, order)
    # The sums over m = k..length are cumulative from the far end.
    remaining = scores.flip(1).logcumsumexp(1).flip(1)
    return poisoned((remaining - scores).sum(1).mean(), squares, others)


def pkt(prediction: Tensor, target: Tensor, *, eps: float = 1e-7) -> Tensor:
    """Kullback–Leibler divergence of the probabilities with which examples are neighbours.

    ```
    loss = mean_ij P_ij(target) log((P_ij(target) + eps) / (P_ij(prediction) + eps))
    P = rows of (cosine + 1) / 2, each divided by its sum
    ```

    Args:
        prediction: Embeddings `[batch, ...]`.
        target: Embeddings of the same examples, of any dimensions.
        eps: Added to norms and probabilities; published 1e-7.

    Returns:
        A scalar: a mean over batch², so that published weights are large (30000).

    Raises:
        ValueError: The examples differ, or there is none.

    Example:
        >>> pkt(torch.eye(3), 2 * torch.eye(3)).abs() < 1e-7
        tensor(True)

    Reference:
        Passalis, Tefas: Learning Deep Representations with Probabilistic Knowledge Transfer, ECCV 2018,
        arXiv 1803.10837. Checked against passalis/probabilistic_kt `cosine_similarity_loss`. No deviation.
    """
    name = "pkt"
    check_number(name, "eps", eps, least=0)
    student, teacher = _rows(name, prediction=prediction, target=target)

    def probabilities(rows: Tensor) -> Tensor:
        norm = torch.linalg.vector_norm(rows, dim=1, keepdim=True)
        twice = _gram(rows / (norm + eps)).clamp_min(-1) + 1
        return twice / twice.sum(1, keepdim=True)

    likely, wanted = probabilities(student), probabilities(teacher)
    return (wanted * ((wanted + eps).log() - (likely + eps).log())).mean()


def similarity_preserving(prediction: Tensor, target: Tensor) -> Tensor:
    """Mean squared difference of the batch's inner products, each row of length one.

    ```
    loss = 1/batch² · ‖R(prediction) − R(target)‖²
    R = rows of F Fᵀ, each divided by its norm
    ```

    Args:
        prediction: Features `[batch, ...]`.
        target: Features of the same examples, of any dimensions.

    Returns:
        A scalar.

    Raises:
        ValueError: The examples differ, or there is none.

    Example:
        >>> similarity_preserving(torch.eye(3), 5 * torch.eye(3))
        tensor(0.)

    Reference:
        Tung, Mori: Similarity-Preserving Knowledge Distillation, ICCV 2019, arXiv 1907.09682. Checked
        against megvii-research/mdistiller `similarity_loss`. torchdistill's `SPKDLoss` gives the rows unit
        L1 norm instead.
    """
    student, teacher = _rows("similarity_preserving", prediction=prediction, target=target)
    return F.mse_loss(safe_normalize(_gram(student)), safe_normalize(_gram(teacher)))


def cc_adjacent(prediction: Tensor, target: Tensor) -> Tensor:
    """Product of the errors of neighbours in the batch: correlation congruence as it was published.

    ```
    loss = 1/(batch − 1) · Σ_b Σ_d error[b, d] · error[b + 1, d]
    error = |prediction − target|
    ```

    Args:
        prediction: Embeddings `[batch, dimensions]`, already in the target's space (published: a linear
            layer to 128 dimensions for each network).
        target: Embeddings of the same shape.

    Returns:
        A scalar that depends on the order of the batch.

    Raises:
        ValueError: The shapes differ, or there are fewer than two examples.

    Example:
        >>> cc_adjacent(torch.tensor([[1.0], [2.0], [3.0]]), torch.zeros(3, 1))
        tensor(4.)

    Reference:
        Peng et al.: Correlation Congruence for Knowledge Distillation, ICCV 2019, arXiv 1904.01802. Checked
        against HobbitLong/RepDistiller `Correlation`, which its maintainer has from the paper's authors. It
        compares no correlation matrices, as the paper's equations do; `cc_taylor_rbf` does.
    """
    name, hint = "cc_adjacent", "Bridge one embedding first."
    student, teacher = alike(name, "batch, dimensions", hint, prediction=prediction, target=target)
    _check_examples(name, 2, prediction=prediction)
    error = (student - teacher).abs()
    return (error[:-1] * error[1:]).sum(1).mean()


def taylor_rbf(embedding: Tensor, *, gamma: float = 0.4, order: int = 2) -> Tensor:
    """A Gaussian kernel of the batch by its Taylor series: the relations of `cc_taylor_rbf`.

    ```
    K[i, j] = exp(−2γ) Σ_{p=0..order} (2γ)^p / p! · ⟨e_i, e_j⟩^p  ≈  exp(−γ ‖e_i − e_j‖²)
    ```

    Args:
        embedding: `[batch, ...]`, of length one for the approximation to hold; taken as given.
        gamma: γ; published 0.4.
        order: Highest power; published 2.

    Returns:
        `[batch, batch]`.

    Raises:
        ValueError: There is no example.

    Example:
        The norms of two public variants, on embeddings that are *not* of length one:

        >>> student, teacher = torch.eye(2), torch.ones(2, 3)
        >>> kernels = taylor_rbf(student) - taylor_rbf(teacher)
        >>> torch.linalg.matrix_norm(kernels) / len(student) ** 2
        tensor(1.0679)
        >>> products = student @ student.mT - teacher @ teacher.mT
        >>> torch.linalg.matrix_norm(products) / len(student) ** 2
        tensor(1.2748)

    Reference:
        Peng et al.: Correlation Congruence for Knowledge Distillation, ICCV 2019, arXiv 1904.01802. Checked
        against yoshitomo-matsubara/torchdistill `CCKDLoss`; no code of the authors' kernel is public.
    """
    name = "taylor_rbf"
    check_plain(name, "gamma", gamma)
    check_integer(name, "order", order, least=0)
    (rows,) = _rows(name, embedding=embedding)
    return _kernel(rows, gamma, order)


def cc_taylor_rbf(prediction: Tensor, target: Tensor, *, gamma: float = 0.4, order: int = 2) -> Tensor:
    """Correlation congruence: mean squared difference of the two networks' kernel matrices.

    ```
    loss = 1/batch² · ‖K(prediction) − K(target)‖²
    K = taylor_rbf of embeddings of length one
    ```

    Args:
        prediction: Embeddings `[batch, ...]`.
        target: Embeddings of the same examples, of any dimensions.
        gamma: γ of the kernel; published 0.4.
        order: Highest power of its series; published 2.

    Returns:
        A scalar.

    Raises:
        ValueError: The examples differ, or there is none.

    Example:
        >>> cc_taylor_rbf(torch.eye(3), 2 * torch.eye(3))
        tensor(0.)

    Reference:
        Peng et al.: Correlation Congruence for Knowledge Distillation, ICCV 2019, arXiv 1904.01802. Checked
        against AberHu/Knowledge-Distillation-Zoo `CC`, a third party's reading of the paper.
    """
    name = "cc_taylor_rbf"
    check_plain(name, "gamma", gamma)
    check_integer(name, "order", order, least=0)
    rows = _rows(name, prediction=prediction, target=target)
    student, teacher = (_kernel(safe_normalize(x), gamma, order) for x in rows)
    return F.mse_loss(student, teacher)


def linear_cka(x: Tensor, y: Tensor) -> Tensor:
    """Centred kernel alignment: how similar two features of one batch are, up to rotation and scale.

    ```
    cka = ‖Yᵀ X‖² / (‖Xᵀ X‖ · ‖Yᵀ Y‖)
    X, Y centred over the batch,    ‖·‖ the Frobenius norm
    ```

    Args:
        x: Features `[batch, ...]`.
        y: Features of the same examples, of any dimensions.

    Returns:
        A scalar between 0 and 1: a similarity, the loss is `1 - linear_cka(x, y)`. It is 1 for any two
        examples, and 0 where a feature is constant. Memory grows with the square of the batch or of the
        dimensions, whichever are fewer.

    Raises:
        ValueError: The examples differ, or there are fewer than two.

    Example:
        >>> x = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 0.0]])
        >>> linear_cka(x, 3 * x.flip(1)).round(decimals=4)
        tensor(1.)

    Reference:
        Kornblith et al.: Similarity of Neural Network Representations Revisited, ICML 2019, arXiv
        1905.00414. Checked against jayroxis/CKA-similarity `linear_CKA`, which is NaN for constant
        features. The estimator is the biased one.
    """
    x, y = (_centred_to_length_one(z) for z in _rows("linear_cka", 2, x=x, y=y))
    with exact(x):
        if len(x) <= max(x.shape[1], y.shape[1]):
            a, b = x @ x.mT, y @ y.mT
            shared = (a * b).sum()
        else:
            a, b = x.mT @ x, y.mT @ y
            shared = (y.mT @ x).square().sum()
    scale: Tensor = torch.linalg.vector_norm(a) * torch.linalg.vector_norm(b)
    return shared / (scale + (scale <= 0))


def cka_class_cost(features: Tensor, *, kappa: float = 1.0) -> Tensor:
    """What it costs to move probability between two classes: how dissimilar a network's features are.

    ```
    cost[i, j] = 1 − exp(−κ d_ij),    d_ij = 1 − linear_cka(features[i], features[j])
    ```

    Args:
        features: `[classes, samples, dimensions]`, as many samples of every class. The m-th sample of one
            class is paired with the m-th of the other, so the cost depends on their order.
        kappa: Sharpening κ; 0 gives d itself.

    Returns:
        `[classes, classes]`, zeros on the diagonal up to rounding. Memory grows with classes · samples².

    Raises:
        ValueError: The features have another layout, or a class has fewer than two samples.

    Example:
        >>> features = torch.tensor([[[1.0], [0.0], [0.0]], [[0.0], [0.0], [1.0]]])
        >>> cka_class_cost(features, kappa=0.0)
        tensor([[0.0000, 0.7500],
                [0.7500, 0.0000]])

    Reference:
        Lv, Yang, Li: Wasserstein Distance Rivals Kullback-Leibler Divergence for Knowledge Distillation,
        NeurIPS 2024, arXiv 2412.08139. Checked against JiamingLv/WKD `generate_cost_matrix.py`, which
        visits the pairs one by one.
    """
    name = "cka_class_cost"
    check_plain(name, "kappa", kappa)
    (centred,) = floats(name, "classes, samples, dimensions", features=features)
    if features.shape[1] < 2:
        raise ValueError(f"{name}: features {shape(features)} need two samples of every class.")
    centred = safe_normalize(centred - centred.mean(1, keepdim=True), (1, 2))
    with exact(features):
        kernels = safe_normalize((centred @ centred.mT).flatten(1))
        distance = 1 - kernels @ kernels.mT
    return distance if kappa == 0 else -torch.expm1(-kappa * distance)


def vrm(
    prediction: Tensor,
    target: Tensor,
    prediction_view: Tensor,
    target_view: Tensor,
    *,
    keep: float = 0.5,
    sample_weight: float = 1.0,
    class_weight: float = 1.0,
) -> Tensor:
    """Virtual relation matching: directions from real to augmented logits, between samples and classes.

    ```
    loss = sample_weight · mean_kept huber(‖e_ij − e'_ij‖)
         + class_weight · mean huber(‖f_cd − f'_cd‖)
    e_ij = (z_i − w_j) / ‖z_i − w_j‖  of rows (samples)
    f_cd = the same of columns (classes)
    ```

    `z` are logits of a batch, `w` of an augmented view of it; `e`, `f` are the student's, `e'`, `f'` the
    teacher's. Kept are the pairs with the least joint entropy of the student's two predictions, taken as
    independent. `huber(x)` is ½x² up to x = 1 and x − ½ beyond.

    Args:
        prediction: Student logits `[batch, classes]`, finite: −∞ has no direction and gives NaN.
        target: Teacher logits of the same shape.
        prediction_view: Student logits of the augmented batch, of the same shape.
        target_view: Teacher logits of the augmented batch, of the same shape.
        keep: Share of the batch² pairs that are kept, above 0 and up to 1.
        sample_weight: Weight of the relations between samples.
        class_weight: Weight of the relations between classes.

    Returns:
        A scalar. Only real × virtual pairs are formed, and from inner products, so that memory grows with
        batch² and classes², not with batch² · classes. A pair of equal logits has no direction.

    Raises:
        ValueError: The shapes differ, or the share is outside its range.

    Example:
        >>> student, view = torch.eye(3), torch.eye(3).roll(1, 0)
        >>> vrm(student, 2 * student, view, 2 * view).abs() < 1e-6
        tensor(True)

    Reference:
        Zhang et al.: VRM: Knowledge Distillation via Virtual Relation Matching, ICCV 2025, arXiv
        2502.20760. A reconstruction: no code was compared, and the weights, the share that is kept, the
        Huber distance of whole directions (not of their entries) and the equal weight of all pairs of
        classes are this library's choices.
    """
    name, hint = "vrm", "Give both networks the same two batches."
    check_plain(name, "keep", keep, above=0, most=1)
    check_finite(name, sample_weight=sample_weight, class_weight=class_weight)
    logits = {"prediction": prediction, "target": target}
    views = {"prediction_view": prediction_view, "target_view": target_view}
    z, z2, w, w2 = alike(name, "batch, classes", hint, **logits, **views)
    entropies = [crossed(log_p.exp(), log_p) for log_p in (F.log_softmax(x.detach(), dim=-1) for x in (z, w))]
    joint = entropies[0].unsqueeze(1) + entropies[1]
    dropped = joint > joint.flatten().kthvalue(max(1, round(keep * joint.numel()))).values
    errors = torch.where(dropped, 0.0, _direction_errors(z, w, z2, w2))
    samples = errors.sum() / (joint.numel() - dropped.sum())
    classes = _direction_errors(z.mT, w.mT, z2.mT, w2.mT).mean()
    return sample_weight * samples + class_weight * classes


# What the losses share


def _rows(function: str, least: int = 1, /, **embeddings: Tensor) -> list[Tensor]:
    """The embeddings of the same examples, checked, as matrices `[batch, dimensions]`."""
    checked = agreeing(function, "batch, ...", "batch", _EXAMPLES, **embeddings)
    _check_examples(function, least, **embeddings)
    return [embedding.reshape(len(embedding), -1) for embedding in checked]


def _check_examples(function: str, least: int, /, **embeddings: Tensor) -> None:
    for name, embedding in embeddings.items():
        if len(embedding) < least:
            raise ValueError(f"{function}: {name} {shape(embedding)} needs at least {least} examples.")


def _gram(rows: Tensor) -> Tensor:
    """All inner products of the rows."""
    with exact(rows):
        return rows @ rows.mT


def _squared_distances(rows: Tensor) -> Tensor:
    """All squared distances of the rows."""
    # The origin is free, so it gets no gradient, and the mean is the one that loses least to cancellation.
    products = _gram(rows - rows.detach().mean(0))
    squares = products.diagonal()
    return _apart(squares + squares.unsqueeze(1), products)


def _apart(sums: Tensor, products: Tensor) -> Tensor:
    """‖a‖² + ‖b‖² − 2⟨a, b⟩; exactly zero, without a gradient, below the precision."""
    squares = sums - 2 * products
    lost = 8 * torch.finfo(sums.dtype).eps
    return where_above_0(torch.sub(squares.detach(), sums.detach(), alpha=lost), squares)


def _centred_to_length_one(rows: Tensor) -> Tensor:
    """Of length one as a whole, so that no fourth power overflows. What follows does not see the scale, so
    that it is a constant of the derivatives."""
    centred = rows - rows.mean(0)
    length: Tensor = torch.linalg.vector_norm(centred.detach())
    return centred / (length + (length <= 1e-12))


# Angles


def _angle_loss(networks: list[list[Tensor]]) -> tuple[Tensor, list[list[Tensor]]]:
    """The sum of huber(cosine − cosine') over all triples, and its gradients, a block of vertices at a time.

    ```
    cosine at k between i and j = (d_ki² + d_kj² − d_ij²) / (2 d_ki d_kj)
    ```

    A network is its distances and their squares. The gradient of each comes as of an independent matrix.
    """
    batch = len(networks[0][0])
    block = max(1, 2**22 // batch**2)
    total = networks[0][0].new_zeros(())
    gradients = [[torch.zeros_like(side) for side in network] for network in networks]
    for start in range(0, batch, block):
        vertices = slice(start, start + block)
        inverses = [safe_inverse(distances[vertices]) for distances, _ in networks]
        products = [w.unsqueeze(2) * w.unsqueeze(1) for w in inverses]
        cosines = [
            _cosines(distances[vertices], squares, w, product)
            for (distances, squares), w, product in zip(networks, inverses, products, strict=True)
        ]
        difference = cosines[0] - cosines[1]
        slope = difference.clamp(-1, 1)
        total = total + (slope * (difference - slope / 2)).sum()
        for sign, (of_distances, of_squares), cosine, w, product in zip(
            (1, -1), gradients, cosines, inverses, products, strict=True
        ):
            pull = (slope @ w.unsqueeze(2)).squeeze(2) - w * (slope * cosine).sum(2)
            of_distances[vertices] += 2 * sign * pull
            of_squares -= sign * (slope * product).sum(0) / 2
    return total, gradients


def _cosines(distances: Tensor, squares: Tensor, inverse: Tensor, product: Tensor) -> Tensor:
    """The cosines `[vertices, batch, batch]` at some vertices, by the law of cosines."""
    ratios = distances.unsqueeze(2) * inverse.unsqueeze(1)
    return (ratios + ratios.mT - squares * product) / 2


# Kernels and directions


def _kernel(rows: Tensor, gamma: float, order: int) -> Tensor:
    """`taylor_rbf` of rows, by Horner's rule."""
    products = _gram(rows)
    kernel = torch.zeros_like(products)
    for p in reversed(range(order + 1)):
        kernel = kernel * products + exp(-2 * gamma) * (2 * gamma) ** p / factorial(p)
    return kernel


def _direction_errors(a: Tensor, b: Tensor, a2: Tensor, b2: Tensor) -> Tensor:
    """huber(‖u_ij − v_ij‖) of the unit vectors u of a_i − b_j and v of a2_i − b2_j, from inner products."""
    (a, b), (a2, b2) = _centred(a, b), _centred(a2, b2)
    with exact(a):
        mixed = (a * a2).sum(1, keepdim=True) - a @ b2.mT - a2 @ b.mT + (b * b2).sum(1)
        lengths, lengths2 = _lengths(a, b), _lengths(a2, b2)
    cosine = mixed * safe_inverse(lengths * lengths2)
    square = (lengths > 0).to(a.dtype) + (lengths2 > 0).to(a.dtype) - 2 * cosine
    distance = safe_sqrt(square)
    return F.smooth_l1_loss(distance, torch.zeros_like(distance), reduction="none")


def _centred(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Both sets of rows seen from their common mean, which changes no difference but its rounding."""
    centre = (a.detach().mean(0) + b.detach().mean(0)) / 2
    return a - centre, b - centre


def _lengths(a: Tensor, b: Tensor) -> Tensor:
    """‖a_i − b_j‖; exactly zero, without a gradient, below the precision."""
    sums = a.square().sum(1, keepdim=True) + b.square().sum(1)
    return safe_sqrt(_apart(sums, a @ b.mT))
