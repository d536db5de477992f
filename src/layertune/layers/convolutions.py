"""The classes of torch's convolutions. torch has public names for each number of dimensions only."""

from torch import nn

__all__ = ["Convolution", "TransposedConvolution"]

Convolution = nn.modules.conv._ConvNd
"""The class of all convolutions, plain and transposed, lazy ones included."""
TransposedConvolution = nn.modules.conv._ConvTransposeNd
"""The class of the transposed ones, whose weight has its inputs first: (inputs, outputs of a group, ...)."""
