"""Operations, which are the convolutions and linear layers of a network, and the kinds of operators in a trace."""

from dataclasses import dataclass, field

__all__ = ["CONVOLUTIONS", "LINEAR", "OPERATIONS", "PRODUCTS", "RANDOM", "SHAPE_ONLY", "TRANSPARENT", "Operation"]

CONVOLUTIONS = {"convolution", "_convolution", "convolution_overrideable", "mkldnn_convolution"}
RECURRENT = {"mkldnn_rnn_layer", "_cudnn_rnn"}
PRODUCTS = {"mm", "addmm", "bmm", "baddbmm"}
LOOK_UPS = {"embedding", "_embedding_bag", "_embedding_bag_forward_only"}
OPERATIONS = CONVOLUTIONS | RECURRENT | PRODUCTS | LOOK_UPS | {"_trilinear"}
# These return the values of a tensor unchanged, so the next operator still reads the convolution's own output.
TRANSPARENT = {
    "_reshape_alias",
    "_to_copy",
    "_unsafe_view",
    "alias",
    "clone",
    "contiguous",
    "detach",
    "expand",
    "native_dropout",
    "permute",
    "reshape",
    "squeeze",
    "transpose",
    "unsqueeze",
    "view",
}
# A module with only these is linear: its sum is a low-rank branch beside a weight, and not the shortcut of a block.
LINEAR = OPERATIONS | TRANSPARENT | {"add", "cat", "div", "mul", "rsub", "select", "slice", "split", "sub", "t"}
# These draw random numbers. A network that starts from noise, as the sampler of a diffusion model, has no other input.
RANDOM = {"bernoulli", "normal", "normal_functional", "rand", "rand_like", "randn", "randn_like", "uniform"}
# These read only the shape of a tensor: none of its values reach their output.
SHAPE_ONLY = {"empty_like", "full_like", "new_empty", "new_full", "new_ones", "new_zeros", "ones_like", "zeros_like"}


@dataclass
class Operation:
    """A convolution or a linear layer as it ran, at its first call.

    Attributes:
        name: The path of the module that owns the weight, without wrappers' prefixes; the name of a weight of the root.
        kind: ``"conv"``, ``"conv_transpose"`` or ``"linear"``; recurrent layers and embeddings are ``"linear"``.
        channels: The number of output channels (kernels) of the weight.
        positions: The number of output positions per sample: voxels of a feature map, tokens of a sequence, or 1.
        feeds: The operations that read its output with no other operation between, in order of execution.
        reaches_output: Whether its output becomes a part of the model's output with no other operation between.
        is_gate: Whether its output only scales or shifts larger feature maps, as in squeeze-excitation and the
            embedding of a time step. Its own resolution then has no meaning.
    """

    name: str
    kind: str
    channels: int
    positions: float
    feeds: list[str] = field(default_factory=list)
    reaches_output: bool = False
    is_gate: bool = False
