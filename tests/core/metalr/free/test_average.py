"""The running average of the recent weights, against sums written out."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from layertune.errors import OptimizerError
from layertune.metalr.free.average import KEY, RecentAverage, usual_weights


def groups_of(*weights: Tensor) -> list[dict[str, Any]]:
    parameters = [nn.Parameter(weight) for weight in weights]
    for parameter in parameters:
        parameter.grad = torch.ones_like(parameter)
    return [{"params": parameters[:1]}, {"params": parameters[1:]}]


def movements(average: RecentAverage, groups: list[dict[str, Any]]) -> list[Tensor]:
    return [movement for _, _, movement in average.movements(groups)]


def test_the_movement_is_the_sum_of_the_last_steps_each_weighted_by_its_age() -> None:
    torch.manual_seed(0)
    groups, average = groups_of(torch.randn(4).double(), torch.randn(2, 3).double()), RecentAverage()
    expected = [torch.zeros(4).double(), torch.zeros(2, 3).double()]
    for _ in range(25):
        average.follow(groups)
        for place, group in enumerate(groups):
            step = torch.randn_like(group["params"][0])
            group["params"][0].data.add_(step)
            expected[place] = 0.9 * expected[place] + step
    torch.testing.assert_close(movements(average, groups), expected)


def test_a_parameter_takes_part_from_its_first_gradient_on() -> None:
    groups, average = groups_of(torch.ones(2), torch.ones(3)), RecentAverage()
    groups[1]["params"][0].grad = None
    assert average.follow(groups)
    assert not average.follow(groups)
    assert [number for number, _, _ in average.averages(groups)] == [0]
    groups[1]["params"][0].grad = torch.ones(3)
    assert average.follow(groups)
    assert [number for number, _, _ in average.averages(groups)] == [0, 1]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_scaling_the_movement_keeps_the_average(dtype: torch.dtype) -> None:
    groups, average = groups_of(torch.tensor([1.0, 2.0], dtype=dtype), torch.ones(1, dtype=dtype)), RecentAverage()
    average.follow(groups)
    groups[0]["params"][0].data.add_(0.5)
    average.scale_movement(groups, 0.5)
    assert groups[0]["params"][0].tolist() == [1.25, 2.25]
    average.scale_movement(groups, 0.0)
    assert groups[0]["params"][0].tolist() == [1.0, 2.0]


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_the_first_step_is_made_with_its_factor_and_its_memory_becomes_the_average(dtype: torch.dtype) -> None:
    groups, average = groups_of(torch.tensor([1.0, 2.0], dtype=dtype), torch.ones(1, dtype=dtype)), RecentAverage()
    step = torch.tensor([256.0, -512.0], dtype=dtype)
    average.begin(groups, [(0, 0, step)], 2.0**-9)
    assert groups[0]["params"][0].tolist() == [1.5, 1.0]
    assert groups[0][KEY][0].tolist() == [1.0, 2.0]
    assert (groups[0][KEY][0] is step) == (dtype == torch.float64)
    assert KEY not in groups[1]


def test_the_average_of_bfloat16_weights_follows_them() -> None:
    groups, average = groups_of(torch.ones(2).bfloat16(), torch.ones(3).bfloat16()), RecentAverage()
    average.follow(groups)
    groups[0]["params"][0].data.add_(2.0**-7)  # one bit
    for _ in range(60):
        average.follow(groups)
    assert movements(average, groups)[0].abs().max() < 1e-4


def test_after_a_restart_there_is_no_movement() -> None:
    groups, average = groups_of(torch.ones(2), torch.ones(3)), RecentAverage()
    average.follow(groups)
    groups[0]["params"][0].data.add_(1.0)
    average.restart(groups)
    assert all(not movement.any() for movement in movements(average, groups))


def test_an_average_of_other_shapes_is_refused() -> None:
    groups = groups_of(torch.ones(2), torch.ones(3))
    groups[1][KEY] = {0: torch.ones(4)}
    with pytest.raises(OptimizerError, match=r"shape \(4,\) for parameter 0 of group 1, which has shape \(3,\)"):
        RecentAverage().adopt(groups)


def test_a_loaded_average_takes_the_dtype_of_its_parameter() -> None:
    groups = groups_of(torch.ones(2), torch.ones(3))
    groups[1][KEY] = {0: torch.ones(3).double()}
    RecentAverage().adopt(groups)
    assert groups[1][KEY][0].dtype == torch.float32
    groups = groups_of(torch.ones(2).bfloat16(), torch.ones(3).bfloat16())
    groups[1][KEY] = {0: torch.ones(3)}
    RecentAverage().adopt(groups)
    assert groups[1][KEY][0].dtype == torch.float32


def test_usual_weights_have_the_length_of_pytorchs_initialisation() -> None:
    torch.manual_seed(0)
    layer = nn.Conv2d(16, 32, 3)
    ((_, _, usual),) = usual_weights([(0, 0, torch.zeros_like(layer.weight))])
    assert float(usual.norm()) == pytest.approx(float(layer.weight.detach().norm()), rel=0.02)
