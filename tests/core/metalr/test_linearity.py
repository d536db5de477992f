"""Optimizers are tried before MetaLR attaches: those that it cannot correct are refused, and trying changes nothing."""

import copy
import importlib
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import SGD, Adam, Optimizer

from layertune import MetaLR, OptimizerError
from layertune.metalr.linearity import require_linear_step


def groups(**options: Any) -> list[dict[str, Any]]:
    """Two groups with tensors of one, two and four dimensions."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(2, 12, 3), nn.BatchNorm2d(12), nn.Flatten(), nn.Linear(12, 20))
    return [{"params": list(net[:2].parameters()), **options}, {"params": list(net[2:].parameters()), **options}]


def timm_optimizer(name: str, **options: Any) -> Optimizer:
    factory = importlib.import_module("timm.optim").create_optimizer_v2
    return factory(groups(), name, **({"lr": 1e-3, "weight_decay": 0.05} | options))


LINEAR = ["sgd", "momentum", "nesterovw", "adam", "adamw", "nadamw", "radam", "adabelief", "adan", "lion", "lamb"]
LINEAR += ["lars", "adopt", "mars", "novograd", "rmsprop", "adagrad", "adamp", "sgdp", "adafactor", "cadamw", "clion"]


class Lookahead(SGD):
    """Goes half the way back to the weights of six steps before; without an optimizer within it."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.count = 0
        self.slow: dict[int, torch.Tensor] = {}

    @torch.no_grad()
    def step(self, closure=None):
        weights = [parameter for group in self.param_groups for parameter in group["params"]]
        if not self.slow:
            self.slow = {number: weight.clone() for number, weight in enumerate(weights)}
        loss = super().step(closure)
        self.count += 1
        if self.count % 6 == 0:
            for number, weight in enumerate(weights):
                weight.lerp_(self.slow[number], 0.5)
                self.slow[number] = weight.clone()
        return loss


class Averaging(SGD):
    """Keeps an average of the weights in its state, which no step reads."""

    @torch.no_grad()
    def step(self, closure=None):
        loss = super().step(closure)
        for group in self.param_groups:
            for parameter in group["params"]:
                average = self.state[parameter].setdefault("average", torch.zeros_like(parameter))
                average.lerp_(parameter, 0.1)
        return loss


class Scheduled(SGD):
    """Lowers its own learning rate."""

    def step(self, closure=None):
        loss = super().step(closure)
        for group in self.param_groups:
            group["lr"] = group["lr"] * 0.99
        return loss


class KnowsIds(SGD):
    """Decays those parameters that it knows by their id()."""

    def __init__(self, params: Any, **kwargs: Any) -> None:
        super().__init__(params, **kwargs)
        self.decayed = {id(parameter) for group in self.param_groups for parameter in group["params"]}


class KnowsParameters(SGD):
    """Moves parameters that it keeps in a list of its own."""

    def __init__(self, params: Any, **kwargs: Any) -> None:
        super().__init__(params, **kwargs)
        self.own = [parameter for group in self.param_groups for parameter in group["params"]]

    @torch.no_grad()
    def step(self, closure=None):  # noqa: ARG002 - torch's signature
        for parameter in self.own:
            if parameter.grad is not None:
                parameter.sub_(self.param_groups[0]["lr"] * parameter.grad)


@pytest.mark.parametrize(
    ("build", "instead"),
    [
        pytest.param(lambda: timm_optimizer("larc"), "use Lars with trust_clip=False", id="LARC"),
        pytest.param(lambda: timm_optimizer("muon"), r"use torch\.optim\.Muon .* AdamW", id="timm's Muon"),
        pytest.param(lambda: timm_optimizer("cadamw"), None, id="cautious AdamW is linear"),
        pytest.param(lambda: timm_optimizer("adamc"), "adamw in place of adamc", id="AdamC"),
        pytest.param(lambda: timm_optimizer("cadamc"), "adamw in place of adamc", id="cautious AdamC"),
        pytest.param(lambda: timm_optimizer("sgdc"), "without corrected_weight_decay", id="SGDC"),
        pytest.param(lambda: timm_optimizer("clionc"), "without corrected_weight_decay", id="cautious LionC"),
        pytest.param(
            lambda: timm_optimizer("lookahead_sgd"), "or use the SGD without Lookahead", id="timm's Lookahead"
        ),
        pytest.param(lambda: Lookahead(groups(), lr=0.01), "use the optimizer within it", id="Lookahead of one piece"),
        pytest.param(lambda: Averaging(groups(), lr=0.01), "use SGD, Adam", id="an average of the weights"),
        pytest.param(lambda: Scheduled(groups(), lr=0.01), "sets its own learning rate", id="own schedule"),
        pytest.param(lambda: KnowsIds(groups(), lr=0.01), "knows its parameters by their id", id="ids"),
        pytest.param(lambda: KnowsParameters(groups(), lr=0.01), "use SGD, Adam", id="parameters of its own"),
        pytest.param(lambda: torch.optim.ASGD(groups(), lr=0.01), "use SGD", id="ASGD"),
        pytest.param(lambda: torch.optim.Adafactor(groups(), lr=0.01), "Adafactor", id="Adafactor"),
        pytest.param(lambda: timm_optimizer("adahessian"), "cannot be tried on a small copy", id="second derivatives"),
    ],
)
def test_what_is_not_linear_is_refused_with_what_to_use_instead(build: Any, instead: str | None) -> None:
    optimizer = build()
    if instead is None:
        require_linear_step(optimizer)
        return
    with pytest.raises(OptimizerError, match=instead):
        MetaLR(optimizer)
    assert not optimizer._optimizer_step_pre_hooks


@pytest.mark.parametrize(
    "name",
    LINEAR,
)
def test_optimizers_whose_step_is_linear_are_taken(name: str) -> None:
    require_linear_step(timm_optimizer(name, weight_decay=0.05 if name != "adan" else 0.0))


def test_a_clip_that_only_large_rates_reach_is_found() -> None:
    class Clipped(SGD):
        @torch.no_grad()
        def step(self, closure=None):  # noqa: ARG002 - torch's signature
            for group in self.param_groups:
                for parameter in group["params"]:
                    if parameter.grad is not None:
                        parameter.sub_((group["lr"] * parameter.grad).clamp(-0.05, 0.05))

    with pytest.raises(OptimizerError, match="not proportional"):
        MetaLR(Clipped(groups(), lr=1e-4))


class Counting(Adam):
    """Counts its steps in the places where optimizers keep such numbers."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.number = 0
        self.counts = {"steps": [0]}
        self.tensor = torch.zeros(())

    def step(self, closure=None):
        self.number += 1
        self.counts["steps"][0] += 1
        self.tensor += 1
        for group in self.param_groups:
            group["counts"][0] += 1
        torch.rand(3)
        return super().step(closure)


def test_trying_changes_nothing_in_the_optimizer() -> None:
    optimizer = Counting([{**group, "counts": [0]} for group in groups()], lr=0.01)
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    before = copy.deepcopy(optimizer.state_dict())
    weights = [parameter.detach().clone() for group in optimizer.param_groups for parameter in group["params"]]
    random_state = torch.get_rng_state()
    metalr = MetaLR(optimizer)
    metalr.detach()
    assert (optimizer.number, optimizer.counts, optimizer.tensor.item()) == (1, {"steps": [1]}, 1)
    assert [group["counts"] for group in optimizer.param_groups] == [[1], [1]]
    assert torch.equal(random_state, torch.get_rng_state())
    after = optimizer.state_dict()
    assert str(after) == str(before)
    held = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    torch.testing.assert_close(held, weights, rtol=0, atol=0)


def test_a_warmed_up_state_is_tried_too() -> None:
    """Adagrad makes its state when it is built, so that a trial without it would fail."""
    optimizer = torch.optim.Adagrad(groups(), lr=0.01, initial_accumulator_value=0.5)
    require_linear_step(optimizer)
    sums = [state["sum"] for state in optimizer.state.values()]
    assert all((one == 0.5).all() for one in sums)
