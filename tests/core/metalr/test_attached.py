"""Several optimizers over one network: shared parameters and copies."""

import copy

import pytest
import torch
from torch.optim import SGD

from layertune import MetaLR, OptimizerError
from small_runs import Plain, assert_same, batch, data, layer_groups, network, train


@pytest.mark.parametrize("rule", ["joint", "free"])
def test_a_step_after_another_metalr_took_over_shared_parameters_is_refused(rule: str) -> None:
    net = network()
    first, second = SGD(layer_groups(net)), SGD(layer_groups(net)[1:])
    MetaLR(first, hyper_lr=0.02, rule=rule)
    Plain().step(net, first, batch(0))
    metalr = MetaLR(second, hyper_lr=0.02, rule=rule, streaming=True)
    Plain().step(net, second, batch(1))
    before = [parameter.detach().clone() for parameter in net.parameters()]
    with pytest.raises(OptimizerError, match="another MetaLR was attached"):
        first.step()
    torch.testing.assert_close(list(net.parameters()), before, rtol=0, atol=0)
    metalr.detach()
    first.step()


def test_one_metalr_after_another_over_the_same_parameters_is_no_mistake() -> None:
    net = network()
    first = SGD(layer_groups(net))
    train(net, first, MetaLR(first, hyper_lr=0.02), data(range(3)))
    second = SGD(layer_groups(net))
    train(net, second, MetaLR(second, hyper_lr=0.02), data(range(3, 6)))


def test_optimizers_over_different_parameters_go_side_by_side() -> None:
    net = network()
    groups = layer_groups(net)
    halves = [[{**groups[0], "params": [p], "layer": str(i)} for i, p in enumerate(groups[0]["params"])], groups[1:]]
    metalrs = [MetaLR(SGD(half, lr=0.05), hyper_lr=0.02, streaming=True) for half in halves]
    for number in range(3):
        net.zero_grad()
        Plain().backward(net, batch(number))
        for metalr in metalrs:
            metalr.optimizer.step()
    assert [metalr.steps for metalr in metalrs] == [3, 3]


@pytest.mark.parametrize("rule", ["joint", "free"])
def test_a_deep_copy_of_the_optimizer_is_refused_while_metalr_is_attached(rule: str) -> None:
    net = network()
    optimizer = SGD(layer_groups(net))
    metalr = MetaLR(optimizer, hyper_lr=0.02, rule=rule)
    train(net, optimizer, metalr, data(range(2)))
    for thing in (optimizer, metalr, [net, optimizer]):
        with pytest.raises(OptimizerError, match=r"load a copy of this one's state_dict\(\)"):
            copy.deepcopy(thing)
    metalr.detach()
    assert "__deepcopy__" not in vars(optimizer)
    copy.deepcopy(optimizer)


@pytest.mark.parametrize("rule", ["joint", "free"])
def test_a_second_optimizer_learns_on_from_a_copied_state(rule: str) -> None:
    net = network()
    optimizer = SGD(layer_groups(net), momentum=0.9)
    metalr = MetaLR(optimizer, hyper_lr=0.02, rule=rule, streaming=True)
    train(net, optimizer, metalr, data(range(3)))
    twin = copy.deepcopy(net)
    second = SGD(layer_groups(twin), momentum=0.9)
    second.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    ended = train(twin, second, MetaLR(second, hyper_lr=0.02, rule=rule, streaming=True), data(range(3, 6)))
    assert_same(ended, train(net, optimizer, metalr, data(range(3, 6))))
