"""The record of a model in stages, and how it is printed."""

from collections.abc import Sequence
from typing import Any, NamedTuple, TypeAlias

from torch import Tensor

from ..stages import Column

Boundary: TypeAlias = str | tuple[str, ...]
_ROWS, _WIDTH, _CUTS = 24, 48, 24  # stages, characters a cell, and cuts that are printed


class Network(NamedTuple):
    """A model in stages: data only.

    Args:
        stages: The column of stages; the last returns the logits.
        params: The model's parameters themselves, by the names of `named_parameters()`.
        buffers: The model's buffers, by the names of `named_buffers()`.
        names: Where each stage ends: a module, or a tuple of modules; the last is the head.
        shapes: What each stage returned on the example, in the same form; `None` of stages by hand.
        cuts: Every module at which the model can be cut alone, in the order of the forward pass.
        proof: What is proved of the stages: `"exact"`, to the last bit in train and in eval; or what is
            not. Empty of stages by hand.
        layouts: What is known of the axes of each shape, by einops' letters: `"b c h w"`, `"b t c"`; else
            `None`. Empty of stages by hand.
        grids: Rows and columns of tokens that were a map, behind any class tokens; else `None`.
    """

    stages: Column
    params: dict[str, Tensor]
    buffers: dict[str, Tensor]
    names: tuple[Boundary, ...]
    shapes: tuple[Any, ...]
    cuts: tuple[str, ...]
    proof: str
    layouts: tuple[Any, ...] = ()
    grids: tuple[Any, ...] = ()

    def __repr__(self) -> str:
        """The stages as a table, and the cuts, which stages by hand do not have."""
        rows = [("stage", "ends at", "returns")]
        for at, (name, shape) in enumerate(zip(self.names, self.shapes, strict=False)):
            rows.append((str(at), _short(str(name)), _short(str(shape or ""))))
        shown = rows if len(rows) <= _ROWS else [*rows[: _ROWS // 2], *rows[-_ROWS // 2 :]]
        width = max(len(name) for _, name, _ in shown)
        lines = [f"{at:<5}  {name:<{width}}  {shape}".rstrip() for at, name, shape in shown]
        if shown is not rows:
            lines.insert(_ROWS // 2, f"…      and {len(rows) - len(shown)} more")
        if self.cuts:
            lines.append(f"cuts: {_list(self.cuts)}")
        if self.proof not in ("exact", ""):
            lines.append(f"proof: {self.proof}")
        return "\n".join(lines)


def _short(cell: str) -> str:
    return cell if len(cell) <= _WIDTH else f"{cell[: _WIDTH - 1]}…"


def _list(names: Sequence[str]) -> str:
    shown = ", ".join(map(_short, names[:_CUTS]))
    return shown if len(names) <= _CUTS else f"{shown}, … and {len(names) - _CUTS} more"
