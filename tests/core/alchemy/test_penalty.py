"""The penalty against the written formula, differentiated by autograd."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from layertune import AlchemyError, GammaPenalty
from layertune.alchemy.norms import affine_norms, gamma_of
from norm_networks import FAMILIES, PreActivation, image, of


def networks() -> nn.Module:
    """Several norms of several kinds, with gammas of both signs."""
    net = nn.ModuleList([PreActivation(), FAMILIES["group"](), FAMILIES["rms, a class of its own"]()]).double()
    for norm in affine_norms(net).values():
        nn.init.normal_(gamma_of(norm), 0.3, 1.0)
    return net


def written(values: list[Tensor], alpha: float, beta: float, weight: float, absolute: bool) -> Tensor:
    """Eqs. 3.1 and 3.2 as they stand: E and Var over the set of all gammas."""
    every = [g.abs() if absolute else g for value in values for g in value.flatten()]
    mean = sum(every) / len(every)
    variance = sum((g - mean) ** 2 for g in every) / len(every)
    return weight * (-alpha * mean + beta * variance**0.5)


@pytest.mark.parametrize("absolute", [False, True])
@pytest.mark.parametrize(("alpha", "beta", "weight"), [(0.1, 1.0, 1e-4), (2.0, 0.5, 1.0), (1.0, 0.0, 1.0), (0, 1, 3)])
def test_value_and_gradient(alpha: float, beta: float, weight: float, absolute: bool) -> None:
    net = networks()
    values = [gamma_of(norm) for norm in affine_norms(net).values()]
    penalty = GammaPenalty(net, alpha, beta, weight, absolute=absolute)()
    expected = written(values, alpha, beta, weight, absolute)
    torch.testing.assert_close(penalty.double(), expected, rtol=1e-5, atol=1e-9)
    grads = torch.autograd.grad(penalty, values)
    for own, theirs in zip(grads, torch.autograd.grad(expected, values), strict=True):
        torch.testing.assert_close(own, theirs, rtol=1e-4, atol=1e-8)


def test_gammas_that_are_all_equal_have_a_finite_gradient() -> None:
    net = of(nn.BatchNorm2d(6))
    penalty = GammaPenalty(net, weight=1.0)()
    assert penalty.item() == pytest.approx(-0.1)
    penalty.backward()
    assert net[1].weight.grad.tolist() == pytest.approx([-0.1 / 6] * 6)


def test_a_step_raises_the_mean_and_narrows_the_spread() -> None:
    net = networks()
    gammas = [gamma_of(norm) for norm in affine_norms(net).values()]
    before = torch.cat([gamma.detach().flatten() for gamma in gammas])
    optimizer = torch.optim.SGD(net.parameters(), lr=5.0)
    for _ in range(20):
        optimizer.zero_grad()
        GammaPenalty(net, weight=1.0)().backward()
        optimizer.step()
    after = torch.cat([gamma.detach().flatten() for gamma in gammas])
    assert after.mean() > before.mean()
    assert after.std() < before.std()


def test_only_gammas_get_a_gradient() -> None:
    net = of(nn.BatchNorm2d(6))
    GammaPenalty(net)().backward()
    assert [name for name, p in net.named_parameters() if p.grad is not None] == ["1.weight"]


@pytest.mark.parametrize("make", [lambda: nn.Conv2d(1, 2, 1), lambda: of(nn.InstanceNorm2d(6))])
def test_without_gammas_it_is_a_plain_zero_and_says_so(make: Callable[[], nn.Module]) -> None:
    with pytest.warns(UserWarning, match="GammaPenalty has no effect"):
        penalty = GammaPenalty(make())
    assert penalty().item() == 0
    assert not penalty().requires_grad


def test_a_weight_of_zero_is_a_plain_zero() -> None:
    penalty = GammaPenalty(of(nn.BatchNorm2d(6)), weight=0.0)
    assert penalty().item() == 0
    assert not penalty().requires_grad


def test_shared_gammas_count_once() -> None:
    norm = nn.BatchNorm2d(6)
    twice = nn.Sequential(norm, norm, nn.BatchNorm2d(2))
    twice.other = nn.BatchNorm2d(6)
    twice.other.weight = norm.weight
    nn.init.zeros_(twice[2].weight)
    assert GammaPenalty(twice, alpha=1.0, beta=0.0, weight=1.0)().item() == pytest.approx(-6 / 8)


def test_half_precision_gammas_are_summed_in_full_precision() -> None:
    net = nn.BatchNorm2d(4096).bfloat16()
    assert GammaPenalty(net, alpha=1.0, weight=1.0)().item() == pytest.approx(-1.0)


def test_synchronised_norms_in_place_of_others_change_nothing() -> None:
    net = of(nn.BatchNorm2d(6))
    penalty = GammaPenalty(net, weight=1.0)
    converted = nn.SyncBatchNorm.convert_sync_batchnorm(net)
    penalty().backward()
    assert converted[1].weight.grad is not None


class Operators(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.append(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))


def test_one_pass_over_all_gammas_and_no_wait_for_the_device() -> None:
    net = networks()
    with Operators() as seen:
        GammaPenalty(net)().backward()
    assert seen.names.count("std_mean") + seen.names.count("var_mean") == 1
    assert seen.names.count("cat") == 1
    assert not {"_local_scalar_dense", "item", "nonzero", "is_nonzero"} & set(seen.names)


@pytest.mark.parametrize(
    "settings", [{"alpha": float("nan")}, {"beta": -1.0}, {"weight": -1e-4}, {"weight": 1e400}, {"alpha": "0.1"}]
)
def test_settings_out_of_range(settings: dict[str, float]) -> None:
    with pytest.raises(AlchemyError, match="must be finite"):
        GammaPenalty(of(nn.BatchNorm2d(6)), **settings)


def test_it_adds_to_a_loss() -> None:
    net = of(nn.BatchNorm2d(6))
    (net(image()).mean() + GammaPenalty(net)()).backward()
    assert all(parameter.grad is not None for parameter in net.parameters())


def loss_of(net: nn.Module) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return net(torch.randn(4, 1, 8, 8, generator=generator)).square().mean()


def uneven() -> nn.Module:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    nn.init.normal_(net[1].weight, 0.5)
    nn.init.normal_(net[4].weight, 0.5)
    return net


def test_an_added_gradient_is_that_of_loss_plus_penalty() -> None:
    one, other = uneven(), uneven()
    (loss_of(one) + GammaPenalty(one, weight=0.3)()).backward()
    loss_of(other).backward()
    held = [parameter.grad for parameter in other.parameters()]
    GammaPenalty(other, weight=0.3).add_gradient()
    for expected, parameter, before in zip(one.parameters(), other.parameters(), held, strict=True):
        assert torch.equal(expected.grad, parameter.grad)
        assert parameter.grad is before  # DDP's buckets stay in place


def test_a_gradient_is_added_to_trained_gammas_of_the_optimizer_only() -> None:
    net = uneven()
    penalty = GammaPenalty(net, weight=1.0)
    penalty.add_gradient()
    assert net[1].weight.grad is None  # a batch that was left out
    loss_of(net).backward()
    before = [gamma.grad.clone() for gamma in penalty.gammas]
    penalty.add_gradient(torch.optim.SGD(net[0].parameters(), lr=1.0))
    net[4].weight.requires_grad_(False)
    penalty.add_gradient(torch.optim.SGD([net[1].weight], lr=1.0))
    assert not torch.equal(net[1].weight.grad, before[0])
    assert torch.equal(net[4].weight.grad, before[1])


@pytest.mark.parametrize("fused", [False, True])  # a fused optimizer unscales in its own step
def test_a_scaled_gradient_in_the_optimizers_step(fused: bool) -> None:
    one, other = uneven(), uneven()
    by_hand = torch.optim.SGD(one.parameters(), lr=0.1, fused=fused)
    (loss_of(one) + GammaPenalty(one, weight=0.3)()).backward()
    by_hand.step()
    optimizer, penalty = torch.optim.SGD(other.parameters(), lr=0.1, fused=fused), GammaPenalty(other, weight=0.3)
    optimizer.register_step_pre_hook(lambda *_: penalty.add_gradient(optimizer))
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    scaler.scale(loss_of(other)).backward()
    scaler.step(optimizer)
    torch.testing.assert_close(list(one.parameters()), list(other.parameters()), rtol=0, atol=0)


def test_a_weight_of_0_adds_nothing() -> None:
    net = uneven()
    loss_of(net).backward()
    before = [parameter.grad.clone() for parameter in net.parameters()]
    GammaPenalty(net, weight=0.0).add_gradient()
    assert all(torch.equal(p.grad, grad) for p, grad in zip(net.parameters(), before, strict=True))
