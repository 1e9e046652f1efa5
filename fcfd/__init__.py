"""Distillation through the networks themselves: function-consistent feature distillation, functional."""

from . import losses as losses, recipes as recipes, schedules as schedules
from .bridges import bridge as bridge
from .linking import Linked as Linked, link as link
from .matching import match as match
from .paths import (
    bridged as bridged,
    crossings as crossings,
    depth as depth,
    draw as draw,
    plan as plan,
    prefixes as prefixes,
    step as step,
)
from .splitting import Network as Network, split as split
from .stages import frozen as frozen, stage as stage, write_buffers_ as write_buffers_
from .terms import Term as Term, reads as reads
from .transforms import checkpointed as checkpointed, compiled as compiled, joined as joined
from .walking import (
    Aux as Aux,
    measure as measure,
    objective as objective,
    settle as settle,
    total as total,
    walk as walk,
)

__version__ = "0.1.0"
