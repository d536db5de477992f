"""Methods of other papers and packages in a study: each trains as a loop written out with its package."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from dadaptation import DAdaptAdam
from dog import LDoG, PolynomialDecayAverager
from prodigyopt import Prodigy
from schedulefree import AdamWScheduleFree
from torch import nn

from layertune import freeze, map_layers, param_groups
from layertune_studies.config.study import Study
from layertune_studies.engine.trial import Trial, training_of
from layertune_studies.training.loop import Training, TrainingResult
from layertune_studies.training.methods import train
from layertune_studies.training.opponents import RENEWAL
from layertune_studies.training.settings import Depths, Setting, settings_of
from study_runs import study_of, write_images

STEPS = 6
Groups = list[dict[str, Any]]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    write_images(folder)
    return folder


def at_its_start(root: Path, method: dict[str, Any], *, lr: float, **changes: Any) -> tuple[Training, Any, Setting]:
    """The training of a method before its first step."""
    budget = {"unit": "passes", "amount": STEPS, "batch": 4}
    study = Study.model_validate(study_of(methods=[method], **{"budget": budget, **changes}))
    (one,) = study.methods
    setting = settings_of(one, Depths(10, 1))[0]
    return training_of(study, Trial(one, setting, lr, 8, 0), root, None), one, setting


def trained_by(
    root: Path, method: dict[str, Any], *, lr: float = 1.0, **changes: Any
) -> tuple[TrainingResult, nn.Module]:
    training, one, setting = at_its_start(root, method, lr=lr, **changes)
    return train(training, one, setting), training.network


def weights(network: nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().clone() for name, tensor in network.state_dict().items()}


def assert_equal(network: nn.Module, expected: dict[str, torch.Tensor]) -> None:
    for name, weight in network.state_dict().items():
        torch.testing.assert_close(weight, expected[name], rtol=0, atol=0, msg=name)


def plain_loop(
    training: Training, optimizer: torch.optim.Optimizer, after: Callable[[], object] = lambda: None
) -> None:
    for step in range(STEPS):
        image, label = training.task.batch(step)
        training.network.train()
        optimizer.zero_grad()
        training.loss_of(training.network(image), label).backward()
        optimizer.step()
        after()


def groups_of(training: Training, **options: Any) -> Groups:
    return param_groups(training.network, training.layers, weight_decay=0.01, **options)


DECAY = {"optimizer": {"name": "adamw", "weight_decay": 0.01, "head_factor": 5.0}}


def test_prodigy_is_that_of_its_package(root: Path) -> None:
    result, network = trained_by(root, {"kind": "prodigy"}, **DECAY)
    training, *_ = at_its_start(root, {"kind": "prodigy"}, lr=1.0, **DECAY)
    optimizer = Prodigy(groups_of(training, lr=1.0), lr=1.0)
    plain_loop(training, optimizer)
    assert_equal(network, weights(training.network))
    assert result.lrs == {"all": optimizer.param_groups[0]["d"]}
    assert result.passes == STEPS


def test_split_prodigy_has_an_estimate_for_each_layer(root: Path) -> None:
    result, network = trained_by(root, {"kind": "prodigy_split"}, **DECAY)
    training, *_ = at_its_start(root, {"kind": "prodigy_split"}, lr=1.0, **DECAY)
    by_layer: dict[str, Groups] = {}
    for group in groups_of(training, lr=1.0):
        by_layer.setdefault(group["layer"], []).append(group)
    optimizers = {layer: Prodigy(groups) for layer, groups in by_layer.items()}
    last = next(reversed(optimizers.values()))
    others = [optimizer for optimizer in optimizers.values() if optimizer is not last]
    # The layers' steps are independent of each other, so those of all but the last may follow its own.
    plain_loop(
        training, last, after=lambda: [optimizer.step() for optimizer in others] and training.network.zero_grad()
    )
    assert_equal(network, weights(training.network))
    assert result.lrs == {layer: one.param_groups[0]["d"] for layer, one in optimizers.items()}


def test_d_adaptation_scales_the_head_and_decays_as_adamw(root: Path) -> None:
    _, network = trained_by(root, {"kind": "dadapt_adam"}, **DECAY)
    training, *_ = at_its_start(root, {"kind": "dadapt_adam"}, lr=1.0, **DECAY)
    head = training.layers.head.name
    groups = [
        {**group, "lr": 5.0, "layer_scale": 1.0 if group["layer"] == head else 0.2}
        for group in groups_of(training, lr=1.0)
    ]
    plain_loop(training, DAdaptAdam(groups, decouple=True))
    assert_equal(network, weights(training.network))


@pytest.mark.parametrize("average", [True, False])
def test_ldog_is_evaluated_at_its_average_and_has_no_schedule(root: Path, average: bool) -> None:
    changes = {"optimizer": {"name": "adamw", "weight_decay": 0.01, "schedule": "one-cycle"}}
    result, network = trained_by(root, {"kind": "ldog", "average": average}, **changes)
    training, *_ = at_its_start(root, {"kind": "ldog"}, lr=1.0, **changes)
    averager = PolynomialDecayAverager(training.network)
    plain_loop(training, LDoG(groups_of(training, lr=1.0), reps_rel=1e-4), after=averager.step)
    assert_equal(network, weights(averager.averaged_model if average else training.network))
    assert result.lrs is not None
    assert set(result.lrs) == {layer.name for layer in training.layers}
    assert min(result.lrs.values()) > 0


def test_ldog_takes_the_first_step_that_is_asked_for(root: Path) -> None:
    small, large = (trained_by(root, {"kind": "ldog", "reps_rel": size})[0].lrs or {} for size in (1e-8, 1e-2))
    assert all(small[layer] < large[layer] for layer in small)


@pytest.mark.filterwarnings("ignore::UserWarning")  # the rate is not meant to be sensible
def test_an_ldog_that_diverges_leaves_weights_that_score_nothing(root: Path) -> None:
    _, network = trained_by(root, {"kind": "ldog"}, lr=1e30)
    assert all(parameter.isnan().all() for parameter in network.parameters())


def test_schedule_free_adamw_ends_at_its_average_with_renewed_statistics(root: Path) -> None:
    method = {"kind": "schedulefree_adamw", "warmup": 0.5}
    changes = {"optimizer": {"name": "adamw", "weight_decay": 0.01, "schedule": "cosine", "head_factor": 5.0}}
    result, network = trained_by(root, method, lr=0.01, **changes)
    training, *_ = at_its_start(root, method, lr=0.01, **changes)
    optimizer = AdamWScheduleFree(groups_of(training, lr=0.01, head_lr=0.05), lr=0.01, warmup_steps=3)
    optimizer.train()
    plain_loop(training, optimizer)
    optimizer.eval()
    training.network.train()
    with torch.no_grad():
        for step in range(STEPS, STEPS + 50):
            training.network(training.task.batch(step)[0])
    assert_equal(network, weights(training.network))
    assert RENEWAL == 50
    assert result.passes == pytest.approx(STEPS + 50 / 3)  # forward passes count as a third


@pytest.mark.parametrize("kind", ["schedulefree_adamw", "ldog"])
def test_learning_curves_measure_the_weights_that_are_evaluated(root: Path, kind: str) -> None:
    seen: list[dict[str, torch.Tensor]] = []
    training, method, setting = at_its_start(root, {"kind": kind}, lr=1.0, curve=STEPS - 1)

    def score() -> float:
        seen.append(weights(training.network))
        return 0.5

    object.__setattr__(training, "score", score)
    result = train(training, method, setting)
    assert result.curve == [(0, 0.5), (STEPS - 1, 0.5)]
    # One step less is a training of its own, whose end is what the curve measured.
    budget = {"unit": "passes", "amount": STEPS - 1, "batch": 4}
    other, method, setting = at_its_start(root, {"kind": kind}, lr=1.0, budget=budget)
    train(other, method, setting)
    for name, parameter in other.network.named_parameters():
        torch.testing.assert_close(seen[1][name], parameter.detach(), rtol=0, atol=0)


def test_auto_rgn_lowers_all_rates_but_one(root: Path) -> None:
    result, network = trained_by(root, {"kind": "auto_rgn", "batches": 1}, lr=0.1)
    training, *_ = at_its_start(root, {"kind": "auto_rgn"}, lr=0.1)
    optimizer = torch.optim.SGD(param_groups(training.network, training.layers, lr=0.1), momentum=0.9, nesterov=True)
    owned = training.layers.parameters_of(training.network)
    for step in range(STEPS):
        image, label = training.task.batch(step)
        training.network.train()
        optimizer.zero_grad()
        training.loss_of(training.network(image), label).backward()
        norms = {
            layer: math.hypot(*(p.grad.norm().item() for p in some)) / math.hypot(*(p.norm().item() for p in some))
            for layer, some in owned.items()
        }
        for group in optimizer.param_groups:
            group["lr"] = 0.1 * norms[group["layer"]] / max(norms.values())
        optimizer.step()
    for name, weight in network.state_dict().items():
        torch.testing.assert_close(weight, training.network.state_dict()[name], msg=name)
    assert result.lrs == pytest.approx({group["layer"]: group["lr"] for group in optimizer.param_groups})
    assert max(result.lrs.values()) == 0.1


def test_auto_rgn_reports_rates_without_the_schedule(root: Path) -> None:
    result, _ = trained_by(root, {"kind": "auto_rgn"}, lr=0.1, optimizer={"name": "sgd", "schedule": "cosine"})
    assert result.lrs is not None
    assert max(result.lrs.values()) == 0.1


def test_l2_sp_adds_the_written_penalty_and_takes_the_place_of_weight_decay(root: Path) -> None:
    method = {"kind": "l2_sp", "alphas": [0.5, 0.1], "beta": 0.2}
    changes = {"optimizer": {"name": "sgd", "weight_decay": 0.3}}
    _, network = trained_by(root, method, lr=0.1, **changes)
    training, one, _ = at_its_start(root, method, lr=0.1, **changes)
    assert [setting.label for setting in settings_of(one, Depths(10, 1))] == ["alpha-0.5", "alpha-0.1"]
    start = weights(training.network)
    head = training.layers.head.parameters
    optimizer = torch.optim.SGD(training.network.parameters(), lr=0.1, momentum=0.9, nesterov=True)
    for step in range(STEPS):
        image, label = training.task.batch(step)
        training.network.train()
        optimizer.zero_grad()
        loss = training.loss_of(training.network(image), label)
        for name, parameter in training.network.named_parameters():
            pull = parameter if name in head else parameter - start[name]
            loss = loss + (0.2 if name in head else 0.5) / 2 * pull.square().sum()
        loss.backward()
        optimizer.step()
    for name, weight in network.state_dict().items():
        torch.testing.assert_close(weight, training.network.state_dict()[name], msg=name)


def test_lp_ft_probes_frozen_features_and_counts_the_passes_of_both_parts(root: Path) -> None:
    result, network = trained_by(root, {"kind": "lp_ft", "drop": 0.5}, lr=0.1)
    assert (result.steps, result.passes) == (STEPS, STEPS)
    training, *_ = at_its_start(root, {"kind": "lp_ft"}, lr=0.1)
    layers = map_layers(training.network, training.task.batch(0)[0])

    def loop(steps: range, lr: float) -> None:
        trainable = [p for p in training.network.parameters() if p.requires_grad]
        optimizer = torch.optim.SGD(trainable, lr=lr, momentum=0.9, nesterov=True)
        for step in steps:
            image, label = training.task.batch(step)
            training.network.train()
            optimizer.zero_grad()
            training.loss_of(training.network(image), label).backward()
            optimizer.step()

    before = weights(training.network)
    with freeze(training.network, layers, lambda layers: [0.0] * (len(layers) - 1) + [1.0], statistics=True):
        loop(range(3), 0.1)
    changed = {name for name, weight in weights(training.network).items() if not torch.equal(weight, before[name])}
    assert changed == set(layers.head.parameters)
    loop(range(3, STEPS), 0.05)
    assert_equal(network, weights(training.network))


def test_gradual_unfreezing_frees_one_depth_more_in_each_phase(root: Path) -> None:
    training, method, setting = at_its_start(
        root, {"kind": "gradual_unfreezing", "phase": 2}, lr=0.1, optimizer={"name": "adamw", "weight_decay": 0.01}
    )
    owned = {
        layer.depth: [dict(training.network.named_parameters())[name] for name in layer.parameters]
        for layer in training.layers
    }
    before = {depth: [p.detach().clone() for p in some] for depth, some in owned.items()}
    moved: list[list[int]] = []

    def tell(_: int) -> None:
        now = [
            d for d, some in owned.items() if any(not torch.equal(a, b) for a, b in zip(some, before[d], strict=True))
        ]
        moved.append(now)

    object.__setattr__(training, "tell", tell)
    result = train(training, method, setting)
    assert moved == [[10], [10], [9, 10], [9, 10], [8, 9, 10], [8, 9, 10]]
    assert result.passes == STEPS
    assert all(parameter.requires_grad for parameter in training.network.parameters())


def test_gradual_unfreezing_leaves_a_share_of_a_short_budget_for_all_layers(root: Path) -> None:
    budget = {"unit": "passes", "amount": 12, "batch": 4}  # an epoch has two steps; ten such phases would take 20
    training, method, setting = at_its_start(root, {"kind": "gradual_unfreezing"}, lr=0.1, budget=budget)
    trainable: list[int] = []
    object.__setattr__(
        training, "tell", lambda _: trainable.append(sum(p.requires_grad for p in training.network.parameters()))
    )
    train(training, method, setting)
    assert trainable == sorted(trainable)
    assert trainable[9:] == [len(list(training.network.parameters()))] * 3
