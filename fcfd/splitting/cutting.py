"""Split a model into stages, without an edit to it."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from .._tree import clone, detach, map_tensors
from ..copying.copies import replica, writes
from ..copying.refusals import check
from ..copying.watching import unwritten
from .assemble import is_feature, make
from .boundaries import BY_HAND, automatic, cuts_of, head, named
from .inject import Cut, Piece, run
from .layouts import layout
from .listing import by_hand
from .network import Boundary, Network
from .record import Batch, Output, Record, Recording, one_more, random_state_kept, record
from .verify import proved, state_of

_SIZES = (224, 256, 299, 384, 448, 512, 32, 28)  # of images that are tried where no example is given


def split(
    model: nn.Module | Iterable[Callable[..., Any]],
    at: int | Iterable[Boundary] | None = None,
    *,
    example: Any = None,
    exact: bool = True,
    proof: bool = True,
) -> Network:
    """Split a model into stages that run its own forward and compose to it exactly.

    ```
    stages[n](… stages[1](stages[0](batch)))  =  model(batch)
    to the last bit, in train and in eval
    ```

    The model is never written to: no hook, no flag, no attribute. Its mode is read at every call of a stage,
    and so is torch's generator, by dropout. A boundary is a module through whose output every path from the
    input to the logits goes; a tuple of modules is one where only together they are passed by every path.

    Stages run copies of the model's code and settings, made here: edit the model first, then split it. What
    is edited later (a replaced head or parameter, an added hook, a patched forward) they do not see. Making
    them runs the model's forward, with its own hooks: once in eval and once in train to record it (of
    text once more, a token longer), and for the proof twice in each mode; all processes that share a model
    must split it together.

    Args:
        model: Any module. Or a list of modules and functions, each of which is a stage: the way by hand,
            without an example and without a check.
        at: Where to cut: names of modules, each or in tuples. Or how many stages to make. By default one
            stage for each of the last four resolutions, or four equal groups of blocks where they share one,
            and the head.
        example: A batch that the model takes: a tensor for `model(x)`, a tuple for `model(*x)`, a dict for
            `model(**x)`. Its first entry is the input; shapes and a few values matter, not the data. Later
            stages read the entries of a dict among their buffers, where a walk puts them, because masks
            and the like are computed again in every stage. By default images.
        exact: Refuse a split that differs from the model, if only by random numbers that it draws otherwise.
        proof: Run the stages against the model, which takes memory for one copy of its parameters. There is
            no proof of a model on `meta`: it has nothing to compute with.

    Returns:
        A `Network`; print it.

    Raises:
        ValueError: A name is no boundary (the text says why, and which are near), the model does not run on
            the example, or the stages do not compose to the model.

    Example:
        >>> from torch import nn
        >>> block = lambda a, b: nn.Sequential(nn.Conv2d(a, b, 3, 2, 1), nn.ReLU())
        >>> head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5))
        >>> network = split(nn.Sequential(block(3, 4), block(4, 8), head))
        >>> print(network)
        stage  ends at  returns
        0      0        (2, 4, 112, 112)
        1      1        (2, 8, 56, 56)
        2      2        (2, 5)
        cuts: 0.0, 0.1, 0, 1.0, 1.1, 1, 2.0, 2.1
        >>> split(nn.Sequential(block(3, 4), block(4, 8), head), at=["0.0"]).names
        ('0.0', '2')
    """
    if not isinstance(model, nn.Module):
        return by_hand(model, at, example)
    _check_arguments(model, at, example)
    before = state_of(model)
    with random_state_kept():
        batch, recording = _recorded(model, example, share=not proof)
        if recording.train.recomputes:
            raise ValueError(
                f"split: {type(model).__name__} recomputes parts of itself in the backward pass "
                "(torch.utils.checkpoint), when the parameters that a stage was given are gone. Turn it off, "
                "and recompute the stages: fcfd.checkpointed(network.stages)."
            )
        cuts = cuts_of(recording)
        if not cuts and isinstance(batch, Mapping):
            raise ValueError(
                f"split: {type(model).__name__} has no cuts from its input to the logits. The input is the "
                f"example's first entry, {next(iter(batch))!r}; put another entry first if it is not."
            )
        if at is None or isinstance(at, int):
            chosen = automatic(model, recording, cuts, at)
        else:
            chosen = named(model, recording, cuts, at)
        ends = zip(((), *chosen), (*chosen, ()), strict=True)
        context = tuple(batch) if isinstance(batch, Mapping) else ()
        pieces = [make(model, recording, begin, end, context) for begin, end in ends]
        if _on_meta(model):
            said = "left out: the model is on meta"
        elif proof:
            several = one_more(batch) if recording.eval.examples == 1 else batch  # for norms in train
            said = _proved(model, pieces, several, example, exact)
        else:
            said = "left out"
    if state_of(model) != before:
        raise ValueError(
            f"split: {type(model).__name__} reaches out of itself: running a copy of it changed the model's "
            f"tensors, hooks or modes. Find the hook or the global that does this, or {BY_HAND}."
        )
    return Network(
        stages=tuple(partial(run, piece) for piece in pieces),
        params=dict(model.named_parameters()),
        buffers=dict(model.named_buffers()),
        names=(*map(_single, chosen), head(recording.eval, chosen)),
        shapes=_each(recording.eval, chosen, lambda output: output.shape),
        cuts=cuts,
        proof=said,
        layouts=_each(recording.eval, chosen, lambda output: layout(output, recording.eval, model).axes),
        grids=_each(recording.eval, chosen, lambda output: layout(output, recording.eval, model).grid),
    )


def _check_arguments(model: nn.Module, at: Any, example: Any) -> None:
    check("split", model)
    if isinstance(model, nn.ModuleList | nn.ModuleDict):
        raise ValueError(
            f"split: a {type(model).__name__} has no forward. Pass list(model) for stages in a row, or the "
            "model that holds it."
        )
    if torch.is_inference_mode_enabled():
        raise ValueError(
            "split: inference_mode is on, and autograd's graph tells the cuts. Split outside of it."
        )
    if isinstance(example, tuple | list | Mapping) and not example:
        raise ValueError("split: the example is empty; give a batch that the model takes.")
    if at is None:
        return
    if isinstance(at, str | bool) or not isinstance(at, int | Iterable):
        raise TypeError(f"split: at={at!r}; pass a number of stages, or a list of names: at=[{at!r}].")
    if isinstance(at, int) and at < 1:
        raise ValueError(f"split: at={at} stages; a model has at least one.")


def _on_meta(model: nn.Module) -> bool:
    return any(tensor.is_meta for tensor in model.parameters())


def _recorded(model: nn.Module, example: Any, share: bool) -> tuple[Batch, Recording]:
    """A batch that the model takes, and the recording of a copy of the model on it.

    The copy may share the memory of the model's parameters, which a forward only reads.
    """
    batches: Iterable[Batch] = _images(model)
    if example is not None:
        batches = [dict(example) if isinstance(example, Mapping) else example]
    on_meta = _on_meta(model)
    errors = []
    for batch in batches:
        twin = replica(model, partial(_followed, share=share, on_meta=on_meta))
        own = (
            map_tensors(lambda tensor: tensor.detach().to("meta"), batch) if on_meta else clone(detach(batch))
        )
        text = writes("split", model)
        try:
            with unwritten(twin.parameters(), text):
                recording = record(twin, own)
        except Exception as error:  # whatever a model's forward raises
            if str(error) == text:
                raise
            errors.append(error)
            continue
        return batch, recording
    given = "the example" if example is not None else f"an image batch (2, 3, {_SIZES[0]}, {_SIZES[0]})"
    raise ValueError(
        f"split: {type(model).__name__} does not run on {given} ({type(errors[0]).__name__}: {errors[0]}). "
        "It is run in eval and in train mode. Pass example=: a batch that it takes, a tuple for several "
        "arguments, or a dict for named ones."
    ) from errors[0]


def _followed(tensor: Tensor, share: bool, on_meta: bool) -> Tensor:
    """A tensor for a copy of a model that is recorded: autograd follows every parameter."""
    is_parameter = isinstance(tensor, nn.Parameter)
    copied = tensor.detach()
    if on_meta:
        copied = copied.to("meta")
    elif not (is_parameter and share):
        copied = copied.clone()
    return nn.Parameter(copied, requires_grad=tensor.is_floating_point()) if is_parameter else copied


def _images(model: nn.Module) -> Iterator[Tensor]:
    """Batches for a model of images, in the channels and the type of its first convolution."""
    weights = [weight for weight in model.parameters() if weight.is_floating_point()]
    like = next((weight for weight in weights if weight.ndim == 4), (*weights, torch.zeros(()))[0])
    channels = like.shape[1] if like.ndim == 4 else 3
    for size in _SIZES:
        yield like.new_empty(2, channels, size, size).normal_()


def _proved(model: nn.Module, pieces: Sequence[Piece], batch: Batch, example: Any, exact: bool) -> str:
    """Prove the stages. Where no example was given, small images will do, of a model that takes them."""
    if example is None:
        small = torch.cat([batch, batch[:1]])[..., :64, :64]
        try:
            return proved(model, pieces, small, exact)
        except Exception:  # whatever a model says to other sizes than its own
            pass
    return proved(model, pieces, batch, exact)


def _single(items: Sequence[Any]) -> Any:
    return items[0] if len(items) == 1 else tuple(items)


def _each(record: Record, cuts: Sequence[Cut], say: Callable[[Output], Any]) -> tuple[Any, ...]:
    """Something about what each stage returns: of each tensor of each module of a boundary."""
    said = []
    for cut in cuts:
        of_modules = []
        for name in cut:
            outputs = [leaf for leaf in record.runs[name][0].outputs if isinstance(leaf, Output)]
            of_modules.append(_single([say(output) for output in outputs if is_feature(output, record)]))
        said.append(_single(of_modules))
    return (*said, _single([say(output) for output in record.logits]))
