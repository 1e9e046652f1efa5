"""Segmentation pairs: steps equal ones that are written plainly, with ignored pixels and several heads."""

import copy
import warnings
from functools import partial
from importlib.util import find_spec

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import fcfd
from fcfd import losses
from fcfd.terms import entry

from .purity import assert_unchanged, snapshot

if find_spec("torchvision") is None:
    pytest.skip("torchvision is not installed", allow_module_level=True)

from . import detectors

CLASSES = 5


def segmenter(width: int, aux: bool) -> nn.Module:
    """torchvision's FCN on a narrow body."""
    from torchvision.models._utils import IntermediateLayerGetter
    from torchvision.models.segmentation.fcn import FCN, FCNHead

    returned = {"layer3": "out", "layer2": "aux"} if aux else {"layer3": "out"}
    body = IntermediateLayerGetter(detectors.body(width, 3), returned)
    heads = [FCNHead(width, CLASSES), FCNHead(width, CLASSES) if aux else None]
    for head in heads:
        if head is not None:
            head[3] = nn.Identity()  # dropout
    return FCN(body, *heads)


def pair(aux: bool):
    torch.manual_seed(0)
    teacher, student = segmenter(8, aux).double().eval(), segmenter(4, aux).double()
    images = torch.rand(2, 3, 48, 64, dtype=torch.float64)
    labels = torch.randint(CLASSES, (2, 48, 64))
    labels[:, 5:20] = 255
    at = ["backbone.layer1", "backbone.layer2" if not aux else "backbone"]
    networks = {
        letter: fcfd.split(model, at, example=images)
        for letter, model in {"t": teacher, "s": student}.items()
    }
    return teacher, student, fcfd.link(networks, example=images), images, labels


def change(terms, aux):
    pixels = {
        "label": losses.dense(losses.ignoring(losses.cross_entropy, index=255)),
        "kl": losses.dense(partial(losses.kl, temperature=1.0)),
    }
    if not aux:
        return fcfd.replaced(terms, pixels)
    found = {name: term for name, term in terms.items() if name.startswith(("feature", "pooled"))}
    for head, weight in {"out": 1.0, "aux": 0.5}.items():
        own = fcfd.replaced(terms, {kind: entry(head, loss) for kind, loss in pixels.items()})
        found |= {
            f"{head}/{name}": term
            for name, term in fcfd.scaled(own, weight).items()
            if name.startswith(("label", "kl"))
        }
    return found


def plain(teacher, student, bridges, images, labels, aux):
    """Both networks by hand, layer by layer, and the paths `stt` and `tss`."""

    def heads(model, value):
        maps = {"out": model.classifier(value["out"])}
        if aux:
            maps["aux"] = model.aux_classifier(value["aux"])
        return {
            name: F.interpolate(one, size=images.shape[2:], mode="bilinear", align_corners=False)
            for name, one in maps.items()
        }

    def second(model, value):
        body = model.backbone
        middle = body.layer2(value)
        return {"aux": middle, "out": body.layer3(middle)} if aux else middle

    def last(model, value):
        return heads(model, value if aux else {"out": model.backbone.layer3(value)})

    def leaves(value):
        return list(value.values()) if isinstance(value, dict) else [value]

    def bridged(column, key, value):
        module = bridges[column][key]
        if not isinstance(value, dict):
            return module(value)
        rows = zip(value.items(), module.rows, strict=True)
        return {name: row[str(at)](one) for at, ((name, one), row) in enumerate(rows)}

    def error(a, b):
        pairs = list(zip(leaves(a), leaves(b), strict=True))
        return sum(F.mse_loss(x, y.detach()) for x, y in pairs) / len(pairs)

    def pooled(a, b):
        pairs = list(zip(leaves(a), leaves(b), strict=True))
        mean = [[z.relu().mean((2, 3)) for z in both] for both in pairs]
        return sum(F.mse_loss(x, y.detach()) for x, y in mean) / len(mean)

    s, t = student.backbone.layer1(images), teacher.backbone.layer1(images)
    ss, tt = second(student, s), second(teacher, t)
    sss, ttt = last(student, ss), {name: one.detach() for name, one in last(teacher, tt).items()}
    to_t = bridged("s>t", "0", s)
    stt_second = second(teacher, to_t)
    paths = {"kl/stt": last(teacher, stt_second)}
    ts = second(student, bridged("t>s", "0", t))
    paths["kl/tss"] = last(student, ts)
    paths["kl/student"] = sss
    total = 0.0
    for name, weight in ({"out": 1.0, "aux": 0.5} if aux else {"out": 1.0}).items():
        total = total + weight * F.cross_entropy(sss[name], labels, ignore_index=255)
        for value in paths.values():
            log = F.log_softmax(value[name], 1), F.log_softmax(ttt[name], 1)
            divergence = F.kl_div(*log, reduction="none", log_target=True).sum(1).mean()
            total = total + weight * divergence
    features = error(to_t, t) + error(bridged("s>t", "1", ss), tt) + pooled(bridged("s>t", "1", ss), tt)
    features = features + error(stt_second, tt) + pooled(stt_second, tt)
    return total + 5.0 * features


@pytest.mark.parametrize("aux", [False, True], ids=["one head", "two heads"])
def test_a_step_of_a_segmentation_pair_equals_one_written_plainly(aux):
    teacher, student, nets, images, labels = pair(aux)
    with warnings.catch_warnings():  # torch's, of a copied form of a tree
        warnings.simplefilter("ignore", FutureWarning)
        copies = copy.deepcopy((teacher, student, nets.bridges))
    with torch.random.fork_rng():
        before = snapshot(teacher, student, nets.bridges, images, labels)
        loss, _ = losses.fcfd(
            *nets.columns,
            images,
            labels,
            paths=nets.crossings,
            temperature=1.0,
            change=partial(change, aux=aux),
        )
        assert_unchanged(before, teacher, student, nets.bridges, images, labels)
    loss.backward()
    wanted = plain(*copies, images, labels, aux)
    for own in copies[0].parameters():
        own.requires_grad_(False)
    wanted.backward()
    torch.testing.assert_close(loss, wanted)
    for ours, theirs in ((student, copies[1]), (nets.bridges, copies[2])):
        for (name, own), other in zip(ours.named_parameters(), theirs.parameters(), strict=True):
            assert own.grad is not None, name
            torch.testing.assert_close(own.grad, other.grad, rtol=1e-6, atol=1e-9, msg=name)


def test_ignored_pixels_reach_no_label_loss():
    _, _, nets, images, labels = pair(False)
    label = losses.dense(losses.ignoring(losses.cross_entropy, index=255))
    values, _ = fcfd.walk(("s", "ss", "sss"), *nets.columns, {"": images})
    logits = values["sss"].detach().requires_grad_(True)
    label(logits, labels).backward()
    assert not logits.grad[:, :, 5:20].any()
    assert logits.grad[:, :, 20:].any()


def test_checkpoints_and_torch_func_agree_on_maps():
    _, student, nets, images, labels = pair(True)

    def of_student(own, stages=nets.stages):
        params = {**nets.params, "s": own}
        return losses.fcfd(
            stages,
            params,
            nets.buffers,
            images,
            labels,
            paths=nets.crossings,
            change=partial(change, aux=True),
        )

    of_student(nets.params["s"])[0].backward()
    wanted = {name: own.grad.clone() for name, own in student.named_parameters()}
    found, _ = torch.func.grad(of_student, has_aux=True)(nets.params["s"])
    student.zero_grad()
    lean = {name: fcfd.checkpointed(column) for name, column in nets.stages.items()}
    of_student(nets.params["s"], lean)[0].backward()
    for name, own in student.named_parameters():
        torch.testing.assert_close(found[name], wanted[name], msg=name)
        torch.testing.assert_close(own.grad, wanted[name], msg=name)
