"""Distillation through the networks themselves: function-consistent feature distillation, functional."""

from . import (
    analysis as analysis,
    detection as detection,
    losses as losses,
    recipes as recipes,
    schedules as schedules,
    stitching as stitching,
)
from .bridges import bridge as bridge
from .exporting import as_module as as_module
from .linking import Linked as Linked, link as link
from .matching import match as match
from .paths import (
    bridged as bridged,
    counterpart as counterpart,
    crosses as crosses,
    crossings as crossings,
    depth as depth,
    draw as draw,
    expand as expand,
    is_bridged as is_bridged,
    plan as plan,
    prefixes as prefixes,
    pure as pure,
    step as step,
)
from .placement import cast as cast, gathered as gathered, placed as placed, spread as spread
from .resuming import slots as slots, write_slots_ as write_slots_
from .splitting import Network as Network, split as split
from .stages import ema as ema, frozen as frozen, stage as stage, write_buffers_ as write_buffers_
from .synchronising import synchronised as synchronised
from .terms import (
    Term as Term,
    balanced as balanced,
    masked as masked,
    reads as reads,
    replaced as replaced,
    scaled as scaled,
)
from .transforms import (
    checkpointed as checkpointed,
    compiled as compiled,
    deferred as deferred,
    joined as joined,
    lean as lean,
)
from .walking import (
    Aux as Aux,
    Columns as Columns,
    evaluate as evaluate,
    merge_buffers as merge_buffers,
    objective as objective,
    walk as walk,
    weighted_sum as weighted_sum,
)

__version__ = "0.1.0"
