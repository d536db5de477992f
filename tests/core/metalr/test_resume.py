"""MetaLR's state: saved with the optimizer, resumed bit for bit, also after kill -9."""

import copy
import multiprocessing
import random
import signal

import pytest
import torch
from torch.optim import SGD, AdamW

from layertune import MetaLR, MetaLRSettings, OptimizerError
from small_runs import (
    Plain,
    Run,
    assert_same,
    batch,
    data,
    layer_groups,
    load,
    network,
    result,
    run,
    save,
    train,
    train_until_killed,
)

MODES = [
    pytest.param({"rule": "joint"}, id="exact"),
    pytest.param({"rule": "joint", "every": 3}, id="every 3"),
    pytest.param({"rule": "joint", "streaming": True}, id="streaming"),
    pytest.param({"rule": "free"}, id="free exact"),
    pytest.param({"rule": "free", "every": 3}, id="free every 3"),
    pytest.param({"rule": "free", "streaming": True}, id="free streaming"),
    pytest.param({"streaming": True, "every": 2, "rule": "cosine"}, id="streaming, every 2, cosine"),
]
KEYS = ("meta_scale", "meta_layers", "meta_steps", "meta_step", "meta_history", "meta_passes", "meta_rule")
KEYS += ("meta_free", "meta_average", "meta_due")
STEPS = 8


def fresh(make=SGD):
    net = network()
    return net, make(layer_groups(net), lr=0.05, **({"momentum": 0.9} if make is SGD else {}))


def out_of_memory(*_, **__):
    raise RuntimeError("out of memory")


def attach(optimizer, mode):
    return MetaLR(optimizer, **({"hyper_lr": 0.02, "rule": "joint"} | mode))


def assert_learned(ended, mode):
    """Each layer has a rate of its own, or the one factor of all of them has moved."""
    if mode["rule"] == "free":
        assert len({next(iter(rates.values())) for _, rates in ended.history}) > STEPS // mode.get("every", 1) // 2
    else:
        assert len({*ended.lrs, 0.05}) == 4


@pytest.mark.parametrize("make", [SGD, AdamW])
@pytest.mark.parametrize("first", ["load", "attach"])
@pytest.mark.parametrize("at", [3, 4])
@pytest.mark.parametrize("mode", MODES)
def test_a_resumed_run_equals_the_uninterrupted_one(tmp_path, make, first, at, mode):
    net, optimizer = fresh(make)
    metalr = attach(optimizer, mode)
    uninterrupted = train(net, optimizer, metalr, data(range(STEPS)))
    assert_learned(uninterrupted, mode)

    net, optimizer = fresh(make)
    train(net, optimizer, attach(optimizer, mode), data(range(at)))
    save(tmp_path / "checkpoint.pt", net, optimizer)
    net, optimizer = fresh(make)
    if first == "load":
        load(tmp_path / "checkpoint.pt", net, optimizer)
    metalr = attach(optimizer, mode)
    if first == "attach":
        load(tmp_path / "checkpoint.pt", net, optimizer)
    assert metalr.steps == at
    assert_same(train(net, optimizer, metalr, data(range(at, STEPS))), uninterrupted)


@pytest.mark.parametrize("rule", ["joint", "free"])
@pytest.mark.parametrize("first", ["load", "attach"])
def test_a_checkpoint_between_step_and_adapt_resumes_with_the_meta_pass(tmp_path, first, rule):
    whole = run(STEPS, rule=rule)
    net, optimizer = fresh()
    train(net, optimizer, attach(optimizer, {"rule": rule}), data(range(4)))
    optimizer.zero_grad()
    Plain().step(net, optimizer, batch(4))
    save(tmp_path / "checkpoint.pt", net, optimizer)

    net, optimizer = fresh()
    if first == "load":
        load(tmp_path / "checkpoint.pt", net, optimizer)
    metalr = attach(optimizer, {"rule": rule})
    if first == "attach":
        load(tmp_path / "checkpoint.pt", net, optimizer)
    assert metalr.due
    optimizer.zero_grad()
    Plain().backward(net, batch(504))
    metalr.adapt()
    assert_same(train(net, optimizer, metalr, data(range(5, STEPS))), whole)


@pytest.mark.parametrize("rule", ["joint", "free"])
def test_after_a_step_that_raised_the_loaded_rates_hold(rule):
    net, optimizer = fresh()
    metalr = attach(optimizer, {"rule": rule})
    train(net, optimizer, metalr, data(range(3)))
    state = copy.deepcopy(optimizer.state_dict())
    for group in state["param_groups"]:
        group["lr"] = 0.01
    later = optimizer.register_step_pre_hook(out_of_memory)
    with pytest.raises(RuntimeError, match="out of memory"):
        Plain().step(net, optimizer, batch(3))
    later.remove()
    optimizer.load_state_dict(state)
    assert metalr.lrs == {group["layer"]: 0.01 * group["meta_scale"].item() for group in optimizer.param_groups}
    Plain().step(net, optimizer, batch(3))
    assert {group["lr"] for group in optimizer.param_groups} == {0.01}


@pytest.mark.parametrize("mode", MODES)
def test_the_state_carries_everything_and_only_what_waits(mode):
    net, optimizer = fresh()
    metalr = attach(optimizer, mode)
    train(net, optimizer, metalr, data(range(6)))
    groups = optimizer.state_dict()["param_groups"]
    lrs = [group["lr"] * group["meta_scale"].item() for group in groups]
    assert lrs == list(metalr.lrs.values())
    assert {group["meta_steps"] for group in groups} == {6}
    assert groups[0]["meta_history"]["steps"].tolist() == [step for step, _ in metalr.history]
    waiting = [
        sum(step.numel() for step in group["meta_step"]["displacement"].values())
        for group in groups
        if "meta_step" in group
    ]
    copies = [average.numel() for group in groups for average in group.get("meta_average", {}).values()]
    weights = sum(p.numel() for p in net.parameters())
    # Only streaming leaves a step waiting: all parameters, once. The rule "free" keeps their average in place of it.
    free = mode["rule"] == "free"
    assert (sum(waiting), sum(copies)) == (0, weights) if free else (weights if metalr.streaming else 0, 0)


@pytest.mark.parametrize("rule", ["joint", "free"])
def test_a_state_from_another_attachment_replaces_what_was_learned(tmp_path, rule):
    net, optimizer = fresh()
    train(net, optimizer, attach(optimizer, {"rule": rule}), data(range(3)))
    save(tmp_path / "checkpoint.pt", net, optimizer)
    uninterrupted = train(*fresh_continued(tmp_path, rule), data(range(3, STEPS)))

    net, optimizer = fresh()
    metalr = attach(optimizer, {"rule": rule, "streaming": True})
    train(net, optimizer, metalr, data(range(20, 25)))  # another past, with a step that waits
    load(tmp_path / "checkpoint.pt", net, optimizer)
    assert not metalr.due
    metalr.settings = MetaLRSettings(hyper_lr=metalr.hyper_lr, rule=metalr.settings.rule)
    assert_same(train(net, optimizer, metalr, data(range(3, STEPS))), uninterrupted)


def fresh_continued(folder, rule):
    net, optimizer = fresh()
    load(folder / "checkpoint.pt", net, optimizer)
    return net, optimizer, attach(optimizer, {"rule": rule})


@pytest.mark.parametrize("mode", MODES)
def test_a_state_without_metalr_starts_learning_from_its_weights(tmp_path, mode):
    net, optimizer = fresh()
    train(net, optimizer, None, data(range(3)))
    save(tmp_path / "checkpoint.pt", net, optimizer)

    ended = []
    for first in ("load", "attach"):
        net, optimizer = fresh()
        if first == "load":
            load(tmp_path / "checkpoint.pt", net, optimizer)
        metalr = attach(optimizer, mode)
        if first == "attach":
            train(net, optimizer, metalr, data(range(20, 24)))  # forgotten with the rest of that optimizer's past
            load(tmp_path / "checkpoint.pt", net, optimizer)
            assert not metalr.history
            assert set(metalr.lrs.values()) == {0.05}
        ended.append(train(net, optimizer, metalr, data(range(3, STEPS))))
    assert_same(*ended)
    assert ended[0].history


@pytest.mark.parametrize("mode", MODES)
def test_a_state_with_metalr_trains_without_it(tmp_path, mode):
    net, optimizer = fresh()
    train(net, optimizer, attach(optimizer, mode), data(range(4)))
    save(tmp_path / "checkpoint.pt", net, optimizer)

    net, optimizer = fresh()
    load(tmp_path / "checkpoint.pt", net, optimizer)
    ended = train(net, optimizer, None, data(range(4, STEPS)))
    assert [group["lr"] for group in optimizer.param_groups] == [0.05] * 3

    plain, cleaned = fresh()
    load(tmp_path / "checkpoint.pt", plain, cleaned)
    for group in cleaned.param_groups:
        for key in KEYS:
            group.pop(key, None)
    assert_same(train(plain, cleaned, None, data(range(4, STEPS))), ended)


@pytest.mark.parametrize("rule", ["joint", "free"])
def test_detaching_leaves_a_state_without_a_trace(rule):
    net, optimizer = fresh()
    keys = [set(group) for group in optimizer.param_groups]
    metalr = attach(optimizer, {"rule": rule, "streaming": True})
    train(net, optimizer, metalr, data(range(4)))
    optimizer.state_dict()
    metalr.detach()
    assert [set(group) for group in optimizer.param_groups] == keys
    assert not any(key in group for group in optimizer.state_dict()["param_groups"] for key in KEYS)


@pytest.mark.parametrize("rule", ["joint", "free"])
def test_a_copied_state_does_not_follow_the_run(rule):
    net, optimizer = fresh()
    metalr = attach(optimizer, {"rule": rule})
    train(net, optimizer, metalr, data(range(3)))
    state = copy.deepcopy(optimizer.state_dict())
    at_three = result(net, metalr)
    train(net, optimizer, metalr, data(range(3, 6)))
    optimizer.load_state_dict(state)
    assert metalr.steps == 3
    assert metalr.lrs == dict(zip(metalr.lrs, at_three.lrs, strict=True))
    assert metalr.history == at_three.history


def cut(net, first, second, **names):
    """One group, cut into the three layers in one of two ways."""
    children = {"0": net[0], "2": net[2], "4": net[4]}
    parts = {"all": ["0", "2", "4"], "front": ["0", "2"], "back": ["2", "4"]}
    return {
        names.get(name, name): [p for part in parts.get(name, [name]) for p in children[part].parameters()]
        for name in (first, second)
    }


@pytest.mark.parametrize("when", ["load", "attach"])
@pytest.mark.parametrize("old", ["names of 0.1", "names of today"])
def test_factors_of_another_map_are_refused(when, old):
    """Both maps have two layers, so that the factors would fit by their number and place."""
    net = network()
    optimizer = SGD(net.parameters(), lr=0.05)
    metalr = MetaLR(optimizer, rule="joint", layers=cut(net, "front", "4"))
    train(net, optimizer, metalr, data(range(3)))
    state = copy.deepcopy(optimizer.state_dict())
    if old == "names of 0.1":
        del state["param_groups"][0]["meta_layers"]

    net = network()
    optimizer = SGD(net.parameters(), lr=0.05)
    other = cut(net, "0", "back")
    message = "learned on other layers: .* was saved with the layers front, 4, and has here 0, back"
    if when == "load":
        optimizer.load_state_dict(state)
        with pytest.raises(OptimizerError, match=message):
            MetaLR(optimizer, rule="joint", layers=other)
    else:
        metalr = MetaLR(optimizer, rule="joint", layers=other)
        with pytest.raises(OptimizerError, match=message):
            optimizer.load_state_dict(state)
        assert set(metalr.lrs.values()) == {0.05}
        assert not metalr.history


def test_factors_of_the_same_map_in_another_order_go_to_their_layers():
    net = network()
    optimizer = SGD(net.parameters(), lr=0.05)
    metalr = MetaLR(optimizer, rule="joint", layers=cut(net, "front", "4"))
    train(net, optimizer, metalr, data(range(3)))
    learned = metalr.lrs
    state = copy.deepcopy(optimizer.state_dict())
    net = network()
    optimizer = SGD(net.parameters(), lr=0.05)
    metalr = MetaLR(optimizer, rule="joint", layers=cut(net, "4", "front"))
    optimizer.load_state_dict(state)
    assert metalr.lrs == learned
    assert metalr.history[-1][1] == pytest.approx(learned)


def test_factors_of_a_group_that_was_cut_are_refused_where_it_is_one_layer():
    net = network()
    optimizer = SGD([{"params": [*net[0].parameters(), *net[2].parameters()]}, {"params": net[4].parameters()}], lr=0.1)
    layers = {"0": list(net[0].parameters()), "2": list(net[2].parameters()), "4": list(net[4].parameters())}
    metalr = MetaLR(optimizer, rule="joint", layers=layers)
    train(net, optimizer, metalr, data(range(3)))
    state = copy.deepcopy(optimizer.state_dict())
    metalr.detach()
    MetaLR(optimizer, rule="joint")
    with pytest.raises(OptimizerError, match="group 0 was saved with the layers 0, 2, and has here group 0"):
        optimizer.load_state_dict(state)


@pytest.mark.parametrize(("rule", "held"), [("joint", "a step"), ("free", "average weights")])
def test_a_state_over_other_shapes_is_refused(rule, held):
    net = network()
    optimizer = SGD(layer_groups(net))
    train(net, optimizer, attach(optimizer, {"rule": rule, "streaming": True}), data(range(2)))
    other = network(out=3)
    optimizer_of_other = SGD(layer_groups(other))
    optimizer_of_other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    with pytest.raises(OptimizerError, match=rf"{held} of shape \(2, 5\) for parameter 0 of group 2, .* \(3, 5\)"):
        attach(optimizer_of_other, {"rule": rule})


@pytest.mark.slow
@pytest.mark.parametrize("mode", MODES)
def test_a_run_killed_again_and_again_equals_the_uninterrupted_one(tmp_path, mode):
    steps, seeded = 12, random.Random(str(mode))
    # Ascending, so that each life comes to its end.
    deaths = [(step, seeded.choice(["in step", "in save", "after"])) for step in sorted(seeded.sample(range(1, 12), 4))]
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch._dynamo", "layertune"])  # imported once: a life is short
    for death in (*deaths, None):
        life = context.Process(target=train_until_killed, args=(str(tmp_path), steps, mode, death))
        life.start()
        life.join()
        assert life.exitcode == (-signal.SIGKILL if death else 0)
        life.close()
    survived = Run(*torch.load(tmp_path / "result.pt", weights_only=True))

    alone = tmp_path / "alone"
    alone.mkdir()
    train_until_killed(str(alone), steps, mode, None)
    uninterrupted = Run(*torch.load(alone / "result.pt", weights_only=True))
    assert_learned(uninterrupted, mode)
    assert_same(survived, uninterrupted)
