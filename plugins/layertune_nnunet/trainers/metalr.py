"""MetaLR with meta batches of its own."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar

from batchgenerators.dataloading.multi_threaded_augmenter import MultiThreadedAugmenter
from nnunetv2.utilities.default_n_proc_DA import get_allowed_n_proc_DA

from layertune import meta_pass
from layertune_nnunet.meta.cases import SEED, choose_cases
from layertune_nnunet.meta.loader import MetaLoader, start_workers
from layertune_nnunet.meta.step import backward_of_meta_batch
from layertune_nnunet.trainers.learned_rates import LearnedRatesMixin
from layertune_nnunet.trainers.names import Suffix

__all__ = ["MetaLRMixin"]


class MetaLRMixin(LearnedRatesMixin):
    """Learn one learning rate a layer from meta batches, not augmented: one more pass for each step that learns.

    Attributes:
        meta_cases: where meta batches come from: ``"training"``, ``"holdout20"`` (20 % of the fold's training cases,
            seeded and kept in a file beside ``splits_final.json``; suffix ``_holdout20``), or ``"validation"`` (suffix
            ``_metaval``): then the validation's result is no longer that of cases which the training never saw.
        dataloader_meta: the meta batches, while the trainer trains.
    """

    meta_cases: ClassVar[str] = "training"
    suffixes: ClassVar[tuple[Suffix, ...]] = (
        Suffix("meta_cases", r"holdout\d+", str, "holdout20", "meta batches of 20 % of the training cases, held out"),
        Suffix("meta_cases", "metaval", lambda _: "validation", "metaval", "meta batches of the validation cases"),
    )

    dataloader_meta: Iterator[dict[str, Any]] | None = None
    _meta: Sequence[str] = ()

    def get_tr_and_val_datasets(self) -> Any:
        """The trainer's own, without the cases that are held out."""
        training, validation = super().get_tr_and_val_datasets()
        file = Path(self.preprocessed_dataset_folder_base) / f"splits_{self.meta_cases}_fold_{self.fold}.json"
        cases = choose_cases(self.meta_cases, training.identifiers, validation.identifiers, file)
        self._meta = cases.meta
        self.print_to_log_file(f"Meta batches come from {len(cases.meta)} cases ({self.meta_cases}).")
        if self.meta_cases == "validation":
            self.print_to_log_file(
                "WARNING: the learning rates are learned from the validation cases, so the validation is no longer "
                "clean: its Dice says less about new cases than that of other trainers"
            )
        if sorted(cases.training) != sorted(training.identifiers):
            training = self._dataset(cases.training)
        return training, validation

    def get_dataloaders(self) -> Any:
        """The trainer's own, and the meta batches."""
        loaders = super().get_dataloaders()
        allowed = get_allowed_n_proc_DA()
        loader = MetaLoader(
            self._dataset(self._meta),
            self.batch_size,
            self.configuration_manager.patch_size,
            self.configuration_manager.patch_size,
            self.label_manager,
            oversample_foreground_percent=self.oversample_foreground_percent,
            probabilistic_oversampling=self.probabilistic_oversampling,
            transforms=self._plain_transforms(),
            seed=(SEED, self.local_rank),
            first=0 if self.metalr is None else self.metalr.steps // self.every,
            # Loading without augmentation is a small part of what a training batch takes.
            workers=max(1, allowed // 4) if allowed else 0,
        )
        self.dataloader_meta = start_workers(loader, pin_memory=self.device.type == "cuda")
        return loaders

    def train_step(self, batch: dict[str, Any]) -> Any:
        """The trainer's own step, and where it has moved the weights, what the meta batch says of it."""
        outcome = super().train_step(batch)
        assert self.dataloader_meta is not None
        if self.metalr is not None and self.metalr.due:
            self.optimizer.zero_grad(set_to_none=True)
            meta_batch = next(self.dataloader_meta)
            with meta_pass(self.network):
                scale = backward_of_meta_batch(self.network, self.loss, meta_batch, self.grad_scaler)
            self.metalr.adapt(scale)
        return outcome

    def on_train_end(self) -> None:
        """End the workers that load meta batches, too."""
        super().on_train_end()
        if isinstance(self.dataloader_meta, MultiThreadedAugmenter):
            self.dataloader_meta._finish()
        self.dataloader_meta = None

    def _dataset(self, cases: Sequence[str]) -> Any:
        # nnU-Net's data sets sort the list that they get, in place.
        return self.dataset_class(
            self.preprocessed_dataset_folder,
            list(cases),
            folder_with_segs_from_previous_stage=self.folder_with_segs_from_previous_stage,
        )

    def _plain_transforms(self) -> Any:
        labels = self.label_manager
        return self.get_validation_transforms(
            self._get_deep_supervision_scales(),
            is_cascaded=self.is_cascaded,
            foreground_labels=labels.foreground_labels,
            regions=labels.foreground_regions if labels.has_regions else None,
            ignore_label=labels.ignore_label,
        )
