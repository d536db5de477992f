"""MetaLRSettings: defaults, checks, and what a user gave."""

from dataclasses import FrozenInstanceError, asdict
from typing import Any

import pytest
import torch

from layertune import MetaLR, MetaLRSettings, OptimizerError


def optimizer() -> torch.optim.Optimizer:
    return torch.optim.SGD([{"params": [torch.nn.Parameter(torch.ones(2))]} for _ in range(2)], lr=0.1)


@pytest.mark.parametrize(("rule", "hyper_lr"), [("free", 0.05), ("joint", 0.1), ("cosine", 0.05)])
def test_hyper_lr_is_filled_by_the_rule(rule: str, hyper_lr: float) -> None:
    settings = MetaLRSettings(rule=rule)
    assert settings.hyper_lr == settings.eta == hyper_lr
    assert MetaLRSettings(rule=rule, hyper_lr=0.0).eta == 0.0


def test_none_means_not_given() -> None:
    assert MetaLRSettings.given(hyper_lr=None, rule=None, every=None, max_lr=None) == MetaLRSettings()
    assert MetaLRSettings.given(every=3, streaming=False) == MetaLRSettings(every=3)


def test_a_preset_gives_way_to_what_the_user_gave() -> None:
    assert MetaLRSettings.given(preset="long_training") == MetaLRSettings(
        rule="proportional", hyper_lr=0.1, rule_of_0_1="proportional"
    )
    assert MetaLRSettings.given(preset="long_training", rule="cosine") == MetaLRSettings(
        rule="cosine", hyper_lr=0.05, rule_of_0_1="proportional"
    )
    with pytest.raises(OptimizerError, match="preset must be one of usual, long_training, not 'short'"):
        MetaLRSettings.given(preset="short")


def test_an_unknown_setting_is_refused_with_the_known_ones() -> None:
    with pytest.raises(OptimizerError, match=r"no setting hyperlr; it has hyper_lr, rule, .*, rule_of_0_1$"):
        MetaLRSettings.given(hyperlr=0.1)


def test_the_record_cannot_change() -> None:
    with pytest.raises(FrozenInstanceError):
        MetaLRSettings().every = 2
    assert MetaLRSettings(**asdict(MetaLRSettings(every=2))) == MetaLRSettings(every=2)


def test_metalr_takes_the_record_or_single_settings_but_not_both() -> None:
    settings = MetaLRSettings(rule="cosine", every=2)
    assert MetaLR(optimizer(), settings=settings).settings is settings
    assert MetaLR(optimizer(), rule="cosine", every=2).settings == settings
    assert MetaLR(optimizer()).settings == MetaLRSettings()
    with pytest.raises(OptimizerError, match="not both; put rule, every into settings="):
        MetaLR(optimizer(), settings=settings, rule="cosine", every=2)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"hyper_lr": -1.0}, "hyper_lr"),
        ({"hyper_lr": float("nan")}, "hyper_lr"),
        ({"rule": "additive"}, "needs a hyper_lr that fits the scale"),
        ({"hyper_lr": 0.1, "rule": "linear"}, "free, additive, proportional, cosine, joint"),
        ({"hyper_lr": 0.1, "min_lr": -1e-6}, "min_lr"),
        ({"hyper_lr": 0.1, "max_lr": 1e-7, "rule": "joint"}, "max_lr must be above min_lr = 1e-06"),
        ({"max_lr": 0.0}, "max_lr must be above min_lr = 0"),
        ({"start": "zero"}, "start must be one of weights, lr, not 'zero'"),
        ({"hyper_lr": 0.1, "max_change": 1.0}, "max_change"),
        ({"hyper_lr": 0.1, "every": 0}, "every"),
        ({"hyper_lr": 0.1, "every": float("inf")}, "every"),
        ({"hyper_lr": 0.1, "every": "2"}, "every must be a number"),
        ({"hyper_lr": "0.1"}, "hyper_lr must be a number"),
        ({"hyper_lr": 0.1, "streaming": "false"}, "streaming must be True or False"),
    ],
)
def test_a_value_out_of_range_is_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(OptimizerError, match=message):
        MetaLRSettings.given(**values)
    with pytest.raises(OptimizerError, match=message):
        MetaLR(optimizer(), **values)
