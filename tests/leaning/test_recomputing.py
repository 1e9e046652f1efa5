"""Blocks of transformers whose frozen products are made again: value, gradient, and what is kept for it."""

from functools import cache, partial, wraps

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode

from fcfd.leaning.operations import Lean
from fcfd.leaning.recomputing import KNOWN
from reference import torchvision_cpu

from .test_operations import TRANSFORMS, _gradient, _random, _second, _seeded, _through

torchvision_cpu.prepare()
WIDTH, HEADS = 16, 2


def again(function):
    @wraps(function)
    def run(*args):
        with Lean(recompute=True):
            return function(*args)

    return run


WEIGHTS = {
    name: _random(*shape) / shape[-1] ** 0.5
    for name, shape in {
        "q": (WIDTH, WIDTH),
        "k": (WIDTH, WIDTH),
        "v": (WIDTH, WIDTH),
        "qkv": (3 * WIDTH, WIDTH),
        "out": (WIDTH, WIDTH),
        "up": (4 * WIDTH, WIDTH),
        "gate": (4 * WIDTH, WIDTH),
        "down": (WIDTH, 4 * WIDTH),
        "angle": (6, WIDTH // HEADS),
    }.items()
}


def _heads(x):
    return x.view(*x.shape[:2], HEADS, -1).transpose(1, 2)


def _of_functions(x, w):
    """A product for each of queries, keys and values."""
    h = F.layer_norm(x, (WIDTH,))
    share = F.scaled_dot_product_attention(*(_heads(F.linear(h, w[name])) for name in "qkv"))
    x = x + F.linear(share.transpose(1, 2).flatten(2), w["out"])
    return x + F.linear(F.gelu(F.linear(F.layer_norm(x, (WIDTH,)), w["up"])), w["down"])


def _by_hand(x, w):
    """Attention written out, rotated queries and keys, a gate, and root mean squares by hand."""

    def norm(x):
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6)

    def rotated(x):
        a, b = x.chunk(2, dim=-1)
        return x * w["angle"].cos() + torch.cat([-b, a], -1) * w["angle"].sin()

    q, k, v = F.linear(norm(x), w["qkv"]).view(2, -1, 3, HEADS, WIDTH // HEADS).permute(2, 0, 3, 1, 4)
    share = (rotated(q) @ rotated(k).mT / 3).softmax(-1)
    x = x + (share @ v).transpose(1, 2).reshape(x.shape) @ w["out"].T
    h = norm(x)
    return x + F.linear(F.silu(F.linear(h, w["gate"])) * F.linear(h, w["up"]), w["down"])


def _across(x, w):
    """Queries of one tensor, keys and values of another."""
    memory = x.sin().repeat(1, 2, 1)
    parts = zip("qkv", (x, memory, memory), strict=True)
    return F.scaled_dot_product_attention(*(_heads(F.linear(each, w[name])) for name, each in parts))


def _torchvision():
    from torchvision.models.vision_transformer import EncoderBlock

    return EncoderBlock(HEADS, WIDTH, 4 * WIDTH, 0.0, 0.0)


def _swin():
    from torchvision.models.swin_transformer import SwinTransformerBlock

    block = SwinTransformerBlock(WIDTH, HEADS, [2, 2], [1, 1])
    return nn.Sequential(nn.Unflatten(1, (3, 2)), block, nn.Flatten(1, 2))


def _timm(fused, **how):
    from timm.models.vision_transformer import Block

    block = Block(WIDTH, HEADS, qkv_bias=True, **how)
    block.attn.fused_attn = fused
    return block


def _vit():
    from transformers import ViTConfig
    from transformers.models.vit.modeling_vit import ViTLayer

    size = {"hidden_size": WIDTH, "num_attention_heads": HEADS, "intermediate_size": 4 * WIDTH}
    return ViTLayer(ViTConfig(**size, attn_implementation="sdpa"))


def _gpt():
    from transformers import GPT2Config
    from transformers.models.gpt2.modeling_gpt2 import GPT2Block

    block = GPT2Block(GPT2Config(n_embd=WIDTH, n_head=HEADS, attn_implementation="sdpa"), layer_idx=0)
    return _First(block)


class _First(nn.Module):
    def __init__(self, block):
        super().__init__()
        self.block = block

    def forward(self, x):
        y = self.block(x)
        return y[0] if isinstance(y, tuple) else y


BLOCKS = {
    "functions": (lambda: partial(_of_functions, w=WEIGHTS), 0.3),
    "by hand": (lambda: partial(_by_hand, w=WEIGHTS), 0.3),
    "two tensors": (lambda: partial(_across, w=WEIGHTS), 0.7),
    "torch, norm first": (
        partial(nn.TransformerEncoderLayer, WIDTH, HEADS, 64, 0.0, F.gelu, norm_first=True),
        0.3,
    ),
    "torch, norm last": (partial(nn.TransformerEncoderLayer, WIDTH, HEADS, 64, 0.0, F.gelu), 0.5),
    "torchvision": (_torchvision, 0.3),
    "torchvision, swin": (_swin, 0.5),
    "timm": (partial(_timm, True), 0.3),
    "timm, attention written out": (partial(_timm, False), 0.5),
    "timm, norms of queries and keys": (partial(_timm, True, qk_norm=True, init_values=0.1), 0.3),
    "transformers": (_vit, 0.3),
    "transformers, gpt2": (_gpt, 0.3),
}


@cache
def _block(name):
    """A block behind an operation that keeps its input, and how much of its memory may be kept."""
    torch.manual_seed(0)
    make, most = BLOCKS[name]
    block = make()
    own = [*WEIGHTS.values()]
    if isinstance(block, nn.Module):
        block = block.double().eval().requires_grad_(False)
        own = [*block.parameters(), *block.buffers()]

    def run(x):
        assert own
        return block(x.sin())

    return run, most


X = _random(2, 6, WIDTH)


@pytest.mark.parametrize("name", BLOCKS)
def test_value_gradient_and_what_is_kept(name):
    block, most = _block(name)
    value, gradient, memory = _gradient(block, X)
    same, lean_gradient, less = _gradient(again(block), X)
    assert torch.equal(same, value)
    torch.testing.assert_close(lean_gradient, gradient, rtol=1e-10, atol=1e-12)
    assert less <= most * memory, less / memory


@pytest.mark.parametrize("name", ["functions", "by hand", "two tensors", "torchvision, swin"])
def test_second_gradients(name):
    block, _ = _block(name)
    if "functions" in name or "two" in name:
        with sdpa_kernel(SDPBackend.MATH):  # torch has no second gradient of the fused one
            torch.testing.assert_close(_second(again(block), X), _second(block, X), rtol=1e-9, atol=1e-10)
    else:
        torch.testing.assert_close(_second(again(block), X), _second(block, X), rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("transform", TRANSFORMS)
@pytest.mark.parametrize("name", ["functions", "by hand", "torchvision", "torchvision, swin"])
def test_transforms_of_torch_func(name, transform):
    if name == "torchvision" and transform in ("jvp", "vmap"):  # where torch's own attention has none
        return
    block, _ = _block(name)
    change = TRANSFORMS[transform]
    with sdpa_kernel(SDPBackend.MATH):
        torch.testing.assert_close(change(again(block))(X), change(block)(X), rtol=1e-9, atol=1e-10)


def _same(function, x=X):
    """A function has the same value and gradient with recomputation."""
    (value, gradient, memory), (same, found, less) = (
        _gradient(each, x) for each in (function, again(function))
    )
    assert torch.equal(same, value)
    torch.testing.assert_close(found, gradient, rtol=1e-10, atol=1e-12)
    return less / memory


WRITTEN = {
    "the product": lambda y, x: y.add_(1),
    "a view of it": lambda y, x: y[:, 0].mul_(3),
    "the product, as it is": lambda y, x: y.detach().mul_(3),
    "what it is made of": lambda y, x: x.mul_(2),
    "a weight": lambda y, x: _written.mul_(2),
}
_written = torch.empty(4 * WIDTH, WIDTH, dtype=torch.float64)


@pytest.mark.parametrize("name", WRITTEN)
def test_what_was_written_into_is_not_made_again(name):
    """Between the product and what reads it: then torch's own gradient is right, and is what comes out."""

    def block(x):
        _written.copy_(WEIGHTS["up"])
        x = x * 1
        y = F.linear(x, _written)
        view = y.unflatten(-1, (4, -1))
        WRITTEN[name](y, x)
        return F.gelu(view) * 2

    _same(block)


@pytest.mark.parametrize("name", ["what it is made of", "a weight"])
def test_what_is_written_into_later_is_an_error(name):
    """Between the forward and the backward pass: torch's own error."""
    x = X.clone().requires_grad_() * 1
    _written.copy_(WEIGHTS["up"])
    with Lean(recompute=True):
        y = F.gelu(F.linear(x, _written))
    with torch.no_grad():
        WRITTEN[name](None, x)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


def _dropping(x, w=WEIGHTS):
    h = F.linear(F.layer_norm(x, (WIDTH,)), w["up"])
    q = _heads(F.linear(F.layer_norm(x, (WIDTH,)), w["q"]))
    share = F.scaled_dot_product_attention(q, q, q, dropout_p=0.3).transpose(1, 2).flatten(2)
    return F.linear(F.dropout(F.gelu(F.dropout(h, 0.2))), w["down"]) + F.dropout(share, 0.4)


def test_what_is_random_is_drawn_once():
    """The same numbers, and the generator is left where it would be."""
    states = []
    for function in (_dropping, again(_dropping)):
        x = X.clone().requires_grad_()
        y = _seeded(function, x)
        torch.rand(7)
        states.append((y.detach(), *torch.autograd.grad(y.square().sum(), x), torch.get_rng_state()))
    torch.testing.assert_close(states[1], states[0], rtol=1e-10, atol=1e-12)


LEARNED = {
    "linear": lambda x, w: F.gelu(F.linear(F.layer_norm(x, (WIDTH,)), w)),
    "matmul": lambda x, w: F.gelu(F.layer_norm(x, (WIDTH,)) @ w.T),
    "a weight that a frozen product changes": lambda x, w: F.silu(F.linear(x, F.linear(w, WEIGHTS["q"]))),
    "a factor": lambda x, w: F.gelu(F.linear(x, WEIGHTS["up"])) * w[:, 0],
}


@pytest.mark.parametrize("name", LEARNED)
def test_a_parameter_that_learns_gets_its_gradient(name):
    x, w = X.clone().requires_grad_(), WEIGHTS["up"].clone().requires_grad_()
    function = LEARNED[name]
    wanted = torch.autograd.grad(function(x, w).square().sum(), (x, w))
    found = torch.autograd.grad(again(function)(x, w).square().sum(), (x, w))
    torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-12)
    of_weight = torch.func.grad(lambda w: again(function)(x, w).square().sum())
    torch.testing.assert_close(of_weight(w.detach()), wanted[1])


def test_a_gradient_that_would_be_lost_is_refused():
    """Within `vmap` no tensor tells that it needs a gradient outside of it."""
    w = _random(2, 4 * WIDTH, WIDTH).requires_grad_()
    loss = lambda x, w: again(LEARNED["linear"])(x, w).square().sum()  # noqa: E731
    with pytest.raises(RuntimeError, match=r"lean: a parameter that looks frozen needs a gradient, out"):
        torch.vmap(partial(torch.func.grad(loss), X))(w)


def test_a_hook_on_a_product_runs():
    def block(x):
        y = F.linear(x, WEIGHTS["up"])
        y.register_hook(lambda gradient: 2 * gradient)
        return F.gelu(y)

    _same(block)


def test_what_is_no_larger_than_its_source_is_kept():
    """A narrow product of a wide tensor that nothing else keeps; behind a norm, the wide one is kept."""
    narrow = WEIGHTS["up"][:4]
    assert _same(lambda x: F.gelu(F.linear(x * 1, narrow))) == 1
    assert _same(lambda x: F.gelu(F.linear(F.layer_norm(x, (WIDTH,)), narrow))) < 1


def test_one_product_of_a_chain_is_made_again():
    ran = []
    w = WEIGHTS["q"]

    def block(x):
        for _ in range(3):
            x = F.linear(x, w)
        return F.gelu(torch.cat([x, x], -1))

    class Counting(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            ran.append(function)
            return function(*args, **(kwargs or {}))

    x = X.clone().requires_grad_()
    y = again(block)(x)
    with Counting():
        y.sum().backward()
    products = sum("mm" in str(function) for function in ran)
    assert products == 1 + 3, products  # three of the gradient


def test_long_arithmetic_is_not_made_again_from_its_beginning():
    def block(x):
        for _ in range(40):
            x = x * 0.5 + x.sigmoid() * x
        return F.gelu(x)

    _same(block)


@pytest.mark.parametrize("way", ["half", "autocast"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ["torchvision", "timm, attention written out"])
def test_half_precision_is_that_of_the_plain_block(name, dtype, way):
    torch.manual_seed(0)
    block = BLOCKS[name][0]().eval().requires_grad_(False)
    x = 3 * X.float()
    if way == "half":
        block, x = block.to(dtype), x.to(dtype)
    autocast = dtype if way == "autocast" else None
    value, gradient = _through(block, x, autocast)
    same, found = _through(again(block), x, autocast)
    assert torch.equal(same, value)
    assert found.dtype == gradient.dtype
    torch.testing.assert_close(found, gradient, rtol=4 * torch.finfo(dtype).eps, atol=torch.finfo(dtype).eps)


@pytest.mark.parametrize("name", ["functions", "torchvision"])
def test_a_compiler_has_its_own_ways(name):
    """Compiled, a block is the lean one: what is made again is the partitioner's choice."""
    torch.compiler.reset()
    block, _ = _block(name)
    value, gradient, _ = _gradient(block, X)
    for compiled in (
        torch.compile(again(block), fullgraph=True, backend="aot_eager"),
        again(torch.compile(block, fullgraph=True, backend="aot_eager")),
    ):
        same, found, _ = _gradient(compiled, X)
        torch.testing.assert_close(same, value, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(found, gradient, rtol=1e-10, atol=1e-12)


def test_torch_has_the_functions_that_are_known():
    assert {F.linear, F.gelu, torch.mul, torch.Tensor.mul, torch.Tensor.__getitem__} <= KNOWN
    assert not any(function.__name__.endswith("_") and "__" not in function.__name__ for function in KNOWN)
