"""Faults that users met in losses: a wrong number, and nothing said. See test_faults."""

from functools import partial

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import fcfd
from fcfd import losses, recipes, schedules

from .faulty import close, docs, says, texts, two, words

INF, NAN = float("inf"), float("nan")
DOUBLE = torch.float64


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


# A. A loss is wrong and says nothing


def drop(columns, *tensors):
    """The tensors without some classes: what a loss is when these do not exist."""
    kept = [at for at in range(tensors[0].shape[-1]) if at not in columns]
    return [tensor[..., kept] for tensor in tensors]


PAIRS = {
    "kl": losses.kl,
    "kl at 1": partial(losses.kl, temperature=1.0),
    "kl by example": lambda s, t: losses.kl(s, t, temperature=torch.full(s.shape[:-1], 3.0, dtype=s.dtype)),
    "kd_ce": losses.kd_ce,
    "reverse_kl": losses.reverse_kl,
    "jsd": losses.jsd,
    "jsd at 0": partial(losses.jsd, beta=0.0),
    "jsd at 1": partial(losses.jsd, beta=1.0),
    "skew_forward_kl_ce": losses.skew_forward_kl_ce,
    "skew_reverse_kl": losses.skew_reverse_kl,
    "total_variation": losses.total_variation,
    "dist": losses.dist,
    "mlkd_class_corr": losses.mlkd_class_corr,
    "mlkd_batch_corr": losses.mlkd_batch_corr,
    "binary_kl": losses.binary_kl,
}


LABELLED = {
    "dkd": losses.dkd,
    "nkd": losses.nkd,
    "wsld": losses.wsld,
    "ofa": losses.ofa,
    "cross_entropy": lambda s, t, y: losses.cross_entropy(s, y),
    "tf_nkd": lambda s, t, y: losses.tf_nkd(s, y),
    "soft": lambda s, t, y: losses.cross_entropy(s, t.softmax(-1)),
}


def excluded(columns, classes=5, examples=4):
    student, teacher = torch.randn(2, examples, classes, dtype=DOUBLE)
    student[:, columns] = teacher[:, columns] = -INF
    return student.requires_grad_(), teacher


def test_A1_the_value_of_the_report():
    """−∞ in both networks was NaN."""
    value = losses.kl(torch.tensor([[1, 0, -1, -INF]]), torch.tensor([[0, 1, -1, -INF]]))
    p, q = (torch.tensor(logits).div(4).softmax(0) for logits in ([1.0, 0, -1], [0, 1.0, -1]))
    close(value, [16 * (q * (q / p).log()).sum().item()])
    close(value, [0.3709], atol=1e-4, rtol=0)


@pytest.mark.parametrize("columns", [[3], [0, 4]])
@pytest.mark.parametrize("name", [*PAIRS, *LABELLED])
def test_A1_a_class_that_both_exclude_counts_nothing(name, columns):
    """A masked vocabulary made every logit loss NaN, or its gradient."""
    labels = () if name in PAIRS else (torch.tensor([1, 2, 1, 1]),)
    loss = PAIRS.get(name) or LABELLED[name]
    student, teacher = excluded(columns)
    less = [one.detach() for one in drop(columns, student, teacher)]
    less[0].requires_grad_()
    fewer = [y - sum(c < 1 for c in columns) for y in labels]
    value, right = loss(student, teacher, *labels), loss(*less, *fewer)
    close(value.detach(), right.detach())
    (gradient,) = torch.autograd.grad(value.sum(), student)
    (wanted,) = torch.autograd.grad(right.sum(), less[0])
    close(drop(columns, gradient)[0], wanted)
    assert (gradient[:, columns] == 0).all()


@pytest.mark.parametrize("name", ["kl", "kd_ce", "jsd at 0", "kl at 1"])
def test_A1_what_the_student_alone_excludes_is_infinite_with_a_finite_gradient(name):
    """It was NaN, or its gradient was."""
    student, teacher = torch.randn(2, 4, 5, dtype=DOUBLE)
    student[:, 2] = -INF
    student.requires_grad_()
    value = PAIRS[name](student, teacher)
    (gradient,) = torch.autograd.grad(value.sum(), student)
    assert (value == INF).all()
    assert gradient.isfinite().all()


def test_A1_a_masked_vocabulary_goes_through_an_objective():
    """Both heads end in a mask of −∞: the total of a step was NaN."""

    class Masks(nn.Module):
        def __init__(self, width):
            super().__init__()
            self.head = nn.Linear(width, 5)

        def forward(self, x):
            return self.head(x).masked_fill(torch.tensor([False, False, True, False, True]), -INF)

    networks = {
        letter: fcfd.split([nn.Linear(6, width), nn.Linear(width, width), Masks(width)])
        for letter, width in ("t8", "s5")
        for width in [int(width)]
    }
    x = torch.randn(4, 6)
    nets = fcfd.link(networks, example=x)
    loss, _ = losses.fcfd(*nets.columns, x, torch.tensor([0, 1, 3, 0]), paths=nets.crossings)
    found = torch.autograd.grad(loss, list(nets.params["s"].values()))
    assert loss.isfinite()
    assert all(gradient.isfinite().all() for gradient in found)


ONE_OUTPUT = [name for name in PAIRS if name != "binary_kl"]


@pytest.mark.parametrize("name", [*ONE_OUTPUT, *LABELLED])
def test_A2_a_softmax_over_one_output_is_refused(name):
    """A regressor's label and divergence were exactly 0."""
    arguments = torch.randn(2, 4, 1)
    with pytest.raises(ValueError) as error:
        (PAIRS.get(name) or LABELLED[name])(*arguments, *([] if name in PAIRS else [torch.zeros(4).long()]))
    says(error, "one class", "squared_error", "binary_cross_entropy", "binary_kl")


@pytest.mark.parametrize("shape", [(4, 1), (4,), (4, 1, 1)])
def test_A2_float_labels_of_one_output_are_refused(shape):
    """They were accepted, and the loss was 0."""
    with pytest.raises((ValueError, TypeError)) as error:
        losses.cross_entropy(torch.randn(4, 1), torch.randn(shape))
    says(error, "cross_entropy", "squared_error")


def test_A2_a_regressor_learns_by_squared_errors():
    """`losses.fcfd` of a regressor said 0 where the error was 1.02."""
    nets, x, truth = two(outputs=1), torch.randn(4, 6), torch.randn(4, 1)
    with pytest.raises(ValueError) as error:
        losses.fcfd(*nets.columns, x, truth, paths=nets.crossings)
    says(error, "'label'", "squared_error")
    change = partial(fcfd.replaced, losses={"label": losses.squared_error, "kl": losses.squared_error})
    _, aux = losses.fcfd(*nets.columns, x, truth, paths=nets.crossings, change=change)
    close(aux.parts["label"], F.mse_loss(aux.values["sss"], truth))
    close(aux.parts["kl/stt"], F.mse_loss(aux.values["stt"], aux.values["ttt"]))


MULTI_HOT = torch.tensor([[1, 0, 1, 0], [0, 0, 0, 0], [1, 1, 1, 1.0]])


@pytest.mark.parametrize("kind", ["long", "bool", "byte", "float", "double"])
def test_A3_multi_hot_labels_are_never_probabilities(kind):
    """They were taken for probabilities: 9.29 where binary cross-entropy is 0.86."""
    logits, labels = torch.randn(3, 4), getattr(MULTI_HOT, kind)()
    if kind in ("float", "double"):
        assert losses.cross_entropy(logits, labels).isnan().all()
        assert losses.tf_nkd(logits, labels).isnan()
    else:
        for loss in (losses.cross_entropy, losses.tf_nkd):
            with pytest.raises(TypeError, match="binary_cross_entropy"):
                loss(logits, labels)
    right = F.binary_cross_entropy_with_logits(logits.double(), MULTI_HOT.double(), reduction="none").mean(-1)
    close(losses.binary_cross_entropy(logits.double(), labels), right)


@pytest.mark.parametrize("temperature", [1.0, 4.0])
@pytest.mark.parametrize("shape", [(3, 4), (3, 1), (2, 3, 4)])
def test_A3_binary_kl_is_that_of_two_outcomes(shape, temperature):
    """There was no distillation of sigmoids."""
    student, teacher = torch.randn(2, *shape, dtype=DOUBLE)
    p, q = (student / temperature).sigmoid(), (teacher / temperature).sigmoid()
    right = (q * (q / p).log() + (1 - q) * ((1 - q) / (1 - p)).log()).sum(-1) * temperature**2
    close(losses.binary_kl(student, teacher, temperature=temperature), right)


@pytest.mark.parametrize("recipe", ["fcfd", "kd", "srrl", "multi_teacher"])
def test_A3_recipes_take_binary_losses(recipe):
    """No recipe could be used with several labels at once."""
    x, labels = torch.randn(3, 6), MULTI_HOT
    nets = two(outputs=4, paths=(*fcfd.crossings(3), "ss>t", "sst"))
    binary = {"label": losses.binary_cross_entropy}
    if recipe != "srrl":
        binary["kl"] = losses.binary_kl
    change = partial(fcfd.replaced, losses=binary)
    if recipe == "fcfd":
        _, aux = losses.fcfd(*nets.columns, x, labels, paths=nets.crossings, change=change)
    else:
        terms = {
            "kd": lambda: recipes.kd(3),
            "srrl": lambda: recipes.srrl(3),
            "multi_teacher": lambda: recipes.multi_teacher({"t": recipes.kd(3)}),
        }[recipe]()
        _, aux = fcfd.objective(change(terms), *nets.columns, {"": x, "Labels": labels})
    close(aux.parts["label"], F.binary_cross_entropy_with_logits(aux.values["sss"], labels))


def test_A3_docs_say_which_loss_for_which_label():
    """People had to guess."""
    page = docs("which.md")
    for word in ("binary_cross_entropy", "binary_kl", "squared_error", "dense", "ignoring", "next_token"):
        assert word in page


COUPLED = ("dist", "mlkd_class_corr", "mlkd_batch_corr")


BY_EXAMPLE = [name for name in PAIRS if name not in ("kl by example", *COUPLED)]


@pytest.mark.parametrize("places", [(6,), (3, 4), (2, 3, 2)])
@pytest.mark.parametrize("name", BY_EXAMPLE)
def test_A4_dense_reads_the_classes_on_axis_1(name, places):
    """Width was taken for classes: 0.8996 where 0.8355 is right."""
    student, teacher = torch.randn(2, 2, 5, *places, dtype=DOUBLE)
    rows = [tensor.movedim(1, -1).reshape(2, -1, 5) for tensor in (student, teacher)]
    close(losses.dense(PAIRS[name])(student, teacher), PAIRS[name](*rows))


@pytest.mark.parametrize("places", [(6,), (3, 4), (2, 3, 2)])
@pytest.mark.parametrize("labels", ["classes", "soft", "ignored"])
def test_A4_dense_labels_are_those_of_torch(labels, places):
    """Soft labels were 3.92 where torch says 1.96, and classes were refused."""
    logits, classes = torch.randn(2, 5, *places, dtype=DOUBLE), torch.randint(5, (2, *places))
    soft = torch.randn_like(logits).softmax(1)
    if labels == "soft":
        close(losses.dense(losses.cross_entropy)(logits, soft).mean(), F.cross_entropy(logits, soft))
    elif labels == "classes":
        close(losses.dense(losses.cross_entropy)(logits, classes).mean(), F.cross_entropy(logits, classes))
    else:
        classes[:, 0] = 255
        loss = losses.dense(losses.ignoring(losses.cross_entropy, index=255))
        close(loss(logits, classes), F.cross_entropy(logits, classes, ignore_index=255))


@pytest.mark.parametrize("name", [*PAIRS, *LABELLED])
@pytest.mark.parametrize("places", [(3, 4), (2, 3, 4)])
def test_A4_a_map_without_dense_is_refused(name, places):
    """It was computed over the width."""
    arguments = list(torch.randn(2, 2, 5, *places))
    labels = [] if name in PAIRS else [torch.randint(4, (2, *places))]
    with pytest.raises(ValueError, match="dense"):
        (PAIRS.get(name) or LABELLED[name])(*arguments, *labels)


@pytest.mark.parametrize("name", ["dkd", "nkd", "wsld", "ofa", "cross_entropy"])
def test_A4_a_sequence_of_classes_is_refused_where_labels_tell(name):
    """`[batch, classes, length]` beside labels `[batch, length]`: the sentence named the wrong shape."""
    student, teacher = torch.randn(2, 2, 5, 7)
    with pytest.raises(ValueError, match="dense"):
        LABELLED[name](student, teacher, torch.randint(5, (2, 7)))


@pytest.mark.parametrize("name", COUPLED)
def test_A4_a_loss_that_couples_the_batch_takes_no_positions(name):
    """It was computed over the width."""
    student, teacher = torch.randn(2, 2, 5, 7)
    with pytest.raises(ValueError, match=r"\[batch, classes\]"):
        losses.dense(PAIRS[name])(student, teacher)


def test_A4_a_segmenter_learns_by_every_term():
    """Segmentation is everyday work."""

    def network(width):
        blocks = [nn.Sequential(nn.Conv2d(a, width, 3, padding=1), nn.ReLU()) for a in (3, width)]
        return fcfd.split([*blocks, nn.Conv2d(width, 5, 1)])

    x, labels = torch.randn(2, 3, 6, 8), torch.randint(5, (2, 6, 8))
    nets = fcfd.link({"t": network(8), "s": network(4)}, example=x)
    with pytest.raises(ValueError, match="'label'.*dense"):
        losses.fcfd(*nets.columns, x, labels, paths=nets.crossings)
    change = partial(
        fcfd.replaced, losses={"label": losses.dense(losses.cross_entropy), "kl": losses.dense(losses.kl)}
    )
    _, aux = losses.fcfd(*nets.columns, x, labels, paths=nets.crossings, change=change)
    close(aux.parts["label"], F.cross_entropy(aux.values["sss"], labels))
    logs = [(aux.values[path].double() / 4).log_softmax(1) for path in ("stt", "ttt")]
    pixels = F.kl_div(*logs, log_target=True, reduction="none").sum(1).mean() * 16
    close(aux.parts["kl/stt"], pixels.float())


def spoiled(name):
    """A loss, and its arguments: the first two are the networks'."""
    generator = torch.Generator().manual_seed(3)
    draw = partial(torch.randn, generator=generator, dtype=DOUBLE)
    maps = [draw(4, 6, 4, 4), draw(4, 6, 4, 4)]
    vectors = [draw(6, 5), draw(6, 5)]
    return {
        "vrm": [*vectors, draw(6, 5), draw(6, 5)],
        "activation_boundary": [maps[0], maps[1]],
        "attention_transfer": maps,
        "hcl": maps,
        "channel_wise_divergence": maps,
        "pkd": maps,
        "channel_stats_align": maps,
        "wkd_feature": maps,
        "inter_channel_correlation": maps,
        "nst_poly": maps,
        "squared_error": maps,
        "pooled_squared_error": maps,
        "factor_transfer": maps,
        "bn_margin": [draw(5).abs() + 0.1, draw(5)],
        "ofd": [maps[0], maps[1], draw(6)],
    }.get(name, vectors)


SOFTMAXES = words("""
    kl kd_bce binary_kl jsd dist total_variation mlkd_class_corr mlkd_batch_corr kd_quality_focal
    ea_weight channel_wise_divergence
""")  # −∞ excludes a class or a place: test_A1


ORDERS = words(
    "activation_boundary bn_margin ofd pooled_squared_error hard_dark_rank"
)  # +∞ is a number like others


OTHERS = words("""
    rkd_distance rkd_angle vrm pkt similarity_preserving cc_adjacent cc_taylor_rbf linear_cka info_nce
    factor_transfer attention_transfer hcl pkd channel_stats_align wkd_feature inter_channel_correlation
    nst_poly squared_error relative_squared_error cosine_distance srd
""")


@pytest.mark.parametrize("side", [0, 1])
@pytest.mark.parametrize(
    "name, what",
    [(name, NAN) for name in (*SOFTMAXES, *ORDERS, *OTHERS)]
    + [(name, what) for name in OTHERS for what in (INF, -INF)],
)
def test_A5_what_is_not_finite_comes_out(name, what, side):
    """One NaN gave `rkd_distance` 0.435, and finite values of others with NaN gradients."""
    arguments = [argument.clone() for argument in spoiled(name)]
    arguments[side].view(-1)[1] = what
    assert not getattr(losses, name)(*arguments).isfinite().all()


@pytest.mark.parametrize("what", [INF, -INF])
def test_A5_a_ranking_has_no_order_of_what_is_infinite(what):
    """`hard_dark_rank` ranked infinite distances."""
    student, teacher = (rows.clone() for rows in spoiled("hard_dark_rank"))
    teacher[0, 1] = what
    assert not losses.hard_dark_rank(student, teacher).isfinite()


def test_A5_energies_keep_nan():
    """A quantile and a comparison lost it."""
    energies = torch.tensor([0.0, NAN, 1, 2, 3])
    assert losses.energy_thresholds(energies).isnan().all()
    assert losses.energy_temperature(energies, torch.tensor([1.0, 2.0])).isnan().tolist() == [
        False,
        True,
        *[False] * 3,
    ]


@pytest.mark.parametrize("keep", [0.25, 1.0])
def test_A5_a_compression_keeps_nan(keep):
    """`wavelet_compress` sorted it away."""
    feature = torch.randn(2, 3, 8, 8)
    feature[1, 2, 3, 4] = NAN
    assert losses.wavelet_compress(feature, keep=keep)[1, 2].isnan().any()


TEMPERED = {
    **{
        name: getattr(losses, name)
        for name in words("""
    kl kd_ce binary_kl jsd dist mlkd_class_corr mlkd_batch_corr energy entropy ea_weight
    channel_wise_divergence info_nce
""")
    },
    **{name: getattr(losses, name) for name in words("dkd nkd wsld ofa")},
    "prototype_info_nce": losses.prototype_info_nce,
    "wkd_logit": losses.wkd_logit,
}


def tempered(name):
    if name in ("energy", "entropy"):
        return [torch.randn(4, 5)]
    if name == "channel_wise_divergence":
        return [*torch.randn(2, 2, 3, 4, 4)]
    if name == "prototype_info_nce":
        return [torch.randn(4, 5), torch.randn(3, 5), torch.tensor([0, 1, 2, 0])]
    labels = [torch.tensor([0, 1, 2, 0])] if name in ("dkd", "nkd", "wsld", "ofa", "wkd_logit") else []
    cost = [1 - torch.eye(5)] if name == "wkd_logit" else []
    return [*torch.randn(2, 4, 5), *labels, *cost]


@pytest.mark.parametrize(
    "temperature, error",
    [(0, ValueError), (-1.0, ValueError), (NAN, ValueError), (INF, ValueError), (None, TypeError),
     ("4", TypeError), (True, TypeError), (torch.ones(7), ValueError), ([4.0], TypeError)],
    ids=str,
)  # fmt: skip
@pytest.mark.parametrize("name", TEMPERED)
def test_A6_a_temperature_is_a_positive_number(name, temperature, error):
    """0 was NaN, −1 finite nonsense, None 1, and a vector gave a vector."""
    with pytest.raises(error) as found:
        TEMPERED[name](*tempered(name), temperature=temperature)
    says(found, f"{name}: temperature")


MAPS = torch.randn(2, 2, 3, 4, 4)


ROWS = torch.randn(2, 6, 5)


HYPER = [
    ("vid", "eps", -1.0, lambda eps: losses.vid(*MAPS, torch.zeros(3), eps=eps)),
    ("srd", "eps", -1.0, lambda eps: losses.srd(*ROWS, eps=eps)),
    ("pkt", "eps", -1.0, lambda eps: losses.pkt(*ROWS, eps=eps)),
    ("entropy", "eps", -1.0, lambda eps: losses.entropy(ROWS[0], eps=eps)),
    ("wkd_feature", "eps", -1.0, lambda eps: losses.wkd_feature(*MAPS, eps=eps)),
    ("hcl", "sizes", (0,), lambda sizes: losses.hcl(*MAPS, sizes=sizes)),
    ("taylor_rbf", "order", -1, lambda order: losses.taylor_rbf(ROWS[0], order=order)),
    ("cc_taylor_rbf", "order", -1, lambda order: losses.cc_taylor_rbf(*ROWS, order=order)),
    ("cc_taylor_rbf", "gamma", NAN, lambda gamma: losses.cc_taylor_rbf(*ROWS, gamma=gamma)),
    ("attention_transfer", "p", 0, lambda p: losses.attention_transfer(*MAPS, p=p)),
    ("hard_dark_rank", "length", 0, lambda length: losses.hard_dark_rank(*ROWS, length=length)),
    ("hard_dark_rank", "alpha", INF, lambda alpha: losses.hard_dark_rank(*ROWS, alpha=alpha)),
    ("wavelet_compress", "keep", 1.5, lambda keep: losses.wavelet_compress(MAPS[0], keep=keep)),
    ("vrm", "keep", 1.5, lambda keep: losses.vrm(*ROWS, *ROWS, keep=keep)),
    ("MaskedMix", "keep", 1.5, lambda keep: fcfd.bridges.MaskedMix(nn.Identity(), keep=keep)),
    ("skew_forward_kl_ce", "skew", 1.5, lambda skew: losses.skew_forward_kl_ce(*ROWS, skew=skew)),
    ("skew_reverse_kl", "skew", -0.1, lambda skew: losses.skew_reverse_kl(*ROWS, skew=skew)),
    ("jsd", "beta", -0.1, lambda beta: losses.jsd(*ROWS, beta=beta)),
    ("dist", "beta", NAN, lambda beta: losses.dist(*ROWS, beta=beta)),
    ("wkd_feature", "grid", 0, lambda grid: losses.wkd_feature(*MAPS, grid=grid)),
    ("activation_boundary", "margin", NAN, lambda margin: losses.activation_boundary(*MAPS, margin=margin)),
    ("energy_thresholds", "low_rate", 2.0, lambda rate: losses.energy_thresholds(ROWS[0, 0], low_rate=rate)),
    ("kd_quality_focal", "beta", -1.0, lambda beta: losses.kd_quality_focal(*ROWS, beta=beta)),
    ("constant", "value", NAN, lambda value: schedules.constant(0, value=value)),
    ("linear_warmup", "end", NAN, lambda end: schedules.linear_warmup(0, steps=5, end=end)),
    ("linear_warmup", "step", -5, lambda step: schedules.linear_warmup(step, steps=5)),
    ("linear_warmup", "steps", 0, lambda steps: schedules.linear_warmup(0, steps=steps)),
    ("cosine", "start", INF, lambda start: schedules.cosine(0, steps=5, start=start)),
    ("cosine", "steps", -1, lambda steps: schedules.cosine(0, steps=steps)),
    ("piecewise_constant", "values", NAN,
     lambda v: schedules.piecewise_constant(0, boundaries=(), values=(v,))),
    ("kd", "temperature", 0, lambda t: recipes.kd(3, temperature=t)),
    ("function", "temperature", -1, lambda t: recipes.function(3, ("stt",), temperature=t)),
    ("hybrid_assistant", "gamma", 0, lambda gamma: recipes.hybrid_assistant(3, gamma=gamma)),
    ("fula", "weight", NAN, lambda weight: recipes.fula("stt", weights=(weight, 1.0, 1.0))),
    ("scaled", "weights", NAN, lambda weight: fcfd.scaled(recipes.kd(2), weight)),
    ("scaled", "weights", INF, lambda weight: fcfd.scaled(recipes.kd(2), {"kl": weight})),
]  # fmt: skip


@pytest.mark.parametrize("name, argument, value, call", HYPER, ids=[f"{h[0]}-{h[1]}={h[2]}" for h in HYPER])
def test_A6_a_number_out_of_range_is_refused(name, argument, value, call):
    """Hyper-parameters were never checked: junk came out, or NaN."""
    with pytest.raises(ValueError) as error:
        call(value)
    says(error, f"{name}: ", argument)
    with pytest.raises(TypeError, match=name):
        call("1")


@pytest.mark.parametrize("momentum", [2, -0.1, NAN])
def test_A6_banks_move_by_a_share(momentum):
    """`momentum=2` diverged."""
    rows, index, others = torch.eye(4)[:2], torch.tensor([0, 1]), torch.tensor([[2, 3], [2, 3]])
    with pytest.raises(ValueError, match="crd_nce: momentum"):
        losses.crd_nce(rows, rows, index, others, losses.Banks(torch.eye(4), torch.eye(4)), momentum=momentum)


@pytest.mark.parametrize("name", ["ea_weight", "entropy"])
def test_A6_of_one_class_there_is_no_entropy(name):
    """`ea_weight` was NaN."""
    with pytest.raises(ValueError, match=name):
        getattr(losses, name)(*([torch.randn(4, 1)] * (2 if name == "ea_weight" else 1)))


def test_A6_tensors_are_not_read():
    """A check of a tensor's value would wait for the device: on meta it would fail."""
    logits = torch.randn(4, 5, device="meta")
    temperature = torch.ones((), device="meta")
    assert losses.kl(logits, logits, temperature=temperature).shape == (4,)
    fcfd.scaled(recipes.kd(2), temperature)


TWO_TENSORS = words("""
    kl kd_ce kd_bce binary_kl reverse_kl jsd skew_forward_kl_ce skew_reverse_kl total_variation dist
    mlkd_class_corr mlkd_batch_corr rkd_distance rkd_angle hard_dark_rank pkt similarity_preserving
    cc_adjacent cc_taylor_rbf linear_cka squared_error relative_squared_error pooled_squared_error
    cosine_distance factor_transfer activation_boundary attention_transfer hcl channel_wise_divergence
    pkd channel_stats_align wkd_feature inter_channel_correlation nst_poly srd info_nce ea_weight
    kd_quality_focal
""")


def floats_of(name):
    return [tensor.float() for tensor in spoiled(name)]


@pytest.mark.parametrize("name", TWO_TENSORS)
def test_A7_only_floating_point_tensors_are_features_and_logits(name):
    """uint8 wrapped around, complex passed, None and lists ended in an AttributeError."""
    loss, (prediction, target) = getattr(losses, name), floats_of(name)[:2]
    wrong = [prediction.byte(), prediction.long(), prediction > 0, prediction.to(torch.complex64), None,
             prediction.tolist(), prediction.numpy(), "feature", 1.0]  # fmt: skip
    for value in wrong:
        for arguments in ((value, target), (prediction, value)):
            with pytest.raises(TypeError) as error:
                loss(*arguments)
            says(error, f"{name}: ")


@pytest.mark.parametrize("name", TWO_TENSORS)
def test_A7_types_mix_and_meta_works(name):
    """float64 beside float32 failed in some losses, and 18 failed on meta."""
    loss, (prediction, target) = getattr(losses, name), spoiled(name)[:2]
    right = loss(prediction.float().double(), target)
    for mixed in (loss(prediction.float(), target), loss(prediction.bfloat16().float(), target.bfloat16())):
        assert mixed.isfinite().all()
    close(loss(prediction.float(), target).double(), right, rtol=1e-5, atol=1e-6)
    shape = loss(prediction.to("meta"), target.to("meta")).shape
    assert shape == right.shape


@pytest.mark.parametrize("name", ["cross_entropy", "dkd", "nkd", "wsld", "ofa", "tf_nkd"])
@pytest.mark.parametrize("dtype", [torch.bool, torch.float32, torch.complex64])
def test_A7_classes_are_integers(name, dtype):
    """bool labels counted as classes 0 and 1."""
    with pytest.raises(TypeError) as error:
        LABELLED[name](*torch.randn(2, 4, 5), torch.tensor([0, 1, 1, 0]).to(dtype))
    says(error, f"{name}: labels")


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int16, torch.int32])
def test_A7_any_integer_is_a_class(dtype):
    """Small integers are what data sets hold."""
    logits, labels = torch.randn(4, 5), torch.tensor([0, 4, 1, 2])
    close(losses.cross_entropy(logits, labels.to(dtype)), F.cross_entropy(logits, labels, reduction="none"))


@pytest.mark.parametrize("weight", [torch.ones(2), [1.0], "1", None, True], ids=str)
@pytest.mark.parametrize("where", ["weighted_sum", "scaled"])
def test_A7_a_weight_is_one_number(where, weight):
    """A vector was summed."""
    terms = recipes.kd(2)
    parts = {name: torch.tensor(1.0) for name in terms}
    weighted = {name: term._replace(weight=weight) for name, term in terms.items()}
    calls = {
        "scaled": lambda: fcfd.scaled(terms, {"kl": weight}),
        "weighted_sum": lambda: fcfd.weighted_sum(weighted, parts),
    }
    with pytest.raises((TypeError, ValueError), match=where):
        calls[where]()


@pytest.mark.parametrize("index", [-100, 255, 0])
@pytest.mark.parametrize("shape", [(6,), (2, 5)])
def test_A8_ignored_labels_count_nothing(shape, index):
    """−100 was `RuntimeError: index -100 is out of bounds`."""
    logits = torch.randn(*shape, 7, dtype=DOUBLE).requires_grad_()
    labels = torch.randint(7, shape)
    labels.view(-1)[[0, 3]] = index
    value = losses.ignoring(losses.cross_entropy, index=index)(logits, labels)
    right = F.cross_entropy(logits.reshape(-1, 7), labels.reshape(-1), ignore_index=index)
    close(value.detach(), right.detach())
    found, wanted = (torch.autograd.grad(one, logits)[0] for one in (value, right))
    close(found, wanted)


@pytest.mark.parametrize("name", ["dkd", "nkd", "wsld"])
def test_A8_other_losses_that_read_labels_ignore_them_too(name):
    """Every loss that reads labels failed by them."""
    student, teacher, labels = *torch.randn(2, 6, 5, dtype=DOUBLE), torch.tensor([0, -100, 3, 1, -100, 4])
    kept = labels >= 0
    value = losses.ignoring(LABELLED[name])(student, teacher, labels)
    close(value, LABELLED[name](student[kept], teacher[kept], labels[kept]).mean())


def test_A8_nothing_that_counts_is_zero():
    """A batch without one label would be NaN."""
    logits = torch.randn(2, 3, 5).requires_grad_()
    value = losses.ignoring(losses.cross_entropy)(logits, torch.full((2, 3), -100))
    assert value == 0
    assert (torch.autograd.grad(value, logits)[0] == 0).all()


@pytest.mark.parametrize("index", [-100, 3, 1000])
@pytest.mark.parametrize("recipe", ["fcfd", "srrl", "hybrid_assistant"])
def test_A8_a_label_out_of_range_names_the_term(recipe, index):
    """The error named no term."""
    nets = two(paths=(*fcfd.crossings(3), "s>t", "ss>t", "sst"))
    x, labels = torch.randn(4, 6), torch.tensor([0, index, 1, 2])
    if recipe == "fcfd":
        call = partial(losses.fcfd, *nets.columns, x, labels, paths=nets.crossings)
    else:
        call = partial(fcfd.objective, getattr(recipes, recipe)(3), *nets.columns, {"": x, "Labels": labels})
    with pytest.raises(ValueError, match="evaluate: term 'label', 'sss' towards 'Labels'"):
        call()


def test_A8_a_recipe_ignores_labels_and_masks_what_has_none():
    """Padding of a tokeniser went through no recipe."""
    nets, data, ids = texts()

    def language(terms):
        terms = fcfd.replaced(terms, {"label": losses.ignoring(losses.cross_entropy)})
        return fcfd.masked(terms, {"kl": "Mask"})

    _, aux = losses.fcfd(*nets.columns, ids, data, paths=nets.crossings, change=language)
    kept, logits = data["Mask"].bool(), {path: aux.values[path] for path in ("sss", "ttt", "stt")}
    close(aux.parts["label"], F.cross_entropy(logits["sss"][kept], ids[kept]))
    for name, path in (("kl/student", "sss"), ("kl/stt", "stt")):
        close(aux.parts[name], losses.kl(logits[path][kept], logits["ttt"][kept]).mean())
