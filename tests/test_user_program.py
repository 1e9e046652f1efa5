"""The program that a user should be able to write: four lines to set up, four in the loop, no edit."""

import torch

import fcfd
from fcfd import losses
from reference.torchvision_cpu import prepare

from .purity import assert_unchanged, snapshot


def test_torchvision_resnets_learn():
    prepare()
    import torchvision

    torch.manual_seed(0)
    images, labels = torch.randn(4, 3, 64, 64), torch.tensor([0, 1, 2, 3])
    loader = [(images, labels)] * 3
    teacher = torchvision.models.resnet34(num_classes=10).eval()
    student = torchvision.models.resnet18(num_classes=10)
    taught, untouched = snapshot(teacher), [hash(name) for name, _ in student.named_modules()]

    nets = fcfd.link({"t": fcfd.split(teacher), "s": fcfd.split(student)}, example=images)
    optimizer = torch.optim.SGD([*student.parameters(), *nets.bridges.parameters()], lr=1e-3)

    seen = []
    for step, (images, labels) in enumerate(loader):
        paths = fcfd.draw(nets.crossings, 2, seed=0, step=step)
        loss, aux = losses.fcfd(*nets.columns, images, labels, paths=paths)
        loss = loss + losses.dist(aux.values["sssss"], aux.values["ttttt"])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        fcfd.write_buffers_(student, aux.buffers["s"])
        seen.append(aux.parts["feature/ssss>t"].item())

    assert nets.crossings == ("stttt", "ssttt", "ssstt", "tssss", "ttsss", "tttss")
    assert seen == sorted(seen, reverse=True)
    assert_unchanged([torch.get_rng_state(), *taught[1:]], teacher)
    assert [hash(name) for name, _ in student.named_modules()] == untouched
    assert student.bn1.num_batches_tracked.item() == len(loader)
    student.eval()(images)
