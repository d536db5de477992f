"""Spearman's rank correlation."""

from collections.abc import Sequence

import numpy as np

from layertune.errors import AlchemyError

__all__ = ["rank_correlation"]


def rank_correlation(first: Sequence[float], second: Sequence[float]) -> float:
    """Return Spearman's rank correlation of two lists of values (Network Alchemy, tab. 4.3).

    It says how well a ranking by norm-only training agrees with a ranking by full training. Equal values share their
    mean rank.

    Args:
        first: The values of one list, at least two.
        second: The values of the other list, in the same order.

    Returns:
        A number from -1 (opposite order) to 1 (same order); NaN if all values of a list are equal.

    Raises:
        AlchemyError: There are fewer than two values, or the lists differ in length.

    Example:
        >>> rank_correlation([0.05, 0.27, 0.29], [0.590, 0.600, 0.606])  # BraTS'17 in tab. 4.3
        1.0
    """
    if len(first) != len(second) or len(first) < 2:
        raise AlchemyError(
            f"a rank correlation needs the same number of values twice, at least two; not {len(first)} and "
            f"{len(second)}"
        )
    ranks = [_ranks(values) for values in (first, second)]
    if any(len(set(values)) == 1 for values in ranks):
        return float("nan")
    return round(float(np.corrcoef(ranks[0], ranks[1])[0, 1]), 12)


def _ranks(values: Sequence[float]) -> list[float]:
    array = np.asarray(values, dtype=float)
    return [float((array < value).sum() + (array == value).sum() / 2) for value in array]
