"""What the hosts' passes of a meta batch have in common: failures explained, losses checked, scales returned."""

import pytest
import torch
from torch import nn

from layertune import MetaBatchError, ModelError
from layertune.hosts.meta_step import checked_loss, explained_failure, scaled_backward


def test_a_failure_on_a_batch_of_another_kind_is_explained() -> None:
    message = r"the step fails on the meta batch \(KeyError: 'x'\), which is \[int\], .* is \{x: int\}; do that"
    with pytest.raises(MetaBatchError, match=message), explained_failure("the step", [1], {"x": 1}, "do that"):
        raise KeyError("x")


def test_a_failure_on_a_batch_like_a_training_batch_stays_as_it_is() -> None:
    with pytest.raises(ZeroDivisionError), explained_failure("the step", [1], [2], "do that"):
        raise ZeroDivisionError


@pytest.mark.parametrize(("loss", "came"), [(None, "NoneType"), (torch.ones(()), "a tensor without a gradient")])
def test_a_loss_without_a_gradient_is_refused(loss: object, came: str) -> None:
    with pytest.raises(ModelError, match=f"the step gave {came} on the meta batch, .*; return it"):
        checked_loss(loss, "the step", "return it")


@pytest.mark.parametrize("scale", [1.0, 8.0])
def test_the_backward_pass_is_scaled_as_the_training_is(scale: float) -> None:
    weight = nn.Parameter(torch.ones(()))
    scaler = torch.amp.GradScaler("cpu", init_scale=scale) if scale > 1 else None
    loss = checked_loss(3 * weight, "the step", "")
    assert scaled_backward(loss, scaler).item() == scale
    assert weight.grad is not None
    assert weight.grad.item() == 3 * scale
