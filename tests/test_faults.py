"""Faults that users met, one test or more for each, named after its entry in the list: a regression suite.

Every entry stands for a kind. The first cases of a test are the reported ones; the others are relatives.
What is right comes from torch's own functions, from a plain loop, or is written out by hand.
"""

import itertools
import math
import threading
from collections import OrderedDict, UserDict, namedtuple
from contextlib import contextmanager
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

import fcfd
from fcfd import losses, recipes, schedules
from fcfd.terms import Term

from .nets import batch, pair, stages
from .purity import assert_unchanged, snapshot

INF, NAN = float("inf"), float("nan")
DOUBLE = torch.float64


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


@contextmanager
def untouched(*things):
    """Fail if modules or tensors change; random numbers may be drawn."""
    before = snapshot(*things)
    yield
    torch.set_rng_state(before[0])
    assert_unchanged(before, *things)


def close(a, b, **options):
    torch.testing.assert_close(a, torch.as_tensor(b, dtype=a.dtype), **options)


def says(error, *words):
    text = str(error.value)
    assert all(word in text for word in words), text


def layers(*sizes, act=nn.ReLU):
    """A network of vectors, in stages."""
    pairs = list(itertools.pairwise(sizes))
    blocks = [nn.Sequential(nn.Linear(a, b), act()) for a, b in pairs[:-1]]
    return fcfd.split([*blocks, nn.Linear(*pairs[-1])])


def two(outputs=3, student_outputs=None, **options):
    """A linked pair of three stages that read vectors of six."""
    networks = {"t": layers(6, 8, 8, outputs), "s": layers(6, 5, 5, student_outputs or outputs)}
    return fcfd.link(networks, example=torch.randn(2, 6), **options)


# M. Modules that are changed


def aliased(kind):
    layer = nn.Linear(4, 4)
    if kind == "twice in a row":
        return nn.Sequential(layer, nn.ReLU(), layer)
    if kind == "three names":
        return nn.Sequential(layer, layer, nn.Sequential(nn.Tanh(), layer))
    if kind == "a block":
        block = nn.Sequential(layer, nn.Tanh())
        return nn.Sequential(block, nn.Sequential(block, nn.Linear(4, 4)))
    if kind == "a tied weight":
        other = nn.Linear(4, 4)
        other.weight = layer.weight
        return nn.Sequential(layer, nn.ReLU(), other)
    if kind == "a norm":
        norm = nn.BatchNorm1d(4)
        return nn.Sequential(norm, layer, norm)
    model = nn.Sequential(layer, nn.Linear(4, 4))  # a tied buffer
    model[0].register_buffer("scale", torch.ones(4))
    model[1].register_buffer("scale", model[0].scale)
    return model


ALIASED = ["twice in a row", "three names", "a block", "a tied weight", "a norm", "a tied buffer"]


@pytest.mark.parametrize("kind", ALIASED)
def test_M1_a_module_under_two_names_keeps_its_parameters(kind):
    """A call left a plain tensor, or a wrapper of torch.func, in the place of a parameter."""
    model, x = aliased(kind).double(), torch.randn(3, 4, dtype=DOUBLE)
    other = {name: torch.randn_like(tensor) for name, tensor in model.named_parameters()}
    state = dict(model.named_buffers())
    run = fcfd.stage(model)
    with untouched(model):
        y, _ = run(other, state, x)
        found = torch.func.grad(lambda own: run(own, state, x)[0].square().sum())(other)
    leaves = {name: tensor.clone().requires_grad_() for name, tensor in other.items()}
    right = torch.func.functional_call(
        aliased(kind).double(), (leaves, {n: b.clone() for n, b in state.items()}), x
    )
    close(y, right.detach())
    for name, gradient in zip(
        leaves, torch.autograd.grad(right.square().sum(), list(leaves.values())), strict=True
    ):
        close(found[name], gradient)


@pytest.mark.parametrize(
    "kind", ["twice in a row", "three names", "a block", "a tied weight", "a tied buffer"]
)
@pytest.mark.parametrize("by", ["hand", "split"])
def test_M1_a_teacher_with_an_aliased_block_is_left_alone(kind, by):
    """After a step of `losses.fcfd` a frozen teacher had lost its parameters."""
    teacher = nn.Sequential(nn.Linear(6, 4), aliased(kind), nn.Linear(4, 4), nn.Linear(4, 3))
    student = nn.Sequential(*[nn.Linear(a, b) for a, b in ((6, 5), (5, 5), (5, 5), (5, 3))])
    x, labels = torch.randn(4, 6), torch.tensor([0, 1, 2, 0])
    with untouched(teacher, student):
        names = ["0", "1", "2"]
        networks = {
            letter: fcfd.split(list(model)) if by == "hand" else fcfd.split(model, names, example=x)
            for letter, model in (("t", teacher), ("s", student))
        }
        nets = fcfd.link(networks, example=x)
        loss, _ = losses.fcfd(*nets.columns, x, labels, paths=nets.crossings)
        torch.autograd.grad(loss, list(nets.params["s"].values()))
    assert (
        all(isinstance(tensor, nn.Parameter) for tensor in teacher.state_dict(keep_vars=True).values())
        or kind == "a tied buffer"
    )


@pytest.mark.parametrize("times", [2, 3])
def test_M1_a_norm_that_runs_several_times_counts_as_often_as_in_the_model(times):
    """After three steps the module counted 1 and the plain model 6."""

    def build():
        torch.manual_seed(1)
        norm = nn.BatchNorm1d(4)
        return nn.Sequential(*[part for _ in range(times) for part in (norm, nn.Linear(4, 4))]).double()

    model, plain = build(), build()
    network = fcfd.split([model, nn.Linear(4, 2).double()])
    for _ in range(3):
        x = torch.randn(5, 4, dtype=DOUBLE)
        _, written = network.stages[0](network.params, network.buffers, x)
        fcfd.write_buffers_(nn.ModuleDict({"0": model}), written)
        plain(x)
    assert network.buffers["0.0.num_batches_tracked"] == plain[0].num_batches_tracked == 3 * times
    close(model[0].running_var, plain[0].running_var)


@pytest.mark.parametrize("norm", [nn.BatchNorm1d, nn.SyncBatchNorm, partial(nn.BatchNorm1d, momentum=None)])
def test_M1_a_norm_of_two_stages_is_refused_in_training_alone(norm):
    """Its statistics leaked from one stage to the other."""
    shared = norm(4)
    one, two = nn.Sequential(nn.Linear(4, 4), shared), nn.Sequential(shared, nn.Linear(4, 2))
    network = fcfd.split([one, two])
    x = torch.randn(3, 4)
    with pytest.raises(ValueError) as error:
        network.stages[0](network.params, network.buffers, x)
    says(error, "split", "stages 0 and 1", "Make those one stage")
    one.eval(), two.eval()
    close(network.stages[0](network.params, network.buffers, x)[0], one(x))


class Checkpointing(nn.Module):
    """A block that recomputes itself."""

    def __init__(self, inner, reentrant=False):
        super().__init__()
        self.inner, self.reentrant = inner, reentrant

    def forward(self, x):
        return checkpoint(self.inner, x, use_reentrant=self.reentrant)


def checkpointing(kind):
    inner = nn.Sequential(nn.Linear(6, 6), nn.BatchNorm1d(6), nn.Tanh())
    if kind == "in parts":

        class Parts(nn.Module):
            def __init__(self):
                super().__init__()
                self.inner = inner

            def forward(self, x):
                return torch.utils.checkpoint.checkpoint_sequential(self.inner, 2, x, use_reentrant=False)

        return Parts()
    if kind == "deep":
        return nn.Sequential(nn.Sequential(Checkpointing(inner)), nn.ReLU())
    return Checkpointing(inner, reentrant=kind == "reentrant")


@pytest.mark.parametrize("kind", ["plain", "reentrant", "in parts", "deep"])
def test_M2_a_model_that_recomputes_itself_is_refused(kind):
    """Backward recomputed with the module's own tensors: other gradients without an error."""
    model = nn.Sequential(nn.Linear(6, 6), checkpointing(kind), nn.Linear(6, 3))
    with untouched(model):
        with pytest.raises(ValueError) as error:
            fcfd.split(model, ["0", "1"], example=torch.randn(4, 6))
        says(error, "split", "recomputes", "Turn it off", "fcfd.checkpointed")


@pytest.mark.parametrize("kind", ["plain", "reentrant", "in parts", "deep"])
@pytest.mark.parametrize("way", ["stage", "by hand"])
def test_M2_the_backward_pass_of_a_stage_fails_or_is_right(kind, way):
    """With other parameters the gradient was off by 6.6×, and running statistics moved."""
    model = checkpointing(kind)
    run = fcfd.stage(model) if way == "stage" else fcfd.split([model]).stages[0]
    prefix = "" if way == "stage" else "0."
    params = {f"{prefix}{name}": torch.randn_like(p).requires_grad_() for name, p in model.named_parameters()}
    state = {f"{prefix}{name}": buffer for name, buffer in model.named_buffers()}
    with untouched(model):
        x = torch.randn(4, 6).requires_grad_()
        y, _ = run(params, state, x)
        with pytest.raises(RuntimeError, match="meta"):
            y.square().sum().backward()


def test_M2_gradient_checkpointing_of_transformers_is_refused_and_works_when_off():
    """A BERT in training with `gradient_checkpointing_enable` gave wrong gradients."""
    model = bert().train()
    model.activation_checkpointing_enable()
    ids = torch.randint(20, (2, 7))
    with pytest.raises(ValueError, match="recomputes") as error:
        fcfd.split(model, ["bert.encoder.layer.0"], example={"input_ids": ids}, exact=False)
    says(error, "split", "fcfd.checkpointed")
    model.activation_checkpointing_disable()
    assert fcfd.split(model.eval(), ["bert.encoder.layer.0"], example={"input_ids": ids}, exact=False).stages


def bert(width=16, layers=2, vocabulary=20, labels=None):
    transformers = text_models()
    config = transformers.BertConfig(
        vocab_size=vocabulary,
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=2,
        intermediate_size=16,
        max_position_embeddings=16,
        **({} if labels is None else {"num_labels": labels}),
    )
    kind = transformers.BertForMaskedLM if labels is None else transformers.BertForSequenceClassification
    return kind(config).eval()


def text_models():
    from reference.torchvision_cpu import prepare

    prepare()
    return pytest.importorskip("transformers")


def convolutional(width=4):
    return nn.Sequential(*stages(width))


EDITS = {
    "a classifier": lambda m: m[3].__setitem__(2, nn.Linear(16, 10)),
    "a block": lambda m: m.__setitem__(1, stages(4)[1]),
    "a layer deep inside": lambda m: m[1].__setitem__(0, nn.Conv2d(4, 8, 3, 2, 1)),
    "an activation": lambda m: m[0].__setitem__(2, nn.Tanh()),
}


@pytest.mark.parametrize("edit", EDITS)
@pytest.mark.parametrize("way", ["split", "by hand", "stage"])
def test_M3_a_module_that_was_replaced_after_the_split_is_refused(edit, way):
    """The stages ran the old one without a word."""
    model = convolutional()
    x = batch(dtype=torch.float32)[0]
    if way == "stage":
        run = fcfd.stage(model)
        call = lambda: run(dict(model.named_parameters()), dict(model.named_buffers()), x)  # noqa: E731
    else:
        network = fcfd.split(model, ["0", "1", "2"], example=x) if way == "split" else fcfd.split(list(model))
        call = lambda: fcfd.walk(("s", "ss", "sss", "ssss"), *columns(network), {"": x})  # noqa: E731
    call()
    EDITS[edit](model)
    if way == "by hand" and edit == "a block":
        return  # the list was the user's own
    with pytest.raises(ValueError, match="again"):
        call()


def columns(network, letter="s"):
    return {letter: network.stages}, {letter: network.params}, {letter: network.buffers}


def test_M3_docs_say_that_edits_come_first():
    """Hooks, patched forwards and replaced parameters after a split did nothing, and nobody was told."""
    for function in (fcfd.split, fcfd.stage):
        assert "edit the m" in function.__doc__
    model, x = convolutional(), batch(dtype=torch.float32)[0]
    network = fcfd.split(model, ["0", "1", "2"], example=x)
    right = fcfd.walk(("s",), *columns(network), {"": x})[0]["s"]
    model[0].register_forward_hook(lambda *_: torch.zeros(1))
    close(fcfd.walk(("s",), *columns(network), {"": x})[0]["s"], right)


@pytest.mark.parametrize("lazy", [nn.LazyConv2d(4, 3), nn.LazyLinear(4), nn.LazyBatchNorm2d()])
@pytest.mark.parametrize("way", ["stage", "by hand", "split", "inside"])
def test_M4_a_lazy_module_is_refused(lazy, way):
    """The first run made the shapes of the user's own module."""
    calls = {
        "stage": lambda: fcfd.stage(lazy),
        "by hand": lambda: fcfd.split([lazy, nn.ReLU()]),
        "split": lambda: fcfd.split(nn.Sequential(lazy, nn.ReLU()), example=torch.randn(2, 3, 8, 8)),
        "inside": lambda: fcfd.stage(nn.Sequential(nn.Sequential(lazy))),
    }
    with pytest.raises(ValueError, match="lazy") as error:
        calls[way]()
    says(error, "Run it once")
    assert any(nn.parameter.is_lazy(tensor) for tensor in (*lazy.parameters(), *lazy.buffers()))


class Flips(nn.Module):
    """A forward that changes modes, attributes and the gradient flags of its own parts."""

    def __init__(self, how):
        super().__init__()
        self.child, self.head, self.how, self.calls = nn.BatchNorm1d(6), nn.Linear(6, 3), how, 0

    def forward(self, x):
        if self.how == "eval":
            self.child.eval()
        elif self.how == "train of all":
            self.train(not self.training)
        elif self.how == "counts":
            self.calls += 1
        else:
            self.seen = x
        return self.head(self.child(x))


@pytest.mark.parametrize("how", ["eval", "train of all", "counts", "keeps"])
@pytest.mark.parametrize("mode", [True, False])
def test_M4_a_forward_that_changes_its_own_module_changes_nothing(how, mode):
    """A forward that calls `self.child.eval()` flipped the user's module."""
    model = Flips(how).train(mode)
    with untouched(model):
        network = fcfd.split([nn.Linear(6, 6), model])
        x = torch.randn(4, 6)
        for _ in range(2):
            fcfd.walk(("s", "ss"), *columns(network), {"": x})
            fcfd.stage(model)(dict(model.named_parameters()), dict(model.named_buffers()), x)


@pytest.mark.parametrize("way", ["by hand", "split", "stage"])
def test_M4_threads_on_one_model_do_not_meet(way):
    """Two threads gave wrong results and left foreign tensors in the module."""
    model = nn.Sequential(*[nn.Linear(8, 8) for _ in range(3)]).double()
    x = torch.randn(4, 8, dtype=DOUBLE)
    network = {
        "by hand": lambda: fcfd.split(list(model)),
        "split": lambda: fcfd.split(model, ["0", "1"], example=x),
        "stage": lambda: SimpleNamespace(stages=(fcfd.stage(model),), buffers={}),
    }[way]()
    wrong = []
    with untouched(model):

        def work(seed):
            generator = torch.Generator().manual_seed(seed)
            own = {
                n: torch.randn(p.shape, generator=generator, dtype=DOUBLE)
                for n, p in model.named_parameters()
            }
            with torch.no_grad():
                right = torch.func.functional_call(
                    nn.Sequential(*[nn.Linear(8, 8) for _ in range(3)]).double(), own, x
                )
                for _ in range(40):
                    y = x
                    for run in network.stages:
                        y = run(own, network.buffers, y)[0]
                    if not torch.allclose(y, right):
                        wrong.append(seed)

        threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not wrong


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
    value = losses.kl(torch.tensor([[1, 0, -1, -INF]]), torch.tensor([[0, 1, -1, -INF]]), temperature=1.0)
    p, q = torch.tensor([1.0, 0, -1]).softmax(0), torch.tensor([0, 1.0, -1]).softmax(0)
    close(value, [(q * (q / p).log()).sum().item()])
    close(value, [0.3709], atol=1e-4, rtol=0)


@pytest.mark.parametrize("columns", [[3], [0, 4]])
@pytest.mark.parametrize("name", [*PAIRS, *LABELLED])
def test_A1_a_class_that_both_exclude_counts_nothing(name, columns):
    """A masked vocabulary made every logit loss NaN, or its gradient."""
    if name in ("mlkd_class_corr",):
        pytest.skip("sums squares over classes, of which one more with probability 0 adds nothing but itself")
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


def docs(name):
    from pathlib import Path

    return (Path(__file__).parent.parent / "docs" / name).read_text()


DENSE_PAIRS = [name for name in PAIRS if name != "kl by example"]


@pytest.mark.parametrize("places", [(6,), (3, 4), (2, 3, 2)])
@pytest.mark.parametrize("name", DENSE_PAIRS)
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


@pytest.mark.parametrize("name", LABELLED)
def test_A4_a_sequence_of_classes_is_refused_where_labels_tell(name):
    """`[batch, classes, length]` beside labels `[batch, length]`: the sentence named the wrong shape."""
    if name == "soft":
        pytest.skip("there are no labels that tell")
    student, teacher = torch.randn(2, 2, 5, 7)
    with pytest.raises(ValueError, match="dense"):
        LABELLED[name](student, teacher, torch.randint(5, (2, 7)))


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
