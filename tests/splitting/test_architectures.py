"""FCFD between networks of different kinds, cut and bridged without an edit: the loss falls."""

from functools import cache

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import fcfd
from fcfd import losses
from reference.torchvision_cpu import prepare


def _resnet() -> nn.Module:
    from torchvision.models.resnet import BasicBlock, ResNet

    return ResNet(BasicBlock, [1, 1, 1, 1], num_classes=10)


def _vit() -> nn.Module:
    from torchvision.models import VisionTransformer

    return VisionTransformer(64, 16, num_layers=4, num_heads=2, hidden_dim=32, mlp_dim=64, num_classes=10)


def _swin() -> nn.Module:
    from torchvision.models import SwinTransformer

    return SwinTransformer([4, 4], 24, depths=[1] * 4, num_heads=[2] * 4, window_size=[4, 4], num_classes=10)


def _convnext() -> nn.Module:
    from torchvision.models.convnext import CNBlockConfig, ConvNeXt

    blocks = [CNBlockConfig(16, 32, 1), CNBlockConfig(32, 64, 1), CNBlockConfig(64, None, 1)]
    return ConvNeXt(blocks, num_classes=10)


def _mobilenet() -> nn.Module:
    from torchvision.models import mobilenet_v2

    return mobilenet_v2(num_classes=10, width_mult=0.25)


BUILD = {"resnet": _resnet, "vit": _vit, "swin": _swin, "convnext": _convnext, "mobilenet": _mobilenet}


@cache
def _images() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(4, 3, 64, 64, generator=generator), torch.tensor([0, 1, 2, 3])


def _steps(teacher: nn.Module, student: nn.Module, batch, labels, count: int = 4, **options) -> list[float]:
    """The loss of a few steps along one plan, through at least one crossing of either direction."""
    networks = {"t": fcfd.split(teacher.eval(), example=batch), "s": fcfd.split(student, example=batch)}
    nets = fcfd.link(networks, example=batch, **options)
    optimizer = torch.optim.Adam([*student.parameters(), *nets.bridges.parameters()], lr=1e-3)
    paths = (nets.crossings[0], nets.crossings[-1])
    seen = []
    for _ in range(count):
        loss, aux = losses.fcfd(*nets.columns, batch, labels, paths=paths)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        fcfd.write_buffers_(student, aux.buffers["s"])
        seen.append(loss.item())
    return seen


@pytest.mark.parametrize(
    ("teacher", "student"),
    [
        ("resnet", "vit"),
        ("vit", "resnet"),
        ("swin", "resnet"),
        pytest.param("resnet", "swin", marks=pytest.mark.slow),
        ("convnext", "mobilenet"),
        pytest.param("mobilenet", "vit", marks=pytest.mark.slow),
        pytest.param("swin", "vit", marks=pytest.mark.slow),
    ],
)
def test_networks_of_different_kinds_distil(teacher, student):
    prepare()
    torch.manual_seed(0)
    images, labels = _images()
    seen = _steps(BUILD[teacher](), BUILD[student](), images, labels)
    assert seen == sorted(seen, reverse=True), seen


class Block(nn.Module):
    """Masked self-attention and a feed-forward layer, normalised after; with rotary places on request."""

    def __init__(self, width: int, heads: int, *, causal: bool) -> None:
        super().__init__()
        self.heads, self.causal = heads, causal
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.feed = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)

    def forward(self, x: Tensor, mask: Tensor, places: Tensor) -> Tensor:
        q, k, v = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in self.qkv(x).chunk(3, -1))
        q, k = _rotate(q, places), _rotate(k, places)
        x = self.norm1(x + self.out(F.scaled_dot_product_attention(q, k, v, mask).transpose(1, 2).flatten(2)))
        return self.norm2(x + self.feed(x))


def _rotate(x: Tensor, places: Tensor) -> Tensor:
    a, b = x.chunk(2, -1)
    return torch.cat([a * places.cos() - b * places.sin(), a * places.sin() + b * places.cos()], -1)


class Text(nn.Module):
    """Token ids and an attention mask to logits; the mask and the rotary table are made in the forward."""

    def __init__(self, layers: int, width: int, *, causal: bool) -> None:
        super().__init__()
        self.causal, self.width = causal, width
        self.embed = nn.Embedding(50, width)
        self.layers = nn.ModuleList(Block(width, 2, causal=causal) for _ in range(layers))
        self.head = nn.Linear(width, 5)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        length = input_ids.shape[1]
        mask = attention_mask[:, None, None, :].bool()
        if self.causal:
            mask = mask & torch.ones(length, length, dtype=torch.bool).tril()
        rates = torch.arange(self.width // 4) / 4
        places = torch.arange(length)[:, None] * torch.exp(-rates)
        x = self.embed(input_ids)
        for layer in self.layers:
            x = layer(x, mask, places)
        weight = attention_mask / attention_mask.sum(1, keepdim=True)
        return self.head((x * weight[..., None]).sum(1))


@cache
def _text() -> tuple[dict[str, Tensor], Tensor]:
    generator = torch.Generator().manual_seed(0)
    mask = torch.ones(4, 9)
    mask[1, 5:] = mask[3, 3:] = 0
    ids = torch.randint(50, (4, 9), generator=generator)
    return {"input_ids": ids, "attention_mask": mask}, torch.tensor([0, 1, 2, 3])


@pytest.mark.parametrize("causal", [False, True], ids=["encoder", "decoder"])
def test_text_networks_of_other_depth_and_width_distil(causal):
    torch.manual_seed(0)
    batch, labels = _text()
    teacher, student = Text(6, 32, causal=causal), Text(3, 16, causal=causal)
    seen = _steps(teacher, student, batch, labels)
    assert seen == sorted(seen, reverse=True), seen


def test_a_crossed_path_of_text_reads_the_batch_s_mask():
    """What the mask hides reaches no logits, on pure and on crossed paths alike."""
    torch.manual_seed(0)
    batch, labels = _text()
    networks = {letter: fcfd.split(Text(3, 16, causal=False), example=batch) for letter in "st"}
    nets = fcfd.link(networks, example=batch)
    hidden = batch["attention_mask"] == 0
    other = batch | {"input_ids": torch.where(hidden, (batch["input_ids"] + 7) % 50, batch["input_ids"])}
    options = {"paths": nets.crossings}
    _, aux = losses.fcfd(*nets.columns, batch, labels, **options)
    _, same = losses.fcfd(*nets.columns, other, labels, **options)
    for path in (*nets.crossings, "ssss", "tttt"):
        torch.testing.assert_close(same.values[path], aux.values[path], msg=path)


def test_a_forgotten_mask_is_an_error():
    batch, _ = _text()
    network = fcfd.split(Text(3, 16, causal=False), example=batch)
    x, _ = network.stages[0](network.params, network.buffers, batch)
    with pytest.raises(ValueError, match="takes attention_mask|takes input_ids"):
        network.stages[1](network.params, network.buffers, x)


def test_text_of_other_lengths_has_no_bridge():
    batch, _ = _text()
    short = {name: tensor[:, :6] for name, tensor in batch.items()}
    networks = {
        "t": fcfd.split(Text(3, 16, causal=False), example=batch),
        "s": fcfd.split(Text(3, 16, causal=False), example=short),
    }
    with pytest.raises(
        ValueError, match=r"link: 's>t' leads from \[4, 6, 16\] to \[4, 9, 16\], and tokens of text"
    ):
        fcfd.link(networks, example={"s": short, "t": batch})


def test_networks_may_read_images_of_other_sizes():
    prepare()
    torch.manual_seed(0)
    images, labels = _images()
    small = F.interpolate(images, scale_factor=0.5)
    teacher, student = _resnet().eval(), _resnet()
    networks = {"t": fcfd.split(teacher, example=images), "s": fcfd.split(student, example=small)}
    both = {"t": images, "s": small}
    nets = fcfd.link(networks, example=both)
    loss, aux = losses.fcfd(*nets.columns, both, labels, paths=nets.crossings[:2])
    loss.backward()
    torch.testing.assert_close(aux.values["ttttt"], teacher(images))
