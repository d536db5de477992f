"""Checkpoints of a bundle: the best model with its score, and the last state to go on from."""

from pathlib import Path
from typing import Any

from monai.handlers import CheckpointSaver

from layertune_monai.errors import BundleError

__all__ = ["BestModelSaver", "RunSettings", "last_checkpoint", "state_of"]

BEST = ("best_metric", "best_metric_epoch")  # what MONAI's evaluators tell of the best epoch


class BestModelSaver(CheckpointSaver):
    """MONAI's ``CheckpointSaver`` for the best model, whose best score is saved and found again.

    ``model.pt`` stays a plain state dict. Without this a resumed run would overwrite it with the first model that it
    validates, however good the former one was.

    Args:
        save_dir: folder of the file.
        save_dict: ``{"model": network}``.
        filename: of the file.

    Example:
        >>> import tempfile, torch
        >>> saver = BestModelSaver(tempfile.mkdtemp(), {"model": torch.nn.Linear(1, 1)})
        >>> saver.state_dict()
        {'saved': [], 'best': {}}
    """

    def __init__(self, save_dir: str, save_dict: dict[str, Any], filename: str = "model.pt") -> None:
        super().__init__(save_dir, save_dict, save_key_metric=True, key_metric_filename=filename)
        self._engine: Any = None

    def attach(self, engine: Any) -> None:
        """Attach to an evaluator."""
        super().attach(engine)
        self._engine = engine

    def state_dict(self) -> dict[str, Any]:
        """The best score so far, and the evaluator's own account of it."""
        assert self._key_metric_checkpoint is not None
        saved = [tuple(item) for item in self._key_metric_checkpoint.state_dict()["_saved"]]
        state = getattr(self._engine, "state", None)
        return {"saved": saved, "best": {name: getattr(state, name) for name in BEST if hasattr(state, name)}}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from ``state_dict()``."""
        super().load_state_dict({"_saved": state_dict["saved"]})
        if self._engine is not None:
            for name, value in state_dict["best"].items():
                setattr(self._engine.state, name, value)


class RunSettings:
    """What a run was begun with and has to go on with, saved beside its state.

    Args:
        **settings: by the names of their switches.

    Example:
        >>> RunSettings(method="all").load_state_dict({"method": "last"})
        Traceback (most recent call last):
        layertune_monai.errors.BundleError: the run to go on with has method=last, and not all; ...
    """

    def __init__(self, **settings: Any) -> None:
        self.settings = settings

    def state_dict(self) -> dict[str, Any]:
        """The settings."""
        return dict(self.settings)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Compare with those that were saved.

        Raises:
            BundleError: they differ.
        """
        other = [name for name, value in self.settings.items() if state_dict.get(name) != value]
        if other:
            was, now = (", ".join(str(of.get(name)) for name in other) for of in (state_dict, self.settings))
            raise BundleError(
                f"the run to go on with has {', '.join(other)}={was}, and not {now}; resume with what it was begun "
                "with, or start anew in another place: --ckpt_dir models/NAME"
            )


def last_checkpoint(folder: str | Path) -> str:
    """The checkpoint that was written last.

    Raises:
        BundleError: there is none.
    """
    found = sorted(Path(folder).glob("checkpoint_epoch=*.pt"), key=lambda path: path.stat().st_mtime_ns)
    if not found:
        raise BundleError(f"{folder} holds no checkpoint to go on from; train first, without --resume")
    return str(found[-1])


def state_of(
    trainer: Any,
    lr_scheduler: Any,
    *,
    best: BestModelSaver | None,
    settings: RunSettings | None = None,
    metalr: Any = None,
    alchemy: Any = None,
) -> dict[str, Any]:
    """All that a run needs to go on, for the ``save_dict`` and the ``load_dict`` of MONAI's checkpoint handlers.

    Args:
        trainer: with the network and the optimizer, in whose param groups lies what MetaLR has learned.
        lr_scheduler: of the optimizer.
        best: where this process keeps the best model.
        settings: what the run has to go on with; looked at before anything is loaded.
        metalr: the ``MetaLRHandler``, if there is one: its place in the meta batches.
        alchemy: the ``AlchemyHandler``, if there is one: its phase.
    """
    state = {
        "settings": settings,
        "network": trainer.network,
        "optimizer": trainer.optimizer,
        "metalr": metalr,
        "alchemy": alchemy,
        "lr_scheduler": lr_scheduler,
        "trainer": trainer,
        "best": best,
    }
    return {name: value for name, value in state.items() if value is not None}
