"""What one fake forward shows, and that it leaves everything as it was."""

import random
import resource
import sys
from collections import UserDict, deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from layertune import ModelError, map_layers, trace
from small_networks import DoubleConv, LowRank, Residual, Shared, SmallTransformer, SmallUNet, image


@pytest.fixture
def process_group(tmp_path: Path):
    dist.init_process_group("gloo", init_method=f"file://{tmp_path / 'group'}", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


class Wrap(nn.Module):
    """A network with modules by name and a forward given as a function."""

    def __init__(self, run: Callable[..., Any], **modules: nn.Module) -> None:
        super().__init__()
        self.run = run
        for name, module in modules.items():
            self.add_module(name, module)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.run(self, *args, **kwargs)


def conv(inputs: int = 1, outputs: int = 4) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, padding=1)


# What runs, in which order, at which resolution


def test_operations_in_order_with_kind_channels_resolution_and_what_they_feed():
    found = trace(SmallUNet((2, 4)), image()).operations
    assert list(found) == ["down.0.0", "down.0.3", "down.1.0", "down.1.3", "up.0", "merge.0.0", "merge.0.3", "heads.0"]
    assert [op.kind for op in found.values()] == ["conv"] * 4 + ["conv_transpose"] + ["conv"] * 3
    assert [op.channels for op in found.values()] == [2, 2, 4, 4, 2, 2, 2, 3]
    assert [op.positions for op in found.values()] == [256, 256, 64, 64, 256, 256, 256, 256]
    assert found["down.0.3"].feeds == ["down.1.0", "merge.0.0"]
    assert [op.name for op in found.values() if op.reaches_output] == ["heads.0"]


def test_residual_modules_are_those_that_add_a_shortcut_at_one_resolution():
    assert trace(nn.Sequential(Residual(1, 2), nn.Conv2d(2, 1, 1)), image()).residual == {"0"}
    assert trace(SmallTransformer(), torch.empty(2, 1, 8, 8)).residual == {"blocks.0", "blocks.1"}

    def summed_skips(net: nn.Module, xs: list[Tensor]) -> Tensor:
        x = xs.pop()
        for name in "ab":
            x = F.relu(getattr(net, name)(x)) + xs.pop()
        return x

    decoder = Wrap(summed_skips, a=nn.ConvTranspose2d(8, 4, 2, 2), b=nn.ConvTranspose2d(4, 2, 2, 2))

    def run(net: nn.Module, x: Tensor) -> Tensor:
        xs = [x]
        for name in "efg":
            xs.append(F.relu(getattr(net, name)(xs[-1])))
        return net.head(net.decoder(xs[1:]))

    linked = Wrap(
        run,
        e=nn.Conv2d(1, 2, 3, 1, 1),
        f=nn.Conv2d(2, 4, 3, 2, 1),
        g=nn.Conv2d(4, 8, 3, 2, 1),
        decoder=decoder,
        head=nn.Conv2d(2, 1, 1),
    )
    assert trace(linked, image()).residual == frozenset()


def test_a_low_rank_branch_beside_a_weight_is_no_shortcut():
    found = trace(nn.Sequential(LowRank(nn.Linear(8, 8)), nn.Linear(8, 2)), torch.empty(2, 8))
    assert found.residual == frozenset()
    assert list(found.operations) == ["0.base", "0.a", "0.b", "1"]


def test_a_module_called_twice_is_one_operation_at_its_first_call():
    found = trace(Shared(), image())
    assert list(found.operations) == ["first", "twice", "tied", "last"]
    assert found.operations["twice"].feeds == ["tied"]
    assert found.unused == ("auxiliary.weight", "auxiliary.bias")
    assert found.owners["twice.weight"] == "twice"


def test_gates_are_told_from_what_they_scale():
    def run(net: nn.Module, x: Tensor) -> Tensor:
        x = F.relu(net.conv(x))
        gate = torch.sigmoid(net.se2(F.relu(net.se1(x.mean((2, 3), keepdim=True)))))
        return net.head(x * gate)

    net = Wrap(run, conv=conv(), se1=nn.Conv2d(4, 2, 1), se2=nn.Conv2d(2, 4, 1), head=nn.Conv2d(4, 1, 1))
    found = trace(net, image())
    assert [op.name for op in found.operations.values() if op.is_gate] == ["se1", "se2"]


def test_a_response_norm_is_no_gate_of_its_own_input():
    def run(net: nn.Module, x: Tensor) -> Tensor:
        x = net.conv(x)
        return net.head(x * x.norm(dim=(2, 3), keepdim=True))

    found = trace(Wrap(run, conv=conv(), head=nn.Conv2d(4, 1, 1)), image())
    assert not any(op.is_gate for op in found.operations.values())


def test_what_is_written_into_parts_of_a_tensor_reaches_the_output():
    def run(net: nn.Module, x: Tensor) -> Tensor:
        features = net.conv(x)
        out = x.new_zeros(len(x), 2, 16, 16)
        out[:, :1] = net.a(features)
        out[:, 1:] = net.b(features)
        return out

    net = Wrap(run, conv=conv(), a=nn.Conv2d(4, 1, 1), b=nn.Conv2d(4, 1, 1))
    assert [op.name for op in trace(net, image()).operations.values() if op.reaches_output] == ["a", "b"]


@dataclass
class Prediction:
    logits: Any


@pytest.mark.parametrize(
    "pack",
    [
        lambda a, b: {"a": a, "b": b},
        lambda a, b: [a, (b,)],
        lambda a, b: Prediction([a, b]),
        lambda a, b: [a, {"b": b}],
    ],
    ids=["dict", "nested", "dataclass", "mixed"],
)
def test_outputs_of_any_shape(pack: Callable[[Tensor, Tensor], Any]):
    net = Wrap(
        lambda net, x: pack(net.a(y := net.conv(x)), net.b(y)),
        conv=conv(),
        a=nn.Conv2d(4, 1, 1),
        b=nn.Conv2d(4, 2, 1),
    )
    assert [op.name for op in trace(net, image()).operations.values() if op.reaches_output] == ["a", "b"]


def test_inputs_as_keywords_and_in_dicts():
    keyword = Wrap(lambda net, *, image, flag: {"out": net.conv(image)} if flag else None, conv=conv())
    assert list(trace(keyword, image=image(), flag=True).operations) == ["conv"]
    packed = Wrap(lambda net, batch: net.conv(batch["image"]), conv=conv())
    assert trace(packed, {"image": image()}).operations["conv"].positions == 256


# Parameters that are used in unusual ways


@pytest.mark.parametrize("train", [True, False])
def test_transformer_layers_show_their_operations_also_in_eval(train: bool):
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    net = nn.Sequential(nn.TransformerEncoder(layer, 2), nn.Linear(8, 2)).train(train)
    expected = [
        f"0.layers.{i}.{op}" for i in (0, 1) for op in ("self_attn", "self_attn.out_proj", "linear1", "linear2")
    ]
    found = trace(net, torch.empty(2, 5, 8))
    assert list(found.operations) == [*expected, "1"]
    assert found.unused == ()
    assert found.residual == {"0.layers.0", "0.layers.1"}
    assert torch.backends.mha.get_fastpath_enabled()


def test_weight_and_spectral_norm_belong_to_their_convolution():
    net = nn.Sequential(
        parametrizations.weight_norm(nn.Conv2d(1, 4, 3)),
        nn.BatchNorm2d(4),
        parametrizations.spectral_norm(nn.Conv2d(4, 4, 3, bias=False)),
        nn.Conv2d(4, 1, 1),
    )
    u = net[2].parametrizations.weight[0]._u.clone()
    found = trace(net, image())
    assert list(found.operations) == ["0", "2", "3"]
    assert found.norms == {"1": "0"}
    assert found.owners["0.parametrizations.weight.original0"] == "0"
    assert torch.equal(u, net[2].parametrizations.weight[0]._u)


def test_old_style_weight_norm_too():
    with pytest.warns(FutureWarning, match="weight_norm"):
        net = nn.Sequential(nn.utils.weight_norm(nn.Conv2d(1, 4, 3)), nn.Conv2d(4, 1, 1))
    before = net[0].weight
    assert list(trace(net, image()).operations) == ["0", "1"]
    assert net[0].weight is before


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
def test_recurrent_layers_are_operations(kind: type[nn.RNNBase]):
    net = Wrap(
        lambda net, x: net.head(net.rnn(net.embed(x))[0][:, -1]),
        embed=nn.Linear(4, 8),
        rnn=kind(8, 8, 2, batch_first=True, bidirectional=True),
        head=nn.Linear(16, 2),
    )
    found = trace(net, torch.empty(2, 5, 4))
    assert [(op.name, op.positions) for op in found.operations.values()] == [("embed", 5), ("rnn", 5), ("head", 1)]
    assert found.operations["rnn"].feeds == ["head"]
    assert {owner for name, owner in found.owners.items() if name.startswith("rnn.")} == {"rnn"}
    assert [layer.name for layer in map_layers(net, torch.empty(2, 5, 4))] == ["embed", "rnn", "head"]


def test_a_linear_layer_on_learned_queries_is_an_operation():
    def run(net: nn.Module, x: Tensor) -> Tensor:
        query = net.query(net.tokens.weight.expand(len(x), -1, -1))
        return net.head((query @ net.key(x).transpose(1, 2)).softmax(-1) @ x)

    net = Wrap(run, tokens=nn.Embedding(3, 8), query=nn.Linear(8, 8), key=nn.Linear(8, 8), head=nn.Linear(8, 2))
    found = trace(net, torch.empty(2, 5, 8))
    assert list(found.operations) == ["query", "key", "head"]
    assert found.operations["query"].feeds == ["head"]
    assert found.unused == ()


def test_a_weight_on_the_left_has_its_kernels_in_the_rows():
    class Left(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(6, 4))

        def forward(self, x: Tensor) -> Tensor:
            return self.weight @ x.flatten(2)

    found = trace(nn.Sequential(conv(), Left(), nn.Conv1d(6, 2, 1)), image())
    assert (found.operations["1"].channels, found.operations["1"].positions) == (6, 256)
    alone = trace(Left(), torch.empty(2, 4, 9))
    assert alone.operations["weight"].channels == 6


# Which convolution a norm follows


@pytest.mark.parametrize(
    "between",
    [nn.Identity(), nn.Dropout(0.3), nn.Dropout2d(0.3)],
    ids=["nothing", "dropout", "dropout2d"],
)
@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize(
    "norm",
    [
        nn.BatchNorm2d(4),
        nn.InstanceNorm2d(4, affine=True),
        nn.InstanceNorm2d(4, affine=True, track_running_stats=True),
        nn.GroupNorm(2, 4),
        nn.SyncBatchNorm(4),
    ],
    ids=lambda norm: type(norm).__name__,
)
def test_a_norm_directly_after_a_convolution_is_paired(norm: nn.Module, between: nn.Module, train: bool):
    net = nn.Sequential(conv(), between, norm, nn.ReLU(), nn.Conv2d(4, 1, 1)).train(train)
    assert trace(net, image()).norms == {"2": "0"}


def test_a_layer_norm_over_moved_channels_is_paired():
    net = Wrap(
        lambda net, x: net.head(net.norm(net.conv(x).permute(0, 2, 3, 1))),
        conv=conv(),
        norm=nn.LayerNorm(4),
        head=nn.Linear(4, 2),
    )
    assert trace(net, image()).norms == {"norm": "conv"}


def test_an_rms_norm_after_a_linear_layer_is_paired():
    net = nn.Sequential(nn.Linear(4, 8), nn.RMSNorm(8), nn.Linear(8, 2))
    assert trace(net, torch.empty(2, 4)).norms == {"1": "0"}


def test_a_norm_before_its_convolution_is_unpaired():
    net = nn.Sequential(conv(), nn.ReLU(), nn.BatchNorm2d(4), nn.Conv2d(4, 1, 1))
    assert trace(net, image()).norms == {"2": None}


def test_a_norm_whose_convolution_feeds_a_shortcut_too_is_unpaired():
    """A kernel of gamma 0 is not redundant there, since the shortcut still carries it."""
    net = Wrap(
        lambda net, x: net.head((y := net.conv(x)) + F.relu(net.norm(y))),
        conv=conv(),
        norm=nn.BatchNorm2d(4),
        head=nn.Conv2d(4, 1, 1),
    )
    assert trace(net, image()).norms == {"norm": None}


def test_a_norm_shared_by_two_convolutions_is_unpaired():
    net = Wrap(
        lambda net, x: net.head(net.norm(net.b(F.relu(net.norm(net.a(x)))))),
        a=conv(),
        b=conv(4),
        norm=nn.BatchNorm2d(4),
        head=nn.Conv2d(4, 1, 1),
    )
    assert trace(net, image()).norms == {"norm": None}


def test_norms_without_parameters_are_left_out():
    net = nn.Sequential(conv(), nn.InstanceNorm2d(4), nn.BatchNorm2d(4, affine=False), nn.Conv2d(4, 1, 1))
    assert trace(net, image()).norms == {}


# Wrappers


def test_names_under_compile_are_the_plain_ones_and_nothing_is_compiled():
    torch._dynamo.utils.counters.clear()
    net = SmallUNet()
    plain = trace(net, image())
    assert trace(torch.compile(net), image()) == plain
    net.down[1] = torch.compile(net.down[1])
    assert trace(net, image()) == plain
    net.compile()
    assert trace(net, image()) == plain
    assert not torch._dynamo.utils.counters["frames"]


@pytest.mark.usefixtures("process_group")
def test_names_under_ddp_and_sync_batch_norm_are_the_plain_ones():
    net = SmallUNet()
    plain = trace(net, image())
    synced = nn.SyncBatchNorm.convert_sync_batchnorm(SmallUNet())
    assert trace(synced, image()) == plain
    wrapped = nn.parallel.DistributedDataParallel(net)
    assert trace(wrapped, image()) == plain
    assert trace(torch.compile(wrapped), image()) == plain
    assert all(module.training for module in [*wrapped.modules(), *synced.modules()])
    assert [layer.name for layer in map_layers(wrapped, image())] == [layer.name for layer in map_layers(net, image())]


@pytest.mark.usefixtures("process_group")
def test_a_sharded_network_is_refused_with_what_to_do():
    from torch.distributed.fsdp import fully_shard

    net = SmallUNet()
    before = trace(net, image())
    fully_shard(net, mesh=dist.device_mesh.init_device_mesh("cpu", (1,)))
    with pytest.raises(ModelError, match=r"sharded already.*before fully_shard"):
        map_layers(net, image())
    assert set(before.owners) | set(before.unused) == {name for name, _ in net.named_parameters()}


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_any_dtype_and_device_with_an_example_input_from_anywhere(device: str, dtype: torch.dtype):
    net = SmallUNet().to(device, dtype)
    assert trace(net, image().to(dtype)) == trace(SmallUNet(), image())
    assert trace(net, image().to("meta", dtype)) == trace(SmallUNet(), image())


# Nothing is touched, and nothing is computed


class Writes(nn.Module):
    """Writes wherever a forward can write."""

    def __init__(self, fails: bool = False) -> None:
        super().__init__()
        self.block = DoubleConv(1, 4)
        self.drop = nn.Dropout()
        self.head = nn.Conv2d(4, 2, 1)
        self.cache: dict[str, Any] = {"shapes": [(1, 1)]}
        self.seen: list[Tensor] = []
        self.names: set[str] = set()
        self.recent: deque[Tensor] = deque(maxlen=2)
        self.register_buffer("calls", torch.zeros(1))
        self.register_buffer("replaced", torch.zeros(1))
        self.fails = fails

    def forward(self, x: Tensor) -> Tensor:
        self.cache["mask"] = x > 0
        self.cache["shapes"].append(x.shape)
        self.seen.append(x)
        self.names.add("ran")
        self.recent.append(x)
        self.last = x
        self.calls += 1
        self.replaced = self.replaced + 1
        self.register_buffer("new", x.mean())
        self.block.register_forward_hook(lambda *_: None)
        self.head.weight.requires_grad_(False)
        self.drop.eval()
        torch.rand(3), np.random.rand(), random.random()  # noqa: NPY002
        x = self.head(self.drop(self.block(x)))
        if self.fails:
            raise RuntimeError("this forward fails\nafter it ran")
        return x


def everything(net: nn.Module) -> list[Any]:
    """All that a caller could find changed; tensors by identity, version and bytes."""
    tensors = [
        (name, id(tensor), tensor._version, tensor.requires_grad, tensor.detach().numpy().tobytes())
        for name, tensor in [*net.named_parameters(), *net.named_buffers()]
    ]
    modules = [
        (name, id(module), module.training, sorted(module.__dict__), len(module._forward_hooks))
        for name, module in net.named_modules()
    ]
    caches = {name: repr(getattr(net, name, None)) for name in ("cache", "seen", "names", "recent", "last")}
    states = [torch.get_rng_state().tolist(), str(np.random.get_state()), random.getstate()]  # noqa: NPY002
    hooks = [len(torch.nn.modules.module._global_forward_hooks), len(torch.nn.modules.module._global_forward_pre_hooks)]
    return [tensors, modules, caches, states, hooks, torch.is_grad_enabled()]


@pytest.mark.parametrize("train", [True, False])
def test_nothing_is_left_behind(train: bool):
    net = Writes().train(train)
    net.drop.train(True)
    before = everything(net)
    trace(net, image())
    assert everything(net) == before


def test_nothing_is_left_behind_by_a_forward_that_fails():
    net = Writes(fails=True)
    before = everything(net)
    with pytest.raises(ModelError, match=r"Writes refused .*\(2, 1, 16, 16\).*: this forward fails$"):
        trace(net, image())
    assert everything(net) == before


def test_the_input_is_not_touched():
    x = torch.randn(2, 1, 16, 16, requires_grad=True)
    before = x.detach().clone()
    trace(nn.Sequential(nn.ReLU(inplace=True), conv()), x)
    assert torch.equal(x.detach(), before)
    assert x.grad is None


def test_a_network_of_ten_billion_activations_takes_no_memory():
    net = nn.Sequential(nn.Conv3d(1, 64, 3, padding=1), nn.ReLU(), nn.Conv3d(64, 1, 1))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    found = trace(net, torch.empty(1, 1, 600, 600, 600, device="meta"))
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak) * (1 if sys.platform == "darwin" else 1024)
    assert found.operations["0"].positions * 64 > 1e10
    assert grown < 50e6


def test_weights_are_not_copied():
    net = nn.Sequential(nn.Linear(4096, 4096), nn.Linear(4096, 2))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    trace(net, torch.empty(2, 4096))
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak) * (1 if sys.platform == "darwin" else 1024)
    assert grown < 32e6, "the first weight has 64 MiB"


# One clear error


@pytest.mark.parametrize(
    "run",
    [
        lambda net, x: net.conv(x) if x.mean() > 0 else net.conv(-x),
        lambda net, x: net.conv(x) * x.max().item(),
        lambda net, x: net.conv(x)[x.expand(-1, 4, -1, -1) > 0],
    ],
    ids=["branch", "item", "mask"],
)
def test_decisions_by_values_are_refused_with_the_reason(run: Callable[[nn.Module, Tensor], Tensor]):
    with pytest.raises(
        ModelError, match=r"branches on the values of its tensors \(aten\.\w+.*give map_layers a matcher"
    ):
        trace(Wrap(run, conv=conv()), image())


def test_a_batch_norm_of_one_value_is_told_to_take_a_larger_batch():
    net = nn.Sequential(nn.Flatten(), nn.Linear(256, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
    with pytest.raises(ModelError, match="needs a batch of 2"):
        trace(net, image(batch=1))
    assert trace(net, image()).norms == {"2": "1"}


def test_a_refused_input_names_the_shape_and_the_reason():
    with pytest.raises(ModelError, match=r"Conv2d refused the example input of shapes \[\(2, 3, 8, 8\)\]: .*channels"):
        trace(conv(), torch.empty(2, 3, 8, 8))
    with pytest.raises(ModelError, match=r"of shapes \[\]: "):
        trace(conv())


def test_an_uninitialised_lazy_network_is_refused():
    net = nn.Sequential(nn.LazyConv2d(4, 3))
    with pytest.raises(ModelError, match="uninitialized"):
        trace(net, image())


@pytest.mark.parametrize("net", [nn.ReLU(), nn.BatchNorm2d(1), nn.Sequential(nn.Identity())])
def test_a_network_without_operations_is_refused(net: nn.Module):
    with pytest.raises(ModelError, match="no convolution and no linear layer"):
        trace(net, image())


def test_a_refused_shape_leaves_nothing_in_the_log(caplog):
    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(1, 2, 1)

        def forward(self, x):
            return torch.cat([self.conv(x), self.conv(x[:, :, 1:])], dim=1)

    with pytest.raises(ModelError, match="refused"):
        trace(Odd(), torch.empty(1, 1, 8, 8))
    assert caplog.text == ""


# Containers of inputs and outputs


@dataclass(frozen=True)
class Images:
    image: Tensor
    spacing: tuple[float, ...] = (1.0, 1.0)


class Opaque:
    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor


def two_heads(give: Callable[[Tensor, Tensor], Any], take: Callable[[Any], Tensor] = lambda x: x) -> nn.Module:
    def run(net: Any, x: Any) -> Any:
        features = net.stem(take(x))
        return give(net.first(features), net.second(features))

    return Wrap(run, stem=nn.Conv2d(1, 4, 3), first=nn.Conv2d(4, 1, 1), second=nn.Conv2d(4, 2, 1))


@pytest.mark.parametrize(
    ("given", "take"),
    [
        (Images(image()), lambda x: x.image),
        (UserDict(image=image()), lambda x: x["image"]),
        (MappingProxyType({"image": image()}), lambda x: x["image"]),
        ([{"image": Images(image())}], lambda x: x[0]["image"].image),
    ],
    ids=["dataclass", "UserDict", "read-only mapping", "nested"],
)
def test_an_input_in_any_container_is_followed(given: Any, take: Callable[[Any], Tensor]):
    found = trace(two_heads(lambda a, b: (a, b), take), given)
    assert found.operations["stem"].feeds == ["first", "second"]


@pytest.mark.parametrize(
    "give",
    [lambda a, b: UserDict(a=a, b=b), Images, lambda a, b: {"a": [a], "b": Images(b)}],
    ids=["UserDict", "dataclass", "nested"],
)
def test_heads_in_any_container_are_heads(give: Callable[[Tensor, Tensor], Any]):
    layers = map_layers(two_heads(give), image())
    assert [layer.name for layer in layers] == ["stem", "head"]
    assert "second.weight" in layers[-1].parameters


@pytest.mark.parametrize("opaque", [lambda tensor: tensor.numpy(), Opaque], ids=["numpy", "object"])
def test_a_container_that_cannot_be_followed_is_refused_by_name(opaque: Callable[[Tensor], Any]):
    name = type(opaque(image())).__name__
    with pytest.raises(ModelError, match=rf"\.{name} among the inputs or outputs"):
        trace(two_heads(lambda a, b: (a, b)), opaque(image()))
    if opaque is Opaque:
        with pytest.raises(ModelError, match=rf"\.{name} among the inputs or outputs"):
            trace(two_heads(lambda a, _: Opaque(a)), image())


def test_a_network_that_starts_from_noise_loses_no_operation():
    def run(net: Any, time: Tensor) -> Tensor:
        noise = torch.randn(2, 1, 8, 8, device=time.device)
        return net.head(net.stem(0.5 * noise).mean((2, 3)) + net.time(time))

    net = Wrap(run, stem=nn.Conv2d(1, 4, 3), time=nn.Linear(1, 4), head=nn.Linear(4, 2))
    assert list(trace(net, torch.ones(2, 1)).operations) == ["stem", "time", "head"]


def test_look_ups_of_bags_and_bilinear_layers_are_operations():
    class Words(nn.Sequential):
        def forward(self, words: Tensor) -> Tensor:
            bags = self[0](words)
            return self[2](self[1](bags, bags))

    net = Words(nn.EmbeddingBag(10, 4), nn.Bilinear(4, 4, 3), nn.Linear(3, 2))
    assert list(trace(net, torch.zeros(2, 3, dtype=torch.long)).operations) == ["0", "1", "2"]


def test_a_trace_in_inference_mode_finds_the_same():
    with torch.inference_mode():
        net = nn.Sequential(conv(), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(36, 2))
    found = trace(SmallUNet(), image()).operations
    with torch.inference_mode():
        assert trace(SmallUNet(), image()).operations == found
        assert list(trace(net, torch.empty(2, 1, 3, 3)).operations) == ["0", "3"]


# What is reachable past registered modules


class Cached(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 1)
        self.cache: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        self.cache.append(x)
        self.last = x
        return self.conv(x)


class Aside(nn.Module):
    """Holds a module in a plain list, a counter in a closure, and its own parameter in a dict."""

    def __init__(self, write: Callable[[Tensor], Any] = lambda _: None) -> None:
        super().__init__()
        self.stem, self.head = nn.Conv2d(1, 4, 3), nn.Conv2d(4, 2, 1)
        self.others = [Cached()]
        self.by_name = {"head": self.head.weight}
        self.write = write
        count = 0

        def counting(*_: Any) -> None:
            nonlocal count
            count += 1

        self.count = lambda: count
        self.stem.register_forward_hook(counting)

    def forward(self, x: Tensor) -> Tensor:
        self.write(self.by_name["head"])
        return self.head(self.others[0](self.stem(x)))


def test_unregistered_modules_and_closures_are_restored():
    net = Aside()
    trace(net, image())
    assert net.count() == 0
    assert net.others[0].cache == []
    assert not hasattr(net.others[0], "last")


def replace_data(weight: Tensor) -> None:
    weight.data = weight.data * 2


def write_data(weight: Tensor) -> None:
    with torch.no_grad():
        weight.mul_(2)


@pytest.mark.parametrize("write", [replace_data, write_data])
def test_a_forward_that_writes_into_a_real_parameter_is_refused(write: Callable[[Tensor], None]):
    net = Aside(write)
    before = net.head.weight.detach().clone()
    with pytest.raises(ModelError, match=r"writes into head\.weight"):
        trace(net, image())
    if write is replace_data:
        assert torch.equal(net.head.weight, before)
