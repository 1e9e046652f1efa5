"""Losses between features of any layout ``[batch, ...]``, compared element by element or map by map."""

from einops import reduce
from torch import Tensor
from torch.nn import functional as F

from ._check import rank, same_shape
from ._precision import upcast

_BRIDGE = "Bridge one feature into the other's space first."


def squared_error(prediction: Tensor, target: Tensor) -> Tensor:
    """Mean squared error of two features: numerical similarity, the hint loss.

    ```
    loss[b] = mean over all other axes of (prediction − target)²
    ```

    Args:
        prediction: Feature `[batch, ...]`, already in the target's space.
        target: Feature of the same shape.

    Returns:
        `[batch]`.

    Raises:
        ValueError: The shapes differ (torch's own `mse_loss` would broadcast), or there is no example.

    Example:
        >>> squared_error(torch.ones(2, 3, 4, 4), torch.zeros(2, 3, 4, 4))
        tensor([1., 1.])

    Reference:
        Romero et al.: FitNets, ICLR 2015, arXiv 1412.6550. Checked against HobbitLong/RepDistiller
        `HintLoss`. No deviation.
    """
    rank("squared_error", "batch, ...", prediction=prediction, target=target)
    same_shape("squared_error", _BRIDGE, prediction=prediction, target=target)
    error = (upcast(prediction) - upcast(target)).square()
    return error.reshape(len(error), -1).mean(1)


def pooled_squared_error(prediction: Tensor, target: Tensor) -> Tensor:
    """Mean squared error of what a classifier reads of two maps: rectified, averaged over space.

    ```
    loss[b] = mean_c (pool(prediction) − pool(target))²,    pool(f) = mean over space of max(f, 0)
    ```

    Args:
        prediction: Map `[batch, channels, ...]`, already in the target's space.
        target: Map of the same shape.

    Returns:
        `[batch]`.

    Raises:
        ValueError: The shapes differ, or there is no example.

    Example:
        >>> pooled_squared_error(torch.ones(2, 3, 4, 4), -torch.ones(2, 3, 4, 4))
        tensor([1., 1.])

    Reference:
        Liu et al.: Function-Consistent Feature Distillation, ICLR 2023, arXiv 2304.11832. Checked against
        the authors' code. No deviation.
    """
    rank("pooled_squared_error", "batch, channels, ...", prediction=prediction, target=target)
    same_shape("pooled_squared_error", _BRIDGE, prediction=prediction, target=target)

    def pool(feature: Tensor) -> Tensor:
        return reduce(F.relu(upcast(feature)), "batch channels ... -> batch channels", "mean")

    return (pool(prediction) - pool(target)).square().mean(1)
