"""The demo's networks: chains of five stages, and how such a network learns from labels."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from tqdm import tqdm

from fcfd import losses, schedules

from .data import Data, batches


def network(width: int, *, convolutions: int, first_stride: int) -> nn.Sequential:
    """Five stages: a stem, three blocks, the classifier."""

    def block(channels: int, out: int, stride: int) -> nn.Sequential:
        layers: list[nn.Module] = []
        for at in range(convolutions):
            sizes = (channels, out, 3, stride) if at == 0 else (out, out, 3, 1)
            layers += [nn.Conv2d(*sizes, padding=1, bias=False), nn.BatchNorm2d(out), nn.ReLU(inplace=True)]
        return nn.Sequential(*layers)

    return nn.Sequential(
        block(1, width, first_stride),
        block(width, width, 1),
        block(width, 2 * width, 2),
        block(2 * width, 4 * width, 2),
        nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4 * width, 10)),
    )


def train(
    model: nn.Sequential, images: Tensor, labels: Tensor, *, steps: int, rate: float, progress: tqdm
) -> None:
    """How the teacher learns: by labels, 100 images a step."""
    optimizer = sgd(model.train().parameters())
    for step, batch in enumerate(batches(len(images), 100, steps, seed=0)):
        optimizer.param_groups[0]["lr"] = schedules.cosine(step, steps=steps, start=rate)
        loss = losses.cross_entropy(model(images[batch]), labels[batch]).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        progress.update()


def sgd(parameters: Iterable[nn.Parameter]) -> torch.optim.SGD:
    """The optimizer of teacher and students; its rate is set at each step."""
    return torch.optim.SGD(parameters, lr=0.0, momentum=0.9, nesterov=True, weight_decay=5e-4)


@torch.no_grad()
def accuracy(model: nn.Sequential, data: Data) -> float:
    """The share of test images that are classified correctly."""
    logits: Tensor = model.eval()(data.test_images)
    return (logits.argmax(1) == data.test_labels).double().mean().item()


def size(model: nn.Module) -> int:
    """The number of parameters."""
    return sum(parameter.numel() for parameter in model.parameters())
