"""The errors for what a Lightning user can get wrong, and runs of two processes."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

import layertune.hosts.plugin
import layertune_lightning.environment
import lightning_processes
from layertune import BiDirectional, LastLayer, LayertuneError, MetaLRSettings, MissingPackageError, map_layers
from layertune_lightning import LayerFreezeCallback, MetaLRCallback
from layertune_lightning.environment import VARIABLE, callbacks
from lightning_runs import LEARN, META, Adversarial, Batch, Module, batches, fit, network, samples, trainer


def test_every_trainer_gets_a_callback_when_the_environment_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    assert not any(isinstance(found, MetaLRCallback) for found in trainer().callbacks)
    monkeypatch.setenv(VARIABLE, "hyper_lr=0.3, rule=cosine,streaming=true,every=2")
    (callback,) = (found for found in trainer().callbacks if isinstance(found, MetaLRCallback))
    assert callback.settings == MetaLRSettings(hyper_lr=0.3, rule="cosine", streaming=True, every=2)


def test_a_second_callback_for_one_optimizer_is_refused_before_anything_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "hyper_lr=0.3")
    with pytest.raises(RuntimeError, match="more than one stateful callback of type `MetaLRCallback`"):
        trainer(MetaLRCallback())
    trainer(MetaLRCallback(optimizer=1))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("yes", "'yes' is not one of them"),
        ("hyper_lr=0.1,speed=3", "'speed=3' is not one of them"),
        ("every=1,every=2", "'every=2' is given twice"),
        ("hyper_lr=fast", "hyper_lr takes a value of type float, not 'fast'"),
        ("streaming=1", "streaming takes a value of type true or false, not '1'"),
    ],
)
def test_an_environment_variable_that_cannot_be_read_gives_one_clear_error(text, message, monkeypatch) -> None:
    monkeypatch.setenv(VARIABLE, text)
    with pytest.raises(LayertuneError, match=message):
        callbacks()


def test_a_meta_loader_that_is_not_used_gives_a_warning() -> None:
    with pytest.warns(UserWarning, match="meta_loader has no effect with streaming=True"):
        MetaLRCallback(streaming=True, meta_loader=[])


class WithoutLoss(Module):
    def meta_step(self, _: Batch) -> None:
        return None


class Detached(Module):
    def meta_step(self, batch: Batch, batch_idx: int) -> Tensor:
        return super().training_step(batch, batch_idx).detach()


class Iterating(Module):
    def training_step(self, dataloader_iter: Any) -> Tensor:
        return super().training_step(next(dataloader_iter)[0], 0)


class Unknown(Module):
    def __init__(self) -> None:
        super().__init__()
        self.example_input_array = None


@pytest.mark.parametrize(
    ("kind", "settings", "message"),
    [
        pytest.param(Module, {"optimizer": 2}, "names none of the 1 optimizers", id="optimizer"),
        pytest.param(Module, {"optimizer": -1}, "names none of the 1 optimizers", id="negative optimizer"),
        pytest.param(Module, {"optimizer": "generator"}, "optimizer='generator'. names none", id="optimizer by name"),
        pytest.param(Unknown, {}, "set its example_input_array, or give the callback layers=", id="no layers"),
        pytest.param(Module, {"layers": lambda _: 3}, "got int", id="layers of another kind"),
        pytest.param(Module, {"layers": ["net"]}, "got list", id="names of layers"),
        pytest.param(
            Module,
            {"layers": lambda _: map_layers(nn.Sequential(nn.Linear(4, 2)), torch.zeros(1, 4))},
            "no network in Module has exactly the 2 parameters",
            id="layers of another network",
        ),
        pytest.param(Module, {"meta_loader": samples}, "and function does not", id="no loader"),
        pytest.param(Module, {"meta_loader": samples()}, "and TensorDataset does not", id="data without a loader"),
        pytest.param(Module, {"meta_loader": []}, "yields no batch in pass 1", id="empty"),
        pytest.param(Module, {"meta_loader": iter(META)}, "yields no batch in pass 2", id="once"),
        pytest.param(Module, {"meta_loader": DataLoader([])}, "length 0", id="empty data"),
        pytest.param(
            Module,
            {"meta_loader": [{"image": torch.zeros(4, 4)}]},
            r"is \{image: Tensor\}, where a training batch is \[Tensor, Tensor\]",
            id="another structure",
        ),
        pytest.param(WithoutLoss, {}, "meta_step of WithoutLoss gave NoneType", id="no loss"),
        pytest.param(Detached, {}, "a tensor without a gradient", id="no gradient"),
        pytest.param(Adversarial, {"optimizer": 1}, "give it a meta_step", id="by hand"),
        pytest.param(Iterating, {}, "takes an iterator", id="iterator"),
    ],
)
@pytest.mark.filterwarnings("ignore:You are using the `dataloader_iter` step flavor")
def test_mistakes_with_the_callback_give_one_clear_error(kind, settings, message) -> None:
    module, callback = kind(), MetaLRCallback(**(LEARN | settings))
    with pytest.raises(LayertuneError, match=message):
        fit(module, callback)
    assert callback.metalr is None
    assert "log" not in vars(module)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rule": "magic"}, "rule must be one of"),
        ({"hyper_lr": -1.0}, "hyper_lr must be finite and >= 0"),
        ({"rule": "additive"}, 'rule="additive" needs a hyper_lr'),
        ({"speed": 3}, "MetaLR has no setting speed"),
        ({"figure": "rates.nii"}, r"does not write figure='rates.nii'; .*'png'"),
    ],
)
def test_wrong_settings_are_refused_when_the_callback_is_made(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(LayertuneError, match=message):
        MetaLRCallback(**settings)


class Twins(Module):
    """Two networks whose parameters have the same names; the second one trains."""

    def __init__(self, first_trains: bool) -> None:
        super().__init__()
        own = self.net
        del self.net
        self.first = network().requires_grad_(first_trains)
        self.net = own


def layers_of_net(module: Any) -> Any:
    return map_layers(module.net, torch.zeros(2, 4))


def test_of_two_networks_alike_the_layers_are_those_of_the_one_that_trains() -> None:
    module = Twins(first_trains=False)
    before = [p.detach().clone() for p in module.net.parameters()]
    fit(module, LayerFreezeCallback(LastLayer(), layers=layers_of_net))
    same = [torch.equal(a, b) for a, b in zip(before, module.net.parameters(), strict=True)]
    assert same == [True] * 6 + [False] * 2


@pytest.mark.parametrize("callback", [MetaLRCallback, lambda **layers: LayerFreezeCallback(LastLayer(), **layers)])
def test_layers_that_fit_two_networks_give_one_clear_error(callback: Any) -> None:
    with pytest.raises(LayertuneError, match="fit first and net in Twins"):
        fit(Twins(first_trains=True), callback(layers=layers_of_net))


class Validates(Module):
    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Compute nothing: only the checkpoint afterwards matters."""


def test_a_checkpoint_without_optimizers_is_saved(tmp_path: Path) -> None:
    run = trainer(MetaLRCallback(**LEARN))
    run.validate(Validates(), DataLoader(samples(), batch_size=4), verbose=False)
    run.save_checkpoint(tmp_path / "kept.ckpt")
    assert (tmp_path / "kept.ckpt").is_file()


class Silent(Module):
    def training_step(self, batch: Batch, batch_idx: int) -> None:
        """Return no loss: Lightning skips the batch, and warns."""


@pytest.mark.parametrize("settings", [{}, {"streaming": True}], ids=["exact", "streaming"])
@pytest.mark.filterwarnings("ignore:`training_step` returned `None`")
def test_a_module_that_never_returns_a_loss_gives_one_clear_error(settings: dict[str, Any]) -> None:
    callback = MetaLRCallback(**LEARN, **settings)
    with pytest.raises(LayertuneError, match="training_step of Silent gave no loss"):
        fit(Silent(), callback)
    assert callback.metalr is None


@pytest.mark.parametrize(
    ("kind", "policy", "message"),
    [
        (Unknown, LastLayer(), "set its example_input_array, or give the callback layers="),
        (Module, BiDirectional(m=2, n=3), "n must be below d = 3"),
        (Module, "last", "not 'last'"),
    ],
    ids=["no layers", "policy", "no policy"],
)
def test_what_cannot_be_frozen_gives_one_clear_error(kind: type[Module], policy: Any, message: str) -> None:
    module = kind()
    with pytest.raises(LayertuneError, match=message):
        fit(module, LayerFreezeCallback(policy))
    assert all(parameter.requires_grad for parameter in module.parameters())


def test_a_training_step_that_fails_on_its_own_keeps_its_error() -> None:
    class Failing(Module):
        def meta_step(self, _: Batch) -> Tensor:
            raise ZeroDivisionError("mine")

    with pytest.raises(ZeroDivisionError, match="mine"):
        fit(Failing(), MetaLRCallback(**LEARN))


def test_training_data_without_indices_asks_for_a_meta_loader() -> None:
    with pytest.raises(LayertuneError, match="is a list; give a meta_loader"):
        fit(Module(), MetaLRCallback(**LEARN), loader=batches())


def test_an_old_lightning_gives_the_line_that_upgrades_it(monkeypatch) -> None:
    monkeypatch.setattr(layertune.hosts.plugin, "_installed", lambda _: "2.5.0")
    monkeypatch.delitem(vars(layertune_lightning), "MetaLRCallback")  # found once, it is kept
    with pytest.raises(MissingPackageError, match=r"pip install --upgrade 'layertune\[lightning\]'"):
        _ = layertune_lightning.MetaLRCallback


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[dict[str, Any]]]:
    """Return the results of both processes, for each kind of run."""
    folder = tmp_path_factory.mktemp("processes")
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    script = Path(lightning_processes.__file__)
    subprocess.run([*launch, script, folder], check=True, timeout=500)
    return {
        kind: [torch.load(folder / f"{kind} {rank}.pt", weights_only=True) for rank in range(2)]
        for kind in lightning_processes.KINDS
    }


@pytest.mark.slow
@pytest.mark.parametrize("kind", lightning_processes.KINDS)
def test_two_processes_learn_the_rates_that_one_learns(kind: str, two_processes: dict[str, Any]) -> None:
    one, two = two_processes[kind]
    assert one["lrs"] == two["lrs"]
    torch.testing.assert_close(one["weights"], two["weights"], rtol=0, atol=0)
    # The mean of both processes' gradients is the gradient of a batch twice as large.
    alone = lightning_processes.run(kind, size=8)
    assert one["lrs"] == pytest.approx(alone["lrs"], rel=1e-5)
    torch.testing.assert_close(one["weights"], alone["weights"], rtol=1e-5, atol=1e-6)
    assert alone["seen"] == [number for pair in zip(one["seen"], two["seen"], strict=True) for number in pair]
    assert len(one["lrs"]) == 3
    assert set(one["lrs"].values()) != {0.05}, "rates were learned"
