"""FCFD as such code is usually written: modules that are changed, features in dictionaries, losses read back.

An honest stand-in for the usual implementation, written from the paper's formulas: a step of it computes the
same value and gradients as `fcfd.losses.fcfd`, which `benchmarks.step` checks before it times them.

* Every crossed path has running statistics of its own, which are put in the modules' place before the path
  runs and taken out after it.
* The networks return dictionaries of features; the losses of a batch are collected in a dictionary, and each
  is read back with `.item()` for the progress line.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Hyper = Mapping[str, float]


class StagedNetwork(nn.Module):
    """A network cut after some of its children; it can start at any stage."""

    def __init__(self, model: nn.Sequential, at: Sequence[str]) -> None:
        super().__init__()
        stages, stage = [], []
        for name, layer in model.named_children():
            stage.append(layer)
            if name in at:
                stages.append(nn.Sequential(*stage))
                stage = []
        self.stages = nn.ModuleList([*stages, nn.Sequential(*stage)])

    def forward(self, x: Tensor, start: int = 0) -> dict[str, Tensor]:
        out = {}
        for index in range(start, len(self.stages)):
            x = self.stages[index](x)
            out[f"stage{index}"] = x
        out["logits"] = x
        return out


class FCFD(nn.Module):
    """Student, teacher and bridges; `train_step` is one step.

    Args:
        student: A network whose children run one after another.
        teacher: The same.
        student_at: The children after which the student is cut.
        teacher_at: The same of the teacher.
        bridges: `bridges["s>t"]["1"]` leads from the student's second stage into the teacher's space.
    """

    def __init__(
        self,
        student: nn.Sequential,
        teacher: nn.Sequential,
        student_at: Sequence[str],
        teacher_at: Sequence[str],
        bridges: nn.ModuleDict,
    ) -> None:
        super().__init__()
        self.student = StagedNetwork(student, student_at)
        self.teacher = StagedNetwork(teacher, teacher_at)
        self.bridges = bridges
        for parameter in self.teacher.parameters():
            parameter.requires_grad = False
        self.statistics: dict[str, list[dict[str, Tensor]]] = {}
        self.last = len(self.student.stages) - 2

    def bridges_of(self, column: str) -> nn.ModuleDict:
        bridges = self.bridges[column]
        assert isinstance(bridges, nn.ModuleDict)
        return bridges

    def swap_statistics(self, path: str, layers: Sequence[nn.Module]) -> None:
        """Exchange the modules' running statistics for those of a path."""
        if path not in self.statistics:
            self.statistics[path] = [
                {name: buffer.clone() for name, buffer in layer.named_buffers()} for layer in layers
            ]
        for layer, private in zip(layers, self.statistics[path], strict=True):
            for name in private:
                own = getattr(layer, name)
                setattr(layer, name, private[name])
                private[name] = own

    def crossed(self, path: str, network: StagedNetwork, x: Tensor, start: int) -> dict[str, Tensor]:
        """Run the later stages of a network on a bridged feature, with the path's own statistics."""
        out: dict[str, Tensor]
        if not network.training:
            out = network(x, start)
            return out
        layers = [layer for layer in network.stages[start:].modules() if isinstance(layer, nn.BatchNorm2d)]
        self.swap_statistics(path, layers)
        out = network(x, start)
        self.swap_statistics(path, layers)
        return out

    def forward(
        self, images: Tensor, labels: Tensor, paths: Sequence[str], hyper: Hyper
    ) -> dict[str, Tensor]:
        """Every term of the batch, weighted."""
        losses: dict[str, Tensor] = {}
        with torch.no_grad():
            teacher = self.teacher(images)
        student = self.student(images)
        losses["cls"] = F.cross_entropy(student["logits"], labels)
        losses["kd"] = self.kd_loss(student["logits"], teacher["logits"], hyper["temperature"])
        into_teacher = {}
        for key, bridge in self.bridges_of("s>t").items():
            index = int(key)
            into_teacher[index] = bridge(student[f"stage{index}"])
            losses[f"app_{index}"] = self.feature_loss(
                into_teacher[index], teacher[f"stage{index}"], index, hyper
            )
        for path in paths:
            index = path.count(path[0]) - 1
            if path[0] == "s":
                out = self.crossed(path, self.teacher, into_teacher[index], index + 1)
                for later in range(index + 1, self.last + 1):
                    name = f"stage{later}"
                    losses[f"{path}_{later}"] = self.feature_loss(out[name], teacher[name], later, hyper)
            else:
                bridge = self.bridges_of("t>s")[str(index)]
                out = self.crossed(path, self.student, bridge(teacher[f"stage{index}"]), index + 1)
            loss = self.kd_loss(out["logits"], teacher["logits"], hyper["temperature"])
            losses[f"{path}_kd"] = hyper["path_weight"] * loss
        return losses

    def feature_loss(self, prediction: Tensor, target: Tensor, index: int, hyper: Hyper) -> Tensor:
        prediction, target = _full(prediction), _full(target)
        loss = F.mse_loss(prediction, target)
        if index == self.last:
            ours, theirs = (F.adaptive_avg_pool2d(F.relu(x), 1).flatten(1) for x in (prediction, target))
            loss = loss + F.mse_loss(ours, theirs)
        return hyper["feature_weight"] * loss

    @staticmethod
    def kd_loss(prediction: Tensor, target: Tensor, temperature: float) -> Tensor:
        log_p = F.log_softmax(_full(prediction) / temperature, dim=1)
        q = F.softmax(_full(target) / temperature, dim=1)
        return F.kl_div(log_p, q, reduction="batchmean") * temperature**2

    def train_step(
        self,
        optimizer: torch.optim.Optimizer,
        images: Tensor,
        labels: Tensor,
        paths: Sequence[str],
        hyper: Hyper,
        autocast: torch.autocast,
    ) -> dict[str, float]:
        """One step; the losses as numbers, for the progress line."""
        optimizer.zero_grad()
        with autocast:
            losses = self(images, labels, paths, hyper)
        total: Any = sum(losses.values())
        total.backward()
        optimizer.step()
        meters = {name: loss.item() for name, loss in losses.items()}
        meters["total"] = total.item()
        return meters


def _full(x: Tensor) -> Tensor:
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
