"""Detectors as stages: each step equals one that is written plainly with torchvision's own functions."""

import copy
import warnings
from importlib.util import find_spec

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import fcfd
from fcfd import detection, losses, recipes
from fcfd.bridges import MatchStatistics, multi_bridge
from fcfd.terms import Term, entry, multi_level

from .purity import assert_unchanged, snapshot

if find_spec("torchvision") is None:
    pytest.skip("torchvision is not installed", allow_module_level=True)

from . import detectors


def linked(teacher, student, terms, images, targets, **options):
    example = {
        "s": detection.prepare(student, images, targets).inputs,
        "t": detection.prepare(teacher, images).inputs,
    }
    cut = detection.two_stage if hasattr(student, "rpn") else detection.one_stage
    at = options.pop("at", {})
    networks = {"t": cut(teacher, **at), "s": cut(student, **at)}
    return fcfd.link(networks, example=example, paths=fcfd.reads(terms.values()), **options)


def own_size(ours):
    return None


def two_stage_step(
    teacher, student, nets, terms, images, targets, *, params=None, stages=None, follow=own_size
):
    """The loop of the documentation."""
    params, stages = params or nets.params, stages or nets.stages
    ours = detection.prepare(student, images, targets)
    values, written = fcfd.walk(("s",), stages, params, nets.buffers, {"": {"s": ours.inputs}})
    found, _ = detection.proposals(student)(params["s"], nets.buffers["s"], (ours, values["s"]))
    batch = {"s": ours.inputs, "t": detection.prepare(teacher, images, sizes=follow(ours)).inputs}
    known = {"": detection.with_regions(batch, found), "s": values["s"], "Labels": found.labels}
    buffers = fcfd.merge_buffers(nets.buffers, written)
    loss, aux = fcfd.objective(terms, stages, params, buffers, known)
    return loss + sum(found.losses.values()), (aux, found)


def one_stage_step(
    teacher, student, nets, terms, images, targets, *, params=None, stages=None, follow=own_size
):
    params, stages = params or nets.params, stages or nets.stages
    ours = detection.prepare(student, images, targets)
    batch = {"s": ours.inputs, "t": detection.prepare(teacher, images, sizes=follow(ours)).inputs}
    depth = len(stages["s"])
    values, written = fcfd.walk(fcfd.plan(["s" * depth]), stages, params, nets.buffers, {"": batch})
    found = detection.labels(student)(ours, values["s"], values["s" * depth])
    buffers = fcfd.merge_buffers(nets.buffers, written)
    loss, aux = fcfd.objective(terms, stages, params, buffers, {**values, "Labels": found.labels})
    return loss + sum(found.losses.values()), (aux, found)


def gradients(*modules):
    return {
        f"{at}.{name}": own.grad
        for at, module in enumerate(modules)
        for name, own in module.named_parameters()
    }


def close(found, wanted, **tolerance):
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        assert found[name] is not None, name
        torch.testing.assert_close(
            found[name], value, msg=lambda text, name=name: f"{name}: {text}", **tolerance
        )


# Two stages


def pair_of_two(*, masks=False, teacher_side=detectors.SIDE, teacher_mode="eval", seed=0):
    torch.manual_seed(seed)
    teacher = (
        detectors.two_stage(10, 8, masks=masks, side=teacher_side).double().train(teacher_mode == "train")
    )
    student = detectors.two_stage(6, 8, masks=masks).double()
    images, targets = detectors.scenes(masks=masks)
    terms = recipes.fcfd_detection(masks=masks)
    return teacher, student, linked(teacher, student, terms, images, targets), terms, images, targets


def plain_two_stage(teacher, student, bridges, images, targets, *, masks=False):
    """The same step by hand: the student's own forward, line by line, and four passes of box heads."""
    from torchvision.models.detection.roi_heads import fastrcnn_loss, maskrcnn_loss

    batch, resized = student.transform(images, targets)
    own = student.backbone(batch.tensors)
    regions, rpn = student.rpn(batch, own, resized)
    heads = student.roi_heads
    regions, matched, labels, deltas = heads.select_training_samples(regions, resized)
    theirs_batch, _ = teacher.transform(images)
    theirs = teacher.backbone(theirs_batch.tensors)
    to_teacher, to_student = bridges["s>t"]["0"], bridges["t>s"]["0"]
    st = {name: to_teacher.rows[at][str(at)](own[name]) for at, name in enumerate(own)}
    ts = {
        name: to_student.rows[at][str(at)](theirs[name]) for at, name in enumerate(theirs) if name != "pool"
    }
    scaled = []
    for boxes, (h, w), (nh, nw) in zip(regions, batch.image_sizes, theirs_batch.image_sizes, strict=True):
        scaled.append(boxes * torch.tensor([nw / w, nh / h, nw / w, nh / h], dtype=torch.float64))

    def head(of, pyramid, boxes, sizes):
        pooled = of.roi_heads.box_roi_pool(pyramid, boxes, sizes)
        return of.roi_heads.box_predictor(of.roi_heads.box_head(pooled))

    classes, boxes = head(student, own, regions, batch.image_sizes)
    wanted_classes, wanted_boxes = (
        x.detach() for x in head(teacher, theirs, scaled, theirs_batch.image_sizes)
    )
    passes = {
        "ss": (classes, boxes),
        "st": head(teacher, st, scaled, theirs_batch.image_sizes),
        "ts": head(student, ts, regions, batch.image_sizes),
    }
    parts = dict(
        zip(("label/classes", "label/boxes"), fastrcnn_loss(classes, boxes, labels, deltas), strict=True)
    )
    parts["feature/s>t"] = sum(F.mse_loss(st[name], theirs[name].detach()) for name in own)
    for path, (c, b) in passes.items():
        log = F.log_softmax(c, 1), F.log_softmax(wanted_classes, 1)
        parts[f"kl/{path}"] = F.kl_div(*log, reduction="batchmean", log_target=True)
        parts[f"delta/{path}"] = F.mse_loss(b, wanted_boxes)
    if masks:
        kept = [own > 0 for own in labels]
        positive = [boxes[one] for boxes, one in zip(regions, kept, strict=True)]
        scaled = [boxes[one] for boxes, one in zip(scaled, kept, strict=True)]
        at = [one[k] for one, k in zip(matched, kept, strict=True)]

        def mask_head(of, pyramid, boxes, sizes):
            own = of.roi_heads
            return own.mask_predictor(own.mask_head(own.mask_roi_pool(pyramid, boxes, sizes)))

        drawn = mask_head(student, own, positive, batch.image_sizes)
        gt = [t["masks"] for t in resized], [t["labels"] for t in resized]
        parts["label/masks"] = maskrcnn_loss(drawn, positive, *gt, at)
        of = torch.cat([t["labels"][one] for t, one in zip(resized, at, strict=True)])
        rows = torch.arange(len(of))
        target = mask_head(teacher, theirs, scaled, theirs_batch.image_sizes)[rows, of].detach().sigmoid()
        for path, value in {
            "ss": drawn,
            "st": mask_head(teacher, st, scaled, theirs_batch.image_sizes),
            "ts": mask_head(student, ts, positive, batch.image_sizes),
        }.items():
            p = value[rows, of].sigmoid()
            divergence = target * (target / p).log() + (1 - target) * ((1 - target) / (1 - p)).log()
            parts[f"mask/{path}"] = divergence.mean()
    return sum(parts.values()) + sum(rpn.values()), parts, rpn


@pytest.mark.parametrize(
    "masks, side, mode",
    [(False, 64, "eval"), (True, 64, "eval"), (False, 96, "eval"), (False, 64, "train")],
    ids=["boxes", "masks", "another size", "teacher in train"],
)
def test_a_step_of_two_stages_equals_one_written_plainly(masks, side, mode):
    teacher, student, nets, terms, images, targets = pair_of_two(
        masks=masks, teacher_side=side, teacher_mode=mode
    )
    with warnings.catch_warnings():  # torch's, of a copied form of a tree
        warnings.simplefilter("ignore", FutureWarning)
        copies = copy.deepcopy((teacher, student, nets.bridges))
    torch.manual_seed(7)
    loss, (aux, found) = two_stage_step(teacher, student, nets, terms, images, targets)
    loss.backward()
    torch.manual_seed(7)
    wanted, parts, rpn = plain_two_stage(*copies, images, targets, masks=masks)
    for own in copies[0].parameters():
        own.requires_grad_(False)
    wanted.backward()
    assert sum(map(len, found.regions)) > 8
    close(aux.parts, parts, rtol=1e-7, atol=1e-9)
    close(found.losses, rpn, rtol=0, atol=0)
    torch.testing.assert_close(loss, wanted, rtol=1e-7, atol=1e-9, check_dtype=False)
    close(gradients(student, nets.bridges), gradients(*copies[1:]), rtol=1e-6, atol=1e-9)
    plain = dict(copies[1].named_buffers())
    close(aux.buffers["s"], plain, rtol=0, atol=1e-12)


@pytest.mark.parametrize("masks", [False, True])
def test_label_losses_are_the_detectors_own_under_the_same_seed(masks):
    teacher, student, nets, terms, images, targets = pair_of_two(masks=masks)
    student.transform.min_size = (48, 64, 80)  # it draws one of them, and the teacher follows
    torch.manual_seed(5)
    _, (aux, found) = two_stage_step(
        teacher, student, nets, terms, images, targets, follow=lambda ours: ours.inputs["sizes"]
    )
    torch.manual_seed(5)
    own = copy.deepcopy(student)(images, targets)
    names = {"label/classes": "loss_classifier", "label/boxes": "loss_box_reg", "label/masks": "loss_mask"}
    ours = {names[name]: part for name, part in aux.parts.items() if name in names} | found.losses
    close(ours, own, rtol=1e-12, atol=0)


def test_every_trainable_tensor_of_student_and_bridges_gets_a_gradient():
    teacher, student, nets, terms, images, targets = pair_of_two()
    two_stage_step(teacher, student, nets, terms, images, targets)[0].backward()
    assert not [name for name, own in gradients(student, nets.bridges).items() if own is None]
    assert all(own.grad is None for own in teacher.parameters())
    assert [len(row) for row in nets.bridges["t>s"]["0"].rows] == [1, 1, 1, 1, 0], (
        "no head reads the last level"
    )
    assert [len(row) for row in nets.bridges["s>t"]["0"].rows] == [1, 1, 1, 1, 1], "a term compares it"


def test_a_level_without_a_bridge_is_refused_by_who_reads_it():
    teacher, student, nets, terms, images, targets = pair_of_two()
    _, (aux, _) = two_stage_step(teacher, student, nets, terms, images, targets)
    assert aux.values["t>s"]["pool"].numel() == 0
    with pytest.raises(ValueError, match=r"squared_error: prediction \[2, 0, .*\] is empty"):
        losses.squared_error(aux.values["t>s"]["pool"], aux.values["s"]["pool"])


def test_gradients_by_torch_func_by_checkpoints_and_lean_are_the_same():
    teacher, student, nets, terms, images, targets = pair_of_two()
    torch.manual_seed(1)
    two_stage_step(teacher, student, nets, terms, images, targets)[0].backward()
    wanted = {name: own.grad.clone() for name, own in student.named_parameters()}

    def of_student(own):
        return two_stage_step(
            teacher, student, nets, terms, images, targets, params={**nets.params, "s": own}
        )

    torch.manual_seed(1)
    found, _ = torch.func.grad(of_student, has_aux=True)(nets.params["s"])
    close(found, wanted, rtol=1e-9, atol=1e-12)
    for transform in (fcfd.checkpointed, fcfd.lean):
        student.zero_grad()
        stages = {letter: transform(column) for letter, column in nets.stages.items()}
        torch.manual_seed(1)
        two_stage_step(teacher, student, nets, terms, images, targets, stages=stages)[0].backward()
        close({name: own.grad for name, own in student.named_parameters()}, wanted, rtol=0, atol=1e-14)


@pytest.mark.parametrize("masks", [False, True])
def test_detectors_stay_as_they_were(masks):
    teacher, student, nets, terms, images, targets = pair_of_two(masks=masks)
    held = teacher, student, nets.bridges, images, targets
    with torch.random.fork_rng():
        before = snapshot(*held)
        state = torch.get_rng_state()
        two_stage_step(teacher, student, nets, terms, images, targets)
        detection.two_stage(student)
        torch.set_rng_state(state)  # drawn from, as the detector does
        assert_unchanged(before, *held)
    assert nets.params["s"]["rpn.head.cls_logits.weight"] is student.rpn.head.cls_logits.weight
    assert {*nets.params["s"]} == {name for name, _ in student.named_parameters()}


def test_new_statistics_are_written_under_the_students_own_names():
    teacher, student, nets, terms, images, targets = pair_of_two()
    _, (aux, _) = two_stage_step(teacher, student, nets, terms, images, targets)
    fcfd.write_buffers_(student, aux.buffers["s"])
    assert int(student.backbone.body.layer1[1].num_batches_tracked) == 1


# Edges of two stages


@pytest.mark.parametrize("objects", [(2, 0), (0, 0)], ids=["one image without boxes", "no box at all"])
@pytest.mark.parametrize("masks", [False, True])
def test_images_without_objects(objects, masks):
    teacher, student, nets, terms, _, _ = pair_of_two(masks=masks)
    images, targets = detectors.scenes(objects=objects, masks=masks)
    torch.manual_seed(2)
    loss, (aux, _found) = two_stage_step(teacher, student, nets, terms, images, targets)
    loss.backward()
    assert not [name for name, own in gradients(student, nets.bridges).items() if own is None]
    assert all(own.grad.isfinite().all() for own in student.parameters())
    assert aux.parts["label/boxes"] == 0 or objects[0]
    torch.manual_seed(2)
    own = copy.deepcopy(student)(images, targets)
    torch.testing.assert_close(aux.parts["label/classes"], own["loss_classifier"])
    if masks and not sum(objects):
        assert aux.parts["label/masks"] == aux.parts["mask/st"] == 0


def test_no_regions_are_zeros_with_a_graph():
    teacher, student, nets, terms, images, targets = pair_of_two()
    ours = detection.prepare(student, images, targets)
    batch = {"s": ours.inputs, "t": detection.prepare(teacher, images).inputs}
    nothing = torch.zeros(0, 4, dtype=torch.float64)
    labels = {"classes": torch.zeros(0, dtype=torch.int64), "boxes": nothing}
    found = detection.Found({}, labels, [nothing, nothing])
    loss, aux = fcfd.objective(
        terms, *nets.columns, {"": detection.with_regions(batch, found), "Labels": labels}
    )
    loss.backward()
    assert {name for name, part in aux.parts.items() if part != 0} == {"feature/s>t"}
    missing = [name for name, own in gradients(student, nets.bridges).items() if own is None]
    assert {name.split(".")[1] for name in missing} <= {"rpn"}, "which no proposal was asked of"
    assert all(own.grad is None or own.grad.isfinite().all() for own in student.parameters())


def test_regions_are_rescaled_to_what_the_teacher_sees():
    torch.manual_seed(0)
    teacher, student = detectors.two_stage(4, 8, side=96), detectors.two_stage(4, 8)
    images, targets = detectors.scenes(dtype=torch.float32)
    ours, theirs = detection.prepare(student, images, targets), detection.prepare(teacher, images)
    assert not torch.equal(ours.inputs["sizes"], theirs.inputs["sizes"])
    boxes = [target["boxes"] for target in ours.targets]
    batch = {"s": ours.inputs, "t": theirs.inputs}
    filled = detection.with_regions(batch, detection.Found({}, {}, boxes))
    same = detection.prepare(teacher, images, targets).targets
    for found, target in zip(filled["t"]["regions"], same, strict=True):
        torch.testing.assert_close(found, target["boxes"], rtol=1e-5, atol=1e-4)
    assert filled["s"]["regions"][0] is boxes[0]
    assert batch["t"]["regions"] == (), "what was given stays"


def test_other_classes_are_refused_and_appearance_still_works():
    torch.manual_seed(0)
    teacher, student = detectors.two_stage(4, 8, classes=6).eval(), detectors.two_stage(4, 8)
    images, targets = detectors.scenes(dtype=torch.float32)
    terms = recipes.fcfd_detection()
    nets = linked(teacher, student, terms, images, targets)
    with pytest.raises(
        ValueError,
        match=r"evaluate: term 'kl/ss', .*kl: prediction \[\d+, 4\] and target \[\d+, 6\] must have the same",
    ):
        two_stage_step(teacher, student, nets, terms, images, targets)
    hints = recipes.fcfd_detection(paths=())
    hints = {name: term for name, term in hints.items() if name.startswith(("label", "feature"))}
    two_stage_step(teacher, student, nets, hints, images, targets)[0].backward()


def test_other_numbers_of_levels_are_refused_until_one_says_which_belong_together():
    torch.manual_seed(0)
    teacher, student = detectors.two_stage(4, 8).eval(), detectors.two_stage(4, 8, levels=3)
    images, targets = detectors.scenes(dtype=torch.float32)
    terms = recipes.fcfd_detection(paths=("st",))
    with pytest.raises(ValueError, match=r"'s>t' leads from 4 tensors to 5, .*fcfd.bridges.multi_bridge"):
        linked(teacher, student, terms, images, targets)
    ends = {}
    for letter, detector in {"s": student, "t": teacher}.items():
        network, inputs = detection.two_stage(detector), detection.prepare(detector, images).inputs
        ends[letter], _ = network.stages[0](network.params, network.buffers, inputs)
    own = multi_bridge(ends["s"], ends["t"], reads={0: (0,), 1: (1,), 2: (2,), 3: (2,), 4: (3,)})
    nets = linked(teacher, student, terms, images, targets, bridges={"s>t": own})
    two_stage_step(teacher, student, nets, terms, images, targets)[0].backward()
    assert all(weight.grad is not None for weight in nets.bridges.parameters())


def test_a_teacher_without_masks_is_refused_where_the_student_has_some():
    torch.manual_seed(0)
    teacher, student = detectors.two_stage(4, 8).eval(), detectors.two_stage(4, 8, masks=True)
    images, targets = detectors.scenes(dtype=torch.float32, masks=True)
    terms = recipes.fcfd_detection(masks=True)
    nets = linked(teacher, student, terms, images, targets)
    with pytest.raises(ValueError, match=r"evaluate: term 'mask/ss', .*has no entry 'masks'"):
        two_stage_step(teacher, student, nets, terms, images, targets)
    nets = linked(student, teacher.train(), recipes.fcfd_detection(), images, targets)
    with pytest.raises(ValueError, match=r"with_regions: network 't' has a mask head, and the student none"):
        two_stage_step(student, teacher, nets, recipes.fcfd_detection(), images, targets)


def test_inheriting_the_teachers_pyramid_and_heads():
    torch.manual_seed(0)
    teacher, student = detectors.two_stage(8, 8).eval(), detectors.two_stage(6, 8)
    own = student.state_dict()
    fits = {name: value for name, value in teacher.state_dict().items() if value.shape == own[name].shape}
    student.load_state_dict(own | {name: value for name, value in fits.items() if ".body." not in name})
    for name in ("rpn.head.cls_logits.weight", "roi_heads.box_head.fc6.weight"):
        torch.testing.assert_close(student.get_parameter(name), teacher.get_parameter(name))


# One stage


def pair_of_one(kind="retinanet", *, teacher_side=detectors.SIDE, at=3, path="ss&tt"):
    torch.manual_seed(0)
    build = {
        "retinanet": lambda width: detectors.retinanet(width, 8),
        "normed": lambda width: detectors.retinanet(width, 8, norm=nn.BatchNorm2d),
        "fcos": detectors.fcos,
    }[kind]
    teacher, student = build(10).double().eval(), build(6).double()
    for own in (teacher, student):  # heads of published deviation say the same everywhere
        for name, weight in own.head.named_parameters():
            if name.endswith("weight") and weight.ndim == 4:
                nn.init.normal_(weight, std=0.1)
    teacher.transform.min_size = (teacher_side,)
    images, targets = detectors.scenes()
    terms = recipes.crosskd(path)
    bridges = {"ss&t": MatchStatistics()} if "&" in path else None
    nets = linked(teacher, student, terms, images, targets, at={"at": at}, bridges=bridges)
    return teacher, student, nets, terms, images, targets


def towers(detector, maps, at, name):
    """A tower up to a convolution and its norm, and a function of the rest, by position in a flat list."""
    flat = [
        part for part in getattr(detector.head, name).conv.modules() if not isinstance(part, nn.Sequential)
    ]
    count, end = 0, 0
    while count < at or not isinstance(flat[end], nn.ReLU):
        count += isinstance(flat[end], nn.Conv2d)
        end += 1
    return [nn.Sequential(*flat[:end])(one) for one in maps], nn.Sequential(*copy.deepcopy(flat[end:]))


def plain_crosskd(teacher, student, images, targets, at=3):
    from torchvision.ops import generalized_box_iou_loss

    batch, resized = student.transform(images, targets)
    own = list(student.backbone(batch.tensors).values())
    outputs = student.head(own)
    anchors = student.anchor_generator(batch, own)
    is_fcos = "bbox_ctrness" in outputs
    levels = ([one[0, 0].numel() for one in own],) if is_fcos else ()
    label = student.compute_loss(resized, outputs, anchors, *levels)
    theirs_batch, _ = teacher.transform(images)
    theirs = list(teacher.backbone(theirs_batch.tensors).values())
    target = {name: value.detach() for name, value in teacher.head(theirs).items()}
    crossed = {}
    for name, head in {"cls_logits": "classification_head", "bbox_regression": "regression_head"}.items():
        ours, _ = towers(student, own, at, head)
        seen, rest = towers(teacher, theirs, at, head)
        out = []
        for one, other in zip(ours, seen, strict=True):
            flat, known = (x.transpose(0, 1).flatten(1) for x in (one, other))
            aligned = (flat - flat.mean(1, keepdim=True)) / (flat.std(1, keepdim=True) + 1e-6)
            aligned = aligned * known.std(1, keepdim=True) + known.mean(1, keepdim=True)
            aligned = aligned.view(one.shape[1], one.shape[0], *one.shape[2:]).transpose(0, 1)
            last = getattr(teacher.head, head)
            last = last.cls_logits if name == "cls_logits" else last.bbox_reg
            maps = last(rest(aligned))
            if is_fcos and name == "bbox_regression":
                maps = maps.relu()
            size = detectors.CLASSES if name == "cls_logits" else 4
            out.append(maps.permute(0, 2, 3, 1).reshape(len(maps), -1, size))
        crossed[name] = torch.cat(out, 1)
    if is_fcos:
        matched = None
    else:
        matched = [
            student.proposal_matcher(iou(target["boxes"], a))
            for target, a in zip(resized, anchors, strict=True)
        ]
        matched = torch.stack(matched)
    at_teacher = torch.stack(teacher.anchor_generator(theirs_batch, theirs))

    def decode(deltas):
        if is_fcos:
            return teacher.box_coder.decode(deltas, at_teacher)
        return torch.stack(
            [teacher.box_coder.decode_single(d, a) for d, a in zip(deltas, at_teacher, strict=True)]
        )

    p, q = crossed["cls_logits"].sigmoid(), target["cls_logits"].sigmoid()
    focal = (p - q).abs() * F.binary_cross_entropy(p, q, reduction="none")
    boxes = decode(crossed["bbox_regression"]), decode(target["bbox_regression"])
    giou = generalized_box_iou_loss(*boxes) * q.amax(-1)
    return label, focal.sum(-1), giou, matched


def iou(a, b):
    from torchvision.ops import box_iou

    return box_iou(a, b)


@pytest.mark.parametrize("kind, at", [("retinanet", 3), ("retinanet", 1), ("normed", 3), ("fcos", 3)])
def test_a_step_of_crosskd_equals_one_written_plainly(kind, at):
    teacher, student, nets, terms, images, targets = pair_of_one(kind, at=at)
    other, ours = copy.deepcopy(teacher), copy.deepcopy(student)
    loss, (aux, found) = one_stage_step(teacher, student, nets, terms, images, targets)
    loss.backward()
    label, focal, giou, matched = plain_crosskd(other, ours, images, targets, at)
    if matched is None:
        counts, positives = torch.ones_like(focal), found.labels["positives"]
        assert positives > 1
    else:
        counts, positives = (matched != -2).double(), (matched >= 0).sum()
        assert {*matched.clamp(max=0).unique().tolist()} >= {-1, 0}
    close(found.losses, label, rtol=0, atol=1e-12)
    wanted = {
        "classes/ss&tt": (focal * counts).sum() / positives,
        "boxes/ss&tt": (giou * counts).sum() / positives,
    }
    assert all(part > 1e-3 for part in wanted.values())
    close(aux.parts, wanted, rtol=1e-9, atol=0)
    (sum(wanted.values()) + sum(label.values())).backward()
    close(gradients(student), gradients(ours), rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("kind", ["retinanet", "normed", "fcos", "ssd"])
def test_stages_of_one_stage_compose_to_the_detectors_own_head(kind):
    torch.manual_seed(0)
    build = {
        "ssd": detectors.ssd,
        "fcos": detectors.fcos,
        "retinanet": lambda width: detectors.retinanet(width, 8),
    }
    build["normed"] = lambda width: detectors.retinanet(width, 8, norm=nn.BatchNorm2d)
    detector = build[kind](6)
    images, targets = detectors.scenes(dtype=torch.float32, objects=(2, 0))
    ours = detection.prepare(detector, images, targets)
    network = detection.one_stage(detector, at=0 if kind == "ssd" else 2)
    depth = len(network.stages)
    assert depth == (2 if kind == "ssd" else 3)
    columns = {"s": network.stages}, {"s": network.params}, {"s": network.buffers}
    with torch.random.fork_rng():
        before = snapshot(detector, images, targets)
        values, written = fcfd.walk(fcfd.plan(["s" * depth]), *columns, {"": {"s": ours.inputs}})
        found = detection.labels(detector)(ours, values["s"], values["s" * depth])
        assert_unchanged(before, detector, images, targets)
    twin = copy.deepcopy(detector)
    close(found.losses, twin(images, targets), rtol=1e-6, atol=1e-7)
    own = twin.head(list(values["s"].values()))
    close({name: values["s" * depth][name] for name in own}, own, rtol=1e-6, atol=1e-7)
    merged = fcfd.merge_buffers({"s": dict(network.buffers)}, written)["s"]
    assert {*merged} == {name for name, _ in detector.named_buffers()}
    if kind != "normed":  # its head counted the pass above, too
        close(merged, dict(twin.named_buffers()), rtol=1e-6, atol=1e-7)
    sum(found.losses.values()).backward()
    assert all(weight.grad is not None for weight in detector.parameters())


def test_every_trainable_tensor_of_a_student_of_one_stage_gets_a_gradient():
    teacher, student, nets, terms, images, targets = pair_of_one(path="sst")
    one_stage_step(teacher, student, nets, terms, images, targets)[0].backward()
    assert not [name for name, own in gradients(student, nets.bridges).items() if own is None]
    assert all(own.grad is None for own in teacher.parameters())


def test_one_stage_by_torch_func_by_checkpoints_and_lean_is_the_same():
    teacher, student, nets, terms, images, targets = pair_of_one()
    one_stage_step(teacher, student, nets, terms, images, targets)[0].backward()
    wanted = {name: own.grad.clone() for name, own in student.named_parameters()}

    def of_student(own):
        return one_stage_step(
            teacher, student, nets, terms, images, targets, params={**nets.params, "s": own}
        )

    found, _ = torch.func.grad(of_student, has_aux=True)(nets.params["s"])
    close(found, wanted, rtol=1e-9, atol=1e-12)
    for transform in (fcfd.checkpointed, fcfd.lean):
        student.zero_grad()
        stages = {letter: transform(column) for letter, column in nets.stages.items()}
        one_stage_step(teacher, student, nets, terms, images, targets, stages=stages)[0].backward()
        close({name: own.grad for name, own in student.named_parameters()}, wanted, rtol=0, atol=1e-13)


@pytest.mark.parametrize("kind", ["retinanet", "fcos"])
def test_one_stage_without_a_positive(kind):
    teacher, student, nets, terms, _, _ = pair_of_one(kind)
    images, targets = detectors.scenes(objects=(0, 0))
    loss, (_aux, found) = one_stage_step(teacher, student, nets, terms, images, targets)
    loss.backward()
    assert found.labels["positives"] == 1
    assert all(own.grad is not None and own.grad.isfinite().all() for own in student.parameters())


def test_crosskd_with_a_teacher_that_resizes_otherwise():
    teacher, student, nets, terms, images, targets = pair_of_one(teacher_side=96, path="sst")
    text = (
        r"term 'classes/sst', .*crosskd: the labels are of the student's anchors \[2, 582\], and the teacher"
    )
    with pytest.raises(ValueError, match=text):
        one_stage_step(teacher, student, nets, terms, images, targets)
    teacher, student, nets, terms, images, targets = pair_of_one(path="sst")
    teacher.transform.min_size = (96,)
    _, (aux, _) = one_stage_step(
        teacher, student, nets, terms, images, targets, follow=lambda ours: ours.inputs["sizes"]
    )
    assert aux.values["sst"]["cls_logits"].shape[1] == 582


def attended(ours, theirs):
    """Squared errors where the teacher is active, as FGD weighs them."""
    active = theirs.abs().mean(1).flatten(1)
    weight = (active / 0.5).softmax(1).view(len(theirs), *theirs.shape[2:])
    return losses.dense(losses.masked(losses.squared_error))(ours, theirs, weight)


def test_mimicking_pyramids_by_losses_of_the_catalogue():
    teacher, student, _, _, images, targets = pair_of_one()
    terms = {
        "pkd": Term(multi_level(losses.pkd), "s>t", "t", 6.0),
        "cwd": Term(entry("0", losses.channel_wise_divergence), "s>t", "t", 50.0),
        "fgd": Term(multi_level(attended), "s>t", "t"),
    }
    nets = linked(teacher, student, terms, images, targets)
    loss, (aux, _) = one_stage_step(teacher, student, nets, terms, images, targets)
    loss.backward()
    ours, theirs = aux.values["s>t"], aux.values["t"]
    wanted = sum(losses.pkd(ours[level], theirs[level]).mean() for level in theirs) / 5
    torch.testing.assert_close(aux.parts["pkd"], wanted)
    one, other = ours["0"], theirs["0"].detach()
    weight = (other.abs().mean(1).flatten(1) / 0.5).softmax(1).view(2, 1, *other.shape[2:])
    mean = (weight * (one - other) ** 2).sum() / weight.sum() / 8
    torch.testing.assert_close(attended(one, other), mean)
    assert all(weight.grad is not None for weight in nets.bridges.parameters())


def test_ssd_distils_the_classes_of_its_anchors():
    torch.manual_seed(0)
    teacher, student = detectors.ssd(8).eval(), detectors.ssd(6)
    images, targets = detectors.scenes(dtype=torch.float32)
    terms = {
        "feature": Term(multi_level(losses.squared_error), "s>t", "t"),
        "kl/ss": Term(entry("cls_logits", losses.kl), "ss", "tt"),
        "kl/st": Term(entry("cls_logits", losses.kl), "st", "tt"),
    }
    nets = linked(teacher, student, terms, images, targets, at={"at": 0})
    loss, _ = one_stage_step(teacher, student, nets, terms, images, targets)
    loss.backward()
    assert not [name for name, own in gradients(student, nets.bridges).items() if own is None]


# Errors


def bad():
    classifier = nn.Sequential(nn.Linear(2, 2))
    image = torch.rand(3, 40, 40)
    good = {"boxes": torch.tensor([[1.0, 1.0, 9.0, 9.0]]), "labels": torch.tensor([1])}
    two, one = detectors.two_stage(4, 8), detectors.retinanet(4, 8)
    return {
        "no detector of two": (
            lambda: detection.two_stage(classifier),
            TypeError,
            "two_stage: detector is of type Sequential, without transform, ",
        ),
        "of one, not of two": (
            lambda: detection.two_stage(one),
            TypeError,
            "RetinaNet, without rpn, roi_heads; give a Faster R-CNN",
        ),
        "of two, not of one": (
            lambda: detection.one_stage(two),
            TypeError,
            "FasterRCNN, without anchor_generator, head, ",
        ),
        "proposals of one": (
            lambda: detection.proposals(one),
            TypeError,
            "proposals: detector is of type RetinaNet",
        ),
        "labels of two": (lambda: detection.labels(two), TypeError, "labels: detector is of type FasterRCNN"),
        "towers too short": (
            lambda: detection.one_stage(one, at=5),
            ValueError,
            "one_stage: at=5, and the towers have 4 convolutions",
        ),
        "no towers": (
            lambda: detection.one_stage(detectors.ssd(4)),
            ValueError,
            "SSDHead.classification_head has no tower 'conv' to cut; with at=0",
        ),
        "no image": (lambda: detection.prepare(two, []), ValueError, "prepare: there is no image"),
        "integers": (
            lambda: detection.prepare(two, [image.byte()]),
            ValueError,
            r"images\[0\] is \[3, 40, 40\] of torch.uint8",
        ),
        "a batch axis": (
            lambda: detection.prepare(two, [image[None]]),
            ValueError,
            r"images\[0\] is \[1, 3, 40, 40\]",
        ),
        "too few targets": (
            lambda: detection.prepare(two, [image, image], [good]),
            ValueError,
            "2 images have 1 targets",
        ),
        "no labels": (
            lambda: detection.prepare(two, [image], [{"boxes": good["boxes"]}]),
            TypeError,
            r"targets\[0\]\['labels'\]",
        ),
        "no masks": (
            lambda: detection.prepare(detectors.two_stage(4, 8, masks=True), [image], [good]),
            TypeError,
            r"targets\[0\]\['masks'\]",
        ),
        "flat boxes": (
            lambda: detection.prepare(two, [image], [good | {"boxes": torch.ones(4)}]),
            ValueError,
            r"\['boxes'\] is \[4\]",
        ),
        "float labels": (
            lambda: detection.prepare(two, [image], [good | {"labels": torch.ones(1)}]),
            ValueError,
            r"\['labels'\] is \[1\] of torch.float32; give int64 \[1\]",
        ),
        "no area": (
            lambda: detection.prepare(two, [image], [good | {"boxes": torch.tensor([[9.0, 1, 1, 9]])}]),
            ValueError,
            r"targets\[0\] has a box without an area",
        ),
        "sizes of others": (
            lambda: detection.prepare(two, [image], sizes=torch.ones(2, 2)),
            ValueError,
            r"sizes is \[2, 2\]; give height and width of 1 images",
        ),
        "no regions": (
            lambda: detection.with_regions({"s": {}}, detection.Found({}, {})),
            ValueError,
            "with_regions: there are no regions",
        ),
        "no student": (
            lambda: detection.with_regions({"t": {}}, detection.Found({}, {}, [image])),
            ValueError,
            "the batch has no network 's', only 't'",
        ),
        "other images": (
            lambda: detection.rescale([], [(1, 1)], [(1, 1)]),
            ValueError,
            "rescale: regions of 0 images",
        ),
        "no reads": (
            lambda: multi_bridge([image], [image, image], reads={0: (0,)}),
            ValueError,
            r"multi_bridge: reads\[1\] is \(\)",
        ),
        "crosskd into the student": (
            lambda: recipes.crosskd("tts"),
            ValueError,
            "crosskd: path 'tts' does not cross into the head of 't'",
        ),
        "crosskd at home": (lambda: recipes.crosskd("ttt"), ValueError, "crosskd: path 'ttt' does not cross"),
        "a long path": (
            lambda: recipes.fcfd_detection(paths=("sst",)),
            ValueError,
            "fcfd_detection: path 'sst' runs 3",
        ),
        "a path at home": (
            lambda: recipes.fcfd_detection(paths=("ss",)),
            ValueError,
            "fcfd_detection: path 'ss' stays in one network",
        ),
    }


@pytest.mark.parametrize("case", list(bad()))
def test_what_is_wrong_is_said(case):
    call, error, text = bad()[case]
    with pytest.raises(error, match=text):
        call()


def test_a_keypoint_head_is_refused():
    from torchvision.models.detection import keypointrcnn_resnet50_fpn

    detector = keypointrcnn_resnet50_fpn(weights=None, weights_backbone=None)
    with pytest.raises(
        ValueError, match="two_stage: KeypointRCNN has a keypoint head, of which no recipe knows"
    ):
        detection.two_stage(detector)


def test_proposals_need_train_mode_and_targets():
    student = detectors.two_stage(4, 8)
    images, targets = detectors.scenes(dtype=torch.float32)
    network, ours = detection.two_stage(student), detection.prepare(student, images, targets)
    pyramid, _ = network.stages[0](network.params, network.buffers, ours.inputs)
    propose = detection.proposals(student)
    with pytest.raises(ValueError, match=r"there are no targets; give prepare\(detector, images, targets\)"):
        propose(network.params, network.buffers, (ours._replace(targets=None), pyramid))
    student.eval()
    with pytest.raises(
        ValueError, match=r"the detector is in eval mode, and has no losses there; call train"
    ):
        propose(network.params, network.buffers, (ours, pyramid))


def test_heads_without_regions_say_what_fills_them():
    student = detectors.two_stage(4, 8)
    images, _ = detectors.scenes(dtype=torch.float32)
    network = detection.two_stage(student)
    columns = {"s": network.stages}, {"s": network.params}, {"s": network.buffers}
    with pytest.raises(ValueError, match=r"path 'ss'.*no regions yet; fill it: fcfd.detection.with_regions"):
        fcfd.walk(("s", "ss"), *columns, {"": {"s": detection.prepare(student, images).inputs}})
    with pytest.raises(ValueError, match=r"path 'ss'.*the batch has no 'sizes'; give each network its own"):
        fcfd.walk(("ss",), *columns, {"": torch.ones(1), "s": {"0": torch.ones(1)}})


# Splitting a detector as it is


@pytest.mark.parametrize("kind", ["two_stage", "retinanet"])
def test_a_detector_splits_at_its_backbone_by_named_arguments_alone(kind):
    torch.manual_seed(0)
    detector = getattr(detectors, kind)(4, 8)
    images, targets = detectors.scenes(dtype=torch.float32)
    network = fcfd.split(detector, ["backbone"], example={"images": images, "targets": targets})
    assert network.proof == "exact"
    text = r"targets should not be none when in training mode\). It is run in eval and in train mode. Pass ex"
    for example in (None, torch.rand(2, 3, 64, 64), {"images": images}):
        with pytest.raises(ValueError, match=text):
            fcfd.split(detector, ["backbone"], example=example)
    with pytest.raises(ValueError, match=r"the stage after 'backbone' does not run .*Name the arguments"):
        fcfd.split(detector, ["backbone"], example=(images, targets))


# torchvision's own detectors


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        "fasterrcnn_resnet50_fpn",
        "fasterrcnn_resnet50_fpn_v2",
        "fasterrcnn_mobilenet_v3_large_320_fpn",
        "maskrcnn_resnet50_fpn",
        "maskrcnn_resnet50_fpn_v2",
        "retinanet_resnet50_fpn",
        "retinanet_resnet50_fpn_v2",
        "fcos_resnet50_fpn",
        "ssd300_vgg16",
        "ssdlite320_mobilenet_v3_large",
    ],
)
def test_label_losses_of_torchvisions_detectors_are_their_own(name):
    from torchvision.models import detection as zoo

    torch.manual_seed(0)
    options = {} if name.startswith("ssd") else {"min_size": 64, "max_size": 96}
    detector = getattr(zoo, name)(weights=None, weights_backbone=None, num_classes=4, **options)
    detector = detector.apply(without_dropout).train()
    images, targets = detectors.scenes(dtype=torch.float32, masks="mask" in name)
    twin = copy.deepcopy(detector)
    torch.manual_seed(3)
    wanted = twin(images, targets)
    torch.manual_seed(3)
    ours = detection.prepare(detector, images, targets)
    is_ssd = name.startswith("ssd")
    network = (
        detection.two_stage(detector)
        if "rcnn" in name
        else detection.one_stage(detector, at=3 * (not is_ssd))
    )
    nets = {"s": network.stages}, {"s": network.params}, {"s": network.buffers}
    if "rcnn" not in name:
        depth = "s" * len(network.stages)
        values, _ = fcfd.walk(fcfd.plan([depth]), *nets, {"": {"s": ours.inputs}})
        found = detection.labels(detector)(ours, values["s"], values[depth]).losses
    else:
        known, _ = fcfd.walk(("s",), *nets, {"": {"s": ours.inputs}})
        own, _ = detection.proposals(detector)(network.params, network.buffers, (ours, known["s"]))
        terms = recipes.fcfd_detection(masks="mask" in name)
        terms = {key: term for key, term in terms.items() if key.startswith("label")}
        batch = detection.with_regions({"s": ours.inputs}, own)
        _, aux = fcfd.objective(terms, *nets, {"": batch, "s": known["s"], "Labels": own.labels})
        names = {
            "label/classes": "loss_classifier",
            "label/boxes": "loss_box_reg",
            "label/masks": "loss_mask",
        }
        found = own.losses | {names[key]: part for key, part in aux.parts.items()}
    close(found, dict(wanted), rtol=1e-5, atol=1e-6)


def without_dropout(module):
    if isinstance(module, nn.Dropout):
        module.p = 0.0
