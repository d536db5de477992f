"""First convolutions for another number of input channels."""

import math

import torch
from torch import Tensor

__all__ = ["CHANNELS", "adapt_channels"]

CHANNELS = {
    "zero_channels": "new ones zero",
    "repeat_channels": "new ones repeat the old ones",
    "average_channels": "new ones are the mean of the old ones",
    "rescale_channels": "repeated and rescaled",
}
"""The ways to make input channels, and what the report says of each."""


def adapt_channels(tensor: Tensor, channels: int, way: str) -> Tensor | None:
    """Give a convolution another number of input channels.

    - One channel gets the sum of all, so a gray image gives what it gave with equal channels.
    - With more channels the old ones keep their kernels, and the new ones get zeros, a copy of the old ones in turn, or
      their mean.
    - ``rescale_channels`` repeats the old kernels in turn and multiplies all by old / new, as timm's
      ``adapt_input_conv`` does. It keeps the size of the outputs, not their values, and also allows fewer channels.

    Args:
        tensor: The kernel, of shape (outputs, inputs, ...).
        channels: The wanted number of inputs.
        way: The name of the way to make the new channels, one of ``CHANNELS``.

    Returns:
        The kernel of shape (outputs, ``channels``, ...); ``None`` if this way cannot make it.

    Example:
        >>> kernel = torch.tensor([1.0, 2.0, 3.0]).view(1, 3, 1, 1)
        >>> adapt_channels(kernel, 1, "zero_channels").flatten()
        tensor([6.])
        >>> adapt_channels(kernel, 4, "average_channels").flatten()
        tensor([1., 2., 3., 2.])
    """
    old = tensor.shape[1]
    if channels == 1:
        return tensor.sum(1, keepdim=True)
    repeated = torch.cat([tensor] * math.ceil(channels / old), 1)[:, :channels]
    if way == "rescale_channels":
        return repeated * (old / channels)
    if channels < old:
        return None
    new = {
        "zero_channels": torch.zeros_like(repeated[:, old:]),
        "repeat_channels": repeated[:, old:],
        "average_channels": tensor.mean(1, keepdim=True).expand_as(repeated[:, old:]),
    }
    return torch.cat([tensor, new[way]], 1)
