"""The last stage hands out hidden states and a head: the same objective, without logits."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import fcfd
from fcfd import losses
from fcfd.losses import Logits
from fcfd.transforms import checkpointed, compiled, deferred


class Tokens(nn.Module):
    def __init__(self, width: int, *, tied: bool = False, bias: bool = False) -> None:
        super().__init__()
        self.embed = nn.Embedding(20, width)
        self.mix = nn.Sequential(nn.Linear(width, width), nn.GELU())
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, 20, bias=bias)
        if tied:
            self.head.weight = self.embed.weight

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.norm(self.mix(self.embed(ids))))


def linked(**options: Any) -> tuple[Any, Tensor, dict[str, Tensor]]:
    torch.manual_seed(0)
    ids, mask = torch.randint(20, (2, 9)), torch.ones(2, 9, dtype=torch.bool)
    mask[1, 6:] = False
    networks = {
        letter: fcfd.split(Tokens(width, **options).double(), ["embed", "mix"], example=ids)
        for letter, width in (("t", 12), ("s", 8))
    }
    nets = fcfd.link(networks, example=ids)
    return nets, ids, {"Labels": torch.where(mask, ids, -100), "Mask": mask}


def objective(nets: Any, stages: Any, ids: Tensor, data: dict[str, Tensor], form: Any) -> Any:
    def language(terms: Any) -> Any:
        label = losses.next_token(losses.ignoring(form(losses.cross_entropy)))
        divergences = {name: form(term.loss) for name, term in terms.items() if "kl" in name.split("/")}
        terms = fcfd.replaced(terms, {"label": label, **divergences})
        return fcfd.masked(terms, {"kl": "Mask", "feature": "Mask", "pooled": "Mask"})

    return losses.fcfd(stages, nets.params, nets.buffers, ids, data, paths=nets.crossings, change=language)


def learned(nets: Any) -> list[Tensor]:
    return [x for params in nets.params.values() for x in params.values() if x.requires_grad]


WRAPPED = {
    "plain": lambda column: column,
    "checkpointed": checkpointed,
    "compiled": lambda column: compiled(column, backend="aot_eager"),
}


@pytest.mark.parametrize("form", [losses.chunked, losses.fused])
@pytest.mark.parametrize("wrapped", WRAPPED)
@pytest.mark.parametrize("options", [{"bias": True}, {"tied": True}], ids=str)
def test_the_objective_is_the_same(form: Any, wrapped: str, options: dict[str, bool]) -> None:
    torch.compiler.reset()
    nets, ids, data = linked(**options)
    loss, aux = objective(nets, nets.stages, ids, data, lambda loss: loss)
    weight = "embed.weight" if options.get("tied") else "head.weight"
    stages = nets.stages | {
        letter: WRAPPED[wrapped](deferred(nets.stages[letter], weight)) for letter in ("s", "t")
    }
    found, same = objective(nets, stages, ids, data, lambda loss: form(loss, memory=20_000))
    assert isinstance(same.values["sss"], Logits)
    torch.testing.assert_close(found, loss, rtol=1e-10, atol=0)
    torch.testing.assert_close(same.parts, aux.parts, rtol=1e-10, atol=1e-14)
    wanted, gradients = (torch.autograd.grad(one, learned(nets), allow_unused=True) for one in (loss, found))
    torch.testing.assert_close(gradients, wanted, rtol=1e-9, atol=1e-13)


def test_nothing_as_large_as_the_logits_is_made() -> None:
    nets, *_ = linked(bias=True)
    last = deferred(nets.stages["s"], "head.weight")[-1]
    hidden = torch.randn(2, 9, 8, dtype=torch.float64, requires_grad=True)
    y, new = last(nets.params["s"], nets.buffers["s"], hidden)
    wanted, same = nets.stages["s"][-1](nets.params["s"], nets.buffers["s"], hidden)
    assert (y.weight, y.bias, new) == (nets.params["s"]["head.weight"], nets.params["s"]["head.bias"], same)
    torch.testing.assert_close(F.linear(*y), wanted)


def test_hand_written_stages_and_models_are_taken_alike() -> None:
    def last(params: Any, buffers: Any, x: Tensor) -> Any:
        return F.linear(input=x, weight=params["w"], bias=None), {}

    (run,) = deferred((last,), "w")
    weight, x = torch.randn(5, 3), torch.randn(2, 3)
    y, _ = run({"w": weight}, {}, x)
    assert (y.hidden, y.weight, y.bias) == (x, weight, None)


def altered(change: Any) -> Any:
    def last(params: Any, buffers: Any, x: Tensor) -> Any:
        return change(x, params["w"]), {}

    return last


def halved(logits: Tensor) -> Tensor:
    logits *= 0.5
    return logits


def without_the_first(logits: Tensor) -> Tensor:
    logits[..., 0] = -torch.inf
    return logits


@pytest.mark.parametrize("change", [lambda y: y.mul_(2), halved, without_the_first])
@pytest.mark.parametrize("wrapped", ["plain", "compiled"])
def test_a_product_that_is_changed_in_place_is_refused(change: Any, wrapped: str) -> None:
    (run,) = WRAPPED[wrapped](deferred((altered(lambda x, w: change(F.linear(x, w))),), "w"))
    with pytest.raises((ValueError, RuntimeError), match="does something to the product with 'w'"):
        run({"w": torch.randn(1, 3)}, {}, torch.randn(1, 3))


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda x, w: 2 * F.linear(x, w), "the last stage does something to the product with 'w'"),
        (
            lambda x, w: (F.linear(x, w), x),
            "the last stage does something to the product with 'w', or returns more",
        ),
        (lambda x, w: F.linear(x, w)[:1], "the last stage does something to the product with 'w'"),
        (
            lambda x, w: F.linear(x, w).to(torch.float64),
            "the last stage does something to the product with 'w'",
        ),
        (lambda x, w: x @ w.T, "the last stage has no `linear` of 'w'"),
        (lambda x, w: F.linear(x, w.clone()), "the last stage has no `linear` of 'w'"),
    ],
)
def test_what_is_not_the_product_is_refused(change: Any, text: str) -> None:
    (run,) = deferred((altered(change),), "w")
    with pytest.raises(ValueError, match=f"^deferred: {text}"):
        run({"w": torch.randn(1, 3)}, {}, torch.randn(2, 3))


def test_what_is_wrong_is_refused_by_name() -> None:
    nets, ids, _ = linked()
    with pytest.raises(TypeError, match="^deferred: stages is a Network"):
        deferred(fcfd.split(Tokens(4), example=ids), "head.weight")
    with pytest.raises(TypeError, match="^deferred: weight is of type NoneType"):
        deferred(nets.stages["s"], None)
    with pytest.raises(ValueError, match="^deferred: stages has no last stage"):
        deferred((), "head.weight")
    *_, last = deferred(nets.stages["s"], "lm_head.weight")
    with pytest.raises(ValueError, match=r"^deferred: params lacks 'lm_head.weight'"):
        last(nets.params["s"], nets.buffers["s"], torch.zeros(2, 9, 8))
    stages = nets.stages | {"s": deferred(nets.stages["s"], "head.weight")}
    with pytest.raises(ValueError, match="term 'label'.*cross_entropy: prediction is of type Logits"):
        losses.fcfd(stages, nets.params, nets.buffers, ids, ids, paths=())
