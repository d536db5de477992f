"""Learning rates that are learned from meta batches of their own."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar

from batchgenerators.dataloading.multi_threaded_augmenter import MultiThreadedAugmenter
from nnunetv2.utilities.default_n_proc_DA import get_allowed_n_proc_DA

from layertune import meta_pass
from layertune_nnunet.meta.cases import SEED, choose_cases
from layertune_nnunet.meta.loader import MetaLoader, start_workers
from layertune_nnunet.meta.step import backward_on_meta_batch
from layertune_nnunet.trainers.learned_rates import LearnedRatesMixin
from layertune_nnunet.trainers.names import Suffix

__all__ = ["MetaLRMixin"]


class MetaLRMixin(LearnedRatesMixin):
    """Learn one learning rate per layer from meta batches, which are not augmented.

    Each step that learns takes one more forward and backward pass.

    Attributes:
        meta_cases: Where meta batches come from. ``"training"``: the training cases of the fold. ``"holdout20"``: 20 %
            of them, which are then not trained on; the split is kept in a file beside ``splits_final.json``. Suffix
            ``_holdout20``, with any whole number of percent. ``"validation"``: the validation cases of the fold, so
            that the validation no longer measures cases which the training never saw. Suffix ``_metaval``.
        dataloader_meta: The meta batches, while the trainer trains.
    """

    meta_cases: ClassVar[str] = "training"
    suffixes: ClassVar[tuple[Suffix, ...]] = (
        Suffix("meta_cases", r"holdout\d+", str, "holdout20", "meta batches of 20 % of the training cases, held out"),
        Suffix("meta_cases", "metaval", lambda _: "validation", "metaval", "meta batches of the validation cases"),
    )

    dataloader_meta: Iterator[dict[str, Any]] | None = None
    _meta_identifiers: Sequence[str] = ()

    def get_tr_and_val_datasets(self) -> Any:
        """Return the trainer's own data sets, without the cases that are held out."""
        training, validation = super().get_tr_and_val_datasets()
        file = Path(self.preprocessed_dataset_folder_base) / f"splits_{self.meta_cases}_fold_{self.fold}.json"
        cases = choose_cases(self.meta_cases, training.identifiers, validation.identifiers, file)
        self._meta_identifiers = cases.meta
        self.print_to_log_file(f"Meta batches come from {len(cases.meta)} cases ({self.meta_cases}).")
        if self.meta_cases == "validation":
            self.warn_once(
                "the learning rates are learned from the validation cases, so the validation is no longer clean: its "
                "Dice says less about new cases than the Dice of other trainers"
            )
        if sorted(cases.training) != sorted(training.identifiers):
            training = self._dataset(cases.training)
        return training, validation

    def get_dataloaders(self) -> Any:
        """Return the trainer's own loaders, and start loading meta batches."""
        loaders = super().get_dataloaders()
        allowed = get_allowed_n_proc_DA()
        loader = MetaLoader(
            self._dataset(self._meta_identifiers),
            self.batch_size,
            self.configuration_manager.patch_size,
            self.configuration_manager.patch_size,
            self.label_manager,
            oversample_foreground_percent=self.oversample_foreground_percent,
            probabilistic_oversampling=self.probabilistic_oversampling,
            transforms=self._plain_transforms(),
            seed=(SEED, self.local_rank),
            first=0 if self.metalr is None else self.metalr.steps // self.metalr.settings.every,
            # Loading without augmentation takes a small part of the time of a training batch.
            workers=max(1, allowed // 4) if allowed else 0,
        )
        self.dataloader_meta = start_workers(loader, pin_memory=self.device.type == "cuda")
        return loaders

    def train_step(self, batch: dict[str, Any]) -> Any:
        """Take the trainer's own step, and learn from a meta batch if the step has moved the weights."""
        outcome = super().train_step(batch)
        assert self.dataloader_meta is not None
        if self.metalr is not None and self.metalr.due:
            self.optimizer.zero_grad(set_to_none=True)
            meta_batch = next(self.dataloader_meta)
            with meta_pass(self.network):
                scale = backward_on_meta_batch(self.network, self.loss, meta_batch, self.grad_scaler)
            self.metalr.adapt(scale)
        return outcome

    def on_train_end(self) -> None:
        """End the workers that load meta batches as well."""
        super().on_train_end()
        if isinstance(self.dataloader_meta, MultiThreadedAugmenter):
            self.dataloader_meta._finish()
        self.dataloader_meta = None

    def _dataset(self, cases: Sequence[str]) -> Any:
        # A copy of the list, because nnU-Net's data sets sort it in place.
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
