"""One contract for the plug-ins of all hosts."""

import importlib
import importlib.metadata
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest
import torch

from host_contract import End, Host, Train, left_behind, weights
from layertune import Plugin, plugins
from layertune.hosts.plugin import GROUP


def timm_run() -> Train:
    """timm's factory and scheduler in a loop like that of its train.py; the unit is a step."""
    import timm
    from timm.optim import create_optimizer_v2
    from timm.scheduler import CosineLRScheduler
    from torch.nn.functional import cross_entropy

    from layertune import MetaLR
    from layertune_timm import all_layers

    def train(folder: Path, *, hyper_lr: float | None, first: int = 0, last: int = 4) -> End:
        torch.manual_seed(0)
        block = timm.models.resnet.BasicBlock
        model = timm.models.ResNet(block, (1, 1, 1, 1), num_classes=2, in_chans=1, channels=(4, 8, 8, 8))
        grouper = None if hyper_lr is None else all_layers()
        optimizer = create_optimizer_v2(model, "sgd", lr=0.05, weight_decay=1e-3, param_group_fn=grouper)
        scheduler = CosineLRScheduler(optimizer, t_initial=8, t_in_epochs=False)
        metalr = None
        if hyper_lr is not None:
            metalr = MetaLR(optimizer, hyper_lr=hyper_lr, rule="proportional", streaming=True)
        if first:
            saved = torch.load(folder / "last.pth", weights_only=True)
            model.load_state_dict(saved["model"])
            optimizer.load_state_dict(saved["optimizer"])
            scheduler.step_update(first)
        for step in range(first, last):
            generator = torch.Generator().manual_seed(step)
            x, y = torch.randn(4, 1, 32, 32, generator=generator), torch.randint(0, 2, (4,), generator=generator)
            optimizer.zero_grad()
            cross_entropy(model(x), y).backward()
            optimizer.step()
            scheduler.step_update(step + 1)
        torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, folder / "last.pth")
        lrs = metalr.lrs if metalr else {}
        if metalr:
            metalr.detach()
        return End(model, optimizer, lrs)

    return train


def lightning_run() -> Train:
    """A Trainer with the callback, on an unchanged module; the unit is an epoch."""
    from layertune_lightning import MetaLRCallback
    from lightning_runs import Module, fit

    def train(folder: Path, *, hyper_lr: float | None, first: int = 0, last: int = 4) -> End:
        module = Module(schedule="epoch")
        module.net[3].p = 0.0  # Lightning does not save the random state that dropout draws from
        learner = [] if hyper_lr is None else [MetaLRCallback(hyper_lr=hyper_lr)]
        run = fit(module, *learner, max_epochs=last, ckpt_path=folder / "last.ckpt" if first else None)
        run.save_checkpoint(folder / "last.ckpt")
        return End(module, run.optimizers[0], learner[0].lrs if learner else {})

    return train


def nnunet_run() -> Train:
    """A training on a small data set, killed and continued with nnU-Net's own checkpoints; the unit is an epoch."""
    from nnunetv2.run.run_training import maybe_load_checkpoint
    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

    from layertune_nnunet import nnUNetTrainerMetaLR
    from nnunet_runs import Killed, make, preprocessed

    def train(folder: Path, *, hyper_lr: float | None, first: int = 0, last: int = 4) -> End:
        values = {} if hyper_lr is None else {"hyper_lr": hyper_lr}
        with preprocessed(folder):
            trainer = make(nnUNetTrainerMetaLR if values else nnUNetTrainer, epochs=4, stop_at=(last, 0), **values)
            maybe_load_checkpoint(trainer, continue_training=bool(first), validation_only=False)
            with suppress(Killed):
                trainer.run_training()
            if not first:  # what a training that was killed leaves
                (Path(trainer.output_folder) / "checkpoint_final.pth").unlink(missing_ok=True)
        profile = getattr(trainer, "profile", None)
        lrs = dict(zip(profile.layers, profile.lrs[-1], strict=True)) if profile else {}
        return End(trainer.network, trainer.optimizer, lrs)

    return train


def monai_run() -> Train:
    """An engine with the handler, and MONAI's own checkpoints; the unit is an epoch."""
    from monai_runs import META, saved_run

    def train(folder: Path, *, hyper_lr: float | None, first: int = 0, last: int = 4) -> End:
        handler = None if hyper_lr is None else {"hyper_lr": hyper_lr, "meta_loader": META}
        model, optimizer, learner = saved_run(folder, handler=handler, first=first, last=last)
        lrs = learner.lrs if learner else {}
        if learner:
            learner.detach()
        return End(model, optimizer, lrs)

    return train


HOSTS = [
    Host("layertune_timm", timm_run),
    Host("layertune_lightning", lightning_run),
    Host("layertune_nnunet", nnunet_run),
    Host("layertune_monai", monai_run),
]

# nnU-Net's unit is a training from its folders to a checkpoint.
SLOW = {"layertune_nnunet": pytest.mark.slow}

pytestmark = pytest.mark.parametrize(
    "host", [pytest.param(host, id=host.package, marks=SLOW.get(host.package, ())) for host in HOSTS]
)


def plugin_of(host: Host) -> Plugin:
    return importlib.import_module(host.package).PLUGIN


def run_of(host: Host) -> Train:
    plugin = plugin_of(host)
    (row,) = (row for row in plugins() if row.plugin == plugin)
    assert row.usable, row.reason
    return host.train()


def test_it_describes_itself_in_full(host: Host) -> None:
    module, plugin = importlib.import_module(host.package), plugin_of(host)
    assert module.__doc__
    assert "PLUGIN" in module.__all__
    assert all((plugin.name, plugin.distribution, plugin.lowest, plugin.module, plugin.extra))
    extras = importlib.metadata.metadata(plugin.provider).get_all("Provides-Extra") or []
    assert plugin.extra in extras
    required = importlib.metadata.requires(plugin.provider) or []
    assert any(line.startswith(f"{plugin.distribution}>={plugin.lowest}") for line in required)
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = module.nonsense


def test_its_public_names_are_there(host: Host) -> None:
    run_of(host)
    module = importlib.import_module(host.package)
    assert all(getattr(module, name).__doc__ for name in module.__all__)


def test_its_entry_point_is_found(host: Host) -> None:
    entries = importlib.metadata.entry_points(group=GROUP)
    assert plugin_of(host) in [entry.load() for entry in entries if entry.value == f"{host.package}:PLUGIN"]


@pytest.mark.slow
def test_it_imports_without_its_host(host: Host) -> None:
    module = plugin_of(host).module
    code = f"import sys; sys.modules[{module!r}] = None; import {host.package} as p; print(p.PLUGIN.install_line)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    assert done.stdout.strip() == plugin_of(host).install_line


def test_a_hyper_lr_of_0_gives_the_hosts_own_run_bit_for_bit(host: Host, tmp_path: Path) -> None:
    train = run_of(host)
    with_it, without = train(tmp_path, hyper_lr=0.0), train(tmp_path, hyper_lr=None)
    torch.testing.assert_close(weights(with_it.model), weights(without.model), rtol=0, atol=0)
    moved = train(tmp_path, hyper_lr=0.1)
    assert any(not torch.equal(a, b) for a, b in zip(weights(moved.model), weights(without.model), strict=True))


def test_a_run_resumes_bit_for_bit(host: Host, tmp_path: Path) -> None:
    train = run_of(host)
    whole = train(tmp_path, hyper_lr=0.1)
    train(tmp_path, hyper_lr=0.1, last=2)
    resumed = train(tmp_path, hyper_lr=0.1, first=2)
    assert resumed.lrs == whole.lrs
    torch.testing.assert_close(weights(resumed.model), weights(whole.model), rtol=0, atol=0)
    assert len(set(whole.lrs.values())) == len(whole.lrs) > 1


def test_nothing_is_left_behind(host: Host, tmp_path: Path) -> None:
    train = run_of(host)
    end = train(tmp_path, hyper_lr=0.1)
    assert not left_behind(end)
    assert set(vars(end.model)) == set(vars(train(tmp_path, hyper_lr=None).model))
