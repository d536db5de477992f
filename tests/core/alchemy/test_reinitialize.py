"""A fresh start for redundant kernels, and for nothing else."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import mse_loss
from torch.optim import SGD, Adam, AdamW, Optimizer

from layertune import AlchemyError, redundant_kernels, reinitialize
from layertune.alchemy.kernels import kernel_rows
from layertune.alchemy.norms import affine_norms, gamma_of
from layertune.alchemy.redundancy import RedundantKernels
from norm_networks import FAMILIES, image, of

CHOSEN = (1, 4)


def trained(net: nn.Module, optimizer: Optimizer) -> RedundantKernels:
    """A few steps, so that all state is there; then two planted kernels."""
    for _ in range(3):
        optimizer.zero_grad()
        net(image()).square().mean().backward()
        optimizer.step()
    ((name, norm),) = affine_norms(net).items()
    with torch.no_grad():
        gamma_of(norm).view(-1)[list(CHOSEN)] = 0.01
    found = redundant_kernels(net, image(), threshold=0.05)
    assert found.channels == {name: CHOSEN}
    return found


def expected_places(net: nn.Module, found: RedundantKernels) -> dict[str, Tensor]:
    """A mask over every tensor of the state dict: what may change, worked out from each tensor's own layout."""
    ((norm_name, pair),) = found.pairs.items()
    places = {name: torch.zeros(tensor.shape, dtype=torch.bool) for name, tensor in net.state_dict().items()}
    operation = net.get_submodule(pair.operation)
    weight = places[f"{pair.operation}.weight"]
    for c in CHOSEN:
        if isinstance(operation, nn.ConvTranspose2d):
            inputs, outputs = operation.in_channels // operation.groups, operation.out_channels // operation.groups
            group = c // outputs
            weight[group * inputs : (group + 1) * inputs, c % outputs] = True
        else:
            weight[c] = True
        places[f"{pair.operation}.bias"][c] = True
        for key, place in places.items():
            if key.startswith(f"{norm_name}.") and place.numel() == 6:
                place.view(-1)[c] = True
    return places


@pytest.mark.parametrize("make", FAMILIES.values(), ids=FAMILIES.keys())
@pytest.mark.parametrize("kind", [SGD, AdamW])
def test_only_the_kernels_and_what_belongs_to_them_change(make: Callable[[], nn.Module], kind: type[Optimizer]) -> None:
    net = make()
    net.train(not any(isinstance(module, nn.SyncBatchNorm) for module in net.modules()))  # that one asks for a GPU
    optimizer = kind(net.parameters(), lr=0.01, **({"momentum": 0.9} if kind is SGD else {}))
    found = trained(net, optimizer)
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    names = {id(parameter): name for name, parameter in net.named_parameters()}
    kept = {
        (names[id(p)], key): value.clone()
        for p, state in optimizer.state.items()
        for key, value in state.items()
        if isinstance(value, Tensor)
    }
    reinitialize(net, found, optimizer=optimizer)
    places = expected_places(net, found)
    for name, tensor in net.state_dict().items():
        assert torch.equal(tensor[~places[name]], before[name][~places[name]]), name
    weight = f"{next(iter(found.pairs.values())).operation}.weight"
    assert (net.state_dict()[weight] != before[weight])[places[weight]].all()
    assert len(kept) >= len(names)
    for p, state in optimizer.state.items():
        for key, value in state.items():
            name = names[id(p)]
            if not isinstance(value, Tensor) or value.shape != p.shape:
                continue
            assert torch.equal(value[~places[name]], kept[name, key][~places[name]]), (name, key)
            assert not value[places[name]].any(), (name, key)
            assert kept[name, key].any(), "there was something to forget"


@pytest.mark.parametrize("make", FAMILIES.values(), ids=FAMILIES.keys())
def test_the_norm_starts_as_a_new_one(make: Callable[[], nn.Module]) -> None:
    net = make().eval()
    found = trained(net, SGD(net.parameters(), lr=0.01))
    ((name, norm),) = affine_norms(net).items()
    for key in ("running_mean", "running_var"):
        if getattr(norm, key, None) is not None:
            getattr(norm, key).uniform_(3, 4)
    reinitialize(net, found)
    chosen = list(CHOSEN)
    fresh = {"running_mean": 0.0, "running_var": 1.0, "bias": 0.0, "weight": 1.0}
    for key, value in fresh.items():
        if getattr(norm, key, None) is not None:
            assert getattr(norm, key).view(-1)[chosen].tolist() == [value, value], (name, key)
    assert net.get_submodule(found.pairs[name].operation).bias[chosen].tolist() == [0.0, 0.0]


def wide(operation: nn.Module, channels: int, activation: nn.Module) -> nn.Module:
    return nn.Sequential(operation, nn.BatchNorm2d(channels), activation)


@pytest.mark.parametrize(
    ("operation", "shape"),
    [
        pytest.param(nn.Conv2d(8, 512, 3), (512, 8, 3, 3), id="conv"),
        pytest.param(nn.Conv2d(8, 512, 3, groups=4), (512, 2, 3, 3), id="grouped"),
        pytest.param(nn.ConvTranspose2d(8, 512, 3), (512, 8, 3, 3), id="transposed"),
        pytest.param(nn.ConvTranspose2d(8, 512, 3, groups=4), (512, 2, 3, 3), id="transposed, grouped"),
    ],
)
@pytest.mark.parametrize(
    ("activation", "nonlinearity", "slope"),
    [
        (nn.ReLU(), "relu", 0),
        (nn.LeakyReLU(0.3), "leaky_relu", 0.3),
        (nn.PReLU(init=0.6), "leaky_relu", 0.6),
        (nn.Tanh(), "tanh", 0),
        (nn.Identity(), "linear", 0),
    ],
)
def test_fan_and_gain_are_those_of_torch(
    operation: nn.Module, shape: tuple[int, ...], activation: nn.Module, nonlinearity: Any, slope: float
) -> None:
    """The same kernels, laid out with their outputs first, drawn by ``kaiming_normal_`` itself with the same seed."""
    net = wide(operation, 512, activation)
    nn.init.zeros_(net[1].weight)
    found = redundant_kernels(net, torch.empty(2, 8, 6, 6), threshold=0.05, whole_layers=True)
    reinitialize(net, found, seed=3)
    expected = torch.empty(shape)
    generator = torch.Generator().manual_seed(3)
    nn.init.kaiming_normal_(expected, a=slope, nonlinearity=nonlinearity, generator=generator)
    torch.testing.assert_close(kernel_rows(operation).flatten(0, 1), expected, rtol=1e-5, atol=1e-8)
    fan = shape[1] * 9
    std = nn.init.calculate_gain(nonlinearity, slope) / fan**0.5
    assert expected.std().item() == pytest.approx(std, rel=0.03)


def test_a_linear_layer_too() -> None:
    net = nn.Sequential(nn.Linear(50, 400), nn.LayerNorm(400), nn.GELU())
    nn.init.zeros_(net[1].weight)
    found = redundant_kernels(net, torch.empty(2, 50), threshold=0.05, whole_layers=True)
    reinitialize(net, found, seed=1)
    expected = torch.empty(400, 50)
    nn.init.kaiming_normal_(expected, nonlinearity="relu", generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(net[0].weight.detach(), expected)


def weights_after(seed: int, planted: tuple[int, ...]) -> Tensor:
    torch.manual_seed(0)
    net = of(nn.BatchNorm2d(6))
    with torch.no_grad():
        net[1].weight[list(planted)] = 0
    reinitialize(net, redundant_kernels(net, image(), threshold=0.05), seed=seed)
    return net[0].weight.detach()


def test_the_seed_decides_and_other_kernels_do_not() -> None:
    assert torch.equal(weights_after(0, (1,)), weights_after(0, (1,)))
    assert not torch.equal(weights_after(0, (1,))[1], weights_after(1, (1,))[1])
    assert torch.equal(weights_after(0, (1,))[1], weights_after(0, (1, 2, 5))[1])


def test_random_state_is_left_alone() -> None:
    net = of(nn.BatchNorm2d(6))
    with torch.no_grad():
        net[1].weight[1] = 0
    found = redundant_kernels(net, image(), threshold=0.05)
    before = torch.get_rng_state()
    reinitialize(net, found)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_fresh_kernel_learns() -> None:
    net = of(nn.BatchNorm2d(6))
    optimizer = Adam(net.parameters(), lr=0.01)
    found = trained(net, optimizer)
    reinitialize(net, found, optimizer=optimizer)
    fresh = net[0].weight[1].detach().clone()
    x = image()
    losses = []
    for _ in range(5):
        optimizer.zero_grad()
        loss = mse_loss(net(x), torch.ones(4, 2, 8, 8))
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    assert not torch.equal(net[0].weight[1], fresh)


@pytest.mark.parametrize(
    "other",
    [
        pytest.param(lambda: nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8)), id="more kernels"),
        pytest.param(lambda: nn.Sequential(nn.Conv2d(1, 6, 3)), id="no norm"),
        pytest.param(lambda: nn.Sequential(nn.ReLU(), nn.BatchNorm2d(6)), id="no weight"),
        pytest.param(lambda: nn.Sequential(nn.Conv2d(1, 6, 3), nn.BatchNorm2d(6, affine=False)), id="no gamma"),
    ],
)
def test_another_network_is_refused_and_left_alone(other: Callable[[], nn.Module]) -> None:
    net = of(nn.BatchNorm2d(6))
    with torch.no_grad():
        net[1].weight[1] = 0
    found = redundant_kernels(net, image(), threshold=0.05)
    wrong = other()
    before = {name: tensor.clone() for name, tensor in wrong.state_dict().items()}
    with pytest.raises(AlchemyError, match="found in another network"):
        reinitialize(wrong, found)
    assert all(torch.equal(before[name], tensor) for name, tensor in wrong.state_dict().items())
