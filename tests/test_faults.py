"""Faults that users met, one test or more for each, named after its entry in the list: a regression suite.

Every entry stands for a kind. The first cases of a test are the reported ones; the others are relatives.
What is right comes from torch's own functions, from a plain loop, or is written out by hand. Here are the
entries about networks: modules that change (M), layouts (B), batches (C), and the awkward (E). Losses (A) are
in test_faults_of_losses, errors (D) in test_faults_of_errors.
"""

import copy
import itertools
import math
import pickle
import threading
import types
from collections import OrderedDict
from contextlib import suppress
from functools import partial
from types import MappingProxyType

import numpy as np
import pytest
import torch
from torch import nn
from torch.distributed import HashStore  # type: ignore[attr-defined]
from torch.nn import functional as F

import fcfd
from fcfd import losses, recipes

from .faulty import (
    ALIASED,
    ALIASES,
    AROUND,
    CONSTRAINTS,
    MEMORIES,
    REGISTERING,
    SHARED,
    Box,
    Constrained,
    Flips,
    Holds,
    Mapped,
    Masked,
    Registers,
    Remembers,
    Tokens,
    Video,
    aliased,
    bert,
    berts,
    checkpointing,
    close,
    columns,
    convolutional,
    delta,
    docs,
    layers,
    linked_sounds,
    reading_around,
    reads_held,
    says,
    sharing,
    sound,
    t5,
    t5_batch,
    text_models,
    texts,
    two,
    two_inputs,
    untouched,
    vit,
    words,
)
from .nets import batch, stages

INF, NAN = float("inf"), float("nan")
DOUBLE = torch.float64


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


# M. Modules that are changed


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


def test_M1_one_bridge_at_two_places_is_refused():
    """A bridge of one's own that stands at two depths is an aliased module, too: its dict lacked a name."""
    own = nn.Linear(5, 8)
    with pytest.raises(ValueError, match="link: your bridge 's>t' stands at another path, too"):
        two(bridges={"s>t": own, "ss>t": own})


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


@pytest.mark.parametrize("kind", SHARED)
@pytest.mark.parametrize("way", ["split", "by hand", "joined", "compiled", "checkpointed"])
def test_M1_a_module_with_buffers_in_several_stages_counts_as_in_the_model(way, kind):
    """Its statistics leaked from one stage to the other, counted one of them, or were refused."""
    if (way, kind) == ("compiled", "cumulative"):
        pytest.skip("torch reads the count of such a norm on the host, which no graph can")
    model, plain, x = sharing(kind), sharing(kind), torch.randn(5, 6, dtype=DOUBLE)
    network = fcfd.split(model, ["0", "1"], example=x) if way == "split" else fcfd.split(list(model))
    column = {
        "joined": lambda stages: fcfd.joined(stages, (1, 3)),
        "compiled": lambda stages: fcfd.compiled(stages, backend="aot_eager"),
        "checkpointed": fcfd.checkpointed,
    }.get(way, lambda stages: stages)(network.stages)
    path = "s" * len(column)
    buffers = {"s": network.buffers}
    for _ in range(3):
        x = torch.randn(5, 6, dtype=DOUBLE)
        with untouched(model):
            values, written = fcfd.walk(
                fcfd.plan((path,)), {"s": column}, {"s": network.params}, buffers, {"": x}
            )
        close(values[path], plain(x))
        fcfd.write_buffers_(model, fcfd.merge_buffers(buffers, written)["s"])
        for (name, found), (_, right) in zip(model.named_buffers(), plain.named_buffers(), strict=True):
            close(found, right, msg=name)
    model.eval(), plain.eval()
    values, written = fcfd.walk(fcfd.plan((path,)), {"s": column}, {"s": network.params}, buffers, {"": x})
    close(values[path], plain(x))


def test_M1_on_a_crossed_path_a_stage_reads_what_its_network_wrote_on_this_path():
    """Its second use reads the statistics from before the step, unless the first is on the same path."""
    networks = {letter: fcfd.split(list(sharing("counts"))) for letter in "st"}
    stages, params, buffers = (
        {letter: network[at] for letter, network in networks.items()} for at in range(3)
    )
    bridge = fcfd.stage(nn.Identity())
    both = {"s>t": (bridge,) * 2, "t>s": (bridge,) * 2}
    nothing = {"s>t": {}, "t>s": {}}
    x = torch.randn(5, 6, dtype=DOUBLE)
    walked = fcfd.plan(("sss", "stt", "sst", "sts"))
    _, written = fcfd.walk(walked, stages | both, params | nothing, buffers | nothing, {"": x})
    counts = {path: int(own["0.1.count"]) for path, own in written.items() if own}
    assert counts == {"s": 1, "ss": 2, "sss": 3, "st": 1, "stt": 2, "sst": 1, "sts": 2}
    merged = fcfd.merge_buffers(buffers | nothing, written)
    assert merged["s"]["0.1.count"] == 3
    assert merged["t"]["0.1.count"] == 0


def test_M1_what_a_container_counts_is_not_counted_by_every_stage():
    """Each stage of a split runs the container's forward from its beginning."""

    class Counts(nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.inner, self.head = inner, nn.Linear(4, 3)
            self.register_buffer("count", torch.tensor(0))
            self.register_buffer("mean", torch.zeros(4, dtype=DOUBLE))

        def forward(self, x):
            self.count += 1
            for layer in self.inner:
                x = layer(x)
                self.mean = 0.9 * self.mean + 0.1 * x.detach().mean(0) * self.count
            return self.head(x + self.mean)

    torch.manual_seed(1)
    model = Counts(nn.ModuleList([nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)])).double()
    x, plain = torch.randn(5, 4, dtype=DOUBLE), copy.deepcopy(model)
    with pytest.raises(ValueError, match="differs from the model"):
        fcfd.split(model, ["inner.0", "inner.1"], example=x)  # the mean of what a stage does not see
    model.mean = None
    model.forward = partial(counting, model)
    network = fcfd.split(model, ["inner.0", "inner.1"], example=x)
    _, written = fcfd.walk(("s", "ss", "sss"), *columns(network), {"": x})
    assert fcfd.merge_buffers({"s": network.buffers}, written)["s"]["count"] == 1
    assert plain.count == 0


def counting(model, x):
    model.count += 1
    for layer in model.inner:
        x = layer(x)
    return model.head(x * model.count)


def test_M1_bridges_share_parameters_but_no_statistics():
    """The second lacked an entry; and of two statistics one would have counted."""
    shared = nn.Linear(5, 8)
    own = {"s>t": nn.Sequential(shared, nn.ReLU()), "ss>t": nn.Sequential(nn.Tanh(), shared)}
    nets = two(bridges=own)
    x, labels = torch.randn(4, 6), torch.tensor([0, 1, 2, 0])
    loss, aux = losses.fcfd(*nets.columns, x, labels, paths=())
    close(aux.values["ss>t"], own["ss>t"](aux.values["ss"]))
    loss.backward()
    assert shared.weight.grad is not None
    norm = nn.BatchNorm1d(8)
    with pytest.raises(ValueError, match="'s>t' and 'ss>t' share the buffer '1.running_mean'") as error:
        two(bridges={"s>t": nn.Sequential(shared, norm), "ss>t": nn.Sequential(nn.Linear(5, 8), norm)})
    says(error, "link", "Give each its own")


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
def test_M2_the_backward_pass_of_a_stage_is_refused(kind, way):
    """With other parameters the gradient was off by 6.6×, and running statistics moved."""
    model = checkpointing(kind)
    run = fcfd.stage(model) if way == "stage" else fcfd.split([model]).stages[0]
    prefix = "" if way == "stage" else "0."
    params = {f"{prefix}{name}": torch.randn_like(p).requires_grad_() for name, p in model.named_parameters()}
    state = {f"{prefix}{name}": buffer for name, buffer in model.named_buffers()}
    with untouched(model):
        x = torch.randn(4, 6).requires_grad_()
        y, _ = run(params, state, x)
        with pytest.raises(ValueError, match="when its call is over") as error:
            y.square().sum().backward()
        says(error, "stage", "torch.utils.checkpoint", "turn that off", "fcfd.checkpointed")


def test_M2_a_function_that_is_recomputed_without_modules_is_refused():
    """Weights that a closure reads: no module is run again."""

    class Closure(nn.Linear):
        def forward(self, x):
            return torch.utils.checkpoint.checkpoint(
                lambda h: F.linear(h, self.weight, self.bias).tanh(), x, use_reentrant=False
            )

    model = Closure(6, 6)
    y, _ = fcfd.stage(model)(dict(model.named_parameters()), {}, torch.randn(4, 6))
    with untouched(model), pytest.raises(ValueError, match="fcfd.checkpointed"):
        y.sum().backward()


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


EDITS = {
    "a classifier": lambda m: m[3].__setitem__(2, nn.Linear(16, 10)),
    "a block": lambda m: m.__setitem__(1, stages(4)[1]),
    "a layer deep inside": lambda m: m[1].__setitem__(0, nn.Conv2d(4, 8, 3, 2, 1)),
    "an activation": lambda m: m[0].__setitem__(2, nn.Tanh()),
    "a module less": lambda m: m[3].__delitem__(0),
}


@pytest.mark.parametrize("edit", EDITS)
@pytest.mark.parametrize("way", ["split", "by hand", "stage"])
def test_M3_a_module_that_was_replaced_after_the_split_is_refused(edit, way):
    """The stages ran the old one without a word."""
    model = convolutional()
    x = batch(dtype=torch.float32)[0]
    if way == "stage":
        run = fcfd.stage(model)
    else:
        network = fcfd.split(model, ["0", "1", "2"], example=x) if way == "split" else fcfd.split(list(model))

    def call():
        if way == "stage":
            run(dict(model.named_parameters()), dict(model.named_buffers()), x)
        else:
            fcfd.walk(("s", "ss", "sss", "ssss"), *columns(network), {"": x})

    call()
    EDITS[edit](model)
    if way == "by hand" and edit == "a block":
        return  # the list was the user's own
    with pytest.raises(ValueError, match="again|lacks"):
        call()


ADDITIONS = {
    "a last one": lambda m: m[3].append(nn.ReLU()),
    "a first one": lambda m: m[1].insert(0, nn.ReLU()),
    "deep inside": lambda m: m[2][0].register_module("extra", nn.ReLU()),
}


@pytest.mark.parametrize("addition", ADDITIONS)
@pytest.mark.parametrize("way", ["split", "by hand"])
def test_M3_a_module_that_was_added_after_the_split_is_refused(way, addition):
    """The stages ran without it."""
    model, x = convolutional(), batch(dtype=torch.float32)[0]
    network = fcfd.split(model, ["0", "1", "2"], example=x) if way == "split" else fcfd.split(list(model))
    ADDITIONS[addition](model)
    with pytest.raises(ValueError, match="again"):
        fcfd.walk(("s", "ss", "sss", "ssss"), *columns(network), {"": x})


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


@pytest.mark.parametrize("how", CONSTRAINTS)
@pytest.mark.parametrize("way", ["split", "by hand", "stage", "without proof"])
@pytest.mark.parametrize("given", ["the module's own", "detached"])
def test_M4_a_forward_that_writes_to_its_weights_is_refused(way, how, given):
    """A maximum norm, as of `nn.Embedding`: a walk changed the weights of student and frozen teacher."""
    model, ids = nn.Sequential(Constrained(how), nn.Linear(3, 2)), torch.randint(9, (4, 5))
    params = dict(model.named_parameters())
    params = params if given == "the module's own" else fcfd.frozen(params)
    if how == "requires_grad" and given == "detached":
        how = ""  # nothing is left to be switched off
    refused = pytest.raises(ValueError, match="writes to|max_norm|own parameters")
    with untouched(model), refused if how else suppress(ValueError):
        if way == "stage":
            fcfd.stage(model)(params, {}, ids)
        elif way == "by hand":
            fcfd.split(list(model)).stages[0](params, {}, ids)
        else:
            network = fcfd.split(model, ["0"], example=ids, proof=way == "split")
            network.stages[0](params, {}, ids)


@pytest.mark.parametrize("how", MEMORIES)
@pytest.mark.parametrize("way", ["by hand", "stage", "split"])
def test_M4_a_stage_remembers_nothing(how, way):
    """Its second call gave another value."""
    model, x = nn.Sequential(nn.Linear(6, 6), Remembers(how), nn.Linear(3, 2)), torch.randn(4, 6)
    with untouched(model):
        if way == "stage":
            runs, params = (fcfd.stage(model),), dict(model.named_parameters())
        else:
            network = fcfd.split(
                list(model) if way == "by hand" else model,
                **({} if way == "by hand" else {"at": ["0", "1"], "example": x}),
            )
            runs, params = network.stages, network.params
        found = []
        for _ in range(3):
            y = x
            for run in runs:
                y = run(params, {}, y)[0]
            found.append(y)
    right = copy.deepcopy(model)(x)
    for y in found:
        close(y, right)


@pytest.mark.parametrize("way", ["by hand", "stage"])
def test_M4_a_stage_that_writes_to_an_object_is_refused(way):
    """Objects of one's own are not copied for each call."""
    model, x = Remembers("an object"), torch.randn(4, 6)
    run = fcfd.stage(model) if way == "stage" else fcfd.split([model]).stages[0]
    prefix = "" if way == "stage" else "0."
    params = {f"{prefix}{name}": tensor for name, tensor in model.named_parameters()}
    with untouched(model):
        with pytest.raises(ValueError, match="writes to an object") as error:
            run(params, {}, x)
        says(error, "stage", "Remembers", "buffers")


@pytest.mark.parametrize("way", ["by hand", "stage", "split"])
def test_M4_parts_that_share_a_container_share_it_in_every_call(way):
    """The second call of a stage gave each its own, and the later part found nothing."""

    class Leaves(nn.Module):
        def __init__(self, notes):
            super().__init__()
            self.notes = notes

        def forward(self, x):
            self.notes["x"] = x
            return x

    class Finds(Leaves):
        def forward(self, x):
            return x + self.notes["x"]

    notes = {}
    model, x = nn.Sequential(Leaves(notes), nn.Linear(6, 6), Finds(notes), nn.Linear(6, 2)), torch.randn(4, 6)
    inner = model[:3]
    if way == "stage":
        run, params = fcfd.stage(model), dict(model.named_parameters())
    elif way == "by hand":
        network = fcfd.split([inner])
        run, params = network.stages[0], network.params
    else:
        whole = nn.Sequential(inner, model[3])
        network = fcfd.split(whole, ["0"], example=x)
        run, params = network.stages[0], network.params
    right = model(x) if way == "stage" else inner(x)
    notes.clear()
    for _ in range(3):
        close(run(params, {}, x)[0], right)
    assert not notes


@pytest.mark.parametrize("part", REGISTERING)
@pytest.mark.parametrize("way", ["stage", "by hand", "split"])
def test_M4_what_a_forward_registers_is_gone_in_the_next_call(way, part):
    """A second call ran other children, or counted on; or the module was said to be edited."""
    model, x = nn.Sequential(nn.Linear(6, 6), Registers(part), nn.Linear(3, 2)), torch.randn(4, 6)
    right = copy.deepcopy(model)(x)
    if (way, part) == ("split", "child"):
        with untouched(model), pytest.raises(ValueError, match="split: Sequential does not run"):
            fcfd.split(model, ["0", "1"], example=x)
        return
    with untouched(model):
        if way == "stage":
            runs, params = (fcfd.stage(model),), dict(model.named_parameters())
        elif way == "by hand":
            network = fcfd.split(list(model))
            runs, params = network.stages, network.params
        else:
            network = fcfd.split(model, ["0", "1"], example=x)
            runs, params = network.stages, network.params
        for _ in range(3):
            y = x
            for run in runs:
                y = run(params, {}, y)[0]
            close(y, right)


@pytest.mark.parametrize("how", ALIASES)
def test_M1_an_attribute_that_holds_a_parameter_reads_what_the_stage_is_given(how):
    """A list of weights held what stood there between calls: numbers from nowhere."""
    model, x = Holds(how), torch.randn(4, 6)
    run = fcfd.stage(model)
    other = {name: torch.randn_like(tensor).requires_grad_() for name, tensor in model.named_parameters()}
    with untouched(model):
        found = [run(other, dict(model.named_buffers()), x)[0] for _ in range(2)]
    right = (
        F.batch_norm(
            x @ other["layer.weight"].T + other["layer.bias"], None, None, other["norm.weight"], None, True
        )
        + model.norm.running_mean
    )
    for y in found:
        close(y, right)
    for a, b in zip(
        torch.autograd.grad(found[1].square().sum(), list(other.values())[:3]),
        torch.autograd.grad(right.square().sum(), list(other.values())[:3]),
        strict=True,
    ):
        close(a, b, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("how", AROUND)
@pytest.mark.parametrize("way", ["stage", "by hand", "split", "bridge"])
def test_M1_what_reads_a_module_from_around_it_is_refused(way, how):
    """A copy went on reading the model's own weights: other numbers without an error."""
    model = reading_around(how)
    with (
        untouched(model),
        pytest.raises(ValueError, match="reads a module of the model from around it") as error,
    ):
        {
            "stage": lambda: fcfd.stage(model),
            "by hand": lambda: fcfd.split([nn.Linear(6, 6), model]),
            "split": lambda: fcfd.split(model, ["0"], example=torch.randn(4, 6)),
            "bridge": lambda: two(bridges={"s>t": nn.Sequential(nn.Linear(5, 6), model, nn.Linear(6, 8))}),
        }[way]()
    says(error, "Make it a method, or let it use its arguments.")


@pytest.mark.parametrize(
    "kind", ["state_dict", "state_dict_pre", "load_state_dict_pre", "load_state_dict_post"]
)
def test_M1_hooks_of_state_dicts_are_none_of_a_call(kind):
    """A model that repairs the names of old checkpoints was refused."""
    model, x = nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 2)), torch.randn(4, 6)
    register = {
        "state_dict": model._register_state_dict_hook,
        "state_dict_pre": model.register_state_dict_pre_hook,
        "load_state_dict_pre": model.register_load_state_dict_pre_hook,
        "load_state_dict_post": model.register_load_state_dict_post_hook,
    }[kind]
    register(lambda *_: model[0].train() and None)
    close(fcfd.stage(model)(dict(model.named_parameters()), {}, x)[0], model(x))
    network = fcfd.split(model, ["0", "1"], example=x)
    assert len(network.stages) == 3


@pytest.mark.parametrize("how", ["a bound method", "a partial function", "a list of modules", "an object"])
def test_M1_what_is_copied_with_the_model_reads_the_copy(how):
    """These are no functions around the model: a copy of it has its own."""
    model, x = nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 6)), torch.randn(4, 6)
    held = {
        "a bound method": model[0].forward,
        "a partial function": partial(model[0]),
        "a list of modules": [model[0]],
        "an object": Box(model[0]),
    }[how]
    model[1].held = held
    model[1].forward = types.MethodType(reads_held, model[1])
    other = {name: torch.randn_like(tensor) for name, tensor in model.named_parameters()}
    first = F.linear(x, other["0.weight"], other["0.bias"])
    close(fcfd.stage(model)(other, {}, x)[0], F.linear(first, other["0.weight"], other["0.bias"]))


def test_M4_a_forward_that_writes_is_refused_inside_of_torch_func():
    """Its tensors do not say where their memory is; the module's own do."""
    model, ids = Constrained("clamp"), torch.randint(9, (4, 5))
    run, params = fcfd.stage(model), dict(model.named_parameters())
    with untouched(model), pytest.raises(ValueError, match="writes to its own parameters"):
        torch.func.grad(lambda own: run(own, {}, ids)[0].sum())(params)


@pytest.mark.parametrize("first", ["grad", "vmap", "jvp", "inference", "autocast"])
def test_M4_the_first_call_of_a_stage_may_be_under_any_transform(first):
    """It is watched; what watches must not be in the way."""
    model, x = nn.Sequential(nn.Linear(6, 6), nn.Tanh()), torch.randn(4, 6)
    run, params = fcfd.stage(model), dict(model.named_parameters())
    if first == "grad":
        found = torch.func.grad(lambda own: run(own, {}, x)[0].sum())(params)
        right = torch.autograd.grad(model(x).sum(), list(params.values()))
        for a, b in zip(found.values(), right, strict=True):
            close(a, b)
    elif first == "vmap":
        stacked = {name: torch.stack([tensor, 2 * tensor]) for name, tensor in params.items()}
        close(torch.func.vmap(lambda own: run(own, {}, x)[0])(stacked)[0], model(x))
    elif first == "jvp":
        y, tangent = torch.func.jvp(lambda x: run(params, {}, x)[0], (x,), (torch.ones_like(x),))
        close(tangent, (1 - y**2) * model[0].weight.sum(1))
    elif first == "inference":
        with torch.inference_mode():
            close(run(params, {}, x)[0], model(x))
    else:
        with torch.autocast("cpu", torch.bfloat16):
            close(run(params, {}, x)[0], model(x))
    close(run(params, {}, x)[0], model(x))


def test_M_networks_that_ran_are_copied_pickled_and_printed():
    """What stands in the places of weights between calls is no tensor to be read."""
    nets = two()
    x, labels = torch.randn(4, 6), torch.tensor([0, 1, 2, 0])
    right, _ = losses.fcfd(*nets.columns, x, labels, paths=nets.crossings)
    for other in (copy.deepcopy(nets), pickle.loads(pickle.dumps(nets))):
        close(losses.fcfd(*other.columns, x, labels, paths=nets.crossings)[0], right)
    assert "Linear" in repr(nets.stages)


def test_M3_a_bridge_that_was_replaced_after_the_link_is_refused():
    """The old one ran, and the optimizer had the new one."""
    nets = two()
    nets.bridges["s>t"]["0"] = nn.Linear(5, 8)
    with pytest.raises(ValueError, match=r"path 's>t'.*'s>t\.0' was replaced"):
        losses.fcfd(*nets.columns, torch.randn(4, 6), torch.tensor([0, 1, 2, 0]), paths=())


def test_M4_a_hidden_parameter_still_learns():
    """One in a plain list is in no dict; a copy of it for each call must not be cut off."""

    class Hides(nn.Module):
        def __init__(self):
            super().__init__()
            self.hidden = [nn.Parameter(torch.ones(3))]

        def forward(self, x):
            return x * self.hidden[0]

    model = Hides()
    run = fcfd.stage(model)
    run({}, {}, torch.ones(2, 3))[0].sum().backward()
    close(model.hidden[0].grad, torch.full((3,), 2.0))
    with torch.no_grad():
        model.hidden[0].mul_(3)
    close(run({}, {}, torch.ones(2, 3))[0], torch.full((2, 3), 3.0))


@pytest.mark.parametrize("way", ["by hand", "split", "stage"])
def test_M4_threads_on_one_model_do_not_meet(way):
    """Two threads gave wrong results and left foreign tensors in the module."""
    model = nn.Sequential(*[nn.Linear(8, 8) for _ in range(3)]).double()
    x = torch.randn(4, 8, dtype=DOUBLE)
    ways = {
        "by hand": lambda: fcfd.split(list(model)).stages,
        "split": lambda: fcfd.split(model, ["0", "1"], example=x).stages,
        "stage": lambda: (fcfd.stage(model),),
    }
    stages = ways[way]()
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
                    for run in stages:
                        y = run(own, {}, y)[0]
                    if not torch.allclose(y, right):
                        wrong.append(seed)

        threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not wrong


@pytest.mark.parametrize("nested", ["a dict in a tuple", "a row in a dict", "a list in a dict"])
def test_C_a_batch_of_containers_is_split(nested):
    """One more example of it was cut out of a dict: unhashable type 'slice'."""

    class Reads(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.head = nn.Linear(6, 4), nn.Linear(4, 3)

        def forward(self, inputs, scale=None):
            x = inputs["x"] if isinstance(inputs, dict) else inputs[0]
            return self.head(self.body(x))

    x, more = torch.randn(4, 6), torch.randn(4, 2)
    example = {
        "a dict in a tuple": ({"x": x, "more": [more]},),
        "a row in a dict": {"inputs": (x, more), "scale": 2.0},
        "a list in a dict": {"inputs": (x, [more, None]), "scale": None},
    }[nested]
    network = fcfd.split(Reads(), ["body"], example=example)
    assert network.proof == "exact"


@pytest.mark.parametrize("norm", [nn.BatchNorm1d(4), nn.Identity()])
def test_C_one_example_is_enough_to_split(norm):
    """The proof failed in train mode by torch's own text."""
    model = nn.Sequential(nn.Linear(6, 4), norm, nn.Linear(4, 3))
    assert fcfd.split(model, ["0"], example=torch.randn(1, 6)).proof == "exact"


# B. The layout of a feature is guessed from its shape


def test_B1_link_knows_the_axes_of_a_convolution_over_time():
    """`[batch, channels, time]` was read as tokens: the bridge was a linear layer over time."""
    assert_sound(linked_sounds(torch.randn(2, 1, 64)))


@pytest.mark.parametrize("by", ["split", "hand"])
@pytest.mark.parametrize(
    "layouts", [{"t": "b c t", "s": "b c t"}, dict.fromkeys(words("s t ss tt sss ttt"), "b c l")]
)
def test_B1_a_sequence_with_channels_first_is_stated(by, layouts):
    """There was no way to say it."""
    assert_sound(linked_sounds(torch.randn(2, 1, 64), by, layouts=layouts))


def assert_sound(nets):
    clips, labels = torch.randn(4, 1, 96), torch.tensor([0, 1, 2, 0])  # of another length than the example
    loss, aux = losses.fcfd(*nets.columns, clips, labels, paths=nets.crossings)
    shapes = {name: list(bridge.conv.weight.shape[:2]) for name, bridge in nets.bridges["s>t"].items()}
    assert shapes == {"0": [8, 4], "1": [8, 4], "2": [8, 4]}
    feature = partial(torch.squeeze, dim=2)
    last = [feature(aux.values[path]).relu().mean(2) for path in ("sss>t", "ttt")]
    close(aux.parts["pooled/sss>t"], F.mse_loss(*last))
    assert all(g.isfinite().all() for g in torch.autograd.grad(loss, list(nets.params["s>t"].values())))


@pytest.mark.parametrize("by", ["hand"])
def test_B1_what_may_be_two_things_is_refused(by):
    """Three axes were tokens, whatever made them."""
    with pytest.raises(ValueError, match=r"'b t c'.*'b c t'.*layouts=\{"):
        linked_sounds(torch.randn(2, 1, 64), by)


def test_B1_split_finds_every_resolution_of_a_sequence():
    """It found one of three."""
    names = fcfd.split(sound(8), example=torch.randn(2, 1, 64)).names
    assert names == ("0", "1", "2", "3")


@pytest.mark.parametrize("height, width", [(4, 16), (5, 16), (16, 4), (2, 32), (8, 8), (1, 64)])
@pytest.mark.parametrize("classes", [0, 1, 2])
def test_B2_tokens_lie_on_the_grid_of_the_map_at_the_other_end(height, width, classes):
    """A map of 4×16 was laid out 8×8, and 80 tokens were an error."""
    if height == 1 and classes:
        pytest.skip("a map of one row is a sequence, without class tokens")
    count = height * width + classes
    feature = torch.randn(2, 3, height, width)
    flat = feature.flatten(2).mT
    to_tokens = delta(fcfd.bridge((2, 3, height, width), (2, count, 3)))
    close(to_tokens(feature)[:, classes:], flat / math.sqrt(1 + 1e-5))
    to_map = delta(fcfd.bridge((2, count, 3), (2, 3, height, width)))
    tokens = torch.cat([torch.randn(2, classes, 3), flat], 1)
    close(to_map(tokens), feature / math.sqrt(1 + 1e-5))


@pytest.mark.parametrize("pattern", ["b (h=4 w) c", "b (h=4 w=16) c", "b (h w=16) c", "b (1 + h=4 w) c"])
def test_B2_a_grid_is_stated(pattern):
    """64 tokens were silently square."""
    classes = int("1 +" in pattern)
    feature = torch.randn(2, 3, 4, 16)
    tokens = torch.cat([torch.randn(2, classes, 3), feature.flatten(2).mT], 1)
    bridge = fcfd.bridge((2, 64 + classes, 3), (2, 3, 2, 8), layouts=(pattern, None))
    right = fcfd.bridge((2, 3, 4, 16), (2, 3, 2, 8)).eval()
    bridge.eval().conv.load_state_dict(right.conv.state_dict())
    close(bridge(tokens), right(feature))


@pytest.mark.parametrize(
    "count, pattern", [(63, "b (h=4 w) c"), (65, "b (h=8 w=8) c"), (64, "b (1 + h=4 w) c")]
)
def test_B2_tokens_that_are_no_such_grid_are_refused(count, pattern):
    """An error of einops spoke of no feature."""
    with pytest.raises(ValueError, match=f"layout.*{count}"):
        fcfd.bridge((2, count, 3), (2, 3, 2, 8), layouts=(pattern, None))


@pytest.mark.parametrize("pattern", ["b c h=7 w", "b h=5 w c", "b (h=a w) c", "b (h=0 w) c"])
def test_B2_a_wrong_size_in_a_pattern_is_refused(pattern):
    """A pattern's numbers were taken on trust."""
    shape = (2, 4, 4, 3) if pattern.endswith("w c") else (2, 64, 3) if "(" in pattern else (2, 3, 4, 4)
    with pytest.raises(ValueError, match="layout"):
        fcfd.bridge(shape, (2, 3, 4, 4), layouts=(pattern, None))


@pytest.mark.parametrize("classes", [0, 1])
def test_B2_as_many_tokens_on_another_grid_are_resized(classes):
    """64 tokens of 4×16 went as they are into 64 of 8×8."""
    prefix = "1 + " if classes else "0 + "
    patterns = (f"b ({prefix}h=4 w=16) c", f"b ({prefix}h=8 w=8) c")
    count = 64 + classes
    bridge = fcfd.bridge((2, count, 3), (2, count, 5), layouts=patterns)
    first, feature = torch.randn(2, classes, 3), torch.randn(2, 3, 4, 16)
    pooled = F.interpolate(F.avg_pool2d(feature, (1, 2)), size=(8, 8), mode="bilinear")
    right = torch.cat([first, pooled.flatten(2).mT], 1)
    out = bridge(torch.cat([first, feature.flatten(2).mT], 1))
    close(out, bridge.norm(bridge.linear(right)))


class Patches(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.patch, self.body, self.head = (
            nn.Conv2d(3, width, 4, 4),
            nn.Linear(width, width),
            nn.Linear(width, 3),
        )

    def forward(self, x):
        return self.head(self.body(self.patch(x).flatten(2).mT).mean(1))


@pytest.mark.parametrize("height, width", [(16, 32), (16, 64)])
def test_B2_networks_of_images_of_two_ratios_have_two_grids(height, width):
    """Tokens of a wide image were a line, or lay on the grid of a square one."""
    batches = {"s": torch.randn(2, 3, height, width), "t": torch.randn(2, 3, 32, 32)}
    networks = {k: fcfd.split(Patches(w), ["body"], example=batches[k]) for k, w in (("t", 8), ("s", 5))}
    nets = fcfd.link(networks, example=batches, layouts={"t": "b t c", "s": "b t c"}, paths=("s>t",))
    own = nets.bridges["s>t"]["0"]
    assert own.resize.resize[0].grid[:2] == (height // 4, width // 4)


@pytest.mark.parametrize("grid, larger", [((4, 4), (6, 6)), ((2, 8), (3, 12)), ((1, 16), (1, 24))])
def test_B3_bridges_from_tokens_keep_the_ratio_of_the_grid(grid, larger):
    """They kept the example's grid, where the docstring promised the ratio."""
    bridge = fcfd.bridge((2, math.prod(grid), 3), (2, 5, *grid)).eval()
    feature = torch.randn(2, 3, *larger)
    out = bridge(feature.flatten(2).mT)
    close(out, bridge.bn(bridge.conv(feature)))


def test_B3_tokens_of_another_ratio_name_the_path():
    """The error was a bare `EinopsError`."""

    def network(form, width):
        def first(x):
            return (
                x[:, :1].expand(-1, width, -1, -1)
                if form == "map"
                else x[:, :1].expand(-1, width, -1, -1).flatten(2).mT
            )

        def second(x):
            return x.flatten(1)[:, :3]

        return fcfd.split([first, second])

    networks = {"t": network("map", 4), "s": network("tokens", 5)}
    nets = fcfd.link(networks, example=torch.randn(2, 3, 4, 4), layouts={"s": "b (h w) c"})
    with pytest.raises(ValueError, match="path 's>t'.*10 tokens"):
        fcfd.walk(("s", "s>t"), *nets.columns, {"": torch.randn(2, 3, 2, 5)})


@pytest.mark.parametrize("target", [(2, 5, 2, 4, 4), (2, 5, 1, 2, 2), (2, 5, 4, 8, 8), (2, 5, 3, 4, 5)])
@pytest.mark.parametrize("rectified", [True, False])
def test_B4_volumes_have_bridges(target, rectified):
    """Maps of three dimensions had none."""
    bridge = fcfd.bridge((2, 3, 2, 4, 4), target, rectified=rectified)
    out = bridge(torch.randn(2, 3, 2, 4, 4))
    assert out.shape == target
    assert hasattr(bridge, "act") == rectified
    out.sum().backward()


@pytest.mark.parametrize(
    "name",
    words("""
    attention_transfer channel_wise_divergence pkd channel_stats_align inter_channel_correlation
    nst_poly
"""),
)
def test_B4_losses_of_maps_take_volumes(name):
    """Four of them refused five axes, which three siblings took."""
    volumes = torch.randn(2, 2, 3, 2, 4, 5, dtype=DOUBLE)
    flat = [volume.flatten(2, 3) for volume in volumes]
    value, right = getattr(losses, name)(*volumes), getattr(losses, name)(*flat)
    close(value.flatten(2), right.flatten(2)) if name == "channel_stats_align" else close(value, right)


@pytest.mark.parametrize(
    "name", ["squared_error", "pooled_squared_error", "hcl", "wkd_feature", "fsp_matrix"]
)
def test_B4_losses_that_read_neighbours_take_volumes_or_say_that_they_do_not(name):
    """An error of torch's pooling spoke of no loss."""
    volumes = torch.randn(2, 2, 3, 2, 4, 4, dtype=DOUBLE)
    if name == "squared_error":
        close(losses.squared_error(*volumes), (volumes[0] - volumes[1]).square().flatten(1).mean(1))
    elif name == "pooled_squared_error":
        ours, theirs = (volume.relu().flatten(2).mean(2) for volume in volumes)
        close(losses.pooled_squared_error(*volumes), (ours - theirs).square().mean(1))
    else:
        flat = [volume.flatten(2, 3) for volume in volumes] if name == "fsp_matrix" else None
        if flat:
            close(losses.fsp_matrix(*volumes), losses.fsp_matrix(*flat))
        else:
            assert getattr(losses, name)(*volumes).isfinite().all()


def test_B4_two_networks_of_video_learn():
    """No step of a network of Conv3d ran."""
    x, labels = torch.randn(2, 3, 4, 8, 8), torch.tensor([0, 1])
    networks = {
        letter: fcfd.split(Video(width), ["body.0", "body.1"], example=x)
        for letter, width in (("t", 6), ("s", 4))
    }
    nets = fcfd.link(networks, example=x)
    loss, aux = losses.fcfd(*nets.columns, x, labels, paths=nets.crossings)
    close(aux.parts["feature/s>t"], F.mse_loss(aux.values["s>t"], aux.values["t"]))
    assert all(g.isfinite().all() for g in torch.autograd.grad(loss, list(nets.params["s"].values())))


@pytest.mark.parametrize(
    "name, pattern", [("torchvision", "b (1 + h w) c"), ("timm", "b (1 + h=4 w) c"), ("timm swin", "b h w c")]
)
def test_B_the_layout_of_a_transformer_is_stated(name, pattern):
    """There was no way to say it."""
    x, labels = torch.randn(2, 3, 32, 32), torch.tensor([0, 1])
    model = vit(name, 8).eval()
    networks = {"t": fcfd.split(model, 4, example=x), "s": fcfd.split(stages(4, classes=3))}
    nets = fcfd.link(networks, example=x, layouts={"t": pattern})
    loss, aux = losses.fcfd(*nets.columns, x, labels, paths=nets.crossings)
    close(aux.values["tttt"], model(x).detach())
    assert all(g.isfinite().all() for g in torch.autograd.grad(loss, list(nets.params["s>t"].values())))


@pytest.mark.parametrize("name", ["torchvision", "timm", "timm swin"])
def test_B_link_knows_the_tokens_of_a_transformer(name):
    """A guess by shape stood for what the recording had seen."""
    x, labels = torch.randn(2, 3, 32, 32), torch.tensor([0, 1])
    networks = {k: fcfd.split(vit(name, width).eval(), 3, example=x) for k, width in (("t", 16), ("s", 8))}
    nets = fcfd.link(networks, example=x)
    loss, _ = losses.fcfd(*nets.columns, x, labels, paths=nets.crossings)
    assert loss.isfinite()


def test_B_link_knows_the_grid_between_a_transformer_and_maps():
    """Tokens of a wide image were laid out on a square."""
    x = torch.randn(2, 3, 32, 32)
    teacher = fcfd.split(vit("torchvision", 16).eval(), 4, example=x)
    student = fcfd.split(list(nn.Sequential(*stages(4, classes=3))))
    nets = fcfd.link({"t": teacher, "s": student}, example=x)
    values, _ = fcfd.walk(fcfd.plan(("s>t", "t")), *nets.columns, {"": x})
    assert values["s>t"].shape == values["t"].shape == (2, 17, 16)


# C. Batches and depth


def plain_match(longer, shorter):
    """Every combination, the cheapest first found."""
    n, m = len(longer), len(shorter)

    def cost(chosen):
        return sum(
            abs(math.log2(math.prod(longer[j][2:]) / math.prod(shorter[i][2:])))
            + abs((i + 1) / (m + 1) - (j + 1) / (n + 1))
            for i, j in enumerate(chosen)
        )

    return min((cost(chosen), chosen) for chosen in itertools.combinations(range(n), m))


@pytest.mark.parametrize("seed", range(8))
def test_C1_match_finds_the_minimum_over_all_combinations(seed):
    """It tried them all."""
    generator = np.random.default_rng(seed)
    longer, shorter = (
        [(2, 8, side, side) for side in generator.choice([4, 8, 16, 7], size)] for size in (8, 1 + seed % 7)
    )
    cost, _ = plain_match(longer, shorter)
    found = [depth - 1 for depth in fcfd.match(longer, shorter)]
    assert found == sorted({*found})
    n, m = len(longer), len(shorter)
    octaves = sum(abs(math.log2((longer[j][2] / shorter[i][2]) ** 2)) for i, j in enumerate(found))
    depths = sum(abs((i + 1) / (m + 1) - (j + 1) / (n + 1)) for i, j in enumerate(found))
    assert math.isclose(octaves + depths, cost)


@pytest.mark.parametrize("n, m", [(24, 12), (32, 16), (200, 80)])
def test_C1_deep_networks_are_matched_at_once(n, m):
    """32 → 16 blocks, Llama 8B → 1B, would have taken years."""
    found = fcfd.match([(2, 10, 64)] * n, [(2, 10, 32)] * m)
    assert len(found) == m
    assert all(a < b for a, b in itertools.pairwise(found))
    assert max(abs(at / (n + 1) - i / (m + 1)) for i, at in enumerate(found, 1)) <= 1 / n


def test_C1_link_of_deep_networks_is_quick():
    """`link` reached it."""

    def network(width, depth):
        return fcfd.split(
            [nn.Linear(6, width), *[nn.Linear(width, width) for _ in range(depth - 2)], nn.Linear(width, 3)]
        )

    nets = fcfd.link({"t": network(5, 33), "s": network(4, 17)}, example=torch.randn(2, 6), paths=("s>t",))
    assert len(nets.stages["t"]) == len(nets.stages["s"]) == 17


def reader(*keys):
    """A first stage that adds up entries of its batch, and a second that reads one of them again."""

    def first(params, buffers, x):
        return sum(x[key] for key in keys), {}

    def second(params, buffers, x):
        return x * buffers[keys[0]], {}

    return first, second


@pytest.mark.parametrize("keys", [("x", "t"), ("t",), ("s", "x"), ("t", "y", "s")])
def test_C2_a_batch_by_network_has_keys_that_are_all_networks(keys):
    """The key `t` of `{"x": …, "t": …}` was taken for network `t`."""
    entries = {key: torch.full((2,), 2.0 + at) for at, key in enumerate(keys)}
    stages, empty = {"s": reader(*keys), "u": reader(*keys)}, {"s": {}, "u": {}}
    values, _ = fcfd.walk(("s", "ss"), stages, empty, empty, {"": entries})
    total = sum(2.0 + at for at in range(len(keys)))
    close(values["ss"], torch.full((2,), 2 * total))


def test_C2_networks_may_read_other_batches():
    """A mapping all of whose names are networks is one by network."""
    nets = two()
    batches = {"s": torch.randn(4, 6), "t": torch.randn(4, 6)}
    values, _ = fcfd.walk(("s", "t"), *nets.columns, {"": batches})
    alone, _ = fcfd.walk(("t",), *nets.columns, {"": batches["t"]})
    close(values["t"], alone["t"])
    with pytest.raises(ValueError, match="path 't'.*batch is by network.*none for 't'"):
        fcfd.walk(("t",), *nets.columns, {"": {"s": batches["s"]}})


@pytest.mark.parametrize("kind", [tuple, lambda both: {"x": both[0], "t": both[1]}])
def test_C2_several_arguments_go_through_every_call(kind):
    """`(x, t)` was refused, and `{"x": …, "t": …}` misread."""
    example = kind(torch.randn(2, 4, 6).unbind())
    networks = two_inputs(example)
    nets = fcfd.link(networks, example=example)
    loss, _ = losses.fcfd(*nets.columns, example, torch.tensor([0, 1, 2, 0]), paths=())
    assert loss.isfinite()


def test_C2_a_tuple_where_a_dict_is_needed_is_refused_with_the_dict_to_give():
    """`(x, t)` was refused without a word of the dict."""
    x, t = torch.randn(2, 4, 6)
    nets = fcfd.link(two_inputs({"x": x, "t": t}), example={"x": x, "t": t})
    with pytest.raises(ValueError, match="path 'ss'.*dict.*'x'"):
        losses.fcfd(*nets.columns, (x, t), torch.tensor([0, 1, 2, 0]), paths=())


@pytest.mark.parametrize(
    "kind",
    [
        dict,
        OrderedDict,
        Mapped,
        MappingProxyType,
        "BatchEncoding",
    ],
)
def test_C3_any_mapping_is_a_batch_by_names(kind):
    """A `BatchEncoding` was one leaf: 11 tokens were linked to 14 by interpolation."""
    kind = text_models().BatchEncoding if kind == "BatchEncoding" else kind
    ids = torch.randint(11, (2, 7))
    networks = {
        k: fcfd.split(Tokens(width), ["embed", "mix"], example=kind({"ids": ids}))
        for k, width in (("t", 8), ("s", 5))
    }
    other = {"s": kind({"ids": ids}), "t": kind({"ids": torch.randint(11, (2, 9))})}
    with pytest.raises(ValueError, match="tokens of text in other numbers"):
        fcfd.link(networks, example=other)
    nets = fcfd.link(networks, example=kind({"ids": ids}))
    change = partial(fcfd.replaced, losses={"label": losses.ignoring(losses.cross_entropy)})
    loss, right = (
        losses.fcfd(*nets.columns, batch, ids, paths=nets.crossings, change=change)[0]
        for batch in (kind({"ids": ids}), {"ids": ids})
    )
    close(loss, right)


@pytest.mark.parametrize("mask", [torch.ones(2, 1), torch.ones(2, 1).long(), torch.ones(2, 1).bool()])
def test_C4_an_example_that_begins_with_something_else_names_the_entry(mask):
    """It said no more than "0 resolutions … for example of none"."""
    with pytest.raises(ValueError) as error:
        fcfd.split(Masked(), ["body"], example={"mask": mask, "x": torch.randn(2, 6)})
    says(error, "split", "'mask'", "first entry")
    assert fcfd.split(Masked(), ["body"], example={"x": torch.randn(2, 6), "mask": mask}).cuts


def test_C5_padding_counts_in_no_term():
    """With a pair of BERT `feature/s>t` moved from 1.90178 to 1.94682 when only padded tokens changed."""
    nets, example = berts()
    ids, mask = example.values()
    others = torch.where(mask > 0, ids, 7)
    labels = torch.where(mask > 0, ids, -100)

    def change(terms):
        terms = fcfd.replaced(terms, {"label": losses.ignoring(losses.cross_entropy)})
        return fcfd.masked(terms, {"kl": "Mask", "feature": "Mask", "pooled": "Mask"})

    parts, data = [], {"Labels": labels, "Mask": mask}
    for tokens in (ids, others):
        given = {"input_ids": tokens, "attention_mask": mask}
        parts.append(losses.fcfd(*nets.columns, given, data, paths=nets.crossings, change=change)[1])
    assert len(parts[0].parts) > 6
    for name, part in parts[0].parts.items():
        close(part, parts[1].parts[name])
    kept = mask.bool()
    close(parts[0].parts["feature/s>t"], F.mse_loss(*[parts[0].values[path][kept] for path in ("s>t", "t")]))
    means = []
    for path in ("ss>t", "tt"):
        rows = [feature.relu()[row].mean(0) for feature, row in zip(parts[0].values[path], kept, strict=True)]
        means.append(torch.stack(rows))
    close(parts[0].parts["pooled/ss>t"], F.mse_loss(*means))


@pytest.mark.parametrize("recipe", ["hints", "srrl", "fula", "multi_teacher"])
def test_C5_every_recipe_carries_a_mask(recipe):
    """Recipes had no place for it."""
    nets, data, ids = texts(paths=("s>t", "ss>t", "stt", "sst"))
    terms = {
        "hints": lambda: fcfd.masked(recipes.hints(("ss>t",)), {"hint": "Mask"}),
        "srrl": lambda: fcfd.masked(
            {k: t for k, t in recipes.srrl(3).items() if k != "label"}, {"pooled": "Mask", "logits": "Mask"}
        ),
        "fula": lambda: fcfd.masked(recipes.fula("stt"), {"latent": "Mask"}),
        "multi_teacher": lambda: fcfd.masked(
            recipes.multi_teacher({"t": recipes.appearance(3, ("s>t", "ss>t"))}),
            {"feature": "Mask", "pooled": "Mask"},
        ),
    }[recipe]()
    other = torch.where(data["Mask"] > 0, ids, (ids + 1) % 11)
    first, second = (fcfd.objective(terms, *nets.columns, {"": one, **data})[0] for one in (ids, other))
    close(first, second.detach())


@pytest.mark.parametrize(
    "mask, error",
    [(torch.ones(2, 1), ValueError), (torch.ones(1, 7), ValueError),
     (torch.ones(2, 8), ValueError), (torch.ones(2, 7, 1), ValueError), (torch.ones(7), ValueError),
     ([[1] * 7] * 2, TypeError), (None, TypeError)],
)  # fmt: skip
@pytest.mark.parametrize("kind", ["feature", "pooled"])
def test_C5_a_mask_of_other_positions_is_refused(kind, mask, error):
    """Masks of pooled features were broadcast."""
    terms = fcfd.masked(recipes.appearance(3, ("ss>t",)), {kind: "Mask"})
    with pytest.raises(error, match="masked: "):
        terms[f"{kind}/ss>t"].loss(*torch.randn(2, 2, 7, 4), mask)


@pytest.mark.parametrize("pair", ["assistant", "student", "student-assistant"])
def test_C5_a_hybrid_assistant_carries_a_mask(pair):
    """Its contrastive terms average over padding."""
    term = fcfd.masked(recipes.hybrid_assistant(3), {"nce": "Mask"})[f"nce/pooled/{pair}"]
    assert term.target[-1] == "Mask"
    (a, b), mask = torch.randn(2, 2, 5, 4, dtype=DOUBLE), torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]])
    means = [
        torch.stack([row[kept].mean(0) for row, kept in zip(x, mask.bool(), strict=True)]) for x in (a, b)
    ]
    close(term.loss(a, b, mask).mean(), losses.info_nce(*means).mean())


@pytest.mark.parametrize("kind", ["map", "vector", "tokens"])
def test_C6_link_under_autocast_builds_what_it_builds_outside(kind):
    """The bridges were bfloat16 and failed outside."""

    def network(width):
        if kind == "map":
            return fcfd.split(stages(width))
        if kind == "vector":
            return layers(6, width, width, 3)
        return fcfd.split(Tokens(width), ["embed", "mix"], example=torch.randint(11, (2, 5)))

    x = {"map": torch.randn(2, 3, 8, 8), "vector": torch.randn(2, 6), "tokens": torch.randint(11, (2, 5))}[
        kind
    ]
    with torch.autocast("cpu", torch.bfloat16):
        nets = fcfd.link({"t": network(5), "s": network(4)}, example=x)
    assert {p.dtype for p in nets.bridges.parameters()} == {torch.float32}
    for enabled in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            loss, _ = losses.function(*nets.columns, x, paths=nets.crossings[:1])
        assert loss.isfinite()


@pytest.mark.parametrize("teacher", [torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("student", [torch.float32, torch.bfloat16])
def test_C6_networks_of_two_types_are_bridged(teacher, student):
    """A half-precision teacher linked, and failed at the crossing."""

    def network(width, dtype):
        return fcfd.split(
            list(nn.ModuleList([nn.Linear(6, width), nn.Linear(width, width), nn.Linear(width, 3)]).to(dtype))
        )

    x = torch.randn(4, 6)
    batches = {"t": x.to(teacher), "s": x.to(student)}
    nets = fcfd.link({"t": network(8, teacher), "s": network(5, student)}, example=batches)
    loss, aux = losses.fcfd(*nets.columns, batches, torch.tensor([0, 1, 2, 0]), paths=nets.crossings)
    assert aux.values["s>t"].dtype == aux.values["stt"].dtype == teacher
    assert aux.values["tss"].dtype == student
    assert all(g.isfinite().all() for g in torch.autograd.grad(loss, list(nets.params["s>t"].values())))


# E. Awkward


def test_E1_docs_show_several_processes():
    """`DDP(student)` beside a walk synchronised nothing, in silence."""
    assert "ddp = nn.parallel.DistributedDataParallel(\n    module," in docs("scale.md")
    assert "scale.md" in docs("composing.md")
    assert "DDP" in docs("gotchas.md")


@pytest.fixture
def alone():
    """A group of one process."""
    torch.distributed.init_process_group("gloo", store=HashStore(), rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.parametrize("wrap", [nn.DataParallel, nn.parallel.DistributedDataParallel])
@pytest.mark.parametrize("way", ["split", "by hand", "inside", "stage"])
def test_E1_a_wrapped_student_is_refused(wrap, way, alone):
    """Its hooks see nothing of a walk: gradients stay local."""
    wrapped = wrap(nn.Sequential(nn.Linear(6, 4), nn.Linear(4, 3)))
    calls = {
        "split": lambda: fcfd.split(wrapped, ["module.0"], example=torch.randn(2, 6)),
        "by hand": lambda: fcfd.split([wrapped]),
        "inside": lambda: fcfd.split(nn.Sequential(wrapped, nn.ReLU()), ["0"], example=torch.randn(2, 6)),
        "stage": lambda: fcfd.stage(wrapped),
    }
    with pytest.raises(ValueError, match=f"{wrap.__name__},? wraps a model"):
        calls[way]()


@pytest.mark.parametrize("layers", [3, 4, 6])
@pytest.mark.parametrize("count", [2, 3])
def test_E2_encoders_and_decoders_of_two_depths_are_cut_alike(layers, count):
    """T5 cut by count landed in unlike places."""
    shallow, deep = (fcfd.split(t5(8, depth), count, example=t5_batch()).names for depth in (2, layers))
    assert shallow == deep == ("encoder", "decoder", "lm_head")[-count:]


@pytest.mark.parametrize("at", ["decoder.block.1", "decoder.block.2"])
def test_E2_a_block_of_a_decoder_names_its_company(at):
    """'decoder.block.1' could name its companion 'encoder'."""
    model = t5(8, 4)
    with pytest.raises(ValueError, match=rf"'{at}' needs company: \('encoder', '{at}'\)"):
        fcfd.split(model, [at], example=t5_batch())
    assert fcfd.split(model, [("encoder", at)], example=t5_batch(), exact=False).stages


def test_E3_docs_say_that_split_runs_hooks():
    """Nobody was told that a user's hooks run several times, partly on fake tensors."""
    text = " ".join((fcfd.split.__doc__ + docs("models.md") + docs("gotchas.md")).split())
    assert "hooks" in text
    seen = []
    model = nn.Sequential(nn.Linear(6, 4), nn.Linear(4, 3))
    model[0].register_forward_hook(lambda *_: seen.append(1))
    fcfd.split(model, ["0"], example=torch.randn(2, 6))
    assert seen
