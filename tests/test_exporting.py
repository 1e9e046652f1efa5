"""A path as a module: what it owns, what it returns, and what torch's exporters make of it."""

import pytest
import torch
from torch import nn

import fcfd

from .nets import batch, pair
from .purity import assert_unchanged, snapshot


def _value(nets, path, images):
    return fcfd.walk(fcfd.plan((path,)), *nets.columns, {"": images})[0][path]


OWNERS = {
    "ssst": {"s", "s>t", "t"},
    "tsss": {"t", "t>s", "s"},
    "ssss": {"s"},
    "ss>t": {"s", "s>t"},
    "s": {"s"},
}


@pytest.mark.parametrize("path", OWNERS)
def test_it_owns_what_the_path_reads_and_returns_its_value(path):
    teacher, student, nets = pair()
    student.eval()
    images, _ = batch()
    before = snapshot(teacher, student, nets.bridges, nets.params, nets.buffers, images)
    module = fcfd.as_module(path, *nets.columns, example=images)
    assert torch.equal(module(images), _value(nets, path, images))
    assert_unchanged(before, teacher, student, nets.bridges, nets.params, nets.buffers, images)
    held = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    places = {place.replace("/", "."): place for place in held}
    for kind in (nets.params, nets.buffers):
        for column, tensors in kind.items():
            for name, tensor in tensors.items():
                if (place := places.pop(f"{column}.{name}", None)) is not None:
                    assert held[place] is tensor
    assert not places
    assert {place.split("/")[0] for place in held} == OWNERS[path]
    assert {place.split("/")[1] for place in held if place.startswith("s/")} == {
        str(at) for at, letter in enumerate(path.split(">")[0]) if letter == "s"
    }


def test_parameters_are_the_students_own_and_a_frozen_teachers_are_buffers():
    _, student, nets = pair()
    module = fcfd.as_module("ssst", *nets.columns, example=batch()[0])
    parameters = dict(module.named_parameters())
    assert parameters["s/0/0/weight"] is student[0][0].weight
    assert "t/3/2/weight" in dict(module.named_buffers())
    assert not any(name.startswith("t/") for name in parameters)


def test_export_with_other_batches():
    _, student, nets = pair(dtype=torch.float32)
    student.eval()
    nets.bridges.eval()
    images, _ = batch(dtype=torch.float32)
    module = fcfd.as_module("ssst", *nets.columns, example=images).eval()
    exported = torch.export.export(module, (images,), dynamic_shapes=({0: torch.export.Dim("batch")},))
    more = batch(7, dtype=torch.float32)[0]
    assert torch.equal(exported.module()(more), module(more))


@pytest.mark.filterwarnings(
    "ignore:`isinstance.treespec, LeafSpec.`:FutureWarning"
)  # of torch's own packaging
@pytest.mark.slow
def test_aot_inductor(tmp_path):
    _, student, nets = pair(dtype=torch.float32)
    student.eval()
    nets.bridges.eval()
    images, _ = batch(dtype=torch.float32)
    module = fcfd.as_module("ssst", *nets.columns, example=images).eval()
    exported = torch.export.export(module, (images,), dynamic_shapes=({0: torch.export.Dim("batch")},))
    file = torch._inductor.aoti_compile_and_package(exported, package_path=str(tmp_path / "path.pt2"))
    more = batch(7, dtype=torch.float32)[0]
    torch.testing.assert_close(torch._inductor.aoti_load_package(file)(more), module(more))


def test_errors_are_those_of_the_walk():
    _, _, nets = pair()
    with pytest.raises(ValueError, match="walk: path 'q' needs network 'q'"):
        fcfd.as_module("q", *nets.columns, example=batch()[0])
    assert isinstance(fcfd.as_module("s", *nets.columns, example=batch()[0]), nn.Module)
