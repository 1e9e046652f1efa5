"""The same losses elsewhere: in PyTorch itself, in other libraries, and as naive formulas.

A contender is measured only where it computes what `fcfd` computes, up to a constant factor:
`benchmarks.losses` compares the two before it times them. A library that is not installed, or that cannot be
imported here, is reported as absent, with the reason.
"""

import warnings
from collections.abc import Callable
from importlib import metadata
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from fcfd import losses
from reference import torchvision_cpu

from .naive import NAIVE

Loss = Callable[..., Tensor]


class Contender(NamedTuple):
    """Another implementation of a loss of the catalogue.

    Args:
        row: The row whose inputs it takes.
        source: Where it comes from.
        run: From the inputs of the row to a scalar.
        factor: What its value is multiplied by to be that of `fcfd`.
        per_example: Whether the batch size is a further factor.
        ours: What it is compared with, and the name of that, where it is not the row itself.
        tolerance: Relative; for a published difference in detail.
    """

    row: str
    source: str
    run: Loss
    factor: float = 1.0
    per_example: bool = False
    ours: tuple[str, Loss] | None = None
    tolerance: float = 1e-3


def contenders() -> tuple[list[Contender], dict[str, str]]:
    """All that can be imported, and for each source its version or why it is absent."""
    found = [Contender(name, "naive", run) for name, run in NAIVE.items()]
    status = {"naive": "benchmarks/naive.py"}
    for source, (package, load) in SOURCES.items():
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                found += [contender._replace(source=source) for contender in load()]
            status[source] = metadata.version(package)
        except (ImportError, RuntimeError) as error:
            status[source] = f"absent: {str(error).splitlines()[0]}"
    return found, status


def _torch() -> list[Contender]:
    def kl(prediction: Tensor, target: Tensor) -> Tensor:
        student, teacher = (prediction / 4).log_softmax(-1), (target / 4).softmax(-1)
        return 16 * F.kl_div(student, teacher, reduction="batchmean")

    def cosine(prediction: Tensor, target: Tensor) -> Tensor:
        return (1 - F.cosine_similarity(prediction, target)).mean()

    return [
        Contender("cross_entropy", "", F.cross_entropy),
        Contender("kl", "", kl),
        Contender("squared_error", "", F.mse_loss),
        Contender("cosine_distance", "", cosine),
    ]


def _torchdistill() -> list[Contender]:
    from torchdistill.losses import mid_level

    at = {"path": "x", "io": "output"}
    pair = {"pair": {"student": at, "teacher": at}}
    logits = ("x", "output", "x", "output")

    def peer(row: str, module: Loss, **more: Any) -> Contender:
        def run(prediction: Tensor, target: Tensor) -> Tensor:
            return module({"x": {"output": prediction}}, {"x": {"output": target}})

        return Contender(row, "", run, **more)

    hcl: Loss = mid_level.HierarchicalContextLoss(*logits)
    vid: Loss = mid_level.VIDLoss(pair)

    def hcl_of_maps(prediction: Tensor, target: Tensor) -> Tensor:
        return hcl({"x": {"output": (prediction, None)}}, {"x": {"output": target}})

    def vid_of_scale(prediction: Tensor, target: Tensor, log_scale: Tensor) -> Tensor:
        variance = (F.softplus(log_scale) + 1e-5).reshape(-1, 1, 1)
        return vid({"x": {"output": (prediction, variance)}}, {"x": {"output": target}})

    def fsp(first: Tensor, last: Tensor) -> Tensor:
        matrix: Tensor = mid_level.FSPLoss.compute_fsp_matrix(first, last)
        return matrix.square().mean()

    def our_fsp(first: Tensor, last: Tensor) -> Tensor:
        return losses.fsp_matrix(first, last).square().mean()

    def our_standardized(prediction: Tensor, target: Tensor) -> Tensor:
        return losses.kl(losses.standardize_logits(prediction), losses.standardize_logits(target)).mean()

    standardized = mid_level.LogitStdKDLoss(*logits, temperature=4.0, alpha=0.0)
    boundary = mid_level.AltActTransferLoss(pair, margin=1.0, reduction="mean")
    return [
        peer("kl", mid_level.KDLoss(*logits, temperature=4.0, alpha=0.0), factor=16),
        peer("kl", standardized, factor=16, ours=("kl of standardize_logits", our_standardized)),
        peer("dist", mid_level.DISTLoss(*logits), tolerance=2e-2),
        peer("pkt", mid_level.PKTLoss(*logits)),
        peer("rkd_distance", mid_level.RKDLoss("x", "x", 1.0, 0.0, "mean")),
        peer("rkd_angle", mid_level.RKDLoss("x", "x", 0.0, 1.0, "mean")),
        peer("attention_transfer", mid_level.ATLoss(pair)),
        peer("factor_transfer", mid_level.FTLoss(paraphraser_path="x", translator_path="x")),
        peer("activation_boundary", boundary),
        peer("inter_channel_correlation", mid_level.ChSimLoss(pair), per_example=True),
        Contender("hcl", "", hcl_of_maps),
        Contender("vid", "", vid_of_scale),
        Contender("fsp_matrix", "", fsp, ours=("fsp_matrix", our_fsp)),
    ]


def _timm() -> list[Contender]:
    torchvision_cpu.prepare()
    from timm.loss import SoftTargetCrossEntropy

    soft: Loss = SoftTargetCrossEntropy()

    def of_logits(prediction: Tensor, target: Tensor) -> Tensor:
        return soft(prediction, target.softmax(-1))

    def ours(prediction: Tensor, target: Tensor) -> Tensor:
        return losses.kd_ce(prediction, target, temperature=1.0).mean()

    return [Contender("kd_ce", "", of_logits, ours=("kd_ce", ours))]


def _liger() -> list[Contender]:
    from liger_kernel import transformers as liger

    cross_entropy: Loss = liger.LigerCrossEntropyLoss()
    jsd: Loss = liger.LigerJSD()
    kl: Loss = liger.LigerKLDIVLoss(log_target=True)
    variation: Loss = liger.LigerTVDLoss()

    def of_logits(module: Loss) -> Loss:
        return lambda prediction, target: module(prediction.log_softmax(-1), target.log_softmax(-1))

    def softened(prediction: Tensor, target: Tensor) -> Tensor:
        return kl((prediction / 4).log_softmax(-1), (target / 4).log_softmax(-1))

    def variation_of_logits(prediction: Tensor, target: Tensor) -> Tensor:
        return variation(prediction.softmax(-1), target.softmax(-1))

    # Liger's kernels are Triton's, and write into what they are given.
    if not torch.cuda.is_available():
        raise ImportError("needs a GPU")
    return [
        Contender("cross_entropy", "", lambda logits, labels: cross_entropy(logits * 1, labels)),
        Contender("kl", "", softened, factor=16),
        Contender("jsd", "", of_logits(jsd)),
        Contender("total_variation", "", variation_of_logits),
    ]


SOURCES: dict[str, tuple[str, Callable[[], list[Contender]]]] = {
    "torch": ("torch", _torch),
    "torchdistill": ("torchdistill", _torchdistill),
    "timm": ("timm", _timm),
    "liger": ("liger-kernel", _liger),
}
