"""Several paths through one stage as one batch: tried here, and no part of the library.

Paths that enter a stage of a frozen network in eval mode at the same depth compute apart what they compute
together: the stage runs once on their features, stacked along the batch. It saves launches, which is time on
a GPU that waits for them and nothing elsewhere.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import groupby
from typing import Any

import torch
from torch import Tensor

import fcfd
from fcfd.stages import Buffers, Column, Params


def walk(
    plan: Iterable[str],
    stages: Mapping[str, Column],
    params: Mapping[str, Params],
    buffers: Mapping[str, Buffers],
    values: Mapping[str, Any],
    *,
    network: str,
) -> tuple[dict[str, Any], dict[str, dict[str, Tensor]]]:
    """As `fcfd.walk`, in which crossed paths through the stages of a network run together.

    The network has to be frozen and in eval mode, and its features one tensor each.
    """
    known, written = dict(values), dict[str, dict[str, Tensor]]()
    for paths in rounds(plan, network):
        if len(paths) > 1 and _joins(paths[0], network):
            known |= _together(paths, stages[network], params[network], buffers[network], known)
        else:
            known, new = fcfd.walk(paths, stages, params, buffers, known)
            written |= new
    return known, written


def rounds(plan: Iterable[str], network: str) -> Iterator[tuple[str, ...]]:
    """The paths of a plan in the order of their depth; those that run together are one round.

    The pure path of the network stays apart: no gradient passes it, and in a batch one would.
    """

    def place(path: str) -> tuple[int, bool, bool]:
        return fcfd.depth(path), fcfd.is_bridged(path), _joins(path, network)

    for _, paths in groupby(sorted(plan, key=place), key=place):
        yield tuple(paths)


def _joins(path: str, network: str) -> bool:
    return fcfd.step(path).column == network and fcfd.crosses(path)


def _together(
    paths: Sequence[str], stages: Column, params: Params, buffers: Buffers, values: Mapping[str, Any]
) -> dict[str, Tensor]:
    features = [values[fcfd.step(path).reads[0]] for path in paths]
    stage = stages[fcfd.step(paths[0]).at]
    if stage is None:
        raise ValueError(f"batched: there is no stage for {paths[0]!r}.")
    y, _ = stage(params, buffers, torch.cat(features))
    return dict(zip(paths, y.split([len(feature) for feature in features]), strict=True))
