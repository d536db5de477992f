"""Bootstrap intervals and paired tests."""

from collections.abc import Sequence
from typing import Any

import numpy as np

__all__ = ["interval", "p_value"]

RESAMPLES = 9999  # the default of scipy
LEVEL = 0.95


def interval(values: Sequence[float], *, seed: int = 0) -> tuple[float, float]:
    """Compute the bootstrap interval of the median, 95 %, by percentiles.

    Args:
        values: The values, one for each seed of a study; a single value is its own interval.
        seed: Seed of the resampling.

    Returns:
        The lower and the upper end.

    Example:
        >>> low, high = interval([0.80, 0.81, 0.82, 0.83, 0.84])
        >>> 0.80 <= low <= 0.82 <= high <= 0.84
        True
    """
    if len(set(values)) < 2:
        return values[0], values[0]
    from scipy.stats import bootstrap

    limits = bootstrap(
        (np.asarray(values),),
        np.median,
        n_resamples=RESAMPLES,
        confidence_level=LEVEL,
        method="percentile",
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return float(limits.low), float(limits.high)


def p_value(values: Sequence[float], others: Sequence[float]) -> float:
    """Compute the p-value of a two-sided paired permutation test on the mean difference.

    The test is exact for up to 13 pairs. With n pairs the p-value cannot come below 2 / 2 ** n, which is 0.0625 for 5.

    Args:
        values: The values of a method, one for each seed.
        others: The values of the other method on the same seeds.

    Example:
        >>> p_value([0.9, 0.8, 0.9, 0.8, 0.9], [0.7, 0.7, 0.7, 0.7, 0.7])
        0.0625
    """
    from scipy.stats import permutation_test

    def mean_difference(a: Any, b: Any, axis: int) -> Any:
        return np.mean(a - b, axis=axis)

    return float(
        permutation_test(
            (np.asarray(values), np.asarray(others)),
            mean_difference,
            permutation_type="samples",
            vectorized=True,
            n_resamples=RESAMPLES,
            rng=np.random.default_rng(0),
        ).pvalue
    )
