"""The slots of an optimizer by name: kept, given back to another one, refused where they do not fit."""

import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
import torch
from torch import nn

import fcfd
from fcfd import losses

from .docs.test_docs import _blocks
from .nets import batch, pair

OPTIMIZERS = {
    "sgd": lambda own: torch.optim.SGD(own, 0.01, momentum=0.9),
    "adamw": lambda own: torch.optim.AdamW(own, 0.01),
    "adagrad": lambda own: torch.optim.Adagrad(own, 0.01),
    "rmsprop": lambda own: torch.optim.RMSprop(own, 0.01, momentum=0.5),
}


def _named(student, nets):
    return {
        f"{column}/{name}": tensor
        for column in ("s", *nets.bridges)
        for name, tensor in nets.params[column].items()
    }


def _train(named, optimizer, nets, steps, images, labels):
    for step in steps:
        paths = fcfd.draw(nets.crossings, 1, seed=3, step=step)
        loss, _ = losses.fcfd(*nets.columns, images, labels, paths=paths)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return [tensor.detach().clone() for tensor in named.values()]


@pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_a_run_that_goes_on_in_another_order_equals_one_without_a_break(make, tmp_path):
    images, labels = batch()
    _, student, nets = pair()
    named = _named(student, nets)
    expected = _train(named, make(named.values()), nets, range(6), images, labels)

    _, student, nets = pair()
    named = _named(student, nets)
    optimizer = make(named.values())
    weights = dict(zip(named, _train(named, optimizer, nets, range(1), images, labels), strict=True))
    kept = fcfd.slots(optimizer, named)
    assert 0 < len(kept) < len(named) or make is OPTIMIZERS["adagrad"]  # bridges that were not drawn
    torch.save({"weights": weights, "slots": kept}, tmp_path / "file.pt")

    state = torch.load(tmp_path / "file.pt", weights_only=True)
    _, student, nets = pair()
    named = _named(student, nets)
    other = make([*named.values()][::-1])
    with torch.no_grad():
        for name, tensor in named.items():
            tensor.copy_(state["weights"][name])
    fcfd.write_slots_(other, named, state["slots"])
    found = _train(named, other, nets, range(1, 6), images, labels)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_slots_are_copied_in_and_replace_what_was_there():
    layer = nn.Linear(2, 1)
    named = dict(layer.named_parameters())
    first, second = (torch.optim.Adam(layer.parameters()) for _ in range(2))
    for optimizer in (first, second):
        layer(torch.ones(1, 2)).sum().backward()
        optimizer.step()
    kept = {"bias": fcfd.slots(first, named)["bias"]}
    fcfd.write_slots_(second, named, kept)
    assert [*fcfd.slots(second, named)] == ["bias"]
    ours, theirs = kept["bias"]["exp_avg"], fcfd.slots(second, named)["bias"]["exp_avg"]
    assert torch.equal(ours, theirs)
    assert ours.data_ptr() != theirs.data_ptr()


@pytest.mark.parametrize(
    "given, text",
    [
        (
            {"weight": {"exp_avg": torch.ones(3)}},
            r"slot 'exp_avg' of 'weight' is \[3\], the parameter \[1, 2\]",
        ),
        ({"wait": {}}, "slots has 'wait', which is no parameter of the optimizer; it has weight, bias"),
        ({"weight": 3}, r"slots\['weight'\] is of type int; give a dict"),
        (None, "slots is of type NoneType; give what fcfd.slots returned"),
    ],
)
def test_what_does_not_fit_is_refused_and_nothing_written(given, text):
    layer = nn.Linear(2, 1)
    named = dict(layer.named_parameters())
    optimizer = torch.optim.Adam(layer.parameters())
    layer(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    before = fcfd.slots(optimizer, named)
    fits = {"bias": before["bias"]} | given if isinstance(given, dict) else given
    with pytest.raises((TypeError, ValueError), match=text):
        fcfd.write_slots_(optimizer, named, fits)
    after = fcfd.slots(optimizer, named)
    assert all(after[name][key] is value for name, own in before.items() for key, value in own.items())


def test_every_parameter_of_the_optimizer_has_a_name():
    layer = nn.Linear(2, 1)
    optimizer = torch.optim.Adam(layer.parameters())
    with pytest.raises(
        ValueError, match=r"slots: named lacks 1 of the optimizer's 2 parameters, of shapes \[1\]"
    ):
        fcfd.slots(optimizer, {"weight": layer.weight})


# The page of resuming


PAGE = Path(__file__).parents[1] / "docs" / "resume.md"
BLOCKS = [block.code for block in _blocks(PAGE.read_text())]
SETUP, ONE_FILE = BLOCKS[:2]


@pytest.fixture
def page(tmp_path, monkeypatch):
    """What the page defines, its run of six steps done, with a file of step 3."""
    monkeypatch.setattr(tempfile, "mkdtemp", lambda: tmp_path)
    names = {}
    exec(SETUP + ONE_FILE, names)
    return names


def _cut(content):
    return content[: len(content) // 2]


def _flipped(content):
    """One bit of a weight is another."""
    at = content.index(b"data/0") + 100
    return content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :]


@pytest.mark.parametrize("damage", [_cut, _flipped, lambda content: b"", lambda content: content[:-30]])
def test_a_damaged_file_is_refused_and_the_one_before_is_used(page, damage, capsys):
    page["save"](page["path"], page["state"](step=6))
    assert page["load"](page["path"])["step"] == 6
    page["path"].write_bytes(damage(page["path"].read_bytes()))
    assert page["load"](page["path"])["step"] == 3
    assert "run.pt is not used: " in capsys.readouterr().out


def test_without_any_file_there_is_nothing_to_load(page, capsys):
    page["path"].unlink()
    assert page["load"](page["path"]) is None
    assert "run.before is not used: [Errno 2]" in capsys.readouterr().out


STEPS = 300
RUN = """
import hashlib, time
kept = load(path)
first = 0
if kept:
    first = kept["step"]
    student.load_state_dict(kept["student"])
    nets.bridges.load_state_dict(kept["bridges"])
    fcfd.write_slots_(optimizer, parameters, kept["slots"])
for step in range(first, {steps}):
    train([step])
    save(path, state(step=step + 1))
    print("step", step, flush=True)
bits = b"".join(tensor.detach().numpy().tobytes() for tensor in parameters.values())
bits += b"".join(tensor.numpy().tobytes() for own in nets.buffers.values() for tensor in own.values())
print("done", hashlib.sha256(bits).hexdigest(), flush=True)
"""


def _process(folder):
    definitions = ONE_FILE[: ONE_FILE.index("folder = Path(")] + 'path = Path("run.pt")\n'
    code = SETUP + definitions + RUN.format(steps=STEPS)
    environment = os.environ | {"PYTHONPATH": str(PAGE.parents[1]), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, "-c", code], cwd=folder, env=environment, stdout=subprocess.PIPE, text=True
    )


def _until(process, step):
    """Reads what a run prints; kills it soon after its first step from there on, or returns its last line."""
    with process:
        for line in process.stdout:
            words = line.split()
            if step is not None and words[0] == "step" and int(words[1]) >= step:
                step = None
                time.sleep(random.random() / 50)
                process.send_signal(signal.SIGKILL)
    return line.split()


@pytest.mark.slow
def test_twenty_kills_in_a_row_leave_no_trace(tmp_path):
    alone, killed = tmp_path / "alone", tmp_path / "killed"
    alone.mkdir()
    killed.mkdir()
    expected = _until(_process(alone), None)
    assert expected[0] == "done"
    for at in sorted(random.sample(range(STEPS // 2), 20)):  # far from the end, whatever a step takes
        assert _until(_process(killed), at)[0] == "step"
    assert _until(_process(killed), None) == expected
