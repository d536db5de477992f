"""Meta batches in nnU-Net depend on their number only, are not augmented, and come from workers that end."""

from typing import Any

import pytest
import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from layertune_nnunet import nnUNetTrainerMetaLR
from nnunet_runs import make

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("nnunet")]


@pytest.mark.parametrize("every", [1, 2])
def test_meta_batches_are_functions_of_their_number(every: int) -> None:
    def seen(trainer: Any) -> list[tuple[list[str], float]]:
        drawn = []
        trainer.on_train_start()
        for number in range(4):
            torch.manual_seed(number)  # what else draws random numbers has no part in it
            batch = next(trainer.dataloader_meta)
            drawn.append((list(batch["keys"]), float(batch["data"].sum())))
        return drawn

    first = seen(make(nnUNetTrainerMetaLR, every=every))
    torch.manual_seed(5)
    later = make(nnUNetTrainerMetaLR, every=every)
    later.initialize()
    later.optimizer.param_groups[0]["meta_steps"] = 2 * every
    assert seen(later)[:2] == first[2:]
    assert len({total for _, total in first}) == 4


def test_meta_batches_are_not_augmented_and_have_all_outputs() -> None:
    trainer = make(nnUNetTrainerMetaLR)
    trainer.on_train_start()
    batch = next(trainer.dataloader_meta)
    assert batch["data"].shape == (2, 1, 16, 16, 16)
    assert [target.shape[2] for target in batch["target"]] == [16, 8]
    assert type(trainer.dataloader_meta.data_loader.transforms) is type(trainer.dataloader_val.data_loader.transforms)
    names = [[type(t).__name__ for t in loader.data_loader.transforms.transforms] for loader in loaders(trainer)]
    assert names[0] == names[1]
    assert "SpatialTransform" not in names[0]


def loaders(trainer: Any) -> list[Any]:
    return [trainer.dataloader_meta, trainer.dataloader_val]


# batchgenerators ends workers under its own thread, which may still wait for a batch of theirs.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_the_workers_that_load_meta_batches_end_with_the_training(monkeypatch: pytest.MonkeyPatch) -> None:
    inline = make(nnUNetTrainerMetaLR)
    inline.on_train_start()
    expected = [next(inline.dataloader_meta)["data"] for _ in range(3)]
    monkeypatch.setenv("nnUNet_n_proc_DA", "8")
    monkeypatch.setattr("os.cpu_count", lambda: 8)  # which nnU-Net takes no more than
    trainer = make(nnUNetTrainerMetaLR)
    trainer.initialize()
    # The training's and the validation's own eight workers are nnU-Net's.
    monkeypatch.setattr(nnUNetTrainer, "get_dataloaders", lambda self: self.get_tr_and_val_datasets())
    trainer.get_dataloaders()
    meta = trainer.dataloader_meta
    workers = list(meta._processes)
    assert len(workers) == 2
    drawn = [next(meta)["data"] for _ in range(3)]
    assert all(torch.equal(a, b) for a, b in zip(drawn, expected, strict=True))
    trainer.current_epoch = 1
    trainer.on_train_end()
    assert trainer.dataloader_meta is None
    assert not any(worker.is_alive() for worker in workers)
