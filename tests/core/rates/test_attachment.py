"""What MetaLR, AutoLR and Replay share: rates multiplied for the length of a step, and nothing changed outside it."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import SGD

from layertune import AutoLR, LRProfile, MetaLR, OptimizerError, map_layers, param_groups
from layertune.rates.attachment import LRMultiplier
from layertune.rates.stand_in import StandIn

LR, FACTOR = 0.1, 3.0


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(*(nn.Linear(3, 3) for _ in range(5))).double()


def build(kind: type[SGD] = SGD, **options: Any) -> tuple[nn.Module, SGD]:
    net = network()
    groups = param_groups(net, map_layers(net, torch.empty(2, 3).double()), lr=LR)
    return net, kind(groups, lr=LR, **options)


def attach_metalr(_: nn.Module, optimizer: SGD) -> LRMultiplier:
    metalr = MetaLR(optimizer, hyper_lr=1e-9, rule="joint")
    for group in optimizer.param_groups:
        group["meta_scale"] = FACTOR
    return metalr


def attach_autolr(net: nn.Module, optimizer: SGD) -> LRMultiplier:
    autolr = AutoLR(net, optimizer, stem_factor=1.0)
    for group in optimizer.param_groups:
        group["auto_scale"] = FACTOR
    return autolr


def attach_replay(_: nn.Module, optimizer: SGD) -> LRMultiplier:
    names = [group["layer"] for group in optimizer.param_groups]
    profile = LRProfile(names, list(range(1, 6)), [1], [[FACTOR] * 5], [[FACTOR * LR] * 5])
    return profile.replay(optimizer)


ATTACH = [
    pytest.param(attach_metalr, id="MetaLR"),
    pytest.param(attach_autolr, id="AutoLR"),
    pytest.param(attach_replay, id="Replay"),
]
Attach = Callable[[nn.Module, SGD], LRMultiplier]


def backward(net: nn.Module) -> None:
    net(torch.ones(2, 3).double()).square().sum().backward()


def gradients(net: nn.Module) -> list[torch.Tensor]:
    return [parameter.grad.clone() for parameter in net.parameters()]


def assert_moved(net: nn.Module, start: list[torch.Tensor], directions: list[torch.Tensor], rate: float) -> None:
    for parameter, before, direction in zip(net.parameters(), start, directions, strict=True):
        torch.testing.assert_close(before - parameter.detach(), rate * direction, rtol=1e-9, atol=1e-15)


def weights(net: nn.Module) -> list[torch.Tensor]:
    return [parameter.detach().clone() for parameter in net.parameters()]


@pytest.mark.parametrize("attach", ATTACH)
def test_the_step_has_the_multiplied_rates_and_everybody_else_the_schedules(attach: Attach) -> None:
    class Watching(SGD):
        inside: list[float]

        def step(self, closure=None):
            self.inside = [group["lr"] for group in self.param_groups]
            return super().step(closure)

    net, optimizer = build(Watching)
    outside = []
    optimizer.register_step_pre_hook(lambda *_: outside.append([group["lr"] for group in optimizer.param_groups]))
    attach(net, optimizer)
    optimizer.register_step_pre_hook(lambda *_: outside.append([group["lr"] for group in optimizer.param_groups]))
    optimizer.register_step_post_hook(lambda *_: outside.append([group["lr"] for group in optimizer.param_groups]))
    backward(net)
    start, directions = weights(net), gradients(net)
    optimizer.step()
    assert all(rates == [LR] * 5 for rates in outside)
    assert optimizer.inside != [LR] * 5
    assert_moved(net, start, directions, FACTOR * LR)


class Nested(SGD):
    """A subclass that moves the weights before and after its parent's step."""

    @torch.no_grad()
    def step(self, closure=None):
        self._shift(0.5)
        loss = super().step(closure)
        self._shift(0.25)
        return loss

    def _shift(self, amount: float) -> None:
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    parameter.sub_(amount * group["lr"])


@pytest.mark.parametrize("attach", ATTACH)
def test_the_whole_step_of_a_subclass_is_multiplied_once(attach: Attach) -> None:
    SGD([nn.Parameter(torch.ones(1))], lr=1.0)  # gives the parent's step its hooks, so that both steps call them
    net, optimizer = build(Nested)
    attached = attach(net, optimizer)
    backward(net)
    start, directions = weights(net), [gradient + 0.75 for gradient in gradients(net)]
    optimizer.step()
    assert_moved(net, start, directions, FACTOR * LR)
    assert getattr(attached, "steps", getattr(attached, "step", 1)) == 1


def test_metalr_learns_from_the_whole_step_of_a_subclass() -> None:
    SGD([nn.Parameter(torch.ones(1))], lr=1.0)
    net, optimizer = build(Nested)
    metalr = MetaLR(optimizer, hyper_lr=1e-3, rule="additive")
    backward(net)
    directions = [gradient + 0.75 for gradient in gradients(net)]
    optimizer.step()
    optimizer.zero_grad()
    backward(net)
    meta = gradients(net)
    metalr.adapt()
    h = [-(g * u).sum().item() for g, u in zip(meta, directions, strict=True)]
    expected = [LR - 1e-3 * (h[i] + h[i + 1]) for i in range(0, 10, 2)]
    assert list(metalr.lrs.values()) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("attach", ATTACH)
def test_a_state_that_is_saved_after_a_step_that_raised_holds_the_schedules_rates(attach: Attach) -> None:
    class Fails(SGD):
        fails = False

        def step(self, closure=None):
            super().step(closure)
            if self.fails:
                raise RuntimeError("out of memory")

    net, optimizer = build(Fails)
    attached = attach(net, optimizer)
    backward(net)
    optimizer.fails = True
    with pytest.raises(RuntimeError, match="out of memory"):
        optimizer.step()
    assert [group["lr"] for group in optimizer.state_dict()["param_groups"]] == [LR] * 5
    # The same without hooks of the state: what a host reads by itself.
    assert [group["lr"] for group in optimizer.param_groups] == [LR] * 5
    attached.detach()
    assert [group["lr"] for group in optimizer.param_groups] == [LR] * 5


@pytest.mark.parametrize("attach", ATTACH)
@pytest.mark.parametrize("keyword", [False, True])
def test_a_state_that_is_saved_in_the_closure_holds_the_schedules_rates(attach: Attach, keyword: bool) -> None:
    net, optimizer = build()
    attach(net, optimizer)
    saved = []

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        backward(net)
        saved.append([group["lr"] for group in optimizer.state_dict()["param_groups"]])
        return torch.ones(())

    start = weights(net)
    loss = optimizer.step(closure=closure) if keyword else optimizer.step(closure)
    assert loss == 1
    assert saved == [[LR] * 5]
    assert_moved(net, start, gradients(net), FACTOR * LR)


@pytest.mark.parametrize("attach", ATTACH)
def test_a_closure_that_is_called_twice_is_refused(attach: Attach) -> None:
    class Twice(SGD):
        def step(self, closure=None):
            if closure is not None:
                closure()
            return super().step(closure)

    net, optimizer = build(Twice)
    attach(net, optimizer)
    before = weights(net)
    with pytest.raises(OptimizerError, match="Twice calls its closure several times"):
        optimizer.step(lambda: backward(net) or torch.ones(()))
    torch.testing.assert_close(weights(net), before, rtol=0, atol=0)


@pytest.mark.parametrize("first", ATTACH)
@pytest.mark.parametrize("second", ATTACH)
def test_only_one_may_be_attached(first: Attach, second: Attach) -> None:
    net, optimizer = build()
    attached = first(net, optimizer)
    with pytest.raises(OptimizerError, match=f"a {type(attached).__name__} is attached to this optimizer already"):
        second(net, optimizer)
    attached.detach()
    second(net, optimizer)


@pytest.mark.parametrize("attach", ATTACH)
def test_detaching_in_the_closure_makes_a_plain_step(attach: Attach) -> None:
    net, optimizer = build(momentum=0.9)
    attached = attach(net, optimizer)

    def closure() -> torch.Tensor:
        backward(net)
        attached.detach()
        return torch.ones(())

    start = weights(net)
    optimizer.step(closure)
    assert_moved(net, start, gradients(net), LR)
    assert len(optimizer.state) == 10


class Counting(SGD):
    """Writes into its groups, its attributes, its state and its gradients, as some optimizers do."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.steps_done = 0

    def step(self, closure=None):
        loss = super().step(closure)
        self.steps_done += 1
        self.last = "made"
        for group in self.param_groups:
            group["k"] = group.get("k", 0) + 1
            for parameter in group["params"]:
                self.state[parameter]["seen"] = self.steps_done
                parameter.grad = None
        self.state["all"] = {"count": self.steps_done}
        return loss


@pytest.mark.parametrize("attach", ATTACH)
def test_what_the_step_writes_reaches_the_optimizer(attach: Attach) -> None:
    net, optimizer = build(Counting)
    attach(net, optimizer)
    for number in (1, 2):
        backward(net)
        optimizer.step()
        assert (optimizer.steps_done, optimizer.last) == (number, "made")
        assert [group["k"] for group in optimizer.param_groups] == [number] * 5
        assert [optimizer.state[parameter]["seen"] for parameter in net.parameters()] == [number] * 10
        assert optimizer.state["all"] == {"count": number}
        assert all(parameter.grad is None for parameter in net.parameters())
        assert len(optimizer.state) == 11


def test_a_stand_in_takes_over_what_the_closure_changed() -> None:
    net, optimizer = build()

    class Doubling(LRMultiplier):
        def _prepare_step(self, stand_in: StandIn) -> None:
            stand_in.multiply_lrs([2.0] * 5)

    Doubling(optimizer)

    def closure() -> torch.Tensor:
        backward(net)
        for group in optimizer.param_groups:  # as a warm-up in the training step does
            group["lr"] = 0.01
        return torch.ones(())

    start = weights(net)
    optimizer.step(closure)
    assert_moved(net, start, gradients(net), 0.02)
    assert [group["lr"] for group in optimizer.param_groups] == [0.01] * 5
