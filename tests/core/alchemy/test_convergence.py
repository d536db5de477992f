"""When a phase ends."""

import pytest

from layertune import AlchemyError, Convergence
from layertune.alchemy.convergence import Progress


def ends_after(rule: Convergence, values: list[float | None]) -> int | None:
    progress = Progress()
    for epoch, value in enumerate(values, 1):
        progress = rule.after(progress, value)
        if rule.reached(progress):
            return epoch
    return None


@pytest.mark.parametrize(
    ("settings", "values", "expected"),
    [
        pytest.param({"patience": 2}, [3, 2, 2, 2, 1], 4, id="a plateau"),
        pytest.param({"patience": 2}, [3, 2, 3, 1, 2, 2], 6, id="an improvement starts the wait again"),
        pytest.param({"patience": 2, "mode": "max"}, [1, 2, 1, 2, 3], 4, id="a score"),
        pytest.param({"patience": 2, "min_delta": 0.5}, [3, 2.6, 2.5, 2.4], 3, id="too small an improvement"),
        pytest.param({"patience": 2, "limit": 3}, [3, 2, 1, 0], 3, id="the limit comes first"),
        pytest.param({"limit": 2}, [None, None], 2, id="a budget needs no metric"),
        pytest.param({"patience": 2}, [float("nan")] * 3, 2, id="a diverged network has converged"),
        pytest.param({"patience": 2}, [3, float("nan"), 2, float("inf"), 1], None, id="one bad epoch"),
        pytest.param({"patience": 3}, [3, 2, 1], None, id="not yet"),
    ],
)
def test_phases(settings: dict[str, float], values: list[float | None], expected: int | None) -> None:
    assert ends_after(Convergence(**settings), values) == expected


def test_many_small_improvements_add_up_to_one() -> None:
    """The best value is the last one that counted, so a slow fall is seen."""
    assert ends_after(Convergence(patience=3, min_delta=0.5), [3.0, 2.7, 2.4, 2.1, 1.8]) is None


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"patience": 0},
        {"limit": 0},
        {"patience": 1.5},
        {"patience": float("inf")},
        {"limit": float("nan")},
        {"limit": "ten"},
        {"patience": 1, "mode": "up"},
        {"limit": 1, "min_delta": -1},
    ],
)
def test_settings_out_of_range(settings: dict[str, object]) -> None:
    with pytest.raises(AlchemyError):
        Convergence(**settings)


def test_a_plateau_needs_the_metric() -> None:
    with pytest.raises(AlchemyError, match="give update"):
        Convergence(patience=1).after(Progress(), None)
