"""MetaLR and param groups: layers in several groups, groups that join, gradients that are missing, coarse or sparse."""

import importlib
from itertools import pairwise

import pytest
import torch
from torch import nn
from torch.nn.functional import mse_loss
from torch.optim import SGD

from layertune import MetaLR, OptimizerError
from layertune.metalr.correcting.rules import RULES
from layertune.metalr.sections import Sections
from small_runs import EVERY_RULE, Plain, assert_learned, assert_same, batch, data, layer_groups, network, run, train

MODES = [pytest.param({}, id="exact"), pytest.param({"streaming": True}, id="streaming")]  # with a rule beside


def by_layer(net, split):
    """The same layers with their parameters split over groups as told."""
    groups = []
    for group in layer_groups(net):
        weight, bias = group["params"]
        groups += split({**group, "params": [weight]}, {**group, "params": [bias]})
    return groups


@pytest.mark.parametrize("mode", EVERY_RULE)
def test_two_groups_of_a_layer_share_one_factor(mode):
    whole = run(**mode)
    net = network()
    optimizer = SGD(by_layer(net, lambda weight, bias: [weight, bias]), momentum=0.9)
    metalr = MetaLR(optimizer, hyper_lr=0.02, **mode)
    assert_same(train(net, optimizer, metalr, data(range(6))), whole, 1e-10)
    scales = [group["meta_scale"].item() for group in optimizer.param_groups]
    assert scales[::2] == scales[1::2]
    assert list(metalr.lrs) == ["0", "2", "4"]


@pytest.mark.parametrize("mode", EVERY_RULE)
def test_a_layer_whose_first_group_is_frozen_still_learns(mode):
    net, same = network(), network()
    for part in (net, same):
        part[0].weight.requires_grad_(False)
    optimizer = SGD(by_layer(net, lambda weight, bias: [weight, bias]))
    only_trained = [{**g, "params": [p for p in g["params"] if p.requires_grad]} for g in layer_groups(same)]
    expected = SGD(only_trained)
    split = train(net, optimizer, MetaLR(optimizer, hyper_lr=0.02, **mode), data(range(6)))
    whole = train(same, expected, MetaLR(expected, hyper_lr=0.02, **mode), data(range(6)))
    assert_learned(whole)
    assert_same(split, whole, 1e-10)


def test_groups_of_different_lr_in_one_layer_keep_their_ratio_and_learn_by_the_chain_rule():
    def loss_at(factors):
        moved = [(w - lr * f * u).detach() for w, u, lr, f in zip(start, grads, lrs, factors, strict=True)]
        net = network()
        with torch.no_grad():
            for parameter, value in zip(net.parameters(), moved, strict=True):
                parameter.copy_(value)
        x, y = batch(1)
        return mse_loss(net(x), y).item()

    net = network()
    optimizer = SGD(by_layer(net, lambda weight, bias: [weight, {**bias, "lr": 0.1}]))
    metalr = MetaLR(optimizer, hyper_lr=1e-3, rule="additive")
    start = [parameter.detach().clone() for parameter in net.parameters()]
    Plain().step(net, optimizer, batch(0))
    grads, lrs = [parameter.grad.clone() for parameter in net.parameters()], [0.05, 0.1] * 3
    optimizer.zero_grad()
    Plain().backward(net, batch(1))
    metalr.adapt()
    step = 1e-5
    for layer, rate in enumerate(metalr.lrs.values()):
        up, down = ([1 + sign * step * (i // 2 == layer) for i in range(6)] for sign in (1, -1))
        h = (loss_at(up) - loss_at(down)) / (2 * step * 0.05)
        assert rate == pytest.approx(0.05 - 1e-3 * h, rel=1e-7)


def test_groups_without_a_layer_are_layers_of_their_own():
    net = network()
    optimizer = SGD(
        [{"params": child.parameters()} for child in net if list(child.parameters())], lr=0.05, momentum=0.9
    )
    metalr = MetaLR(optimizer, hyper_lr=0.02, rule="joint")
    without = train(net, optimizer, metalr, data(range(6)))
    assert list(metalr.lrs) == ["group 0", "group 1", "group 2"]
    torch.testing.assert_close(without.lrs, run().lrs, rtol=0, atol=0)


def test_timm_groups_serve_as_they_are():
    timm_optim = importlib.import_module("timm.optim")
    net = network()
    net.group_matcher = lambda coarse=False: {"stem": r"^0", "blocks": r"^(\d+)"}  # noqa: ARG005 - timm's signature
    groups = timm_optim.param_groups_layer_decay(net, weight_decay=0.01, layer_decay=0.5)
    optimizer = SGD(groups, lr=0.05)
    metalr = MetaLR(optimizer, hyper_lr=0.02)
    learned = train(net, optimizer, metalr, data(range(6)))
    assert len(learned.lrs) == len(groups) > 3
    assert all(rate != 0.05 for rate in learned.lrs)


@pytest.mark.parametrize("mode", EVERY_RULE)
def test_groups_may_join_during_a_run(mode):
    """As Lightning's BaseFinetuning unfreezes: a new layer, and more parameters of a known one."""
    net = network()
    first, second, head = layer_groups(net)
    weight, bias = head["params"]
    optimizer = SGD([second, {**head, "params": [weight]}])
    metalr = MetaLR(optimizer, hyper_lr=0.02, **mode)
    train(net, optimizer, metalr, data(range(4)))
    learned = metalr.lrs["4"] / 0.05
    optimizer.add_param_group({**head, "params": [bias]})
    optimizer.add_param_group(first)
    assert metalr.history[-1][1]["0"] == 0.0
    before = bias.detach().clone()
    optimizer.zero_grad()
    Plain().step(net, optimizer, batch(4))
    if mode == {"rule": "joint"}:
        # The bias takes the factor of its layer from its first step on.
        torch.testing.assert_close(before - bias.detach(), 0.05 * learned * bias.grad, rtol=1e-9, atol=0)
    train(net, optimizer, metalr, data(range(5, 9)))
    optimizer.state_dict()
    assert list(metalr.lrs) == ["2", "4", "0"]
    assert metalr.lrs["0"] != 0.05
    assert metalr.history[0][1]["0"] == 0.0 < metalr.history[-1][1]["0"]
    assert metalr.profile().layers == ("2", "4", "0")


def test_a_second_metalr_is_refused():
    optimizer = SGD(layer_groups(network()))
    first = MetaLR(optimizer, hyper_lr=0.02)
    with pytest.raises(OptimizerError, match="detach"):
        MetaLR(optimizer, hyper_lr=0.02)
    first.detach()
    MetaLR(optimizer, hyper_lr=0.02)


def test_attaching_after_a_scheduler_steps_nothing():
    net = network()
    optimizer = SGD(layer_groups(net), momentum=0.9)
    torch.optim.lr_scheduler.StepLR(optimizer, 3)
    Plain().backward(net, batch(0))
    fired = []
    optimizer.register_step_post_hook(lambda *_: fired.append(1))
    MetaLR(optimizer, hyper_lr=0.02)
    assert not fired
    assert not optimizer.state
    torch.testing.assert_close(list(net.parameters()), list(network().parameters()), rtol=0, atol=0)


class Quadratic(SGD):
    """Its step goes with lr squared."""

    @torch.no_grad()
    def step(self, closure=None):  # noqa: ARG002 - torch's signature
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    parameter.sub_(group["lr"] ** 2 * parameter.grad)


@pytest.mark.parametrize("lr", [0.05, 0.0])
def test_a_step_that_is_not_linear_is_found_behind_a_scheduler_and_at_a_warm_up_from_zero(lr):
    optimizer = Quadratic(layer_groups(network(), lr))
    torch.optim.lr_scheduler.StepLR(optimizer, 3)
    with pytest.raises(OptimizerError, match="not proportional"):
        MetaLR(optimizer, hyper_lr=0.02)


def test_an_optimizer_around_another_is_refused():
    lookahead = importlib.import_module("timm.optim").Lookahead(SGD(layer_groups(network())))
    with pytest.raises(OptimizerError, match="SGD within it"):
        MetaLR(lookahead, hyper_lr=0.02)


# Parameters without a gradient, of few bits, or sparse


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("rule", RULES)
def test_layers_without_a_gradient_keep_their_rate(mode, rule):
    net = network()
    net.add_module("unused", nn.Linear(3, 3).double())
    frozen = net[2].requires_grad_(False)
    before = [parameter.clone() for parameter in (*frozen.parameters(), *net.unused.parameters())]
    optimizer = SGD(layer_groups(net), momentum=0.9, weight_decay=0.1)
    plain_forward = net.forward
    net.forward = lambda x: net[4](torch.tanh(net[2](torch.tanh(net[0](x)))))
    metalr = MetaLR(optimizer, hyper_lr=0.02, rule=rule, **mode)
    train(net, optimizer, metalr, data(range(5)))
    net.forward = plain_forward
    assert metalr.lrs["2"] == metalr.lrs["unused"] == 0.05
    assert metalr.lrs["0"] != 0.05 != metalr.lrs["4"]
    after = [*frozen.parameters(), *net.unused.parameters()]
    torch.testing.assert_close(after, before, rtol=0, atol=0)


@pytest.mark.parametrize("zero", [False, True], ids=["no gradient", "gradient of 0"])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("rule", RULES)
def test_a_frozen_layer_of_a_cut_group_keeps_its_factor(mode, rule, zero):
    net = network()
    frozen = net[2]
    optimizer = SGD(net.parameters(), lr=0.05, momentum=0.9)
    layers = {name: list(child.parameters()) for name, child in net.named_children() if list(child.parameters())}
    metalr = MetaLR(optimizer, hyper_lr=0.1, rule=rule, layers=layers, **mode)

    class Freezing(Plain):
        def backward(self, net, batch):
            super().backward(net, batch)
            for parameter in frozen.parameters():
                parameter.grad = torch.zeros_like(parameter) if zero else None

    start = [parameter.detach().clone() for parameter in frozen.parameters()]
    train(net, optimizer, metalr, data(range(8)), Freezing())
    assert metalr.lrs["2"] == 0.05
    assert metalr.lrs["0"] != 0.05 != metalr.lrs["4"]
    torch.testing.assert_close(list(frozen.parameters()), start, rtol=0, atol=0)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("rule", RULES)
def test_the_rate_of_a_layer_is_that_of_its_sections_that_moved(rule, mode):
    """Layer 0 lies in two groups, and is frozen in the one with the tenfold rate; layer 2 moves in both."""
    net, same = network(), network()
    for part in (net, same):
        part[0].weight.requires_grad_(False)
    settings = {"hyper_lr": 0.1 if rule != "additive" else 0.01, "rule": rule, **mode}
    optimizer = SGD(
        [
            {"params": [net[0].weight, net[2].weight], "lr": 0.1},
            {"params": [net[0].bias, net[2].bias, *net[4].parameters()], "lr": 0.01},
        ]
    )
    layers = {group["layer"]: group["params"] for group in layer_groups(net)}
    cut = MetaLR(optimizer, layers=layers, **settings)
    expected = SGD(
        [
            {"params": [same[0].bias], "layer": "0", "lr": 0.01},
            {"params": [same[2].weight], "layer": "2", "lr": 0.1},
            {"params": [same[2].bias], "layer": "2", "lr": 0.01},
            {"params": same[4].parameters(), "layer": "4", "lr": 0.01},
        ]
    )
    grouped = MetaLR(expected, **settings)
    train(net, optimizer, cut, data(range(6)))
    train(same, expected, grouped, data(range(6)))
    assert cut.lrs == pytest.approx(grouped.lrs, rel=1e-9)
    learned, wanted = ([rates[layer] for _, rates in metalr.history for layer in "024"] for metalr in (cut, grouped))
    assert learned == pytest.approx(wanted, rel=1e-9)
    assert min(abs(rate / first - 1) for rate, first in zip(learned[-3:], (0.01, 0.1, 0.01), strict=True)) > 1e-4
    torch.testing.assert_close(list(net.parameters()), list(same.parameters()), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("mode", MODES)
def test_a_gradient_that_is_missing_on_some_steps_is_no_harm(mode):
    net = network()
    optimizer = SGD(layer_groups(net))
    metalr = MetaLR(optimizer, hyper_lr=0.02, rule="additive", **mode)
    for number in range(6):
        optimizer.zero_grad()
        Plain().backward(net, batch(number))
        absent = net[2] if number % 2 else net[0]
        for parameter in absent.parameters():
            parameter.grad = None
        before, rates = [parameter.clone() for parameter in absent.parameters()], metalr.lrs
        optimizer.step()
        if not metalr.streaming:
            optimizer.zero_grad()
            Plain().backward(net, batch(500 + number))
            metalr.adapt()
            # No step, so nothing to learn and nothing to correct, though the meta gradient is there.
            assert metalr.lrs[str(2 * (number % 2))] == rates[str(2 * (number % 2))]
            torch.testing.assert_close(list(absent.parameters()), before, rtol=0, atol=0)
    lrs = metalr.lrs
    assert lrs["4"] != 0.05
    if metalr.streaming:  # whoever steps at t has no gradient at t + 1
        assert lrs["0"] == lrs["2"] == 0.05


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("rule", RULES)
def test_bfloat16_parameters_learn_about_the_rates_of_float64(mode, rule):
    exact = run(rule=rule, **mode)
    coarse = run(rule=rule, **mode, dtype=torch.bfloat16)
    assert all(weight.dtype == torch.bfloat16 for weight in coarse.weights)
    ratio = torch.tensor(coarse.lrs) / torch.tensor(exact.lrs)
    torch.testing.assert_close(ratio, torch.ones_like(ratio), rtol=0.05, atol=0)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("rule", ["additive", "cosine", "joint", "free"])
def test_sparse_gradients_equal_dense_ones(mode, rule):
    def learned(*, sparse):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Embedding(6, 4, sparse=sparse), nn.Linear(4, 2)).double()
        optimizer = SGD(layer_groups(net))
        metalr = MetaLR(optimizer, hyper_lr=0.02, rule=rule, **mode)
        words = [torch.tensor(pair) for pair in ([1, 2, 1], [2, 3, 4], [1, 4, 5], [0, 1, 3])]
        batches = [((a, torch.ones(3, 2).double()), (b, torch.ones(3, 2).double())) for a, b in pairwise(words)]
        return train(net, optimizer, metalr, batches)

    assert_same(learned(sparse=True), learned(sparse=False), 1e-10)


def test_parameters_that_are_moved_to_another_device_are_read_anew():
    optimizer = SGD(layer_groups(network()))
    sections = Sections.of(optimizer)
    assert sections.fits(optimizer)
    for group in optimizer.param_groups:
        group["params"][:] = [nn.Parameter(parameter.to("meta")) for parameter in group["params"]]
    assert not sections.fits(optimizer)
    assert Sections.of(optimizer).members.device.type == "meta"


@pytest.mark.parametrize("mode", EVERY_RULE)
def test_a_run_goes_on_where_its_sections_were_read_on_another_device(mode):
    whole = run(**mode)
    net = network()
    optimizer = SGD(layer_groups(net), momentum=0.9)
    metalr = MetaLR(optimizer, hyper_lr=0.02, **mode)
    train(net, optimizer, metalr, data(range(3)))
    sections = metalr._learner._sections  # as if all had been on the device "meta" up to here
    metalr._learner._sections = sections._replace(device=torch.device("meta"), members=sections.members.to("meta"))
    assert_same(train(net, optimizer, metalr, data(range(3, 6))), whole)
