"""Methods by name."""

import math

import pytest
from torch import empty, nn

from layertune import LayerMap, PolicyError, map_layers
from layertune.policies.by_name import ALCHEMY_METHODS, METHODS, method_name, scheme


def chain(d: int) -> LayerMap:
    return map_layers(nn.Sequential(*(nn.Linear(2, 2) for _ in range(d))), empty(2, 2))


@pytest.mark.parametrize(
    ("method", "numbers", "scales"),
    [
        ("all_layers", {}, [1, 1, 1, 1, 1, 1, 1]),
        ("metalr", {}, [1, 1, 1, 1, 1, 1, 1]),
        ("metalr_streaming", {}, [1, 1, 1, 1, 1, 1, 1]),
        ("last_layer", {}, [0, 0, 0, 0, 0, 0, 1]),
        ("layer_wise", {}, [0, 0, 0, 1, 1, 1, 1]),
        ("layer_wise", {"first": 6}, [0, 0, 0, 0, 0, 1, 1]),
        ("bidirectional", {}, [1, 1, 0, 0, 0, 1, 1]),
        ("bidirectional", {"m": 2, "n": 2}, [1, 0, 1, 1, 1, 1, 1]),
    ],
)
def test_a_name_gives_the_policy(method: str, numbers: dict[str, int], scales: list[float]) -> None:
    assert scheme(method, **numbers)(chain(7)) == scales


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("all", "all_layers"),
        ("last", "last_layer"),
        ("bi-directional", "bidirectional"),
        ("layer-wise", "layer_wise"),
    ],
)
def test_old_spellings_are_understood(old: str, new: str) -> None:
    assert method_name(old) == method_name(new) == new
    assert scheme(old)(chain(7)) == scheme(new)(chain(7))


@pytest.mark.parametrize("name", ["norm-only", "metalr-streaming", "Last"])
def test_a_name_that_a_bundle_would_not_understand_is_refused(name: str) -> None:
    """A bundle compares the names of these methods, and would train all layers without a word."""
    with pytest.raises(PolicyError, match="method is one of"):
        scheme(name)


@pytest.mark.parametrize("d", range(2, 12))
@pytest.mark.parametrize("method", METHODS + ALCHEMY_METHODS)
def test_without_numbers_every_method_fits_every_depth_and_trains_the_head(method: str, d: int) -> None:
    scales = scheme(method)(chain(d))
    assert len(scales) == d
    assert scales[-1] == 1
    if method == "bidirectional":
        assert scales[0] == 1 or d == 2
        assert scales.count(0) == math.ceil(d / 3)


@pytest.mark.parametrize(("d", "tuned"), [(3, {1, 3}), (5, {1, 2, 5}), (6, {1, 2, 5, 6}), (8, {1, 2, 3, 7, 8})])
def test_a_third_is_frozen_in_the_middle(d: int, tuned: set[int]) -> None:
    assert {depth for depth, scale in enumerate(scheme("bidirectional")(chain(d)), 1) if scale} == tuned


def test_a_middle_third_needs_two_depths() -> None:
    assert scheme("bidirectional")(chain(2)) == [0.0, 1.0]
    with pytest.raises(PolicyError, match="d must be at least 2, not 1"):
        scheme("bidirectional")(chain(1))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"method": "best"}, "method is one of metalr, .* not 'best'"),
        ({"method": "last", "m": 1, "n": 2}, "m=1 belongs to the method 'bidirectional'"),
        ({"method": "bidirectional", "m": 1}, "m=1 and n=None: .* give both or neither"),
        ({"method": "all", "first": 1}, "first=1 belongs to the method 'layer_wise'"),
    ],
)
def test_a_wrong_name_or_number_is_one_clear_error(arguments: dict, message: str) -> None:
    with pytest.raises(PolicyError, match=message):
        scheme(**arguments)
