"""AutoLR against runs worked out by hand: layers of one weight with a constant gradient, so v = rate * |gradient|."""

import copy
import math
import warnings

import pytest
import torch
from torch import nn

from layertune import AutoLR, MetaLR, OptimizerError, map_layers, param_groups
from layertune.autolr.autolr import LRTrial
from small_networks import SmallResNet, image


class Weights(nn.Module):
    """Stem, three layers, classifier: one weight each."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ParameterList(nn.Parameter(torch.ones(1, 1, dtype=torch.float64)) for _ in range(5))


NAMES = ("stem", "a", "b", "c", "head")


def sgd(net: Weights, **options: float) -> torch.optim.SGD:
    groups = [
        {"params": [p], "layer": name, "depth": depth}
        for depth, (name, p) in enumerate(zip(NAMES, net.layers, strict=True), 1)
    ]
    return torch.optim.SGD(groups, lr=0.1, **options)


def step(net: Weights, optimizer: torch.optim.Optimizer, slopes: tuple[float, ...]) -> None:
    for parameter, slope in zip(net.layers, (1.0, *slopes, 1.0), strict=True):
        parameter.grad = torch.full_like(parameter, slope)
    optimizer.step()


def run(slopes: list[tuple[float, ...]], **options: float) -> tuple[AutoLR, Weights]:
    """One epoch a list entry, the same gradients in all trials of an epoch."""
    net = Weights()
    autolr = AutoLR(net, sgd(net), **options)
    for epoch in slopes:
        for _ in autolr.epoch():
            step(net, autolr.optimizer, epoch)
    return autolr, net


def finish_epoch(autolr: AutoLR, slopes: list[tuple[float, ...]]) -> None:
    """One epoch with gradients of their own in each trial."""
    for trial in autolr.epoch():
        step(autolr.model, autolr.optimizer, slopes[trial - 1])


def test_the_first_epoch_by_hand():
    autolr, net = run([(4, 1, 2)])
    first, second = autolr.trials
    # Rates 0.1 give v = 0.4, 0.1, 0.2, which sorts as layers 1, 2, 0: S = 1 - 2/9 * 4.
    assert list(first.variations.values()) == pytest.approx([0.4, 0.1, 0.2])
    assert (first.quality, first.accepted) == (pytest.approx(1 / 9), False)
    # 2 * 0.1 and 0.4 * 0.4 are the ends, in ascending order.
    assert first.target == pytest.approx([0.16, 0.18, 0.2])
    # rate w / v, the stem at half of the first of them, the classifier as it was.
    assert second.lrs == pytest.approx({"stem": 0.02, "a": 0.04, "b": 0.18, "c": 0.1, "head": 0.1})
    assert list(second.variations.values()) == pytest.approx([0.16, 0.18, 0.2])
    assert (second.quality, second.accepted, second.target) == (1.0, True, None)
    # The accepted trial alone counts: each weight moved by its rate times its gradient, once.
    moved = [1 - float(p.detach()) for p in net.layers]
    assert moved == pytest.approx([0.02, 0.16, 0.18, 0.2, 0.1])


def test_a_later_epoch_starts_with_the_rates_of_the_last_and_mends_its_own_variations():
    autolr, _ = run([(4, 1, 2), (1, 4, 1)])
    third, fourth = autolr.trials[2:]
    assert third.lrs == pytest.approx({"stem": 0.02, "a": 0.04, "b": 0.18, "c": 0.1, "head": 0.1})
    assert list(third.variations.values()) == pytest.approx([0.04, 0.72, 0.1])
    # delta = (0.72 - 0.04) / 2 = 0.34: layer c comes to 0.72 + 0.34.
    assert third.target == pytest.approx([0.04, 0.72, 1.06])
    assert (third.epoch, third.number, fourth.number, fourth.accepted) == (2, 1, 2, True)
    assert fourth.lrs["c"] == pytest.approx(0.1 * 1.06 / 0.1)


def test_the_threshold_falls_by_one_percent_while_it_is_above_0_8():
    autolr, _ = run([(1, 2, 3)] * 20)
    taus = [0.94]
    while taus[-1] > 0.8:
        taus.append(taus[-1] * 0.99)
    assert autolr.threshold == pytest.approx(taus[-1])
    assert len(taus) == 18
    early, _ = run([(1, 2, 3)] * 2)
    assert early.threshold == pytest.approx(taus[2])


def test_further_trials_keep_the_target_of_their_epoch():
    net = Weights()
    autolr = AutoLR(net, sgd(net))
    finish_epoch(autolr, [(4, 1, 2), (1, 9, 1), (1, 1, 1), (1, 1, 1)])
    assert autolr.trials[1].target == autolr.trials[0].target
    # v = 0.04, 1.62, 0.1 at the second trial: rates 0.04 * 0.16 / 0.04, 0.18 * 0.18 / 1.62, 0.1 * 0.2 / 0.1.
    assert [autolr.trials[2].lrs[name] for name in "abc"] == pytest.approx([0.16, 0.02, 0.2])


def test_a_rejected_trial_leaves_nothing_behind():
    """Momentum, the schedule and buffers are those of the epoch's start."""
    net = Weights()
    net.register_buffer("batches", torch.zeros(()))
    optimizer = sgd(net, momentum=0.9)
    schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)
    autolr = AutoLR(net, optimizer, also=[schedule])
    seen = []
    for _ in autolr.epoch():
        seen.append((net.batches.item(), schedule.last_epoch, optimizer.param_groups[0]["lr"], len(optimizer.state)))
        step(net, optimizer, (4, 1, 2))
        net.batches += 1
        schedule.step()
    assert seen == [(0, 0, 0.1, 0)] * 2
    assert (net.batches, schedule.last_epoch, len(autolr.trials)) == (1, 1, 2)
    assert [state["momentum_buffer"].item() for state in optimizer.state.values()] == [1, 4, 1, 2, 1]


def test_the_schedule_keeps_owning_the_rate():
    net = Weights()
    autolr = AutoLR(net, sgd(net))
    schedule = torch.optim.lr_scheduler.LambdaLR(autolr.optimizer, lambda epoch: 0.1**epoch)
    for _ in autolr.epoch():
        step(net, autolr.optimizer, (4, 1, 2))
    schedule.step()
    assert [group["lr"] for group in autolr.optimizer.param_groups] == pytest.approx([0.01] * 5)
    assert autolr.lrs == pytest.approx({"stem": 0.002, "a": 0.004, "b": 0.018, "c": 0.01, "head": 0.01})


def test_the_best_of_all_trials_is_kept_and_said_so():
    net = Weights()
    autolr = AutoLR(net, sgd(net), max_trials=3)
    # At the rates 0.1 * (0.4, 1.8, 1.0) of the second trial these slopes give v = 0.02, 0.01, 0.03.
    slopes = [(4, 1, 2), (0.5, 0.01 / 0.18, 0.3), (9, 1e-3, 1e-3)]
    with pytest.warns(RuntimeWarning, match=r"none of 3 trials of epoch 1 .* 0.940: the best trial .* 0.556"):
        finish_epoch(autolr, slopes)
    assert [trial.quality for trial in autolr.trials] == pytest.approx([1 / 9, 5 / 9, 1 / 9])
    second = autolr.trials[1]
    assert [1 - float(p.detach()) for p in net.layers][1:4] == pytest.approx(list(second.variations.values()))
    assert autolr.lrs == pytest.approx(second.lrs)
    assert autolr.epochs == 1


def test_the_warning_counts_the_trials_that_were_made():
    net = Weights()
    autolr = AutoLR(net, sgd(net), max_trials=20)
    trials = autolr.epoch()
    for slopes in [(4, 1, 2), (0.5, 0.01 / 0.18, 0.3)]:
        next(trials)
        step(net, autolr.optimizer, slopes)
    autolr.max_trials = 1
    with pytest.warns(RuntimeWarning, match="none of 2 trials of epoch 1"):
        assert list(trials) == []
    assert autolr.epochs == 1


def test_a_layer_that_does_not_move_keeps_its_rate():
    autolr, _ = run([(0, 2, 1)])
    first, second = autolr.trials
    assert list(first.variations.values()) == pytest.approx([0, 0.2, 0.1])
    assert first.target == pytest.approx([0.08, 0.14, 0.2])  # 0.4 * 0.2 to 2 * 0.1, the least that moved
    assert second.lrs["a"] == 0.1


def test_a_trial_that_diverged_is_put_back_at_a_tenth_of_the_rate():
    net = Weights()
    autolr = AutoLR(net, sgd(net), max_trials=4)
    finish_epoch(autolr, [(1, math.inf, 3), (1, 20, 3)])
    first, second = autolr.trials
    assert (first.quality, first.target, first.accepted) == (-math.inf, None, False)
    assert [second.lrs[name] for name in "abc"] == pytest.approx([0.1, 0.01, 0.1])
    assert second.accepted
    assert all(torch.isfinite(p).all() for p in net.layers)


def test_an_epoch_in_which_all_trials_diverged_is_left_out():
    net = Weights()
    autolr = AutoLR(net, sgd(net), max_trials=2)
    with pytest.warns(RuntimeWarning, match="all of them diverged, so the epoch is left out"):
        finish_epoch(autolr, [(math.nan,) * 3] * 2)
    assert all(p.item() == 1 for p in net.layers)
    assert autolr.lrs["b"] == pytest.approx(0.001)


def trained(net: Weights, autolr: AutoLR, epochs: range) -> None:
    slopes = [(4, 1, 2), (1, 4, 1), (2, 1, 1), (1, 1, 9)]
    for epoch in epochs:
        for _ in autolr.epoch():
            step(net, autolr.optimizer, slopes[epoch])


def test_a_resumed_run_goes_on_alike():
    net = Weights()
    whole = AutoLR(net, sgd(net, momentum=0.9))
    trained(net, whole, range(2))
    saved = copy.deepcopy((net.state_dict(), whole.optimizer.state_dict()))
    trained(net, whole, range(2, 4))

    other = Weights()
    optimizer = sgd(other, momentum=0.9)
    resumed = AutoLR(other, optimizer)
    other.load_state_dict(saved[0])
    optimizer.load_state_dict(saved[1])
    trained(other, resumed, range(2, 4))
    assert resumed.lrs == whole.lrs
    assert resumed.trials == [trial for trial in whole.trials if trial.epoch > 2]
    assert [p.item() for p in other.layers] == [p.item() for p in net.layers]


def test_leaving_the_loop_early_keeps_what_was_trained():
    net = Weights()
    autolr = AutoLR(net, sgd(net))
    for _ in autolr.epoch():
        step(net, autolr.optimizer, (4, 1, 2))
        break
    assert net.layers[1].item() == pytest.approx(0.6)
    assert (autolr.epochs, autolr.trials) == (0, [])


def test_detach_leaves_the_optimizer_as_it_was():
    autolr, net = run([(4, 1, 2)])
    autolr.detach()
    assert not autolr.optimizer._optimizer_step_pre_hooks
    assert all(not key.startswith("auto") for group in autolr.optimizer.param_groups for key in group)
    before = net.layers[1].item()
    step(net, autolr.optimizer, (4, 1, 2))
    assert before - net.layers[1].item() == pytest.approx(0.4)


def test_a_residual_network_is_sorted_by_trial_and_error():
    torch.manual_seed(3)
    net = SmallResNet(width=4)
    layers = map_layers(net, image())
    groups = param_groups(net, layers, lr=0.01, head_lr=0.1, weight_decay=5e-4)
    optimizer = torch.optim.SGD(groups, lr=0.01, momentum=0.9, nesterov=True)
    autolr = AutoLR(net, optimizer)
    x, y = torch.randn(8, 1, 16, 16), torch.arange(8) % 3
    for _ in range(3):
        for _ in autolr.epoch():
            for _ in range(2):
                optimizer.zero_grad()
                nn.functional.cross_entropy(net(x), y).backward()
                optimizer.step()
    accepted: list[LRTrial] = [trial for trial in autolr.trials if trial.accepted]
    assert [trial.epoch for trial in accepted] == [1, 2, 3]
    assert list(accepted[0].variations) == [layer.name for layer in layers[1:-1]]
    assert all(trial.quality >= 0.92 for trial in accepted)
    assert len(autolr.trials) > 3, "flat rates alone do not sort the layers"
    assert all(trial.lrs[layers.head.name] == pytest.approx(0.1) for trial in autolr.trials)


# One clear error


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"threshold": 0}, "threshold must be above 0 and at most 1, not 0"),
        ({"threshold": math.nan}, "threshold must be"),
        ({"f_min": 0}, "f_min must be finite and above 0"),
        ({"f_max": math.inf}, "f_max must be finite and above 0"),
        ({"stem_factor": -1}, "stem_factor must be finite and above 0"),
        ({"max_trials": 0}, "max_trials must be at least 1, not 0"),
    ],
)
def test_settings_out_of_range(options: dict[str, float], message: str):
    net = Weights()
    with pytest.raises(OptimizerError, match=message):
        AutoLR(net, sgd(net), **options)


def test_an_optimizer_without_layers_is_refused():
    net = Weights()
    with pytest.raises(OptimizerError, match=r"at least two of them.*group 0.*param_groups"):
        AutoLR(net, torch.optim.SGD(net.parameters(), lr=0.1))


def test_a_layer_without_weights_is_refused():
    net = Weights()
    optimizer = sgd(net)
    optimizer.param_groups[2]["params"] = [nn.Parameter(torch.ones(3))]
    with pytest.raises(OptimizerError, match=r"the layers \['b'\] have no weight of two or more dimensions"):
        AutoLR(net, optimizer)


def test_rates_are_multiplied_by_one_only():
    net = Weights()
    optimizer = sgd(net)
    with MetaLRAttached(optimizer), pytest.raises(OptimizerError, match="a MetaLR is attached"):
        AutoLR(net, optimizer)
    AutoLR(net, optimizer)
    with pytest.raises(OptimizerError, match="a AutoLR is attached"):
        MetaLR(optimizer, hyper_lr=0.1)


class MetaLRAttached:
    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self.metalr = MetaLR(optimizer, hyper_lr=0.1)

    def __enter__(self) -> None:
        pass

    def __exit__(self, *_: object) -> None:
        self.metalr.detach()


def test_an_epoch_without_training_is_an_error():
    net = Weights()
    autolr = AutoLR(net, sgd(net))
    with pytest.raises(OptimizerError, match="no weight between stem and head moved in this epoch"):
        for _ in autolr.epoch():
            pass


def test_no_warning_where_a_trial_is_accepted():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run([(1, 2, 3)])
