"""As many processes as a test likes, in one: what they would exchange is counted, and not exchanged."""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from torch import distributed
from torch.testing._internal.distributed.fake_pg import FakeStore  # private: torch's own tests count with it
from torch.utils._python_dispatch import TorchDispatchMode


@contextmanager
def processes(count: int) -> Iterator[None]:
    """This is the first of some processes, whose collectives return at once, with no values."""
    distributed.init_process_group("fake", store=FakeStore(), rank=0, world_size=count)
    try:
        yield
    finally:
        distributed.destroy_process_group()


class Moves(TorchDispatchMode):
    """While it is on: the collectives by kind, and the bytes of the whole tensors in them."""

    def __init__(self) -> None:
        super().__init__()
        self.count, self.bytes = Counter(), Counter()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        kind = function._opname
        if function.namespace == "_c10d_functional" and kind in ("all_gather_into_tensor", "all_reduce"):
            self._note(kind, out)
        elif function.namespace == "_c10d_functional" and kind == "reduce_scatter_tensor":
            self._note(kind, args[0])
        elif function.namespace == "c10d" and kind == "allreduce_":
            self._note("all_reduce", args[0][0])
        return out

    def _note(self, kind, whole):
        self.count[kind] += 1
        self.bytes[kind] += whole.nbytes
