"""Detectors as networks: from a detector of torchvision, without an edit to it, to stages.

A stage here is a part of the detector, under the detector's own names, so `write_buffers_(student, ...)`
and `student.parameters()` work as ever:

| function | stages |
|---|---|
| `two_stage` | the pyramid; the box head (and mask head) on given regions |
| `one_stage` | the pyramid; the towers of the head up to a block; the rest of the head |

Both networks read a batch of their own, as their own transforms make it (`prepare`). A box head also reads
regions. They are known after the student's pyramid (`proposals`), and flow in the batch (`with_regions`):

```
batch = {"s": prepare(student, images, targets).inputs, "t": prepare(teacher, images).inputs}
walk "s"; propose on its value; with_regions(batch, found); the objective, with "s" known
```

Nothing of torchvision is imported: a detector is what has its attributes (`transform`, `backbone`, `rpn`,
`roi_heads`; or `anchor_generator`, `head`, `compute_loss`).
"""

from .detecting.batch import (
    Found as Found,
    Prepared as Prepared,
    prepare as prepare,
    rescale as rescale,
    with_regions as with_regions,
)
from .detecting.one_stage import labels as labels, one_stage as one_stage
from .detecting.two_stages import proposals as proposals, two_stage as two_stage
