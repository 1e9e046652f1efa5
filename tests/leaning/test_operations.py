"""Every operation with a lean form: the value to the last bit, the gradient, and what is kept for it."""

import inspect
from functools import partial, wraps

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from fcfd._tree import tensors
from fcfd.leaning.functions import pack, unpack
from fcfd.leaning.operations import OPERATIONS, Lean

pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel:UserWarning")

MAPS = {1: (2, 4, 9), 2: (2, 4, 9, 10), 3: (2, 4, 5, 6, 7)}


def _random(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)), dtype=torch.float64)


def lean(function):
    @wraps(function)
    def run(*args):
        with Lean():
            return function(*args)

    return run


def kept(function, *args):
    """What a function returns, and the bytes that autograd keeps for it beside its weights."""
    held = {}
    plain = inspect.unwrap(function)
    own = (
        list(plain.parameters()) if isinstance(plain, nn.Module) else inspect.getclosurevars(plain).nonlocals
    )
    own = {leaf.untyped_storage().data_ptr() for leaf in tensors(own)}

    def hold(tensor):
        held[tensor.untyped_storage().data_ptr()] = tensor  # held, so that no address is used twice
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(hold, lambda tensor: tensor):
        y = function(*args)
    return y, sum(tensor.untyped_storage().nbytes() for at, tensor in held.items() if at not in own)


def _cases():
    """By name: an input, and a function of it."""
    found = {}
    for axes, shape in MAPS.items():
        window, x = (3,) * axes, _random(*shape)
        weight = {groups: _random(8, 4 // groups, *window) for groups in (1, 2, 4)}
        back = {groups: _random(4, 3, *window) for groups in (1, 2)}
        for how in (
            {},
            {"stride": 2, "padding": 1},
            {"stride": 3},
            {"dilation": 2, "padding": 2},
            {"groups": 2, "padding": "same"},
            {"groups": 4},
            {"padding": "valid", "stride": 2},
        ):
            found[f"conv{axes}d {how}"] = (
                x,
                _call(getattr(F, f"conv{axes}d"), weight[how.get("groups", 1)], _random(8), **how),
            )
        even = _random(4, 4, 2, *window[1:])
        found[f"conv{axes}d even window"] = x, _call(getattr(F, f"conv{axes}d"), even, None, padding="same")
        for how in (
            {},
            {"stride": 2, "padding": 1, "output_padding": 1},
            {"groups": 2, "dilation": 2},
            {"stride": 3, "output_padding": 2},
        ):
            groups = how.get("groups", 1)
            found[f"conv_transpose{axes}d {how}"] = (
                x,
                _call(getattr(F, f"conv_transpose{axes}d"), back[groups], _random(3 * groups), **how),
            )
        for mode in ("zeros", "circular", "reflect", "replicate"):
            layer = getattr(nn, f"Conv{axes}d")(4, 4, 3, padding=1, padding_mode=mode).double()
            found[f"Conv{axes}d {mode}"] = x, layer.requires_grad_(False)
        for name, args in (
            ("avg_pool", (2,)),
            ("avg_pool", (3, 2, 1, True, False)),
            ("max_pool", (2,)),
            ("max_pool", (3, 2, 1, 1, True)),
            ("max_pool", (2, 1, 0, 2)),
            ("adaptive_avg_pool", (3,)),
            ("adaptive_max_pool", (3,)),
        ):
            found[f"{name}{axes}d {args}"] = x, _call(getattr(F, f"{name}{axes}d"), *args)
        mean, variance, scale, shift = (_random(4) for _ in range(4))
        stored = mean, variance.abs() + 0.5, scale, shift
        found[f"batch_norm of {axes} axes"] = x, _call(F.batch_norm, *stored)
        found[f"batch_norm of {axes} axes, no parameters"] = x, _call(F.batch_norm, *stored[:2])
        found[f"instance_norm of {axes} axes"] = x, _call(F.instance_norm, *stored, use_input_stats=False)
    x = _random(*MAPS[2])
    vectors = _random(5, 4)
    found["batch_norm of vectors"] = vectors, _call(F.batch_norm, *stored)
    found["avg_pool2d divisor"] = x, lambda x: F.avg_pool2d(x, 2, divisor_override=3)
    found["adaptive_avg_pool2d None"] = x, lambda x: F.adaptive_avg_pool2d(x, (None, 3))
    found["max_pool2d unbatched"] = x[0], lambda x: F.max_pool2d(x, 2)
    found["kinks"] = x.round(), lambda x: F.relu(x) + F.hardtanh(x) + x.clamp(-1, 1)
    found["prelu"] = x, _call(F.prelu, _random(4))
    found["prelu of one slope"] = x, _call(F.prelu, _random(1))
    for name, function in ACTIVATIONS.items():
        found[name] = x, function
    return found


def _call(function, *args, **how):
    return lambda x: function(x, *args, **how)


ACTIVATIONS = {
    "relu": F.relu,
    "torch.relu": lambda x: torch.relu(x),
    "x.relu": lambda x: x.relu(),
    "relu6": lambda x: F.relu6(4 * x),
    "hardtanh": lambda x: F.hardtanh(x, -0.3, 0.7),
    "leaky_relu": lambda x: F.leaky_relu(x, 0.2),
    "leaky_relu of a negative slope": lambda x: F.leaky_relu(x, -0.2),
    "rrelu": F.rrelu,
    "hardsigmoid": lambda x: F.hardsigmoid(3 * x),
    "threshold": lambda x: F.threshold(x, 0.1, 20.0),
    "clamp": lambda x: x.clamp(-0.5, 0.5),
    "clamp from below": lambda x: torch.clamp(x, min=0),
    "clamp from above": lambda x: x.clamp(max=0.1),
    "relu in place": lambda x: F.relu(x * 2, inplace=True) * 3,
    "relu_": lambda x: (x * 2).relu_(),
    "torch.relu_": lambda x: torch.relu_(x * 2),
    "relu6 in place": lambda x: F.relu6(x * 2, inplace=True),
    "leaky_relu_": lambda x: F.leaky_relu_(x * 2),
    "hardsigmoid in place": lambda x: F.hardsigmoid(x * 2, inplace=True),
    "clamp_": lambda x: (x * 2).clamp_(0, 1),
    "in place, the input read again": lambda x: _twice(x * 2),
    "in place, in a view": lambda x: _in_view(x * 2),
    "channels last": lambda x: F.relu(x.to(memory_format=torch.channels_last)),
    "transposed": lambda x: F.relu(x.transpose(0, 2)),
    "sliced": lambda x: F.relu(x[:, ::2, 1::3]),
    "expanded": lambda x: F.relu(x[:, :1].expand(-1, 3, -1, -1)),
    "no multiple of eight": lambda x: F.relu(x[:1, :1, :3, :3]),
    "a scalar": lambda x: F.relu(x.sum()),
    "dropout": lambda x: _seeded(F.dropout, x),
    "dropout in place": lambda x: _seeded(F.dropout, x * 2, 0.3, True, True),
}


def _twice(x):
    F.relu(x, inplace=True)
    return x * 3


def _in_view(x):
    F.relu(x[:, :2], inplace=True)
    return x


def _seeded(function, *args):
    torch.manual_seed(1)
    return function(*args)


CASES = _cases()
NO_SECOND = {"hardsigmoid", "hardsigmoid in place"}
"""torch itself has no second gradient of these."""


def _gradient(function, x):
    x = x.clone().requires_grad_()
    y, memory = kept(function, x)
    (gradient,) = torch.autograd.grad(y, x, _random(*y.shape), create_graph=False)
    return y.detach(), gradient, memory


def _second(function, x):
    x = x.clone().requires_grad_()
    y = function(x)
    (first,) = torch.autograd.grad(y.square().sum(), x, create_graph=True)
    return torch.autograd.grad(first.square().sum(), x)


@pytest.mark.parametrize("name", CASES)
def test_value_gradient_and_what_is_kept(name):
    x, function = CASES[name]
    value, gradient, memory = _gradient(function, x)
    same, lean_gradient, less = _gradient(lean(function), x)
    assert torch.equal(same, value)
    torch.testing.assert_close(lean_gradient, gradient, rtol=1e-12, atol=1e-12)
    assert less <= 0.1 * memory or less <= 32, (memory, less)  # the factor of batch norm has four numbers


@pytest.mark.parametrize("name", CASES)
def test_second_gradients(name):
    if name not in NO_SECOND:
        x, function = CASES[name]
        torch.testing.assert_close(_second(lean(function), x), _second(function, x), rtol=1e-10, atol=1e-10)
    else:
        with pytest.raises(RuntimeError, match="not implemented"):
            _second(CASES[name][1], CASES[name][0])


def _squared(function):
    return lambda x: function(x).square().sum()


TRANSFORMS = {
    "grad": lambda function: torch.func.grad(_squared(function)),
    "vjp": lambda function: lambda x: torch.func.vjp(function, x)[1](function(x))[0],
    "jvp": lambda function: lambda x: torch.func.jvp(function, (x,), (x + 1,))[1],
    "vmap": lambda function: lambda x: torch.vmap(function)(torch.stack([x, x + 1])),
    "vmap of grad": lambda function: (
        lambda x: torch.vmap(torch.func.grad(_squared(function)))(torch.stack([x, x + 1]))
    ),
}
NO_VMAP = {"rrelu", "clamp_", "channels last", "dropout", "dropout in place"}
"""What `torch.vmap` refuses as it is, warns of, or needs a word about random numbers for."""


@pytest.mark.parametrize("transform", TRANSFORMS)
@pytest.mark.parametrize("name", CASES)
def test_transforms_of_torch_func(name, transform):
    x, function = CASES[name]
    if "vmap" in transform and name in NO_VMAP:
        return
    change = TRANSFORMS[transform]
    torch.testing.assert_close(change(lean(function))(x), change(function)(x), rtol=1e-10, atol=1e-10)


COMPILED = [
    name
    for name in CASES
    if "dropout" not in name
    if name in ACTIVATIONS or "2 axes" in name or ("2d" in name and "{}" not in name)
]


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
@pytest.mark.parametrize("name", COMPILED)
def test_compiled_in_one_graph(name, backend):
    torch.compiler.reset()
    if (name, backend) == ("Conv2d replicate", "inductor"):
        pytest.skip("Inductor's own: it expects other strides of the gradient, without lean too")
    x, function = CASES[name]
    plain = function
    if "hardsigmoid" in name and backend == "inductor":  # which rounds a sixth to float32, without lean too
        plain = torch.compile(function, fullgraph=True, backend=backend)
    value, gradient, _ = _gradient(plain, x)
    compiled = torch.compile(lean(function), fullgraph=True, backend=backend)
    same, lean_gradient, _ = _gradient(compiled, x)
    torch.testing.assert_close(same, value, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(lean_gradient, gradient, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    "function", [lambda x: x.unflatten(-1, (2, -1)), lambda x: torch.unflatten(x, 1, (-1, 2))]
)
def test_a_method_that_dynamo_traces_without_a_mode_alone(function):
    torch.compiler.reset()
    x = _random(*MAPS[2])
    compiled = torch.compile(lean(function), fullgraph=True, backend="eager")
    assert torch.equal(compiled(x), function(x))
    assert torch.equal(lean(function)(x), function(x))


def _network():
    """A frozen network with much of what has a lean form, in eval."""
    torch.manual_seed(0)
    layers = (
        *(nn.Conv2d(3, 16, 3, 1, 1), nn.BatchNorm2d(16), nn.ReLU(inplace=True), nn.MaxPool2d(2)),
        *(nn.Conv2d(16, 16, 3, 2, 1, groups=4), nn.BatchNorm2d(16), nn.ReLU6()),
        *(nn.ConvTranspose2d(16, 8, 3, 2), nn.BatchNorm2d(8), nn.LeakyReLU(0.1), nn.AvgPool2d(2)),
        nn.Hardsigmoid(),
    )
    network = nn.Sequential(*layers)
    for layer in network:
        if isinstance(layer, nn.BatchNorm2d):
            layer.running_mean.normal_()
            layer.running_var.uniform_(0.5, 2)
    return network.eval().requires_grad_(False)


def _through(function, x, autocast=None):
    x = x.clone().requires_grad_()
    with torch.autocast("cpu", autocast, enabled=autocast is not None):
        y = function(x)
    weights = torch.linspace(-1, 1, y.numel()).view(y.shape).to(y.dtype)
    return y.detach(), *torch.autograd.grad(y, x, weights)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("way", ["half", "autocast"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_that_of_the_plain_network(dtype, way, layout):
    network = _network().to(memory_format=layout)
    x = torch.randn(4, 3, 16, 16).to(memory_format=layout)
    if way == "half":
        network, x = network.to(dtype), x.to(dtype)
    autocast = dtype if way == "autocast" else None
    value, gradient = _through(network, x, autocast)
    same, lean_gradient = _through(lean(network), x, autocast)
    assert torch.equal(same, value)
    assert lean_gradient.dtype == gradient.dtype
    assert lean_gradient.stride() == gradient.stride()
    exact = _through(_network().double(), x.double())[1]
    plain_error, lean_error = ((each.double() - exact).norm() for each in (gradient, lean_gradient))
    assert lean_error <= 1.01 * plain_error


def test_what_does_not_need_a_gradient_runs_as_it_is():
    with Lean():
        y = F.relu(F.conv2d(torch.randn(1, 2, 4, 4), torch.randn(2, 2, 1, 1)))
        with torch.no_grad():
            z = F.relu(torch.randn(3, requires_grad=True))
    assert y.grad_fn is z.grad_fn is None


LEARNED = {
    "conv2d": lambda x, w: F.conv2d(x, w[:, :, None, None]),
    "the bias of conv2d": lambda x, w: F.conv2d(x, torch.ones(4, 4, 1, 1).double(), w[0]),
    "conv_transpose2d": lambda x, w: F.conv_transpose2d(x, w[:, :, None, None]),
    "batch_norm": lambda x, w: F.batch_norm(x, w[1].detach(), w[2].detach().abs(), w[0]),
    "prelu": lambda x, w: F.prelu(x, w[0]),
}


@pytest.mark.parametrize("name", LEARNED)
def test_a_parameter_that_learns_gets_its_gradient(name):
    function, x, w = LEARNED[name], _random(*MAPS[2]), _random(4, 4)
    x.requires_grad_()
    w.requires_grad_()
    wanted = torch.autograd.grad(function(x, w).square().sum(), (x, w))
    found = torch.autograd.grad(lean(function)(x, w).square().sum(), (x, w))
    torch.testing.assert_close(found, wanted, rtol=0, atol=0)
    of_weight = torch.func.grad(lambda w: lean(function)(x, w).square().sum())
    torch.testing.assert_close(of_weight(w.detach()), wanted[1])


@pytest.mark.parametrize("name", ["conv2d", "conv_transpose2d", "batch_norm"])
def test_a_gradient_that_would_be_lost_is_refused(name):
    """Within `vmap` no tensor tells that it needs a gradient outside of it."""
    function, x = LEARNED[name], _random(*MAPS[2])
    w = _random(2, 4, 4).requires_grad_()
    loss = lambda x, w: lean(function)(x, w).square().sum()  # noqa: E731
    for inner, given in ((torch.func.grad(loss), x), (loss, x.clone().requires_grad_())):
        with pytest.raises(RuntimeError, match=r"lean: a parameter that looks frozen needs a gradient, out"):
            torch.vmap(partial(inner, given))(w)


def test_batch_statistics_run_as_they_are():
    x = _random(*MAPS[2]).requires_grad_()
    batch_norm = lambda x: F.batch_norm(x, None, None, training=True)  # noqa: E731
    assert torch.equal(lean(batch_norm)(x), batch_norm(x))
    assert type(lean(batch_norm)(x).grad_fn) is type(batch_norm(x).grad_fn)


@pytest.mark.parametrize(
    "function",
    [
        lambda x: F.max_pool2d(x, 2, return_indices=True)[0],
        lambda x: F.adaptive_max_pool2d(x, 2, return_indices=True)[0],
        lambda x: torch.clamp(x, torch.zeros(()), torch.ones(())),
        lambda x: F.conv_transpose2d(x, torch.ones(4, 1, 3, 3).double(), dilation=3, output_padding=2),
        lambda x: F.conv2d(x[0], torch.ones(4, 4, 3, 3).double()),
        lambda x: F.dropout(x, 1.0),
        lambda x: F.adaptive_avg_pool2d(x, 1),
        lambda x: F.linear(x, torch.ones(3, 10).double()),
    ],
)
def test_other_forms_run_as_they_are(function):
    x = _random(*MAPS[2])
    for plain, found in zip(_gradient(function, x), _gradient(lean(function), x), strict=True):
        assert plain == found if isinstance(plain, int) else torch.equal(plain, found)


@pytest.mark.parametrize("name", ["linear", "linear of a sequence", "matmul"])
def test_linear_maps_keep_their_weight_alone(name):
    weight = _random(5, 10)
    function = {
        "linear": lambda x: F.linear(x[0, 0], weight, _random(5)),
        "linear of a sequence": lambda x: F.linear(x, weight),
        "matmul": lambda x: x @ weight.T,
    }[name]
    assert kept(function, _random(*MAPS[2]).requires_grad_())[1] == 0


@pytest.mark.parametrize("shape", [(), (1,), (8,), (3, 5), (2, 3, 4, 5), (16, 16)])
def test_a_mask_is_packed_and_unpacked(shape):
    mask = _random(*shape) > 0 if shape else torch.tensor(True)
    assert torch.equal(unpack(pack(mask)) > 0, mask)
    assert pack(mask).packed.nbytes == -(-mask.numel() // 8)
    swapped = mask.transpose(0, -1) if shape else mask
    assert torch.equal(unpack(pack(swapped)) > 0, swapped)
    assert unpack(pack(swapped)).stride() == swapped.stride()


def test_every_operation_of_the_table_has_the_arguments_of_torch():
    """Those that are functions of Python tell their arguments."""
    for ordinary, own in OPERATIONS.items():
        if inspect.isfunction(ordinary) and "boolean_dispatch" not in ordinary.__qualname__:
            theirs = ["input" if name == "self" else name for name in inspect.signature(ordinary).parameters]
            ours = inspect.signature(getattr(own, "func", own)).parameters
            assert theirs == [*ours][: len(theirs)], ordinary
