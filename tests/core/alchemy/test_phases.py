"""The three phases around a plain loop, and a run that was interrupted in any of them."""

import copy
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.optim import SGD, Adam

from layertune import Alchemy, AlchemyError, Convergence, GammaPenalty, ModelError, OptimizerError, gammas
from norm_networks import PreActivation

EXAMPLE = torch.empty(2, 1, 8, 8)
BUDGET = Convergence(limit=2)


def network() -> nn.Module:
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(1, 4, 3),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Conv2d(4, 6, 3),
        nn.BatchNorm2d(6),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(96, 3),
    )
    with torch.no_grad():
        net[1].weight[2] = 0.01
        net[4].weight[5] = 0.01
    return net


def batch(epoch: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(epoch)
    return torch.randn(8, 1, 8, 8, generator=generator), torch.randint(3, (8,), generator=generator)


def epoch_of(net: nn.Module, alchemy: Alchemy, number: int) -> float:
    x, y = batch(number)
    alchemy.optimizer.zero_grad()
    loss = cross_entropy(net(x), y) + alchemy.penalty()
    loss.backward()
    alchemy.optimizer.step()
    return loss.item()


def start(**settings: Any) -> tuple[nn.Module, Alchemy]:
    net = network()
    chosen = {"identification": BUDGET, "maximisation": Convergence(limit=3), **settings}
    return net, Alchemy(net, Adam(net.parameters(), lr=1e-3, weight_decay=0.1), EXAMPLE, **chosen)


def snapshot(net: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in net.state_dict().items()}


def test_the_phases_in_turn() -> None:
    net, alchemy = start()
    before, phases, changes = snapshot(net), [], []
    for number in range(6):
        phases.append(alchemy.phase)
        changes.append(alchemy.update(epoch_of(net, alchemy, number)))
        if number == 0:
            changed = {name for name, tensor in net.state_dict().items() if not torch.equal(tensor, before[name])}
            assert changed == {
                f"{norm}.{key}"
                for norm in (1, 4)
                for key in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
            }
            assert {name for name, p in net.named_parameters() if p.grad is not None} == {
                "1.weight", "1.bias", "4.weight", "4.bias"
            }  # fmt: skip
        if number == 1:
            assert alchemy.redundant is not None
            assert alchemy.redundant.channels == {"1": (2,), "4": (5,)}
            assert alchemy.identified is not None
            assert alchemy.identified["1"][2].abs() < 0.05
            assert net[1].weight[2] == 1
            assert torch.equal(net[0].weight[0], before["0.weight"][0])
            assert not torch.equal(net[0].weight[2], before["0.weight"][2])
    assert phases == ["identification"] * 2 + ["maximisation"] * 3 + ["finished"]
    assert changes == [False, True, False, False, True, False]
    assert all(parameter.requires_grad for parameter in net.parameters())
    assert [phase for phase, _ in alchemy.history] == phases[:-1]


def test_the_penalty_belongs_to_the_maximisation() -> None:
    net, alchemy = start(penalty=None)
    assert alchemy.penalty().item() == 0
    for number in range(2):
        alchemy.update(epoch_of(net, alchemy, number))
    assert alchemy.penalty().item() == GammaPenalty(net)().item() != 0
    for number in range(2, 5):
        alchemy.update(epoch_of(net, alchemy, number))
    assert alchemy.phase == "finished"
    assert alchemy.penalty().item() == 0


def test_a_penalty_of_ones_own() -> None:
    net, alchemy = start(identification=None, modification=False, penalty=GammaPenalty(network(), weight=0.0))
    alchemy.modify()
    assert alchemy.phase == "maximisation"
    assert alchemy.penalty().item() == 0
    assert alchemy.redundant is None
    assert gammas(net)["1"][2] == pytest.approx(0.01)


def test_a_plateau_ends_the_identification() -> None:
    _, alchemy = start(identification=Convergence(patience=2))
    assert [alchemy.update(loss) for loss in (1.0, 0.5, 0.6, 0.5)] == [False, False, False, True]
    with pytest.raises(AlchemyError, match="give update"):
        start(identification=Convergence(patience=2))[1].update()


def test_without_identification_modify_is_asked_for() -> None:
    net, alchemy = start(identification=None, maximisation=None)
    assert alchemy.phase == "modification"
    assert all(parameter.requires_grad for parameter in net.parameters())
    with pytest.raises(AlchemyError, match=r"call modify\(\)"):
        alchemy.update(1.0)
    alchemy.modify()
    assert net[1].weight[2] == 1
    for _ in range(20):
        assert not alchemy.update()
    assert alchemy.progress.epochs == 20
    with pytest.raises(AlchemyError, match="the phase is the maximisation"):
        alchemy.modify()


def test_the_optimizer_forgets_the_old_kernels() -> None:
    net = network()
    optimizer = SGD(net.parameters(), lr=0.1, momentum=0.9)
    nn.init.constant_(net[0].weight, 0.1)
    cross_entropy(net(batch(0)[0]), batch(0)[1]).backward()
    optimizer.step()
    nn.init.constant_(net[1].weight[2:3], 0.01)
    alchemy = Alchemy(net, optimizer, EXAMPLE, identification=None)
    alchemy.modify()
    kept = optimizer.state[net[0].weight]["momentum_buffer"]
    assert not kept[2].any()
    assert kept[0].any()


def test_a_quantile() -> None:
    net, alchemy = start(identification=None, quantile=0.3)
    with torch.no_grad():
        net[1].weight.copy_(torch.tensor([1.0, 0.2, 1.1, 1.2]))
        net[4].weight.copy_(torch.tensor([0.3, 1.3, 1.4, 1.5, 0.1, 1.6]))
    alchemy.modify()
    assert alchemy.redundant is not None
    assert alchemy.redundant.channels == {"1": (1,), "4": (0, 4)}


def test_a_refused_threshold_waits_and_loses_nothing() -> None:
    net, alchemy = start(threshold=100.0)
    alchemy.update(1.0)
    with pytest.raises(AlchemyError, match="all kernels of 2 layers"):
        alchemy.update(1.0)
    assert alchemy.phase == "modification"
    assert gammas(net)["1"][2] == pytest.approx(0.01)
    other = copy.deepcopy(alchemy.state_dict())
    alchemy.threshold = 0.05
    alchemy.modify()
    assert alchemy.phase == "maximisation"
    resumed_net, resumed = start()
    resumed.load_state_dict(other)
    assert resumed.phase == "modification"
    resumed.modify()
    assert resumed_net[1].weight[2] == 1


@pytest.mark.parametrize("epochs", range(6))
def test_an_interrupted_run_goes_on_exactly(epochs: int) -> None:
    net, alchemy = start()
    for number in range(epochs):
        alchemy.update(epoch_of(net, alchemy, number))
    saved = json.loads(json.dumps(alchemy.state_dict()))
    weights, state = copy.deepcopy(net.state_dict()), copy.deepcopy(alchemy.optimizer.state_dict())
    torch.manual_seed(5)
    other, resumed = start()
    other.load_state_dict(weights)
    resumed.optimizer.load_state_dict(state)
    resumed.load_state_dict(saved)
    for number in range(epochs, 7):
        losses = [epoch_of(*run, number) for run in ((net, alchemy), (other, resumed))]
        assert losses[0] == losses[1]
        assert alchemy.update(losses[0]) == resumed.update(losses[1])
    assert (resumed.phase, resumed.progress, resumed.history) == (alchemy.phase, alchemy.progress, alchemy.history)
    assert resumed.redundant == alchemy.redundant
    assert all(torch.equal(tensor, other.state_dict()[name]) for name, tensor in net.state_dict().items())
    assert resumed.identified is not None
    assert alchemy.identified is not None
    torch.testing.assert_close(resumed.identified, alchemy.identified, rtol=0, atol=0)


@pytest.mark.parametrize("kind", [np.float64, torch.tensor])
def test_metrics_of_other_libraries_are_saved_as_plain_numbers(tmp_path: Path, kind: Any) -> None:
    _, alchemy = start()
    alchemy.update(kind(0.5))
    torch.save(alchemy.state_dict(), tmp_path / "state.pt")
    assert torch.load(tmp_path / "state.pt", weights_only=True)["history"] == [["identification", 0.5]]


def test_a_state_frees_or_freezes_as_its_phase_asks() -> None:
    _, early = start()
    net, late = start()
    for _ in range(2):
        late.update(1.0)
    fresh, alchemy = start()
    alchemy.load_state_dict(late.state_dict())
    assert all(parameter.requires_grad for parameter in fresh.parameters())
    late.load_state_dict(early.state_dict())
    assert [name for name, p in net.named_parameters() if p.requires_grad] == [
        "1.weight",
        "1.bias",
        "4.weight",
        "4.bias",
    ]


def test_states_that_do_not_fit() -> None:
    _, alchemy = start()
    other = PreActivation()
    theirs = Alchemy(other, SGD(other.parameters(), lr=0.1), EXAMPLE).state_dict()
    with pytest.raises(AlchemyError, match="another network"):
        alchemy.load_state_dict(theirs)
    with pytest.raises(AlchemyError, match="not a state that Alchemy"):
        alchemy.load_state_dict({"phase": "identification"})
    with pytest.raises(AlchemyError, match="another network"):
        alchemy.load_state_dict({**alchemy.state_dict(), "phase": "transmutation"})
    assert alchemy.phase == "identification"


@pytest.mark.parametrize("damaged", [{}, {"threshold": 0.1}, {"threshold": 0.1, "channels": [1]}, 3])
def test_a_state_with_damaged_kernels_changes_nothing(damaged: Any) -> None:
    net, alchemy = start()
    before = alchemy.state_dict()
    trained = [parameter.requires_grad for parameter in net.parameters()]
    with pytest.raises(AlchemyError, match="not a state that Alchemy"):
        alchemy.load_state_dict({**before, "phase": "maximisation", "redundant": damaged})
    assert alchemy.state_dict() == before
    assert [parameter.requires_grad for parameter in net.parameters()] == trained


def test_it_leaves_as_it_came() -> None:
    net = network()
    net[7].bias.requires_grad_(False)
    with Alchemy(net, SGD(net.parameters(), lr=0.1), EXAMPLE) as alchemy:
        assert not net[0].weight.requires_grad
        alchemy.detach()
    assert [name for name, p in net.named_parameters() if not p.requires_grad] == ["7.bias"]


def test_biases_and_the_head_may_train_too() -> None:
    net, _ = start(biases=True, head=["7.weight"])
    assert [name for name, p in net.named_parameters() if not p.requires_grad] == ["0.weight", "3.weight"]


@pytest.mark.parametrize("settings", [{"threshold": -1}, {"quantile": 2}, {"threshold": 0.1, "quantile": 0.1}])
def test_settings_are_refused_before_training_begins(settings: dict[str, float]) -> None:
    with pytest.raises(AlchemyError):
        start(**settings)


def test_networks_without_gammas_are_refused() -> None:
    net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.InstanceNorm2d(2))
    with (
        pytest.warns(UserWarning, match="GammaPenalty has no effect"),
        pytest.raises(ModelError, match="none of the 1 norms"),
    ):
        Alchemy(net, SGD(net.parameters(), lr=0.1), EXAMPLE)


def test_nan_gammas_are_answered_at_the_modification() -> None:
    net, alchemy = start()
    nn.init.constant_(net[4].weight, float("nan"))
    alchemy.update(1.0)
    with pytest.raises(AlchemyError, match="gammas of 4 are not finite"):
        alchemy.update(1.0)


def test_metalr_learns_in_the_last_phase() -> None:
    from layertune import MetaLR, map_layers, param_groups

    net = network()
    optimizer = SGD(param_groups(net, map_layers(net, EXAMPLE), lr=0.01), momentum=0.9)
    alchemy = Alchemy(net, optimizer, EXAMPLE, identification=BUDGET)
    metalr = None
    for number in range(5):
        if alchemy.phase == "maximisation" and metalr is None:
            metalr = MetaLR(optimizer, hyper_lr=0.1, rule="cosine", streaming=True)
        alchemy.update(epoch_of(net, alchemy, number))
    assert metalr is not None
    assert metalr.steps == 3
    assert len(set(metalr.lrs.values())) > 1


@pytest.fixture
def one_rank(tmp_path: Path) -> Iterator[None]:
    dist.init_process_group("gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    try:
        yield
    finally:
        dist.destroy_process_group()


@pytest.mark.usefixtures("one_rank")
def test_under_ddp_all_phases_train_if_it_may_find_unused_parameters() -> None:
    net = network()
    wrapped = nn.parallel.DistributedDataParallel(net, find_unused_parameters=True)
    alchemy = Alchemy(wrapped, SGD(wrapped.parameters(), lr=0.1), EXAMPLE, identification=BUDGET)
    before = net[0].weight.detach().clone()
    for number in range(4):
        alchemy.update(epoch_of(wrapped, alchemy, number))
        assert torch.equal(net[0].weight[0], before[0]) == (number < 2)
    assert alchemy.phase == "maximisation"
    assert list(alchemy.state_dict()["norms"]) == ["1", "4"]


def test_added_gradients_train_as_the_penalty_does() -> None:
    def train(added: bool) -> nn.Module:
        net, alchemy = start(penalty=None)
        with alchemy:
            for epoch in range(4):
                x, y = batch(epoch)
                alchemy.optimizer.zero_grad()
                loss = cross_entropy(net(x), y)
                (loss if added else loss + alchemy.penalty()).backward()
                if added:
                    alchemy.add_gradient()
                alchemy.optimizer.step()
                alchemy.update()
        return net

    torch.testing.assert_close(train(True).state_dict(), train(False).state_dict(), rtol=0, atol=0)


@pytest.mark.parametrize("held", [network, lambda: network()[-1]], ids=["of another network", "of a head"])
def test_an_optimizer_without_the_gammas_is_refused(held: Any) -> None:
    with pytest.raises(OptimizerError, match="holds no gamma of the network"):
        Alchemy(network(), Adam(held().parameters()), EXAMPLE)
