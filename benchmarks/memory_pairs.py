"""The pairs of networks whose memory is measured, and what may be done to each."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import fcfd
from fcfd import losses
from fcfd.stages import Column
from fcfd.terms import Terms
from fcfd.transforms import checkpointed, lean
from reference import torchvision_cpu
from reference.zoo import NETWORKS

Build: TypeAlias = Callable[[], nn.Module]
Batch: TypeAlias = tuple[Tensor, Tensor]

CLASSES = 100


class Way(NamedTuple):
    """What is done to the teacher's column, and to each loss of logits; the student is left alone."""

    column: Callable[[Column], Column] = lambda stages: stages
    heads: Callable[..., Any] | None = None


IMAGES = {
    "plain": Way(),
    "lean": Way(lean),
    "checkpointed": Way(checkpointed),
    "both": Way(lambda stages: checkpointed(lean(stages))),
}
TRANSFORMERS = {
    "plain": Way(),
    "lean": Way(lean),
    "recompute": Way(partial(lean, recompute=True)),
    "checkpointed": Way(checkpointed),
    "both": Way(lambda stages: checkpointed(lean(stages, recompute=True))),
}
"""Both is recompute, checkpointed."""
LANGUAGE = {
    "plain": Way(),
    "chunked": Way(heads=losses.chunked),
    "fused": Way(heads=losses.fused),
    "fused, recompute": Way(partial(lean, recompute=True), losses.fused),
    "fused, checkpointed": Way(checkpointed, losses.fused),
}
"""Where logits are most of it, losses read hidden states and heads."""


class Pair(NamedTuple):
    """Two networks, what they read, and what may be done to them."""

    teacher: Build
    student: Build
    at: tuple[Sequence[str] | None, Sequence[str] | None]
    """Where both are cut."""
    draw: Callable[[int, str], Batch]
    """A batch of so many examples on a device, and its labels."""
    batch: int
    """Examples on a CPU; a GPU takes sixteen times as many."""
    ways: Mapping[str, Way] = IMAGES


def _images(pixels: int) -> Callable[[int, str], Batch]:
    def draw(batch: int, device: str) -> Batch:
        labels = torch.randint(CLASSES, (batch,), device=device)
        return torch.randn(batch, 3, pixels, pixels, device=device), labels

    return draw


# Images


def _zoo(name: str) -> Build:
    return partial(NETWORKS[name].build, num_classes=CLASSES)


def _of_zoo(teacher: str, student: str, pixels: int, batch: int) -> Pair:
    at = (NETWORKS[teacher].at, NETWORKS[student].at)
    return Pair(_zoo(teacher), _zoo(student), at, _images(pixels), batch)


def _vit(width: int, depth: int, pixels: int, patch: int) -> nn.Module:
    torchvision_cpu.prepare()
    from torchvision.models import VisionTransformer

    model: nn.Module = VisionTransformer(
        pixels, patch, depth, width // 64, width, 4 * width, num_classes=CLASSES
    )
    nn.init.normal_(model.heads.head.weight, std=0.02)  # type: ignore[union-attr, arg-type]
    return model


def _layers(*ends: int) -> list[str]:
    return [f"encoder.layers.encoder_layer_{at}" for at in ends]


# Language


class Decoder(nn.Module):
    """A language model: an embedding, blocks of causal attention, a norm, the head."""

    def __init__(self, vocabulary: int, width: int, depth: int) -> None:
        super().__init__()
        self.embed = nn.Embedding(vocabulary, width)
        self.blocks = nn.ModuleList([Block(width) for _ in range(depth)])
        self.norm = nn.LayerNorm(width)
        self.lm_head = nn.Linear(width, vocabulary, bias=False)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embed(ids)
        for block in self.blocks:
            x = block(x)
        logits: Tensor = self.lm_head(self.norm(x))
        return logits


class Block(nn.Module):
    """Causal attention and a perceptron, each on a norm of what it adds to."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norms = nn.ModuleList([nn.LayerNorm(width) for _ in range(2)])
        self.read = nn.Linear(width, 3 * width)
        self.write = nn.Linear(width, width)
        self.wide = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (
            part.unflatten(-1, (-1, 32)).transpose(1, 2) for part in self.read(self.norms[0](x)).chunk(3, -1)
        )
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.write(mixed.transpose(1, 2).flatten(-2))
        return x + self.wide(self.norms[1](x))  # type: ignore[no-any-return]


HEAD = "lm_head.weight"
TOKENS = 64
"""Of each example."""


def _language(vocabulary: int, batch: int) -> Pair:
    def draw(batch: int, device: str) -> Batch:
        ids = torch.randint(vocabulary, (batch, TOKENS), device=device)
        return ids, ids

    return Pair(
        lambda: Decoder(vocabulary, 128, 6),
        lambda: Decoder(vocabulary, 64, 3),
        (["blocks.1", "blocks.3", "blocks.5"], ["blocks.0", "blocks.1", "blocks.2"]),
        draw,
        batch,
        LANGUAGE,
    )


def of_tokens(terms: Terms, heads: Callable[..., Any] | None) -> Terms:
    """The terms of a language model: the label is the next token; what reads logits, reads them by a form."""
    form = heads or (lambda loss: loss)
    of_logits = {name: form(term.loss) for name, term in terms.items() if name.startswith("kl/")}
    return fcfd.replaced(terms, {"label": losses.next_token(form(losses.cross_entropy)), **of_logits})


PAIRS = {
    "cifar": _of_zoo("resnet32x4", "resnet8x4", 32, 16),
    "imagenet": _of_zoo("resnet34IN", "resnet18IN", 224, 2),
    "vit": Pair(
        lambda: _vit(384, 8, 112, 8),
        lambda: _vit(192, 4, 112, 8),
        (_layers(1, 3, 5), _layers(0, 1, 2)),
        _images(112),
        2,
        TRANSFORMERS,
    ),
    "resnet to vit": Pair(
        _zoo("resnet34IN"),
        lambda: _vit(192, 4, 112, 16),
        (NETWORKS["resnet34IN"].at[1:], _layers(0, 1, 2)),
        _images(112),
        4,
    ),
    "32k tokens": _language(32_000, 4),
    "150k tokens": _language(150_000, 2),
}
