"""The record of a model in stages, and how it is printed."""

from typing import Any, NamedTuple, TypeAlias

from torch import Tensor

from .._text import listing, table
from ..stages import Column

Boundary: TypeAlias = str | tuple[str, ...]


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
        reads: The entries that each stage reads of a feature that is a dict; `None` for all. A bridge into
            the network leaves out what no stage reads. Empty where nothing is known.
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
    reads: tuple[frozenset[str] | None, ...] = ()

    def __repr__(self) -> str:
        """The stages as a table, and the cuts, which stages by hand do not have."""
        ends = zip(self.names, self.shapes, strict=True)
        rows = [(str(at), str(name), str(shape or "")) for at, (name, shape) in enumerate(ends)]
        lines = [table(("stage", "ends at", "returns"), rows)]
        if self.cuts:
            lines.append(f"cuts: {listing(self.cuts, most=24)}")
        if self.proof not in ("exact", ""):
            lines.append(f"proof: {self.proof}")
        return "\n".join(lines)
