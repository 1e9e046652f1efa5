"""A run's folder: what it is, the checkpoint from which it goes on, and what came out.

| file | holds |
|---|---|
| `checkpoint.pt` | everything that the next step depends on |
| `epochs.csv` | a row for each epoch |
| `result.json` | settings, machine, best and last accuracy |
| `student.pth` | the student's weights as they are now, for `load_state_dict` |

Every file is written under another name and then renamed, so an interruption leaves the one before.
"""

import csv
import hashlib
import io
import json
import os
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import nn

State: TypeAlias = dict[str, Any]
CHECKPOINT, ROWS, RESULT, STUDENT = "checkpoint.pt", "epochs.csv", "result.json", "student.pth"


# Files of weights


def load_strictly_(model: nn.Module, file: Path) -> None:
    """Fill a model from a public checkpoint: a state dict, or one under `model` or `state_dict`.

    Raises:
        ValueError: There is no such file, it holds more than plain data, or its names or shapes are others.
    """
    if not file.is_file():
        raise ValueError(
            f"teacher: there is no file {file}. For CIFAR-100 it is the ckpt_epoch_240.pth that RepDistiller "
            "and mdistiller share; for ImageNet, torchvision's first weights, such as resnet34-b627a593.pth."
        )
    try:
        state = torch.load(file, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        raise ValueError(
            f"teacher: {file} holds more than tensors and plain data, or is damaged. Open it where you trust "
            f"it, and save its state dict alone. PyTorch says: {str(error).splitlines()[0]}"
        ) from error
    for name in ("model", "state_dict"):
        state = state.get(name, state) if isinstance(state, Mapping) else state
    if not isinstance(state, Mapping):
        raise ValueError(f"teacher: {file} holds a {type(state).__name__} in place of a state dict.")
    own = {name.removeprefix("module."): tensor for name, tensor in state.items()}
    try:
        model.load_state_dict(own)
    except (RuntimeError, TypeError) as error:
        raise ValueError(f"teacher: {file} does not fit the pair's network. {error}") from error


def fingerprint(file: Path | None) -> str | None:
    """The SHA-256 of a file, or None where there is none."""
    return hashlib.sha256(file.read_bytes()).hexdigest() if file is not None else None


# The folder


def save(folder: Path, settings: Mapping[str, Any], state: State, parts: Mapping[str, Any]) -> None:
    """Write the checkpoint: counters, modules, optimizer and scaler, and torch's generators."""
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    content = {
        "settings": dict(settings),
        "state": state,
        "parts": {name: part.state_dict() for name, part in parts.items()},
        "generators": {"cpu": torch.get_rng_state(), "cuda": cuda},
    }
    _replace(folder / CHECKPOINT, _saved(content))


def resume_(folder: Path, settings: Mapping[str, Any], parts: Mapping[str, Any]) -> State | None:
    """Fill modules, optimizer, scaler and generators from the checkpoint; None where there is none.

    Raises:
        ValueError: The folder holds a run of other settings.
    """
    file = folder / CHECKPOINT
    if not file.exists():
        return None
    content = torch.load(file, map_location="cpu", weights_only=True)
    for name, value in settings.items():
        before = content["settings"].get(name)
        if before != value:
            raise ValueError(
                f"train: {folder} holds a run with {name} = {before!r}, not {value!r}. Go on as it "
                "was begun, or give another folder with --out."
            )
    for name, part in parts.items():
        part.load_state_dict(content["parts"][name])
    torch.set_rng_state(content["generators"]["cpu"])
    if torch.cuda.is_available() and content["generators"]["cuda"]:
        torch.cuda.set_rng_state_all(content["generators"]["cuda"])
    state: State = content["state"]
    return state


def write_results(folder: Path, result: Mapping[str, Any], student: nn.Module) -> None:
    """Write the rows of all epochs, the result, and the student."""
    rows = io.StringIO()
    table = csv.DictWriter(rows, result["epochs"][0], lineterminator="\n")
    table.writeheader()
    table.writerows(result["epochs"])
    _replace(folder / ROWS, rows.getvalue().encode())
    _replace(folder / RESULT, (json.dumps(result, indent=2) + "\n").encode())
    _replace(folder / STUDENT, _saved(student.state_dict()))


def _saved(content: Any) -> bytes:
    stream = io.BytesIO()
    torch.save(content, stream)
    return stream.getvalue()


def _replace(file: Path, content: bytes) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    part = file.with_suffix(file.suffix + ".part")
    with part.open("wb") as stream:
        stream.write(content)
        stream.flush()
        os.fsync(stream.fileno())
    part.replace(file)
