"""What an adapter is: inputs and hyper-parameters of a published case in, the value out.

A value is the scalar that the published code returns, or for tensor-valued functions the tensor. A
function that also returns tensors gives a dict: ``{"value": ..., "name of the output": ...}``.
`paper` in the hyper-parameters asks for the paper's form where it differs from the published code.
"""

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

Adapter = Callable[[Mapping[str, Tensor], Mapping[str, Any]], Tensor | dict[str, Tensor]]
Adapters = dict[str, Adapter]
