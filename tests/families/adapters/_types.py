"""What an adapter is: inputs and hyper-parameters of a published case in, the published value out.

The value is the scalar that the published code returns, or the tensor of a tensor-valued function. A
function that also hands back tensors gives a dict: ``{"value": ..., "name of the output": ...}``.
"""

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

Adapter = Callable[[Mapping[str, Tensor], Mapping[str, Any]], Tensor | dict[str, Tensor]]
Adapters = dict[str, Adapter]
