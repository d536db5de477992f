"""The parts that the benchmarks share: contenders timed in turns, and their ratios to the plain step.

In a lap each contender takes its turn once, so that other work on the machine disturbs all of them alike. A time is
divided by the plain time of the same lap, and the median of these ratios is reported.
"""

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

__all__ = ["CYCLE", "HYPER_LR", "MODES", "Times", "ratios_to", "seconds_of", "summary", "time_in_turns"]

CYCLE = 10  # steps in which ``every=10`` has one meta pass
HYPER_LR = 1e-6  # the networks learn noise here: rates that stay near their start keep every step alike
MODES: dict[str, dict[str, Any] | None] = {
    "streaming": {"streaming": True},
    "plain": None,
    "every10": {"every": CYCLE},
    "exact": {},
}
"""The contenders of a host by name: settings of MetaLR, or None for the host without it.

The plain contender is in the middle, close to those whose ratio is near 1.
"""

Times = dict[str, list[float]]


def time_in_turns(
    contenders: Mapping[str, Callable[[], float]],
    laps: int,
    *,
    takes_part: Callable[[str, int], bool] = lambda name, lap: True,  # noqa: ARG005
) -> Times:
    """Let each contender take its turn in each lap.

    Args:
        contenders: By name, a function that takes a turn and returns the seconds that count.
        laps: The number of times that each contender takes its turn.
        takes_part: Whether a contender, by name, takes part in a lap; by default each does in all.

    Returns:
        The seconds of each contender's turns.

    Example:
        >>> time_in_turns({"plain": lambda: 1.0, "slow": lambda: 2.0}, 3, takes_part=lambda name, lap: not lap)
        {'plain': [1.0], 'slow': [2.0]}
    """
    times: Times = {name: [] for name in contenders}
    for lap in range(laps):
        for name, turn in contenders.items():
            if takes_part(name, lap):
                times[name].append(turn())
    return times


def seconds_of(step: Callable[[], object]) -> float:
    """Return the seconds that a step takes."""
    start = time.perf_counter()
    step()
    return time.perf_counter() - start


def ratios_to(times: Mapping[str, Sequence[float]], plain: str = "plain") -> Times:
    """Divide each contender's times by the plain times of the same laps.

    Args:
        times: The seconds of each contender's turns.
        plain: The name of the contender that the others are compared with.

    Returns:
        The ratios of all other contenders.

    Example:
        >>> ratios_to({"plain": [1.0, 2.0], "exact": [2.0, 5.0]})
        {'exact': [2.0, 2.5]}
    """
    return {
        name: [own / other for own, other in zip(values, times[plain], strict=True)]
        for name, values in times.items()
        if name != plain
    }


def summary(
    ratios: Mapping[str, Sequence[float]], plain: Sequence[float], *, repeats: int, name: str = "plain"
) -> dict[str, Any]:
    """Summarise a benchmark.

    Args:
        ratios: The ratios of each contender.
        plain: The seconds of the plain contender.
        repeats: How often the measurement was repeated.
        name: The name of the plain contender.

    Returns:
        ``<contender>_ratio``, the medians; ``<name>_ms``, the median plain time in milliseconds; ``repeats``; and
        ``spread``, the quartiles of each contender's ratios.

    Example:
        >>> summary({"exact": [2.0, 2.1, 2.5]}, [0.5, 0.5, 0.6], repeats=3)
        {'exact_ratio': 2.1, 'plain_ms': 500.0, 'repeats': 3, 'spread': {'exact': [2.05, 2.3]}}
    """
    return {
        **{f"{key}_ratio": statistics.median(values) for key, values in ratios.items()},
        f"{name}_ms": 1000 * statistics.median(plain),
        "repeats": repeats,
        "spread": {
            key: [round(float(number), 4) for number in np.quantile(values, (0.25, 0.75))]
            for key, values in ratios.items()
        },
    }
