"""The clip test: what it counts, what it measures, and that it leaves the network alone."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from layertune import AlchemyError, ModelError, clip_test
from layertune.alchemy.clip_test import ClipPoint, ClipTest
from norm_networks import of


def network() -> nn.Module:
    """Two norms, ten gammas, of which 0.01, -0.02, 0.1 and -0.2 are small."""
    net = nn.Sequential(nn.Conv2d(1, 4, 1), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 6, 1), nn.GroupNorm(2, 6))
    with torch.no_grad():
        net[1].weight.copy_(torch.tensor([0.01, 1.0, 0.1, 1.2]))
        net[4].weight.copy_(torch.tensor([1.0, -0.02, 1.5, -0.2, 0.9, 2.0]))
    return net


def gammas_of(net: nn.Module) -> list[float]:
    return [round(value, 4) for value in torch.cat([net[1].weight, net[4].weight]).tolist()]


def recorder(seen: list[list[float]]) -> Callable[[nn.Module], float]:
    def evaluate(net: nn.Module) -> float:
        seen.append(gammas_of(net))
        return float(sum(value != 0 for value in gammas_of(net)))

    return evaluate


def test_small_gammas_and_as_many_random_ones() -> None:
    net, seen = network(), []
    before = gammas_of(net)
    result = clip_test(net, recorder(seen), [0.15, 0.05], draws=3)
    assert result.baseline == 10
    assert [(point.threshold, point.clipped, point.share) for point in result.points] == [
        (0.05, 2, 0.2),
        (0.15, 3, 0.3),
    ]
    assert [point.metric for point in result.points] == [8, 7]
    assert [point.random for point in result.points] == [(8, 8, 8), (7, 7, 7)]
    assert result.random_means == [8, 7]
    assert seen[0] == before
    assert seen[1] == [0 if abs(value) < 0.05 else value for value in before]
    clipped = [tuple(index for index, value in enumerate(state) if value == 0) for state in seen[2:5]]
    assert len(set(clipped)) > 1, "draws differ"
    assert all(state[i] in (0, before[i]) for state in seen for i in range(10))


def test_the_network_comes_back_bit_for_bit() -> None:
    net = network()
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    clip_test(net, lambda _: 1.0, [0.5])
    with pytest.raises(RuntimeError, match="stop"):
        clip_test(net, stop, [0.5])
    assert all(torch.equal(before[name], tensor) for name, tensor in net.state_dict().items())
    assert all(parameter.requires_grad for parameter in net.parameters())


def stop(_: nn.Module) -> float:
    raise RuntimeError("stop")


def test_the_seed_decides_which() -> None:
    def run(seed: int) -> list[list[float]]:
        seen: list[list[float]] = []
        clip_test(network(), recorder(seen), [0.15], draws=4, seed=seed)
        return seen

    assert run(0) == run(0)
    assert run(0) != run(1)


def test_a_threshold_below_all_gammas_costs_nothing() -> None:
    seen: list[list[float]] = []
    result = clip_test(network(), recorder(seen), [0.001], draws=5)
    assert result.points == (ClipPoint(0.001, 0, 0.0, 10.0, (10.0,) * 5),)
    assert len(seen) == 1


def test_the_band_and_the_highest_harmless_threshold() -> None:
    metrics = {0.1: 0.81, 0.2: 0.79, 0.3: 0.70, 0.4: 0.80}
    points = tuple(ClipPoint(threshold, 1, 0.1, metric, (0.5,)) for threshold, metric in metrics.items())
    result = ClipTest(0.80, points, 0.02)
    assert result.within(0.815)
    assert not result.within(0.783)
    assert result.harmless == 0.2, "0.4 lies behind a threshold that does harm"
    assert ClipTest(0.80, points[2:], 0.02).harmless is None


def test_a_channel_without_gamma_still_has_its_beta() -> None:
    net = of(nn.BatchNorm2d(6)).eval()
    nn.init.constant_(net[1].bias, 3.0)
    nn.init.constant_(net[1].weight, 0.01)
    outputs: list[Tensor] = []

    def evaluate(net: nn.Module) -> float:
        outputs.append(net[:2](torch.randn(2, 1, 8, 8)).detach())
        return 0.0

    clip_test(net, evaluate, [0.5], draws=1)
    assert outputs[1].unique().tolist() == [3.0]


@pytest.mark.parametrize("settings", [{"thresholds": []}, {"thresholds": [0.0]}, {"thresholds": [0.1], "draws": 0}])
def test_settings_out_of_range(settings: dict[str, object]) -> None:
    with pytest.raises(AlchemyError):
        clip_test(network(), lambda _: 0.0, **settings)


def test_networks_that_cannot_be_clipped() -> None:
    with pytest.raises(ModelError, match="no normalisation layer"):
        clip_test(nn.Linear(1, 1), lambda _: 0.0, [0.1])
    net = network()
    nn.init.constant_(net[4].weight, float("nan"))
    with pytest.raises(AlchemyError, match="gammas of 4 are not finite"):
        clip_test(net, lambda _: 0.0, [0.1])
