"""What MetaLR may cost: no compilation, one copy of the parameters, no waiting for a device."""

import copy
import gc
from itertools import pairwise

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode
from torch.optim import SGD, AdamW
from torch.utils._python_dispatch import TorchDispatchMode

from layertune import MetaLR
from layertune.metalr.correcting.learner import CorrectingLearner
from layertune.metalr.correcting.rules import RULES
from layertune.metalr.history import History
from small_runs import EVERY_RULE, Plain, assert_same, data, layer_groups, network, run, train


@pytest.mark.parametrize("mode", EVERY_RULE)
def test_a_compiled_network_is_not_compiled_again(mode):
    torch._dynamo.reset()
    net = network()
    net.insert(1, nn.BatchNorm1d(6).double())
    optimizer = SGD(layer_groups(net), momentum=0.9)
    metalr = MetaLR(optimizer, hyper_lr=0.02, **mode)
    compiled = torch.compile(net, backend="aot_eager")
    train(compiled, optimizer, metalr, data(range(2)))
    rates = metalr.lrs
    with torch._dynamo.config.patch(error_on_recompile=True):
        train(compiled, optimizer, metalr, data(range(2, 6)))
    assert metalr.lrs != rates
    torch._dynamo.reset()


def live_tensors():
    """All tensors with memory that Python holds; by type, since isinstance would ask lazy modules for theirs."""
    gc.collect()
    return [thing for thing in gc.get_objects() if type(thing) in (torch.Tensor, nn.Parameter)]


def live_bytes():
    gradients = [tensor.grad for tensor in live_tensors() if tensor.is_leaf and tensor.grad is not None]
    storages = [tensor.untyped_storage() for tensor in live_tensors() + gradients]
    return sum({storage._cdata: storage.nbytes() for storage in storages}.values())


@pytest.mark.slow
@pytest.mark.parametrize("mode", EVERY_RULE)
def test_extra_memory_is_one_copy_of_the_parameters(mode):
    def used(attach):
        base = live_bytes()
        net = nn.Sequential(*(nn.Linear(200, 200) for _ in range(3)))
        optimizer = SGD(layer_groups(net), momentum=0.9)
        metalr = MetaLR(optimizer, hyper_lr=0.02, **mode) if attach else None
        x = torch.ones(2, 200)
        train(net, optimizer, metalr, [((x, x), (x, x))] * 3)
        return live_bytes() - base

    parameters = 3 * (200 * 200 + 200) * 4
    plain, attached = used(False), used(True)
    assert 2 * parameters <= plain < 3.1 * parameters  # what is counted is there: weights, momentum, gradients
    assert attached - plain < 1.1 * parameters


@pytest.mark.slow
@pytest.mark.parametrize("rule", ["joint", "free"])
def test_a_long_run_does_not_grow_and_keeps_an_even_history(monkeypatch, rule):
    monkeypatch.setattr("layertune.metalr.history.MAX_RECORDS", 64)
    net = nn.Sequential(nn.Linear(1, 1), nn.Linear(1, 1))
    optimizer = SGD(layer_groups(net, 1e-3))
    metalr = MetaLR(optimizer, hyper_lr=1e-9, rule=rule, streaming=True)
    for parameter in net.parameters():
        parameter.grad = torch.full_like(parameter, 1e-3)

    counts = []
    for step in range(1, 601):
        optimizer.step()
        if step in (100, 600):
            counts.append(len(live_tensors()) - len(metalr._learner.history.records))
    assert counts[0] == counts[1]
    steps = [step for step, _ in metalr.history]
    assert steps == list(range(16, 600, 16))
    assert len(metalr.profile().steps) == len(steps)


@pytest.mark.parametrize("every", [1, 3])
def test_a_history_of_many_steps_is_thinned_evenly(every):
    history = History()
    for step in range(every, 5000 * every + 1, every):
        history.record(step, ["a", "b"], torch.ones(2), torch.ones(2))
        assert len(history.records) <= 2048
    assert [step for step, _ in history.lrs_over_time(["a", "b"])] == list(
        range(4 * every, 5000 * every + 1, 4 * every)
    )


def test_adapting_at_odd_steps_only_keeps_a_history(monkeypatch):
    monkeypatch.setattr("layertune.metalr.history.MAX_RECORDS", 8)
    net = network()
    optimizer = SGD(layer_groups(net), momentum=0.9)
    metalr = MetaLR(optimizer, hyper_lr=0.02, rule="joint")
    for number, (training, meta) in enumerate(data(range(60))):
        optimizer.zero_grad()
        Plain().step(net, optimizer, training)
        optimizer.zero_grad()
        if number % 2 == 0:
            Plain().backward(net, meta)
            metalr.adapt()
    steps = [step for step, _ in metalr.history]
    assert len(steps) >= 4
    assert all(step % 2 for step in steps)
    assert {later - earlier for earlier, later in pairwise(steps)} == {8}


@pytest.mark.parametrize("rule", ["joint", "free"])
def test_a_resumed_history_is_thinned_as_the_uninterrupted_one(monkeypatch, rule):
    monkeypatch.setattr("layertune.metalr.history.MAX_RECORDS", 8)
    net = network()
    optimizer = SGD(layer_groups(net))
    metalr = MetaLR(optimizer, hyper_lr=0.001, rule=rule)
    for step in range(1, 50):
        train(net, optimizer, metalr, data([step]))
        if step in (7, 8, 9, 10, 17, 18, 33):
            state = copy.deepcopy(optimizer.state_dict())
            metalr.detach()
            optimizer.load_state_dict(state)
            metalr = MetaLR(optimizer, hyper_lr=0.001, rule=rule)
    assert [step for step, _ in metalr.history] == [8, 16, 24, 32, 40, 48]


class NoWaiting(TorchDispatchMode):
    """Fails on what makes a GPU's host wait, beyond the `.item()` at which fake tensors fail by themselves."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is torch.ops.aten._to_copy.default and "device" in kwargs:
            assert args[0].device == kwargs["device"] or kwargs.get("non_blocking"), "a copy waits for the device"
        if func is torch.ops.aten.index.Tensor:
            assert all(index.device == args[0].device for index in args[1]), "the index is copied, which waits"
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("mode", [{}, {"streaming": True}, {"every": 2}])
def test_off_the_cpu_nothing_waits_for_the_device(monkeypatch, rule, mode):
    """On fake tensors, which claim to live on a GPU and have no numbers to give."""
    monkeypatch.setattr("layertune.metalr.requirements.require_linear_step", lambda _: None)  # attaching may wait
    with FakeTensorMode():
        parameters = [nn.Parameter(torch.empty(3, 3, device="cuda")) for _ in range(5)]
        groups = [{"params": [parameter], "layer": str(i // 2)} for i, parameter in enumerate(parameters)]
        optimizer = SGD(groups[:4], lr=0.1, momentum=0.9, foreach=True)
        metalr = MetaLR(optimizer, hyper_lr=0.1, rule=rule, **mode)
        for joins in (False, False, True, False):
            if joins:
                optimizer.add_param_group(groups[4])
                _ = metalr._learner.sections  # new sections are copied to the device once
            for _ in range(2):
                for parameter in parameters:
                    parameter.grad = torch.empty_like(parameter)
                with NoWaiting():
                    optimizer.step()
                    if metalr.due and not metalr.streaming:
                        metalr.adapt()
        assert len(metalr._learner.history.records) == {"every": 4, "streaming": 7}.get(next(iter(mode), ""), 8)
        with pytest.raises(DataDependentOutputException):
            metalr.lrs  # noqa: B018 - numbers leave when asked for
        metalr.detach()


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("mode", [{}, {"streaming": True}, {"every": 2}])
@pytest.mark.parametrize("make", [SGD, AdamW])
def test_off_the_cpu_a_stretched_step_gives_the_same_run(monkeypatch, rule, mode, make):
    on_cpu = run(make=make, options={}, rule=rule, **mode)
    monkeypatch.setattr(CorrectingLearner, "_has_numbers", property(lambda _: False))
    assert_same(run(make=make, options={}, rule=rule, **mode), on_cpu, 1e-10)
