"""MetaLR in a host's run: what it attaches to, what it leaves, and what it keeps for checkpoints."""

import copy
from dataclasses import fields
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import mse_loss
from torch.optim import SGD
from torch.utils.data import DataLoader, TensorDataset

from layertune import MetaLR, MetaLRSettings, OptimizerError, map_layers, meta_pass, param_groups
from layertune.hosts.endless_data import ALONE
from layertune.hosts.meta_learner import MetaLearner
from layertune.metalr.settings import MetaLROptions

LEARN: dict[str, Any] = {"hyper_lr": 0.3, "rule": "proportional"}
EXAMPLE = torch.zeros(2, 4)
META = [(torch.full((2, 4), number), torch.ones(2, 2)) for number in (0.1, 0.2, 0.3)]


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Tanh(), nn.Dropout(0.2), nn.Linear(6, 2))


def sgd(net: nn.Module) -> SGD:
    return SGD(net.parameters(), lr=0.05, momentum=0.9)


class Host:
    """A training loop as small as a host's can be."""

    def __init__(self, learner: MetaLearner, net: nn.Module, optimizer: SGD | None = None) -> None:
        self.learner, self.net, self.optimizer = learner, net, optimizer or sgd(net)
        self.numbers: list[int] = []

    def begin(self, training_loader: Any = None, **options: Any) -> None:
        self.learner.attach(self.optimizer, self.net, lambda: (EXAMPLE,), step=self.step)
        self.learner.open_batches(training_loader, 0, ALONE, **options)

    def step(self, batch: Any, number: int) -> float:
        self.numbers.append(number)
        loss_of(self.net, batch).backward()
        return 1.0

    def train(self, steps: range) -> None:
        for number in steps:
            torch.manual_seed(number)
            self.optimizer.zero_grad()
            loss_of(self.net, (torch.randn(2, 4), torch.randn(2, 2))).backward()
            self.optimizer.step()


def loss_of(net: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    return mse_loss(net(batch[0]), batch[1])


def assert_equal(one: nn.Module, other: nn.Module) -> None:
    torch.testing.assert_close(one.state_dict(), other.state_dict(), rtol=0, atol=0)


def test_hosts_take_each_setting_of_the_record() -> None:
    names = {field.name for field in fields(MetaLRSettings)}
    assert set(MetaLROptions.__annotations__) == names - {"rule_of_0_1"}  # a host's, by its preset
    assert MetaLearner(None, None, hyper_lr=None, every=None).settings == MetaLRSettings()
    with pytest.raises(OptimizerError, match="rule must be one of"):
        MetaLearner(None, None, rule="magic")


def test_a_loader_that_is_not_used_gives_a_warning() -> None:
    with pytest.warns(UserWarning, match="meta_loader has no effect with streaming=True"):
        MetaLearner(META, None, streaming=True)
    assert not MetaLearner(META, None).needs_loader
    assert not MetaLearner(None, None, streaming=True).needs_loader
    assert MetaLearner(None, None).needs_loader


@pytest.mark.parametrize("every", [1, 2])
def test_it_learns_what_a_loop_with_metalr_learns(every: int) -> None:
    host, net = Host(MetaLearner(META, None, **LEARN, every=every), network()), network()
    host.begin()
    host.train(range(6))
    optimizer = sgd(net)
    metalr = MetaLR(optimizer, **LEARN, every=every, layers=map_layers(net, EXAMPLE).parameters_of(net))
    drawn = 0
    for number in range(6):
        torch.manual_seed(number)
        optimizer.zero_grad()
        loss_of(net, (torch.randn(2, 4), torch.randn(2, 2))).backward()
        optimizer.step()
        if metalr.due:
            optimizer.zero_grad()
            with meta_pass(net):
                loss_of(net, META[drawn % 3]).backward()
            metalr.adapt()
            drawn += 1
    assert host.learner.lrs == metalr.lrs
    assert host.numbers == list(range(6 // every))
    assert_equal(host.net, net)


def test_the_training_gradients_are_those_from_before_the_meta_pass() -> None:
    host = Host(MetaLearner(META, None, **LEARN), network())
    host.begin()
    host.train(range(1))
    with_it = [parameter.grad for parameter in host.net.parameters()]
    plain = Host(MetaLearner(META, None, **LEARN), network())
    plain.train(range(1))
    torch.testing.assert_close(with_it, [parameter.grad for parameter in plain.net.parameters()], rtol=0, atol=0)


def test_a_profile_has_the_depths_of_the_map() -> None:
    net = network()
    layers = map_layers(net, EXAMPLE)
    host = Host(MetaLearner(META, layers, **LEARN), net, SGD(net[4].parameters(), lr=0.1))
    host.optimizer.add_param_group({"params": list(net[0].parameters()) + list(net[1].parameters())})
    host.begin()
    host.train(range(2))
    profile = host.learner.profile
    assert profile is not None
    assert dict(zip(profile.layers, profile.depths, strict=True)) == {layer.name: layer.depth for layer in layers}


def test_layers_that_the_param_groups_name_are_used() -> None:
    net = network()
    groups = param_groups(net, map_layers(net, EXAMPLE), lr=0.1)
    for group in groups:
        group["layer"] = f"own {group['layer']}"
    host = Host(MetaLearner(META, None, **LEARN), net, SGD(groups, lr=0.1))
    host.begin()
    assert list(host.learner.lrs) == ["own 0", "own 4"]


def test_detaching_leaves_the_optimizer_as_it_was_and_keeps_what_was_learned() -> None:
    host = Host(MetaLearner(META, None, **LEARN), network())
    keys = set(host.optimizer.param_groups[0])
    assert (host.learner.lrs, host.learner.profile, host.learner.state_dict()) == ({}, None, {})
    host.begin()
    host.train(range(4))
    lrs, profile, state = host.learner.lrs, host.learner.profile, host.learner.state_dict()
    (saved,) = copy.deepcopy(host.optimizer.state_dict()["param_groups"])
    host.learner.detach()
    host.learner.detach()
    assert set(host.optimizer.param_groups[0]) == keys
    assert not host.optimizer._optimizer_step_pre_hooks
    assert not host.optimizer._optimizer_step_post_hooks
    assert (host.learner.lrs, host.learner.profile, host.learner.state_dict()) == (lrs, profile, state)
    (later,) = groups = host.optimizer.state_dict()["param_groups"]
    host.learner.complete(groups)
    assert {key: repr(value) for key, value in later.items()} == {key: repr(value) for key, value in saved.items()}
    host.learner.forget()
    plain = host.optimizer.state_dict()["param_groups"]
    host.learner.complete(plain)
    assert set(plain[0]) == keys


def test_a_run_that_is_saved_and_loaded_goes_on_exactly() -> None:
    whole, half = (Host(MetaLearner(META, None, **LEARN), network()) for _ in range(2))
    whole.begin()
    whole.train(range(6))
    half.begin()
    half.train(range(4))
    resumed = Host(MetaLearner(META, None, **LEARN), network())
    resumed.net.load_state_dict(half.net.state_dict())
    resumed.learner.load_state_dict(half.learner.state_dict())
    resumed.begin()
    resumed.optimizer.load_state_dict(copy.deepcopy(half.optimizer.state_dict()))
    resumed.train(range(4, 6))
    assert resumed.numbers == [4, 5]
    assert resumed.learner.profile == whole.learner.profile
    assert_equal(resumed.net, whole.net)
    resumed.learner.load_state_dict(half.learner.state_dict())  # also within a run
    assert resumed.learner.state_dict() == half.learner.state_dict()


def test_the_position_of_version_0_1_is_read() -> None:
    learner = MetaLearner(META, None, **LEARN)
    learner.load_state_dict({"meta_batches": {"seed": 7, "drawn": 4, "passes": 1, "batches": 1}})
    host = Host(learner, network())
    host.begin()
    host.train(range(1))
    assert host.numbers == [4]
    assert learner.state_dict() == {"meta_batches": {"seed": 7, "drawn": 5, "passes": 1, "batches": 2}}


@pytest.mark.parametrize(("own", "of_host", "expected"), [(1, 2, 1), (None, 2, 2), (None, None, 3)])
def test_the_users_loader_comes_before_the_hosts_and_that_before_the_training_data(own, of_host, expected) -> None:
    def source(value: int | None) -> Any:
        return None if value is None else [(torch.full((2, 4), float(value)), torch.ones(2, 2))]

    drawn: list[int] = []

    class Recording(Host):
        def step(self, batch: Any, number: int) -> float:
            drawn.append(int(batch[0][0, 0]))
            return super().step(batch, number)

    host = Recording(MetaLearner(source(own), None, **LEARN), network())
    training = DataLoader(TensorDataset(torch.full((2, 4), 3.0), torch.ones(2, 2)), batch_size=2)
    host.begin(training, loader=source(of_host))
    host.train(range(1))
    assert drawn == [expected]


def test_a_copy_for_another_process_has_the_settings_and_nothing_attached() -> None:
    host = Host(MetaLearner(META, None, **LEARN), network())
    host.begin()
    other = copy.deepcopy(host.learner)
    assert other.settings == host.learner.settings
    assert other.metalr is None
    assert host.learner.metalr is not None
