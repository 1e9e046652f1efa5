"""What the tests of faults share: small models with what goes wrong in practice, and checks."""

import itertools
import weakref
from collections import UserDict, namedtuple
from contextlib import contextmanager
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

import fcfd

from .nets import stages
from .purity import assert_unchanged, snapshot

DOUBLE = torch.float64


DOUBLE = torch.float64


def words(text):
    """Names in a row."""
    return tuple(text.split())


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


SHARED = words("norm cumulative spectral renormalises counts nested tied")


class Counts(nn.Module):
    """A module whose output depends on how often it ran."""

    def __init__(self):
        super().__init__()
        self.register_buffer("count", torch.tensor(0))

    def forward(self, x):
        self.count += 1
        return x * self.count


class Renormalises(nn.Module):
    """Normalises by running statistics in training, too."""

    def __init__(self):
        super().__init__()
        self.register_buffer("mean", torch.zeros(4))

    def forward(self, x):
        if self.training:
            self.mean = 0.9 * self.mean + 0.1 * x.detach().mean(0)
        return x - self.mean


def sharing(kind):
    """Three stages that run one module with buffers."""
    torch.manual_seed(3)
    shared = {
        "norm": lambda: nn.BatchNorm1d(4),
        "cumulative": lambda: nn.BatchNorm1d(4, momentum=None),
        "spectral": lambda: nn.utils.parametrizations.spectral_norm(nn.Linear(4, 4)),
        "renormalises": Renormalises,
        "counts": Counts,
        "nested": lambda: nn.Sequential(nn.Linear(4, 4), nn.Sequential(nn.BatchNorm1d(4), nn.Tanh())),
        "tied": lambda: nn.BatchNorm1d(4),
    }[kind]()
    others = [shared, shared]
    if kind == "tied":  # buffers of two modules that are one tensor
        others = [nn.BatchNorm1d(4), nn.BatchNorm1d(4)]
        for other in others:
            for name, buffer in shared.named_buffers():
                setattr(other, name, buffer)
    return nn.Sequential(
        nn.Sequential(nn.Linear(6, 4), shared),
        nn.Sequential(nn.ReLU(), nn.Linear(4, 4), others[0], nn.Tanh()),
        nn.Sequential(others[1], nn.Linear(4, 3)),
    ).double()


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


def columns(network, letter="s"):
    return {letter: network.stages}, {letter: network.params}, {letter: network.buffers}


CONSTRAINTS = words("embedding clamp data renorm_of_data view out requires_grad in_train_alone deep foreach")


class Constrained(nn.Module):
    """A forward that keeps its own weights within bounds, as in networks with a maximum norm."""

    def __init__(self, how):
        super().__init__()
        self.embed = nn.Embedding(9, 6, max_norm=0.1 if how == "embedding" else None)
        self.layer, self.how = nn.Linear(6, 3), how

    def forward(self, ids):
        weight = self.layer.weight
        if self.how == "clamp" or (self.how == "in_train_alone" and self.training):
            with torch.no_grad():
                weight.clamp_(-0.01, 0.01)
        elif self.how == "data":
            weight.data.clamp_(-0.01, 0.01)
        elif self.how == "renorm_of_data":
            weight.data = weight.data.renorm(2, 0, 0.1)
        elif self.how == "view":
            weight.detach()[0].view(2, 3).T.zero_()
        elif self.how == "out":
            with torch.no_grad():
                torch.mul(weight, 0.5, out=weight)
        elif self.how == "requires_grad":
            weight.requires_grad_(False)
        elif self.how == "deep":
            with torch.no_grad():
                for parameter in self.parameters():
                    nn.init.zeros_(parameter)
        elif self.how == "foreach":
            with torch.no_grad():
                torch._foreach_mul_(list(self.parameters()), 0.5)
        return self.layer(self.embed(ids).mean(1))


MEMORIES = ("a tensor", "a container in a container", "a tensor in a list", "an array", "a set", "a row")


class Counter:
    """An object of the user's own."""

    def __init__(self):
        self.calls = 0


class Remembers(nn.Module):
    """A forward that writes in place to what is registered nowhere."""

    def __init__(self, how):
        super().__init__()
        self.layer, self.how, self.seen, self.deep = nn.Linear(6, 3), how, torch.zeros(1), {"calls": [0]}
        self.tensors, self.array, self.names = [torch.zeros(1)], np.zeros(1), set()
        self.row, self.object = (torch.zeros(1), [0]), Counter()

    def forward(self, x):
        if self.how == "a tensor":
            self.seen += 1
        elif self.how == "a container in a container":
            self.deep["calls"][0] += 1
        elif self.how == "a tensor in a list":
            self.tensors[0].add_(1)
        elif self.how == "an array":
            self.array += 1
        elif self.how == "a set":
            self.names.add(len(self.names))
        elif self.how == "a row":
            self.row[0].add_(1)
            self.row[1][0] += 1
        else:
            self.object.calls += 1
        count = (
            self.deep["calls"][0]
            + float(self.array[0])
            + len(self.names)
            + self.row[1][0]
            + self.object.calls
        )
        return self.layer(x) * (self.seen + self.tensors[0] + self.row[0] + count)


REGISTERING = words("child swapped deleted buffer hook pre_hook")


class Registers(nn.Module):
    """A forward that registers parts of its module."""

    def __init__(self, part):
        super().__init__()
        self.layer, self.act, self.part = nn.Linear(6, 3), nn.Tanh(), part

    def forward(self, x):
        if self.part == "child":
            self.extra = nn.ReLU()
            return self.extra(self.layer(x))
        if self.part == "deleted":
            if hasattr(self, "act"):
                x = self.act(x)
                del self.act
            return self.layer(x)
        if self.part == "buffer":
            if not hasattr(self, "count"):
                self.register_buffer("count", torch.zeros(()))
            self.count = self.count + 1
            return self.layer(x) * self.count
        if self.part == "hook":
            self.layer.register_forward_hook(lambda *given: given[-1] * 2)
        elif self.part == "pre_hook":
            self.layer.register_forward_pre_hook(lambda _, args: (args[0] * 2,))
        y = self.act(self.layer(x))
        if self.part == "swapped":
            self.act = nn.ReLU()
        return y


ALIASES = words("list tuple dict object")


class Box:
    """Holds a thing."""

    def __init__(self, thing):
        self.thing = thing


class Holds(nn.Module):
    """A module whose attributes hold its registered tensors."""

    def __init__(self, how):
        super().__init__()
        self.layer, self.norm = nn.Linear(6, 3), nn.BatchNorm1d(3)
        tensors = [self.layer.weight, self.norm.running_mean]
        self.held = {
            "list": tensors,
            "tuple": (*tensors, 3),
            "dict": {"inner": tensors},
            "object": Box(tensors),
        }[how]
        with torch.no_grad():
            self.norm.bias.zero_()

    def forward(self, x):
        held = self.held.thing if isinstance(self.held, Box) else self.held
        weight, mean = (held["inner"] if isinstance(held, dict) else held)[:2]
        before = mean.clone()
        y = x @ weight.T + self.layer.bias
        return nn.functional.batch_norm(y, None, None, self.norm.weight, None, True) + before


AROUND = (
    *words("partial default keyword object method_of_an_object in_a_list"),
    *words("nested weak a_dict_of_functions patched compiled"),
)


class Hook:
    """A hook with a module of its own."""

    def __init__(self, module):
        self.module = module

    def __call__(self, module, args, output):
        return output * self.module.weight.sum()

    def method(self, module, args, output):
        return output * self.module.weight.sum()


def scaled_by(other, module, args, output):
    return output * other.weight.sum()


def reads_held(self, x):
    """A forward that runs what its module holds."""
    held = self.held.thing if isinstance(self.held, Box) else self.held
    return (held[0] if isinstance(held, list) else held)(x)


def reading_around(how):
    """A model, a part of which reads another part in a way of which a copy knows nothing."""
    model = nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 6))
    first, second = model[0], model[1]

    def scale():
        return first.weight.sum()

    hooks = {
        "partial": lambda: partial(scaled_by, first),
        "default": lambda: lambda module, args, output, own=model[0]: output * own.weight.sum(),
        "object": lambda: Hook(model[0]),
        "method_of_an_object": lambda: Hook(model[0]).method,
        "nested": lambda: lambda module, args, output: output * scale(),
    }
    if how in hooks:
        second.register_forward_hook(hooks[how]())
    elif how == "keyword":

        def hook(module, args, output, *, own=first):
            return output * own.weight.sum()

        second.register_forward_hook(hook)
    elif how == "in_a_list":
        held = [first]
        second.register_forward_pre_hook(lambda module, args: (held[0](args[0]),))
    elif how == "weak":
        second.up = weakref.ref(first)
    elif how == "a_dict_of_functions":
        second.functions = {"first": lambda x: first(x)}
    elif how == "patched":
        before = second.forward
        second.forward = lambda x: 2 * before(x)
    else:
        second.function = torch.compile(first.forward, backend="eager")
    return model


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


def docs(name):
    from pathlib import Path

    return (Path(__file__).parent.parent / "docs" / name).read_text()


class Tokens(nn.Module):
    def __init__(self, width, vocabulary=11):
        super().__init__()
        self.embed, self.mix = (
            nn.Embedding(vocabulary, width),
            nn.Sequential(nn.Linear(width, width), nn.GELU()),
        )
        self.head = nn.Linear(width, vocabulary)

    def forward(self, ids):
        return self.head(self.mix(self.embed(ids)))


def texts(**options):
    ids, mask = torch.randint(11, (2, 6)), torch.ones(2, 6, dtype=torch.long)
    mask[1, 3:] = 0
    networks = {
        k: fcfd.split(Tokens(width), ["embed", "mix"], example=ids) for k, width in (("t", 8), ("s", 5))
    }
    labels = torch.where(mask > 0, ids, -100)
    return fcfd.link(networks, example=ids, **options), {"Labels": labels, "Mask": mask}, ids


def sound(width, layers=3):
    blocks = [
        nn.Sequential(nn.Conv1d(width if at else 1, width, 5, 2, 2), nn.BatchNorm1d(width), nn.ReLU())
        for at in range(layers)
    ]
    head = nn.Sequential(nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(width, 3))
    return nn.Sequential(*blocks, head)


def linked_sounds(example, by="split", **options):
    split = {
        "split": lambda model: fcfd.split(model, ["0", "1", "2"], example=example),
        "hand": lambda model: fcfd.split(list(model)),
        "count": lambda model: fcfd.split(model, example=example),
    }[by]
    return fcfd.link({"t": split(sound(8)), "s": split(sound(4))}, example=example, **options)


def delta(bridge):
    """A bridge that moves channels nowhere: what is left is where it puts places."""
    bridge.eval()
    weight = bridge.conv.weight
    with torch.no_grad():
        weight.zero_()
        for channel in range(weight.shape[0]):
            weight[(channel, channel, *[size // 2 for size in weight.shape[2:]])] = 1
    return bridge


class Video(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.body = nn.ModuleList(nn.Conv3d(a, width, 3, 2, 1) for a in (3, width))
        self.head = nn.Linear(width, 3)

    def forward(self, x):
        for block in self.body:
            x = block(x).relu()
        return self.head(x.mean((2, 3, 4)))


def vit(name, width):
    from reference.torchvision_cpu import prepare

    prepare()
    if name == "torchvision":
        import torchvision

        return torchvision.models.VisionTransformer(
            image_size=32,
            patch_size=8,
            num_layers=4,
            num_heads=2,
            hidden_dim=width,
            mlp_dim=2 * width,
            num_classes=3,
        )
    timm = pytest.importorskip("timm")
    if name == "timm swin":  # channels last
        return timm.create_model("swin_tiny_patch4_window7_224", img_size=32, window_size=2, embed_dim=width,
                                 depths=(1, 1, 1, 1), num_heads=(1, 1, 2, 2), num_classes=3)  # fmt: skip
    return timm.create_model(
        "vit_tiny_patch16_224",
        img_size=32,
        patch_size=8,
        embed_dim=width,
        depth=4,
        num_heads=2,
        num_classes=3,
    )


class TwoInputs(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.body, self.head = nn.Linear(6, width), nn.Linear(width, 3)

    def forward(self, x, t):
        return self.head(self.body(x + t).relu())


def two_inputs(example):
    return {k: fcfd.split(TwoInputs(width), ["body"], example=example) for k, width in (("t", 5), ("s", 4))}


class Mapped(UserDict):
    """As a `BatchEncoding` of transformers."""


class Masked(nn.Module):
    def __init__(self):
        super().__init__()
        self.body, self.head = nn.Linear(6, 4), nn.Linear(4, 3)

    def forward(self, x, mask=None, scale=None):
        h = self.body(x)
        return self.head(h if mask is None else h * mask)


def berts():
    ids, mask = torch.randint(1, 20, (2, 7)), torch.ones(2, 7, dtype=torch.long)
    mask[1, 4:] = 0
    example = {"input_ids": ids, "attention_mask": mask}
    cuts = ["bert.encoder.layer.0", "bert.encoder.layer.1"]
    networks = {
        k: fcfd.split(bert(width), cuts, example=example, exact=False) for k, width in (("t", 16), ("s", 8))
    }
    return fcfd.link(networks, example=example), example


Heads = namedtuple("Heads", "start end")


class Spans(nn.Module):
    """Start and end logits, as one kind of container."""

    def __init__(self, width, kind):
        super().__init__()
        self.body, self.head, self.kind = (
            nn.Sequential(nn.Linear(6, width), nn.ReLU()),
            nn.Linear(width, 6),
            kind,
        )

    def forward(self, x):
        start, end = self.head(self.body(x)).chunk(2, -1)
        if self.kind == "model output":
            return text_models().modeling_outputs.QuestionAnsweringModelOutput(
                start_logits=start, end_logits=end
            )
        return {
            "tuple": (start, end),
            "list": [start, end],
            "dict": {"start": start, "end": end},
            "record": Heads(start, end),
        }[self.kind]


def t5(width, layers):
    transformers = text_models()
    config = transformers.T5Config(
        vocab_size=20, d_model=width, d_kv=4, d_ff=8, num_layers=layers, num_heads=2, decoder_start_token_id=0
    )
    return transformers.T5ForConditionalGeneration(config).eval()


def t5_batch():
    ids = torch.randint(1, 20, (2, 5))
    return {"input_ids": ids, "decoder_input_ids": ids[:, :4], "use_cache": False}
