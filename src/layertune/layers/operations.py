"""Operations: the convolutions and linear layers of a network, and which operators of a trace count as what."""

from dataclasses import dataclass, field

__all__ = ["CONVOLUTIONS", "LINEAR", "OPERATIONS", "PRODUCTS", "RANDOM", "SHAPE_ONLY", "TRANSPARENT", "Operation"]

CONVOLUTIONS = {"convolution", "_convolution", "convolution_overrideable", "mkldnn_convolution"}
RECURRENT = {"mkldnn_rnn_layer", "_cudnn_rnn"}
PRODUCTS = {"mm", "addmm", "bmm", "baddbmm"}
LOOK_UPS = {"embedding", "_embedding_bag", "_embedding_bag_forward_only"}
OPERATIONS = CONVOLUTIONS | RECURRENT | PRODUCTS | LOOK_UPS | {"_trilinear"}
# These hand a tensor on with its channels intact, so what follows still sees the convolution's own output.
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
# With these alone between its operations, a module is linear: a low-rank branch beside a weight, no residual block.
LINEAR = OPERATIONS | TRANSPARENT | {"add", "cat", "div", "mul", "rsub", "select", "slice", "split", "sub", "t"}
# These draw random numbers, and a network that starts from noise (a diffusion model's sampler) has no other input.
RANDOM = {"bernoulli", "normal", "normal_functional", "rand", "rand_like", "randn", "randn_like", "uniform"}
# These take a tensor for its shape alone: nothing of its content reaches what they return.
SHAPE_ONLY = {"empty_like", "full_like", "new_empty", "new_full", "new_ones", "new_zeros", "ones_like", "zeros_like"}


@dataclass
class Operation:
    """A convolution or a linear layer as it ran, at its first call.

    Attributes:
        name: path of the module that owns the weight, without wrappers' prefixes (of the weight, if it is the root's).
        kind: ``"conv"``, ``"conv_transpose"`` or ``"linear"`` (recurrent layers and embeddings included).
        channels: output channels (kernels) of the weight.
        positions: output positions per sample: voxels of a feature map, tokens of a sequence, 1 for a vector.
        feeds: operations that read its output with no other operation between, in order of execution.
        reaches_output: whether its output becomes a part of the model's output with no other operation between.
        is_gate: whether its output only scales or shifts larger feature maps, as squeeze-excitation and the embedding
            of a time step do; its own resolution says nothing then.
    """

    name: str
    kind: str
    channels: int
    positions: float
    feeds: list[str] = field(default_factory=list)
    reaches_output: bool = False
    is_gate: bool = False
