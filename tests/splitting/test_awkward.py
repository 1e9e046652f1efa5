"""Models that do odd things to themselves: every stage is right, and nothing in the model changes."""

import copy
import threading
import types
from collections import UserDict
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import prune
from torch.utils.checkpoint import checkpoint

import fcfd

from ..purity import assert_unchanged, snapshot

X = torch.randn(4, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


class Body(nn.Module):
    """Three layers with a place for what is odd."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.c(torch.tanh(self.b(torch.tanh(self.a(x)))))


def aliased() -> nn.Module:
    model = Body()
    model.also = model.b
    return model


def tied() -> nn.Module:
    model = Body()
    model.b.weight = model.a.weight
    return model


class NormTwice(Body):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(6)

    def forward(self, x: Tensor) -> Tensor:
        return self.c(self.norm(self.b(self.norm(torch.tanh(self.a(x))))))


class Caching(Body):
    def __init__(self) -> None:
        super().__init__()
        self.cache: dict[str, Tensor] = {}
        self.seen: list[Tensor] = []
        self.last = None

    def forward(self, x: Tensor) -> Tensor:
        self.last = torch.tanh(self.a(x))
        if "weight" not in self.cache:
            self.cache["weight"] = 2 * self.b.weight
        self.seen.append(self.last)
        return self.c(F.linear(self.b(self.last), self.cache["weight"]))


class Flipping(Body):
    def __init__(self) -> None:
        super().__init__()
        self.drop, self.norm = nn.Dropout(0.5), nn.BatchNorm1d(6)

    def forward(self, x: Tensor) -> Tensor:
        self.norm.eval()
        return self.c(self.drop.eval()(self.norm(torch.tanh(self.b(self.a(x))))))


class Counting(Body):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("count", torch.tensor(0))

    def forward(self, x: Tensor) -> Tensor:
        self.count = self.count.to(torch.float64) + 1
        return super().forward(x) * self.count


def normed() -> nn.Module:
    model = Body()
    nn.utils.parametrizations.weight_norm(model.a)
    nn.utils.parametrizations.spectral_norm(model.b)
    return model


def old_spectral_norm() -> nn.Module:
    model = Body()
    nn.utils.spectral_norm(model.b)
    return model


def pruned() -> nn.Module:
    model = Body()
    prune.random_unstructured(model.b, "weight", 0.5)
    return model


def hooked() -> nn.Module:
    model = Body()
    model.b.register_forward_pre_hook(lambda module, args: (args[0] * 2,))
    model.b.register_forward_hook(lambda module, args, output: output + module.bias)
    return model


class Listed(nn.Module):
    """Detectron's way: modules in a plain list, registered beside it."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = []
        for at in range(3):
            layer = nn.Linear(6, 6)
            self.add_module(f"layer{at}", layer)
            self.layers.append(layer)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = torch.tanh(layer(x))
        return x


def patched() -> nn.Module:
    model = Body()
    model.forward = types.MethodType(lambda self, x: self.c(torch.sin(self.b(self.a(x)))), model)
    return model


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.lstm, self.c = nn.Linear(6, 6), nn.LSTM(6, 6, batch_first=True), nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.c(self.lstm(self.a(x)[:, None])[0][:, 0])


ZOO: dict[str, tuple[Any, list[str]]] = {
    "a module under two names": (aliased, ["a"]),
    "one parameter in two modules": (tied, ["a", "b"]),
    "a norm that runs twice": (NormTwice, ["a"]),
    "caches": (Caching, ["a"]),
    "flags that forward flips": (Flipping, ["a", "b"]),
    "a buffer of another type": (Counting, ["a", "b"]),
    "parametrised": (normed, ["a", "b"]),
    "old spectral norm": (old_spectral_norm, ["a", "b"]),
    "pruned": (pruned, ["a", "b"]),
    "hooks": (hooked, ["a", "b"]),
    "a plain list of modules": (Listed, ["layer0", "layer1"]),
    "a patched forward": (patched, ["a", "b"]),
    "recurrent": (Recurrent, ["a"]),
}
ALL = pytest.mark.parametrize("case", ZOO)
WAYS = pytest.mark.parametrize("way", ["stage", "list", "names"])


def built(case: str, mode: str = "eval") -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return ZOO[case][0]().double().train(mode == "train")


def network(case: str, model: nn.Module, way: str) -> fcfd.Network:
    if way == "names":
        return fcfd.split(model, ZOO[case][1], example=X)
    if way == "list":
        return fcfd.split([model])
    params, buffers = dict(model.named_parameters()), dict(model.named_buffers())
    return fcfd.split([model])._replace(stages=(fcfd.stage(model),), params=params, buffers=buffers)


def run(
    own: fcfd.Network, params: Any, x: Tensor = X, buffers: Any = None
) -> tuple[Tensor, dict[str, Tensor]]:
    buffers = own.buffers if buffers is None else buffers
    written: dict[str, Tensor] = {}
    for stage in own.stages:
        x, new = stage(params, buffers, x)
        written |= new
    return x, written


def other(params: Any) -> dict[str, Tensor]:
    return {name: (1.5 * tensor + 0.1).detach() for name, tensor in params.items()}


def whole(case: str, mode: str, params: Any) -> Tensor:
    """The model itself with these parameters."""
    model = built(case, mode)
    with torch.no_grad():
        for (_, own), tensor in zip(model.named_parameters(), params.values(), strict=True):
            own.copy_(tensor)
    return model(X.clone())


@ALL
@WAYS
@pytest.mark.parametrize("mode", ["train", "eval"])
def test_stages_run_with_other_parameters_and_nothing_changes(case, way, mode):
    model = built(case, mode)
    before = snapshot(model, X)
    own = network(case, model, way)
    torch.manual_seed(0)
    params = other(own.params)
    before[0] = torch.get_rng_state()
    torch.manual_seed(1)
    expected = whole(case, mode, params)
    for _ in range(2):
        torch.manual_seed(1)
        torch.testing.assert_close(run(own, params)[0], expected, rtol=1e-12, atol=1e-12)
    torch.manual_seed(0)
    before[0] = torch.get_rng_state()
    assert_unchanged(before, model, X)


@ALL
@WAYS
def test_gradients_by_torch_func_leave_no_wrapper(case, way):
    model = built(case)
    own = network(case, model, way)
    before = snapshot(model, X)
    params = {name: tensor.detach() for name, tensor in own.params.items()}
    found = torch.func.grad(lambda params: run(own, params)[0].square().sum())(params)
    assert_unchanged(before, model, X)
    run(own, own.params)[0].square().sum().backward()
    for name, param in own.params.items():
        torch.testing.assert_close(found[name], torch.zeros_like(param) if param.grad is None else param.grad)


@pytest.mark.parametrize(
    "case", ["a module under two names", "one parameter in two modules", "hooks", "caches"]
)
@WAYS
def test_stages_under_vmap(case, way):
    model = built(case)
    own = network(case, model, way)
    before = snapshot(model, X)
    several = torch.stack([X, 2 * X])
    params = other(own.params)
    found = torch.func.vmap(lambda x: run(own, params, x)[0])(several)
    torch.testing.assert_close(found, torch.stack([run(own, params, x)[0] for x in several]))
    assert_unchanged(before, model, X)


@ALL
@WAYS
def test_an_error_in_the_middle_leaves_everything_as_it_was(case, way):
    model = built(case)
    own = network(case, model, way)
    params = other(own.params)
    expected = run(own, params)[0]
    before = snapshot(model, X)
    last = [name for name in params if ".c." in f".{name}" or "layer2." in name]
    broken = params | dict.fromkeys(last, torch.zeros(7, 7, dtype=torch.float64))
    with pytest.raises(RuntimeError):
        run(own, broken, X)
    assert_unchanged(before, model, X)
    torch.testing.assert_close(run(own, params)[0], expected)


@pytest.mark.parametrize("way", ["stage", "list", "names"])
def test_a_shared_norm_counts_as_in_the_model(way):
    model = built("a norm that runs twice", "train")
    plain = copy.deepcopy(model)
    own = network("a norm that runs twice", model, way)
    for _ in range(3):
        plain(X)
        _, new = run(own, own.params)
        fcfd.write_buffers_(model, {name.removeprefix("0."): tensor for name, tensor in new.items()})
    for (name, a), (_, b), c in zip(
        plain.named_buffers(), model.named_buffers(), own.buffers.values(), strict=True
    ):
        torch.testing.assert_close(b, a, msg=name)
        assert c is b or torch.equal(c, b)
    assert model.norm.num_batches_tracked == 6


class Recomputing(Body):
    def __init__(self, reentrant: bool) -> None:
        super().__init__()
        self.norm, self.reentrant = nn.BatchNorm1d(6), reentrant

    def forward(self, x: Tensor) -> Tensor:
        y = checkpoint(lambda x: torch.tanh(self.norm(self.b(x))), self.a(x), use_reentrant=self.reentrant)
        return self.c(y)


@pytest.mark.parametrize("reentrant", [False, True])
def test_a_checkpoint_inside_is_refused_or_fails(reentrant):
    model = Recomputing(reentrant).double()
    with pytest.raises(ValueError, match=r"^split: Recomputing recomputes parts .* fcfd\.checkpointed\(n"):
        fcfd.split(model, ["a"], example=X)
    before = snapshot(model)
    params = {name: tensor.requires_grad_() for name, tensor in other(dict(model.named_parameters())).items()}
    y, _ = fcfd.stage(model)(params, dict(model.named_buffers()), X)
    with pytest.raises(ValueError, match="when its call is over"):
        y.sum().backward()
    assert_unchanged(before, model)


def test_a_replaced_module_is_refused():
    model = built("hooks")
    own, by_hand = fcfd.split(model, ["a", "b"], example=X), fcfd.stage(model)
    model.c = nn.Linear(6, 3).double()
    with pytest.raises(
        ValueError, match=r"^stage: 'c' was replaced after the stage was made\. Split the model"
    ):
        run(own, own.params)
    with pytest.raises(ValueError, match=r"^stage: 'c' was replaced"):
        by_hand(own.params, {}, X)


@pytest.mark.parametrize("way", [fcfd.stage, fcfd.split, lambda model: fcfd.split([model])])
def test_lazy_modules_are_refused(way):
    model = nn.Sequential(nn.LazyLinear(3))
    with pytest.raises(ValueError, match=r"'0', a LazyLinear, is lazy .* Run it once on a batch first"):
        way(model)
    assert isinstance(model[0], nn.LazyLinear)


@pytest.mark.parametrize("way", [fcfd.stage, fcfd.split, lambda model: fcfd.split([model])])
def test_functions_that_would_read_the_model_from_around_are_refused(way):
    model = nn.Sequential(nn.Linear(6, 6))
    model[0].register_forward_hook(lambda module, args, output: output + model[0].bias)
    with pytest.raises(ValueError, match=r"has a hook or an attribute, the function .* Make it"):
        way(model)


@pytest.mark.parametrize("way", [fcfd.stage, fcfd.split, lambda model: fcfd.split([model])])
def test_a_compiled_module_inside_is_refused(way):
    model = nn.Sequential(nn.Linear(6, 6))
    model[0]._compiled_call_impl = model[0]._call_impl  # torch.compile itself takes seconds to import
    with pytest.raises(ValueError, match=r"'0', a Linear, is compiled\. Pass the model as it was before"):
        way(model)


def test_threads_do_not_meet():
    """Each thread's stages read its own parameters, while the model itself runs in another."""
    model = built("a norm that runs twice", "train")
    own = network("a norm that runs twice", model, "names")
    before = snapshot(model)
    sets = [{name: factor * tensor.detach() for name, tensor in own.params.items()} for factor in (1, 2, 3)]
    expected = [run(own, params) for params in sets]
    found: list[Any] = [[] for _ in sets]

    def work(at: int) -> None:
        found[at] = [run(own, sets[at]) for _ in range(20)]

    threads = [threading.Thread(target=work, args=(at,)) for at in range(len(sets))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for values, wanted in zip(found, expected, strict=True):
        for value, new in values:
            torch.testing.assert_close((value, new), wanted, rtol=0, atol=0)
    assert_unchanged(before, model)


WRONG: dict[str, tuple[Any, dict[str, Any], type[Exception], str]] = {
    "a name": ("resnet18", {}, TypeError, "'resnet18' is no model"),
    "none in a list": ([None], {}, TypeError, "entry 0 of the list is None"),
    "a class in a list": ([nn.ReLU], {}, TypeError, "entry 0 of the list is <class"),
    "a class": (Body, {}, TypeError, "the class Body is no model"),
    "a state dict": (Body().state_dict(), {}, TypeError, "an? OrderedDict is no model"),
    "nothing": ([], {}, ValueError, "an empty list has no stages"),
    "a number": (3, {}, TypeError, "an? int is no model"),
    "twice": (Body(), {"at": ["a", "a"]}, ValueError, "the boundary 'a' is given twice"),
    "no stages": (Body(), {"at": 0}, ValueError, "at=0 stages"),
    "less": (Body(), {"at": -2}, ValueError, "at=-2 stages"),
    "one string": (Body(), {"at": "a"}, TypeError, r"at=\['a'\]"),
    "a float": (Body(), {"at": 2.5}, TypeError, r"at=2\.5"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_arguments_are_named(case):
    model, options, kind, text = WRONG[case]
    with pytest.raises(kind, match=f"^split: .*{text}"):
        fcfd.split(model, example=X.float() if options else None, **options)


class Masked(Body):
    def forward(self, mask: Tensor, x: Tensor) -> Tensor:  # type: ignore[override]
        return super().forward(x) * mask[:, None]


def test_an_example_that_begins_with_the_mask():
    batch = {"mask": torch.ones(4), "x": X.float()}
    with pytest.raises(ValueError, match=r"^split: .* The input is the example's first entry, 'mask'"):
        fcfd.split(Masked(), ["a"], example=batch)
    own = fcfd.split(Masked(), ["a"], example={"x": batch["x"], "mask": batch["mask"]})
    assert own.names == ("a", "c")


def test_any_mapping_is_a_batch_by_names():
    batch = UserDict({"x": X.float(), "mask": torch.ones(4)})
    model = Masked()
    own = fcfd.split(model, ["a"], example=batch)
    value, _ = own.stages[0](own.params, own.buffers, batch)
    value, _ = own.stages[1](own.params, {**own.buffers, **batch}, value)
    torch.testing.assert_close(value, model(**batch))


REACHED: list[nn.Module] = []


class Reaching(Body):
    """Changes the first module that was ever made of it."""

    def forward(self, x: Tensor) -> Tensor:
        REACHED[0].b.eval()
        return super().forward(x)


def test_a_model_that_reaches_its_original_is_refused():
    model = Reaching().double()
    REACHED[:] = [model]
    with pytest.raises(ValueError, match=r"^split: Reaching reaches out of itself"):
        fcfd.split(model, ["a"], example=X)
