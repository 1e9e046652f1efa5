"""A pair of DETR: its crossed paths equal the model's own forward, with one feature replaced."""

from functools import partial
from importlib.util import find_spec

import pytest
import torch
from torch import nn

import fcfd
from fcfd import losses
from fcfd.terms import Term

from .purity import assert_unchanged, snapshot

if find_spec("transformers") is None or find_spec("torchvision") is None:
    pytest.skip("transformers or torchvision is not installed", allow_module_level=True)

from reference.torchvision_cpu import prepare

AT = ("model.model.backbone.model.encoder.stages.2", "model.model.encoder")


class Outputs(nn.Module):
    """A DETR that hands out what distillation compares."""

    def __init__(self, width: int) -> None:
        super().__init__()
        from transformers import DetrConfig, DetrForObjectDetection, ResNetConfig

        body = ResNetConfig(
            embedding_size=6,
            hidden_sizes=[6, 6, width, 8],
            depths=[1] * 4,
            layer_type="basic",
            out_features=["stage4"],
        )
        layers = {
            "encoder_layers": 1,
            "decoder_layers": 1,
            "encoder_attention_heads": 2,
            "decoder_attention_heads": 2,
        }
        sizes = {"d_model": width, "encoder_ffn_dim": width, "decoder_ffn_dim": width, "num_queries": 5}
        backbone = {"backbone_config": body, "use_timm_backbone": False, "backbone": None}
        self.model = DetrForObjectDetection(
            DetrConfig(
                **backbone, **layers, **sizes, use_pretrained_backbone=False, num_labels=3, dropout=0.0
            )
        )

    def forward(self, pixel_values):
        out = self.model(pixel_values)
        return {"classes": out.logits, "boxes": out.pred_boxes}


def difference(ours, theirs):
    """Of the teacher's queries, which are the same on a crossed path."""
    boxes = (ours["boxes"] - theirs["boxes"]).abs().sum(-1).mean()
    return losses.kl(ours["classes"], theirs["classes"], temperature=1.0).mean() + 5 * boxes


def hooked(model, hooks, images):
    """A forward pass with a hook on some modules."""
    handles = [model.get_submodule(name).register_forward_hook(hook) for name, hook in hooks.items()]
    found = model(images)
    for handle in handles:
        handle.remove()
    return found


def put(feature, module, inputs, out):
    """A hook that hands out another feature."""
    return feature if isinstance(out, torch.Tensor) else type(out)(last_hidden_state=feature)


def test_a_step_of_a_pair_of_detr_is_the_model_s_own_with_a_feature_replaced():
    prepare()
    torch.manual_seed(0)
    teacher, student = Outputs(16).double().eval(), Outputs(8).double()
    images = torch.rand(2, 3, 48, 64, dtype=torch.float64)
    networks = {
        letter: fcfd.split(model, list(AT), example=images)
        for letter, model in {"t": teacher, "s": student}.items()
    }
    terms = {f"set/{path}": Term(difference, path, "ttt") for path in ("stt", "sst")}
    nets = fcfd.link(networks, example=images, paths=fcfd.reads(terms.values()))
    before = snapshot(teacher)
    loss, _ = fcfd.objective(terms, *nets.columns, {"": images})
    loss.backward()
    found = {name: own.grad.clone() for name, own in student.named_parameters() if own.grad is not None}
    assert all(own.grad is not None for own in nets.bridges.parameters())
    assert_unchanged(before, teacher)

    student.zero_grad()
    features = {}
    keep = {
        name: lambda _, __, out, name=name: features.update({name: getattr(out, "last_hidden_state", out)})
        for name in AT
    }
    hooked(student, keep, images)
    plain, theirs = torch.zeros(()), teacher(images)
    for name, built in zip(AT, nets.bridges["s>t"].values(), strict=True):
        crossed = hooked(teacher, {name: partial(put, built(features[name]))}, images)
        plain = plain + difference(crossed, theirs)
    plain.backward()
    torch.testing.assert_close(loss, plain)
    assert found
    for name, own in student.named_parameters():
        if own.grad is not None:
            torch.testing.assert_close(found[name], own.grad, msg=name)
