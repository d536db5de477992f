"""Network Alchemy in a host's run: settings checked at once, phases kept over runs, and one penalty per gamma."""

import inspect
import pickle
from dataclasses import fields
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import SGD

from layertune import Alchemy, AlchemyError, Convergence, GammaPenalty, ModelError
from layertune.hosts.alchemy_session import AlchemyPhases, AlchemySession
from layertune.hosts.alchemy_settings import IDENTIFICATION, AlchemyOptions, AlchemySettings
from layertune.hosts.gamma_penalty import PenaltyOptions, PenaltySession, PenaltySettings

INPUT = torch.zeros(2, 1, 8, 8)


def network() -> nn.Sequential:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 2))
    with torch.no_grad():
        net[1].weight.copy_(torch.tensor([0.01, 0.5, 1.0, 1.5]))
    return net


def session(**settings: Any) -> AlchemySession:
    return AlchemySession(AlchemySettings.given(**{"identification": Convergence(limit=2), **settings}), owner="Host")


def frozen(net: nn.Module) -> list[str]:
    return [name for name, parameter in net.named_parameters() if not parameter.requires_grad]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"threshold": 0.0}, "a threshold for .gamma. is finite and above 0, not 0.0"),
        ({"quantile": 1.5}, "a quantile is a share between 0 and 1, not 1.5"),
        ({"threshold": 0.1, "quantile": 0.1}, "give either a threshold for .gamma. or a quantile"),
        ({"identification": 3}, "identification must be a layertune.Convergence"),
        ({"maximisation": 3}, "maximisation must be a layertune.Convergence"),
        ({"weight": -1.0}, "weight must be finite and >= 0, not -1.0"),
        ({"alpha": float("nan")}, "alpha must be finite, not nan"),
        ({"absolute": "yes"}, "absolute must be True or False, not 'yes'"),
        ({"whole_layers": 1}, "whole_layers must be True or False, not 1"),
        ({"head": "fc.weight"}, "head must be a list of names of parameters, not 'fc.weight'"),
        ({"seed": 0.5}, "seed must be a whole number, not 0.5"),
    ],
)
def test_wrong_settings_are_refused_when_the_record_is_made(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(AlchemyError, match=message):
        AlchemySettings.given(**settings)


def test_the_defaults_are_those_of_the_classes_that_use_them() -> None:
    alchemy, penalty = (inspect.signature(of).parameters for of in (Alchemy, GammaPenalty))
    record = AlchemySettings()
    for field in fields(AlchemySettings):
        of = penalty if field.name in {own.name for own in fields(PenaltySettings)} else alchemy
        if field.name != "threshold":
            assert getattr(record, field.name) == of[field.name].default, field.name
    net = network()
    assert record.threshold == Alchemy(net, SGD(net.parameters(), lr=0.1), INPUT).threshold == 0.05
    assert IDENTIFICATION["usual"] == record.identification
    assert IDENTIFICATION["long_training"] == Convergence(limit=50)


def test_hosts_take_each_setting_and_none_means_not_given() -> None:
    assert set(PenaltyOptions.__annotations__) == {field.name for field in fields(PenaltySettings)}
    assert {*AlchemyOptions.__annotations__, "identification"} == {field.name for field in fields(AlchemySettings)}
    nothing = dict.fromkeys(AlchemyOptions.__annotations__)
    assert AlchemySettings.given(**nothing) == AlchemySettings()
    assert AlchemySettings.given(identification=None).identification is None


def test_the_phases_run_and_end() -> None:
    run, net = session(maximisation=Convergence(limit=1)), network()
    assert isinstance(run, AlchemyPhases)
    assert (run.phase, run.maximises, run.running, run.unfinished) == (None, False, False, None)
    run.begin(net, SGD(net.parameters(), lr=0.1), INPUT)
    assert frozen(net) == ["0.weight", "0.bias", "4.weight", "4.bias"]
    assert run.penalty().item() == 0.0
    assert not run.end_epoch()
    assert "so only the norms were trained" in str(run.unfinished)
    assert run.end_epoch()
    assert (run.phase, run.maximises, frozen(net)) == ("maximisation", True, [])
    assert run.message.startswith("Network Alchemy: 1 of 4 kernels, |gamma| < 0.05, start afresh")
    assert run.penalty().item() != 0.0
    assert run.end_epoch()
    assert (run.phase, run.maximises, run.message) == ("finished", True, "Network Alchemy: finished")
    run.end()
    assert not run.running
    assert run.alchemy is not None


def test_a_later_run_goes_on_and_a_loaded_state_waits_for_it() -> None:
    run, net = session(), network()
    optimizer = SGD(net.parameters(), lr=0.1)
    run.begin(net, optimizer, INPUT)
    run.end_epoch()
    run.end()
    assert not frozen(net)
    other = session()
    other.load_state_dict(run.state_dict())
    assert other.phase == "identification"
    for each in (run, other, pickle.loads(pickle.dumps(run))):
        each.begin(net, optimizer, INPUT)
        assert each.end_epoch()
        assert each.phase == "maximisation"
        each.end()


def test_an_empty_state_does_not_change_a_run() -> None:
    run, net = session(), network()
    run.begin(net, SGD(net.parameters(), lr=0.1), INPUT)
    run.load_state_dict({})
    assert run.alchemy is not None
    assert run.phase == "identification"
    run.end()
    assert not frozen(net)


def test_without_an_identification_the_modification_comes_before_the_first_step() -> None:
    run, net = session(identification=None), network()
    run.begin(net, SGD(net.parameters(), lr=0.1), INPUT)
    assert not run.maximises
    assert run.modify_if_due()
    assert run.maximises
    assert not run.modify_if_due()
    run.end()


def test_a_start_that_fails_leaves_nothing_frozen_and_no_penalty() -> None:
    run, net = session(), network()
    optimizer = SGD(net.parameters(), lr=0.1)
    run.load_state_dict({"phase": "identification"})
    with pytest.raises(AlchemyError, match="this is not a state that Alchemy"):
        run.begin(net, optimizer, INPUT)
    assert not frozen(net)
    assert not run.running
    with pytest.raises(ModelError, match="no normalisation layer"):
        session().begin(nn.Linear(2, 2), SGD(net.parameters(), lr=0.1), torch.zeros(1, 2))
    session().begin(net, optimizer, INPUT)  # nobody else adds a penalty


def test_a_second_penalty_for_the_same_gammas_and_optimizer_is_refused() -> None:
    net, other = network(), network()
    both = SGD([*net.parameters(), *other.parameters()], lr=0.1)
    first = PenaltySession(PenaltySettings(), owner="First")
    first.begin(net, [both])
    with pytest.raises(AlchemyError, match=r"Second would add .* this SGD, and First adds one already"):
        PenaltySession(PenaltySettings(), owner="Second").begin(net, [both])
    with pytest.raises(AlchemyError, match=r"Host would add .* and First adds one already"):
        session().begin(net, both, INPUT)
    assert not frozen(net)
    PenaltySession(PenaltySettings(weight=0.0), owner="None").begin(net, [both])
    PenaltySession(PenaltySettings(), owner="Other").begin(other, [both])
    PenaltySession(PenaltySettings(), owner="Again").begin(net, [SGD(net.parameters(), lr=0.1)])
    first.begin(net, [both])  # again, as in a later run
    first.end()
    run = session()
    run.begin(net, both, INPUT)
    run.end()


def test_a_session_that_was_thrown_away_blocks_nothing() -> None:
    net = network()
    optimizer = SGD(net.parameters(), lr=0.1)
    PenaltySession(PenaltySettings(), owner="Gone").begin(net, [optimizer])
    PenaltySession(PenaltySettings(), owner="Next").begin(net, [optimizer])


def test_a_plateau_needs_a_metric() -> None:
    with pytest.raises(AlchemyError, match=r"give Host\(metric=\.\.\.\) a name, or give the phases a number of epochs"):
        AlchemySettings().require_metric(False, "Host(metric=...) a name")
    AlchemySettings().require_metric(True, "")
    AlchemySettings(identification=Convergence(limit=2)).require_metric(False, "")
