"""The clip test: do small gammas matter less than random ones?"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import fmean

import torch
from torch import Tensor, nn

from layertune.alchemy.norms import affine_norms, gamma_of, gammas, require_finite
from layertune.errors import AlchemyError

__all__ = ["ClipPoint", "ClipTest", "clip_test"]


@dataclass(frozen=True)
class ClipPoint:
    """One threshold of a clip test.

    Attributes:
        threshold: Gammas whose |gamma| is below this number were set to 0.
        clipped: The number of these gammas.
        share: The share of these gammas in all gammas, in [0, 1].
        metric: The metric with these gammas at 0.
        random: The metric with as many random gammas at 0, one value for each draw.
    """

    threshold: float
    clipped: int
    share: float
    metric: float
    random: tuple[float, ...]


@dataclass(frozen=True)
class ClipTest:
    """The metric of a network at several thresholds of clipping.

    Attributes:
        baseline: The metric with all gammas unchanged.
        points: The measurements, by ascending threshold.
        band: The change of the metric that is accepted, as a share of the baseline.
    """

    baseline: float
    points: tuple[ClipPoint, ...]
    band: float

    def within(self, metric: float) -> bool:
        """Return whether a metric lies in the accepted band around the baseline."""
        return abs(metric - self.baseline) <= self.band * abs(self.baseline)

    @property
    def harmless(self) -> float | None:
        """The highest threshold up to which the metric stays in the band; ``None`` if the first one leaves it.

        It can serve as the threshold of ``redundant_kernels``.
        """
        threshold = None
        for point in self.points:
            if not self.within(point.metric):
                break
            threshold = point.threshold
        return threshold

    @property
    def random_means(self) -> list[float]:
        """The mean metric over the random draws, for each point."""
        return [fmean(point.random) for point in self.points]


def clip_test(
    model: nn.Module,
    evaluate: Callable[[nn.Module], float],
    thresholds: Sequence[float],
    *,
    draws: int = 5,
    band: float = 0.02,
    seed: int = 0,
) -> ClipTest:
    """Measure the metric with small gammas set to 0, and with as many random ones (Network Alchemy, fig. 3.1).

    If small gammas belong to redundant kernels, clipping them changes the metric less than clipping random ones (thesis
    sec. 3.2.1). A channel whose gamma is 0 has the norm's beta everywhere. The gammas are restored bit for bit, also on
    an exception.

    Args:
        model: A trained network.
        evaluate: A function that returns the metric of the network on the validation cases; it must not train.
        thresholds: The thresholds for |gamma|, each > 0.
        draws: The number of random sets for each threshold, >= 1.
        band: The accepted change, as a share of the metric. Default: 0.02, the band that the thesis shades.
        seed: The seed of the random sets.

    Returns:
        The metric at each threshold, in ascending order.

    Raises:
        ModelError: The network has no norm with a gamma.
        AlchemyError: No threshold is given, a number is out of range, or a gamma is not finite.

    Example:
        >>> net = nn.Sequential(nn.BatchNorm1d(4), nn.Linear(4, 1)).eval()
        >>> with torch.no_grad():
        ...     net[0].weight[0] = 0.01
        >>> x = torch.randn(8, 4)
        >>> result = clip_test(net, lambda net: net(x).std().item(), [0.1])
        >>> result.points[0].clipped, result.points[0].share, result.harmless
        (1, 0.25, 0.1)
    """
    _check(thresholds, draws)
    sizes = gammas(model)
    require_finite(sizes)
    flat = torch.cat([values.flatten().abs().double().cpu() for values in sizes.values()])
    generator = torch.Generator().manual_seed(seed)
    baseline = _measure(model, evaluate, torch.zeros(len(flat), dtype=torch.bool))
    points = []
    for threshold in sorted(thresholds):
        small = flat < threshold
        count = int(small.sum())
        draw_numbers = [torch.randperm(len(flat), generator=generator)[:count] for _ in range(draws)]
        random = [torch.zeros_like(small).index_fill_(0, numbers, True) for numbers in draw_numbers]
        points.append(
            ClipPoint(
                float(threshold),
                count,
                count / len(flat),
                _measure(model, evaluate, small) if count else baseline,
                tuple(_measure(model, evaluate, mask) if count else baseline for mask in random),
            )
        )
    return ClipTest(baseline, tuple(points), band)


def _measure(model: nn.Module, evaluate: Callable[[nn.Module], float], clipped: Tensor) -> float:
    with _clipped(model, clipped):
        return float(evaluate(model))


@contextmanager
def _clipped(model: nn.Module, mask: Tensor) -> Iterator[None]:
    """Set the gammas to 0 where the mask, over all gammas in a row, is true."""
    parameters: list[Tensor] = [gamma_of(norm) for norm in affine_norms(model).values()]
    before = [parameter.detach().clone() for parameter in parameters]
    parts = mask.split([parameter.numel() for parameter in parameters])
    try:
        with torch.no_grad():
            for parameter, part in zip(parameters, parts, strict=True):
                parameter.masked_fill_(part.view_as(parameter).to(parameter.device), 0.0)
        yield
    finally:
        with torch.no_grad():
            torch._foreach_copy_(parameters, before)


def _check(thresholds: Sequence[float], draws: int) -> None:
    if not thresholds or not all(0 < threshold < float("inf") for threshold in thresholds):
        raise AlchemyError(f"thresholds for |gamma| are finite and above 0, at least one; not {list(thresholds)}")
    if draws < 1:
        raise AlchemyError(f"a clip test draws at least one random set, not {draws}")
