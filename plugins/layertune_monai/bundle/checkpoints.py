"""Checkpoints of a bundle: the best model with its score, and the state from which a run resumes."""

from pathlib import Path
from typing import Any

from monai.handlers import CheckpointSaver

from layertune.policies.by_name import method_name
from layertune_monai.errors import BundleError

__all__ = ["BestModelSaver", "RunSettings", "last_checkpoint", "training_state"]

BEST = ("best_metric", "best_metric_epoch")
"""Attributes of an evaluator's state in which MONAI keeps the best score and its epoch."""


class BestModelSaver(CheckpointSaver):
    """Save the best model like MONAI's ``CheckpointSaver``, and keep the best score when a run resumes.

    MONAI's handler starts without a score in each process, so a resumed run would overwrite ``model.pt`` with the first
    model that it validates, even with a worse one. ``model.pt`` stays a plain state dict.

    Args:
        save_dir: The folder of the file.
        save_dict: The objects to save by name, as in ``{"model": network}``.
        filename: The name of the file.

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
        """Attach to an evaluator.

        Args:
            engine: The evaluator whose key metric is the score.
        """
        super().attach(engine)
        self._engine = engine

    def state_dict(self) -> dict[str, Any]:
        """Return the best score so far, and the evaluator's own record of it."""
        assert self._key_metric_checkpoint is not None
        saved = [tuple(item) for item in self._key_metric_checkpoint.state_dict()["_saved"]]
        state = getattr(self._engine, "state", None)
        return {"saved": saved, "best": {name: getattr(state, name) for name in BEST if hasattr(state, name)}}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue with the best score that ``state_dict()`` returned.

        Args:
            state_dict: A value that ``state_dict()`` returned.
        """
        super().load_state_dict({"_saved": state_dict["saved"]})
        if self._engine is not None:
            for name, value in state_dict["best"].items():
                setattr(self._engine.state, name, value)


class RunSettings:
    """Hold the settings that must not change when a run resumes, and save them with its state.

    Args:
        **settings: The settings by the names of their switches.

    Example:
        >>> RunSettings(method="all_layers").load_state_dict({"method": "last_layer"})
        Traceback (most recent call last):
        layertune_monai.errors.BundleError: this run was started with method=last_layer and cannot resume with ...
    """

    def __init__(self, **settings: Any) -> None:
        self.settings = settings

    def state_dict(self) -> dict[str, Any]:
        """Return the settings."""
        return dict(self.settings)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Compare these settings with the saved ones.

        Args:
            state_dict: The settings of the run that resumes.

        Raises:
            BundleError: A setting differs.
        """
        saved = {name: _one_spelling(name, value) for name, value in state_dict.items()}
        changed = [name for name, value in self.settings.items() if saved.get(name) != _one_spelling(name, value)]
        if changed:
            before, now = (
                ", ".join(f"{name}={settings.get(name)}" for name in changed)
                for settings in (state_dict, self.settings)
            )
            raise BundleError(
                f"this run was started with {before} and cannot resume with {now}; resume with the settings of its "
                "start, or train anew in another folder, as in --ckpt_dir models/NAME"
            )


def _one_spelling(name: str, value: Any) -> Any:
    """A run of version 0.1 is resumed by a method that has another spelling today."""
    return method_name(value) if name == "method" and isinstance(value, str) else value


def last_checkpoint(folder: str | Path) -> str:
    """Return the path of the checkpoint that was written last.

    Args:
        folder: The folder of the checkpoints, ``checkpoint_epoch=*.pt``.

    Raises:
        BundleError: The folder holds no checkpoint.
    """
    files = sorted(Path(folder).glob("checkpoint_epoch=*.pt"), key=lambda path: path.stat().st_mtime_ns)
    if not files:
        raise BundleError(f"{folder} holds no checkpoint to resume from; train first, without --resume")
    return str(files[-1])


def training_state(
    trainer: Any,
    lr_scheduler: Any,
    *,
    best: BestModelSaver | None,
    settings: RunSettings | None = None,
    metalr: Any = None,
    alchemy: Any = None,
) -> dict[str, Any]:
    """Collect everything that a run needs to resume, for MONAI's ``CheckpointSaver`` and ``CheckpointLoader``.

    Args:
        trainer: The trainer. Its network and its optimizer are saved too; the optimizer's param groups hold the rates
            that MetaLR has learned.
        lr_scheduler: The schedule of the optimizer.
        best: The handler that saves the best model. ``None`` in a process that saves none.
        settings: The settings that must not change. They come first, so that they are compared before anything is
            loaded.
        metalr: The ``MetaLRHandler``, which saves its position in the meta batches, or ``None``.
        alchemy: The ``AlchemyHandler``, which saves its phase, or ``None``.

    Returns:
        The objects by name, without those that are ``None``.
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
