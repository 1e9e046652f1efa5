"""Stages compose to the model: values, gradients, statistics, random numbers; and a wrong cut says why."""

import copy
import gc
import pickle
import weakref
from collections.abc import Mapping
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils import _pytree as pytree

import fcfd

from ..purity import assert_unchanged, snapshot


class Tower(nn.Module):
    """Convolutions with what goes wrong in practice: statistics, dropout, and operations in place."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1), nn.BatchNorm2d(4))
        self.layer1 = nn.Sequential(nn.Conv2d(4, 4, 3, 1, 1), nn.BatchNorm2d(4), nn.Dropout(0.5))
        self.layer2 = nn.Sequential(nn.Conv2d(4, 6, 3, 2, 1), nn.BatchNorm2d(6))
        self.fc = nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu_(self.stem(x))
        y = self.layer1(x)
        y += x
        x = F.relu_(self.layer2(F.relu(y)))
        return self.fc(F.dropout(x.mean((2, 3)), 0.5, self.training))


class Dense(nn.Module):
    """Every layer reads all earlier ones, and a ReLU in place would spoil them."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 4, 1)
        self.layers = nn.ModuleList(nn.Conv2d(4 * (at + 1), 4, 1) for at in range(3))
        self.norm = nn.BatchNorm2d(16)
        self.fc = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        features = [self.first(x)]
        for layer in self.layers:
            features.append(layer(F.relu(torch.cat(features, 1))))
        return self.fc(F.relu(self.norm(torch.cat(features, 1)), inplace=True).mean((2, 3)))


class Shared(nn.Module):
    """One module under two names and in three places, and a block that runs twice."""

    def __init__(self) -> None:
        super().__init__()
        self.act = nn.ReLU(inplace=True)
        self.a = nn.Sequential(nn.Conv2d(3, 4, 1), self.act)
        self.twice = nn.Sequential(nn.Conv2d(4, 4, 1), nn.Tanh())
        self.b = nn.Sequential(nn.Conv2d(4, 4, 1), self.act)
        self.fc = nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.twice(self.a(self.act(x)))
        return self.fc(self.act(2 * self.b(self.twice(x))).mean((2, 3)))


class Attention(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm, self.attend = nn.LayerNorm(width), nn.MultiheadAttention(width, 2, batch_first=True)
        self.mlp = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width), nn.GELU(), nn.Dropout(0.1))

    def forward(self, x: Tensor, bias: Tensor, hidden: Tensor) -> tuple[Tensor, Tensor]:
        y = self.norm(x)
        weights = bias.expand(2 * len(x), -1, -1).masked_fill(hidden.repeat_interleave(2, 0)[:, None], -1e9)
        x = x + self.attend(y, y, y, attn_mask=weights, need_weights=False)[0]
        return x + self.mlp(x), bias


class Text(nn.Module):
    """Integers in, a table from a module, a mask from another argument, tied weights, blocks of tuples."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(11, 8)
        self.distance = nn.Embedding(20, 1)
        self.blocks = nn.ModuleList(Attention(8) for _ in range(4))
        self.norm = nn.LayerNorm(8)
        self.decode = nn.Linear(8, 11, bias=False)
        self.decode.weight = self.embed.weight
        self.also = nn.Linear(8, 11, bias=False)
        self.also.weight = self.embed.weight

    def forward(self, ids: Tensor, mask: Tensor, unused: Any = None) -> "Result":
        at = torch.arange(ids.shape[1])
        bias = self.distance(at[:, None] - at[None] + 10).squeeze(-1)
        x = self.embed(ids)
        for block in self.blocks:
            x, bias = block(x, bias, mask == 0)
        x = self.norm(x)
        return Result(self.decode(x) + self.also(x), (x,))


class Result(NamedTuple):
    logits: Tensor
    hidden: tuple[Tensor, ...]


class Cached(nn.Module):
    """Keeps a bias from its first run in eval, and the last feature; and counts by assignment."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.fc = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 5)
        self.bias = nn.Parameter(torch.randn(3))
        self.index = torch.tensor([0, 1, 2, 2, 1, 0])
        self.register_buffer("count", torch.tensor(0))
        self.cache: dict[str, Tensor] = {}

    def train(self, mode: bool = True) -> "Cached":
        self.cache = {} if mode else self.cache
        return super().train(mode)

    def forward(self, x: Tensor) -> Tensor:
        if not self.training and "bias" not in self.cache:
            self.cache["bias"] = self.bias[self.index]
        self.count = self.count + 1
        self.last = self.a(x)
        return self.fc(self.b(self.last) + (self.bias[self.index] if self.training else self.cache["bias"]))


class Pyramid(nn.Module):
    """Boundaries of several tensors: a dict from the body, and features that skip."""

    def __init__(self) -> None:
        super().__init__()
        self.body = Body()
        self.up, self.out = nn.Conv2d(6, 4, 1), nn.Conv2d(4, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        maps = self.body(x)
        return self.out(F.relu_(maps["low"]) + F.interpolate(self.up(maps["high"]), scale_factor=2.0))


class Body(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.low, self.high = nn.Conv2d(3, 4, 3, 2, 1), nn.Conv2d(3, 6, 3, 4, 1)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"low": self.low(x), "high": self.high(x)}


class Helped(nn.Module):
    """A second head that only runs in training, with statistics of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1)
        self.aux = nn.Sequential(nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(256, 5))
        self.fc = nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Any:
        x = self.a(x)
        aux = self.aux(x) if self.training else None
        y = self.fc(self.b(x).mean((2, 3)))
        return Result(y, (aux,)) if self.training else y


class Tokens(nn.Module):
    """PyTorch's own encoder, whose fast path reads weights behind its modules' backs; and a class token."""

    def __init__(self) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, 8, 4, 4)
        self.token, self.place = nn.Parameter(torch.randn(1, 1, 8)), nn.Parameter(torch.randn(1, 5, 8))
        self.blocks = nn.Sequential(
            *(nn.TransformerEncoderLayer(8, 2, 16, 0.1, batch_first=True) for _ in range(4))
        )
        self.norm, self.head = nn.LayerNorm(8), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(len(x), -1, -1), x], 1) + self.place
        return self.head(self.norm(self.blocks(x))[:, 0])


def normed() -> nn.Module:
    """Parametrised weights: one that is computed, one that also keeps state."""
    return nn.Sequential(
        nn.utils.parametrizations.weight_norm(nn.Linear(6, 6)),
        nn.Tanh(),
        nn.utils.parametrizations.spectral_norm(nn.Linear(6, 6)),
        nn.Linear(6, 5),
    )


IMAGES = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
ROWS = torch.randn(2, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
TEXT = {"ids": torch.tensor([[1, 2, 3, 4], [5, 6, 0, 0]]), "mask": torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]])}

CASES: dict[str, tuple[Any, Any, Any]] = {
    "resolutions": (Tower, None, IMAGES),
    "names": (Tower, ["stem", ("stem", "layer1"), "layer2"], IMAGES),
    "inside a sequence": (Tower, ["layer2.0"], IMAGES),
    "one stage": (Tower, 1, IMAGES),
    "concatenations": (Dense, ["first", "norm"], IMAGES),
    "a boundary of many": (Dense, [("first", "layers.0"), ("first", "layers.0", "layers.1"), "norm"], IMAGES),
    "shared modules": (Shared, ["a", "b"], IMAGES),
    "blocks": (Tokens, None, IMAGES),
    "groups": (Tokens, 3, IMAGES),
    "text": (Text, None, TEXT),
    "first block": (Text, ["embed", "blocks.1"], TEXT),
    "caches": (Cached, ["a", "b"], ROWS),
    "a dict": (Pyramid, ["body"], IMAGES),
    "in company": (Pyramid, [("body.low", "body.high"), ("body.low", "up")], IMAGES),
    "only in training": (Helped, ["a", "b"], IMAGES),
    "parametrised": (normed, ["0", "2"], ROWS),
}
ALL = pytest.mark.parametrize("case", CASES)


def built(case: str) -> tuple[nn.Module, Any, Any]:
    make, at, batch = CASES[case]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return make().double(), at, batch


def compose(network: fcfd.Network, batch: Any, params: Any = None) -> tuple[Any, dict[str, Tensor]]:
    context = batch if isinstance(batch, Mapping) else {}
    value, buffers = batch, dict(network.buffers)
    for stage in network.stages:
        value, new = stage(params or network.params, {**network.buffers, **context}, value)
        buffers |= new
    return value, buffers


def whole(model: nn.Module, batch: Any) -> tuple[Tensor, dict[str, Tensor]]:
    """The model itself, run on a copy."""
    model = copy.deepcopy(model)
    output = model(**batch) if isinstance(batch, Mapping) else model(batch.clone())
    return getattr(output, "logits", output), dict(model.named_buffers())


def grown(batch: Any, examples: int) -> Any:
    return pytree.tree_map(lambda tensor: tensor.repeat(3, *[1] * (tensor.ndim - 1))[:examples], batch)


def assert_equal(a: Any, b: Any) -> None:
    for x, y in zip(pytree.tree_leaves(a), pytree.tree_leaves(b), strict=True):
        assert x.dtype == y.dtype
        assert torch.equal(x, y)


@ALL
@pytest.mark.parametrize("mode", ["train", "eval"])
def test_stages_compose_to_the_model_with_its_statistics_and_random_numbers(case, mode):
    model, at, batch = built(case)
    network = fcfd.split(model, at, example=batch)
    model.train(mode == "train")
    for examples in (2, 5):
        several = grown(batch, examples)
        torch.manual_seed(1)
        expected = whole(model, several)
        torch.manual_seed(1)
        assert_equal(compose(network, several), expected)


@ALL
def test_gradients_are_those_of_the_model(case):
    model, at, batch = built(case)
    network = fcfd.split(model, at, example=batch)
    seen = copy.deepcopy(model)
    torch.manual_seed(1)
    output = seen(**batch) if isinstance(batch, Mapping) else seen(batch.clone())
    expected = torch.autograd.grad(
        getattr(output, "logits", output).square().sum(), [*seen.parameters()], allow_unused=True
    )
    torch.manual_seed(1)
    found = torch.autograd.grad(
        compose(network, batch)[0].square().sum(), [*network.params.values()], allow_unused=True
    )
    for (name, _), a, b in zip(seen.named_parameters(), found, expected, strict=True):
        zero = a is None and b is None
        assert zero or torch.allclose(a, b, rtol=1e-12, atol=1e-12), name


@ALL
def test_nothing_changes(case):
    model, at, batch = built(case)
    model.eval()
    held = {name: dict(vars(module)) for name, module in model.named_modules()}
    contents = {name: copy.copy(vars(module).get("cache")) for name, module in model.named_modules()}
    params = dict(model.named_parameters())
    before = snapshot(model, batch)
    network = fcfd.split(model, at, example=batch)
    compose(network, batch)
    assert_unchanged(before, model, batch)
    for name, module in model.named_modules():
        assert vars(module).keys() == held[name].keys()
        assert all(vars(module)[key] is value for key, value in held[name].items() if key != "training")
        assert vars(module).get("cache") == contents[name]
    assert all(network.params[name] is param for name, param in params.items())


@ALL
def test_networks_are_copied_and_pickled(case):
    model, at, batch = built(case)
    network = fcfd.split(model.eval(), at, example=batch)
    expected = compose(network, batch)
    assert_equal(compose(copy.deepcopy(network), batch), expected)
    if case != "parametrised":  # torch does not pickle these
        assert_equal(compose(pickle.loads(pickle.dumps(network)), batch), expected)


def test_a_feature_survives_the_stages_that_read_it():
    model, _, batch = built("resolutions")
    network = fcfd.split(model, ["stem", "layer2"], example=batch)
    for stage, x in zip(
        network.stages,
        (batch, torch.randn_like(batch[:, :1].repeat(1, 4, 1, 1)[..., ::2, ::2])),
        strict=False,
    ):
        before = x.clone()
        stage(network.params, network.buffers, x)
        assert torch.equal(x, before)


@pytest.mark.parametrize("mode", ["train", "eval", "statistics frozen"])
def test_only_buffers_that_are_written_are_copied(mode):
    model, at, batch = built("resolutions")
    network = fcfd.split(model, at, example=batch)
    model.train(mode != "eval")
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        norm.train(mode == "train")
    before = {name: buffer.clone() for name, buffer in network.buffers.items()}
    _, after = compose(network, batch)
    assert norms
    assert all(torch.equal(buffer, before[name]) for name, buffer in network.buffers.items())
    copied = {name for name, buffer in after.items() if buffer is not network.buffers[name]}
    assert copied == (set() if mode == "eval" else set(before))
    changed = {name for name, buffer in after.items() if not torch.equal(buffer, before[name])}
    assert changed == (set(before) if mode == "train" else set())


def test_nothing_stays_alive_after_a_stage():
    model, at, batch = built("caches")
    network = fcfd.split(model, at, example=batch)
    gc.collect()
    gc.disable()
    try:
        y, _ = network.stages[0](network.params, network.buffers, batch)
        alive = weakref.ref(y)
        del y
        assert alive() is None
    finally:
        gc.enable()


@pytest.mark.parametrize(
    "mode, case",
    [
        ("train", "resolutions"),
        ("eval", "in company"),
        *(pytest.param("train", case, marks=pytest.mark.slow) for case in ("text", "blocks")),
    ],
)
def test_stages_compile_in_one_graph(mode, case):
    model, at, batch = built(case)
    network = fcfd.split(model.train(mode == "train"), at, example=batch)
    torch._dynamo.reset()
    stages = fcfd.compiled(network.stages, backend="aot_eager", dynamic=False)
    with torch.random.fork_rng():
        torch.manual_seed(1)
        expected = compose(network, batch)
        torch.manual_seed(1)
        torch.testing.assert_close(compose(network._replace(stages=stages), batch), expected)


@pytest.mark.parametrize("case", ["resolutions", "text", "only in training"])
def test_stages_under_autocast(case):
    model, at, batch = built(case)
    model.float()
    batch = pytree.tree_map(lambda x: x.float() if x.is_floating_point() else x, batch)
    network = fcfd.split(model, at, example=batch)
    with torch.autocast("cpu", torch.bfloat16):
        torch.manual_seed(1)
        expected = whole(model, batch)
        torch.manual_seed(1)
        assert_equal(compose(network, batch), expected)


@pytest.mark.parametrize("case", ["resolutions", "concatenations", "blocks", "text"])
def test_stages_under_transforms_and_checkpoints(case):
    model, at, batch = built(case)
    network = fcfd.split(model.eval(), at, example=batch)

    def loss(params: Any) -> Tensor:
        return compose(network, batch, params)[0].square().sum()

    params = {name: tensor.detach() for name, tensor in network.params.items()}
    found = torch.func.grad(loss)(params)
    value, pull = torch.func.vjp(loss, params)
    loss(network.params).backward()
    for name, param in network.params.items():
        expected = torch.zeros_like(param) if param.grad is None else param.grad
        torch.testing.assert_close(found[name], expected, rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(pull(torch.ones_like(value))[0][name], expected, rtol=1e-10, atol=1e-10)
        param.grad = None
    again = network._replace(stages=fcfd.checkpointed(network.stages))
    compose(again, batch)[0].square().sum().backward()
    for name, param in network.params.items():
        torch.testing.assert_close(found[name], torch.zeros_like(param) if param.grad is None else param.grad)


@pytest.mark.filterwarnings("ignore:`torch.jit.script:DeprecationWarning")  # of torch's own jvp
def test_stages_push_tangents_forward():
    model, at, batch = built("concatenations")
    network = fcfd.split(model.eval(), at, example=batch)

    def loss(params: Any) -> Tensor:
        return compose(network, batch, params)[0].square().sum()

    params = {name: tensor.detach() for name, tensor in network.params.items()}
    slopes = torch.func.grad(loss)(params)
    expected = sum(slope.square().sum() for slope in slopes.values())
    torch.testing.assert_close(torch.func.jvp(loss, (params,), (slopes,))[1], expected)


def test_other_sizes_of_image():
    model, at, batch = built("resolutions")
    network = fcfd.split(model.eval(), at, example=batch)
    images = torch.randn(3, 3, 20, 12, dtype=torch.float64)
    assert_equal(compose(network, images), whole(model, images))


@pytest.mark.parametrize("case", ["text", "first block"])
def test_other_lengths_of_text(case):
    model, at, batch = built(case)
    network = fcfd.split(model.eval(), at, example=batch)
    for length in (2, 3, 7):
        several = {name: tensor.repeat(2, 2)[:3, :length] for name, tensor in batch.items()}
        assert_equal(compose(network, several), whole(model, several))


def test_other_lengths_of_text_that_runs_without_names():
    class Plain(Text):
        def forward(self, ids: Tensor) -> Tensor:  # type: ignore[override]
            return super().forward(ids, torch.ones_like(ids)).logits

    torch.manual_seed(0)
    model = Plain().double().eval()
    network = fcfd.split(model, ["embed", "blocks.1"], example=TEXT["ids"])
    for ids in (TEXT["ids"].repeat(2, 2)[:3, :7], TEXT["ids"][:, :3]):
        assert_equal(compose(network, ids), whole(model, ids))


def test_images_by_default():
    network = fcfd.split(Tower())
    assert network.names == ("stem", "layer2", "fc")
    assert network.shapes == ((2, 4, 112, 112), (2, 6, 56, 56), (2, 5))
    assert network.cuts == ("stem.0", "stem.1", "stem", "layer2.0", "layer2.1", "layer2")
    assert str(network).splitlines()[:3] == [
        "stage  ends at  returns",
        "0      stem     (2, 4, 112, 112)",
        "1      layer2   (2, 6, 56, 56)",
    ]


def test_a_network_prints_as_a_short_table():
    model = nn.Sequential(*(nn.Sequential(nn.Linear(6, 6), nn.Tanh()) for _ in range(60)))
    network = fcfd.split(model, [str(at) for at in range(59)], example=torch.randn(2, 6))
    printed = repr(network)
    assert len(printed) < 3000
    assert "…      48 more" in printed
    assert printed.splitlines()[-1].endswith("and 154 more")
    assert str(network) == printed


def test_without_a_proof_the_parameters_are_not_copied():
    model, at, batch = built("resolutions")
    before = snapshot(model, batch)
    network = fcfd.split(model, at, example=batch, proof=False)
    assert_unchanged(before, model, batch)
    model.eval()
    assert str(network).splitlines()[-1] == "proof: left out"
    assert network.names == fcfd.split(model, at, example=batch).names
    assert_equal(compose(network, batch), whole(model, batch))


def test_a_model_on_meta():
    model, at, batch = built("text")
    with torch.device("meta"):
        empty = Text().double()
    network = fcfd.split(empty, at, example=batch)
    assert str(network).splitlines()[-1] == "proof: left out: the model is on meta"
    empty.eval()
    real = fcfd.split(model.eval(), at, example=batch)
    assert network[3:6] == real[3:6]
    found = compose(network._replace(buffers=real.buffers), batch, real.params)
    assert_equal(found, compose(real, batch))


def test_modules_by_hand():
    first, last = nn.Sequential(nn.Linear(6, 4), nn.ReLU()), nn.Linear(4, 6, bias=False)
    last.weight = nn.Parameter(first[0].weight.detach().T.clone())
    again = nn.Linear(6, 4)
    again.weight = first[0].weight
    network = fcfd.split([first, torch.relu_, last, again])
    assert list(network.params) == ["0.0.weight", "0.0.bias", "2.weight", "3.bias"]
    assert network.names == ("0", "1", "2", "3")
    assert str(network).splitlines()[-1].split() == ["3", "3"], "there are no cuts to list"
    model = nn.Sequential(first, nn.ReLU(), last, again)
    assert_equal(compose(network, ROWS.float())[0], model(ROWS.float()))
    assert_equal(compose(pickle.loads(pickle.dumps(network)), ROWS.float())[0], model(ROWS.float()))
    feature = torch.randn(2, 4)
    before = feature.clone()
    network.stages[1]({}, {}, feature)
    assert torch.equal(feature, before)


def test_a_forgotten_argument_is_an_error():
    model, at, batch = built("text")
    network = fcfd.split(model, at, example=batch)
    x, _ = network.stages[0](network.params, network.buffers, batch)
    with pytest.raises(ValueError, match="^split: this model takes mask; stages after the first need it"):
        network.stages[1](network.params, {**network.buffers, "ids": batch["ids"]}, x)


class Drawing(nn.Module):
    """Draws random numbers between its modules, which every later stage would draw again."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.noise, self.b = nn.Linear(6, 6), Noise(), nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(self.b(self.a(x) + self.noise(x.shape)), 0.5, self.training)


class Noise(nn.Module):
    def forward(self, shape: torch.Size) -> Tensor:
        return torch.randn(shape[-1:], dtype=torch.float64) if self.training else torch.zeros(())


def test_random_numbers_that_would_be_drawn_twice():
    torch.manual_seed(0)
    model = Drawing().double()
    with pytest.raises(ValueError, match=r"in train mode only by random numbers\. Pass exact=False"):
        fcfd.split(model, ["a", "b"], example=ROWS)
    network = fcfd.split(model, ["a", "b"], example=ROWS, exact=False)
    model.eval()
    assert_equal(compose(network, ROWS)[0], model(ROWS))


class Hidden(nn.Module):
    """Reads a weight where no recording sees it."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 6), nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)
        return self.b(x) * float(self.a.weight.detach().sum())


class Translating(nn.Module):
    """Every block of a decoder reads what the encoder returned."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.encoder = nn.Embedding(11, 8), nn.Sequential(nn.Linear(8, 8), nn.Tanh())
        self.decoder = nn.ModuleList(Reading() for _ in range(3))
        self.head = nn.Linear(8, 11)

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        source, x = self.encoder(self.embed(ids)), self.embed(mask)
        for block in self.decoder:
            x = block(x, source)
        return self.head(x)


class Reading(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.own, self.other = nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x: Tensor, source: Tensor) -> Tensor:
        return x + torch.tanh(self.own(x) + self.other(source).mean(1, keepdim=True))


REFUSED: dict[str, tuple[Any, Any, Any, str]] = {
    "no such name": (Tower, ["steem"], IMAGES, r"Tower has no module 'steem'\. Near: 'stem'"),
    "around": (
        Tower,
        ["layer1"],
        IMAGES,
        r"'layer1' is not a cut: .* the input through another path\. Valid",
    ),
    "inside": (
        Text,
        ["blocks.1.attend"],
        TEXT,
        r"depends on what enters 'blocks.1' through another path\. Va",
    ),
    "often": (Shared, ["act"], IMAGES, r"'act' runs 4 times in one forward; a boundary must run once\. Use"),
    "never": (Text, ["blocks"], TEXT, r"'blocks' runs 0 times in one forward"),
    "table": (
        Text,
        ["distance"],
        TEXT,
        r"'distance' is not a cut: nothing that it returns depends on the inp",
    ),
    "company": (Pyramid, ["body.high"], IMAGES, r"'body.high' needs company: \('body.low', 'body.high'\)"),
    "a decoder": (
        Translating,
        ["decoder.1"],
        TEXT,
        r"'decoder.1' needs company: \('encoder', 'decoder.1'\)",
    ),
    "too many": (
        Tower,
        9,
        IMAGES,
        r"has 2 resolutions and 0 blocks, which do not tell 8 boundaries\. Pass at=",
    ),
    "no maps": (
        normed,
        None,
        ROWS,
        r"has 0 resolutions and 0 blocks, .* Pass at=\[names\], .*'0', '1', '2'; or w",
    ),
    "no image": (normed, None, None, r"does not run on an image batch \(2, 3, 224, 224\) .*Pass example="),
    "example": (Tower, None, ROWS, r"Tower does not run on the example \(RuntimeError"),
    "unseen": (Hidden, ["a"], ROWS, r"compose\(stages\) differs from the model in train mode\. Use other"),
    "data parallel": (lambda: nn.DataParallel(Tower()), None, IMAGES, r"wraps a model. Split its `module`"),
    "a list and names": (lambda: [Tower()], ["stem"], IMAGES, r"a list of modules is a model in stages"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_refusal_says_what_to_do(case):
    make, at, batch, text = REFUSED[case]
    model = make()
    model = model.double() if isinstance(model, nn.Module) and batch is not None else model
    with pytest.raises(ValueError, match=f"^split: .*{text}"):
        fcfd.split(model, at, example=batch)


def test_a_compiled_model_is_refused():
    compiled = nn.Module()  # torch.compile itself takes seconds to import its compiler
    compiled._orig_mod = nn.Linear(2, 2)
    with pytest.raises(ValueError, match=r"^split: Module is compiled\. Pass the model as it was before"):
        fcfd.split(compiled)
