"""Fine-tuning of other people's bundles by a configuration beside their own, which is never changed."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from layertune.files import write_file
from layertune_monai.bundle.methods import Method
from layertune_monai.bundle.train_config import TrainConfig, inside, is_saver, read_train_config, train_files
from layertune_monai.errors import BundleError

__all__ = ["Adapted", "adapt"]

SECTION = "layertune"
"""The section that the written configuration adds."""
CONFIG = "configs/layertune.json"
CONFIG_MULTI_GPU = "configs/layertune_multi_gpu.json"
WEIGHTS = "models/model.pt"
SAVE_DIR = "models/layertune"
OUTPUT_DIR = "eval/layertune"


@dataclass(frozen=True)
class Adapted:
    """Describe an adaptation that was written.

    Attributes:
        files: The written files, relative to the bundle.
        config_files: For each of them, the value of ``--config_file`` that runs it.
        notes: What the user should know, one sentence or two each.
    """

    files: tuple[str, ...]
    config_files: tuple[str, ...]
    notes: tuple[str, ...]


def adapt(
    bundle: Path,
    method: Method,
    *,
    config: tuple[str, ...] = (),
    trainer: str | None = None,
    weights: Path | None = None,
) -> Adapted:
    """Write ``configs/layertune.json`` beside a bundle's own training configuration.

    It puts the handlers of a method before the trainer's own, loads the bundle's weights first, and saves the trained
    model to ``models/layertune``. For a bundle with a ``multi_gpu_train`` configuration,
    ``configs/layertune_multi_gpu.json`` does the same there.

    Args:
        bundle: The root of the bundle.
        method: The method of fine-tuning with its settings.
        config: The configurations that train, relative to the root. By default ``configs/train.json`` or ``.yaml``.
        trainer: The id of the trainer, where it cannot be found.
        weights: The file of weights to start from. By default ``models/model.pt`` of the bundle.

    Returns:
        The files, and how to run them.

    Raises:
        BundleError: The folder holds no bundle, or no trainer is found in it; a path leaves the bundle; the bundle has
            one of layertune's handlers already; or a file of that name exists that layertune has not written.
    """
    files = list(config) or train_files(bundle)
    if not files:
        raise BundleError(f"{bundle} has no configs/train.json or .yaml; name the configuration that trains: --config")
    configs = {CONFIG: read_train_config(bundle, files, trainer)}
    _check_no_learner(bundle, configs[CONFIG])
    multi_gpu, notes_multi_gpu = (None, ()) if config else _multi_gpu_config(bundle, configs[CONFIG])
    if multi_gpu is not None:
        configs[CONFIG_MULTI_GPU] = multi_gpu
    start, notes = _start(bundle, weights)
    for name in configs:
        _check_written_by_layertune(bundle, name)
    for name, train_config in configs.items():
        _write(inside(bundle, name), _adaptation(train_config, method, start))
    lists = tuple(
        "[" + ",".join(f"'{file}'" for file in (*train_config.files, name)) + "]"
        for name, train_config in configs.items()
    )
    return Adapted(tuple(configs), lists, (*notes, *notes_multi_gpu))


def _multi_gpu_config(bundle: Path, single: TrainConfig) -> tuple[TrainConfig | None, tuple[str, ...]]:
    """Read the configuration for several GPUs, or return a note why it cannot be combined with the other one."""
    multi = train_files(bundle, "multi_gpu_train")
    try:
        return (read_train_config(bundle, [*single.files, *multi], single.trainer) if multi else None), ()
    except BundleError as error:
        return None, (f"Nothing is written for several GPUs: {error}.",)


def _adaptation(config: TrainConfig, method: Method, weights: str | None) -> dict[str, Any]:
    trainer = config.trainer.replace("::", "#")
    root = "$@bundle_root + '/" if "bundle_root" in config.parser else "$'"
    save_dir = f"{root}{SAVE_DIR}'"
    section: dict[str, Any] = {
        "_target_": "layertune_monai.method_handlers",
        **method.settings(),
        "optimizer": f"@{trainer}#optimizer",
        "output_dir": f"{root}{OUTPUT_DIR}'",
        "handlers": _own_handlers(config, save_dir),
    }
    if weights is not None:
        file = weights if Path(weights).is_absolute() else f"{root}{weights}'"
        section |= {"weights": file, "prefix": None, "allow_partial": False}
    return {
        SECTION: section,
        **_initialize(config, trainer, loads=weights is not None),
        **{f"{place.replace('::', '#')}#save_dir": save_dir for place in config.savers()},
        # It comes after the places of the savers, because they may lie in the very list that this replaces.
        f"{trainer}#train_handlers": f"@{SECTION}",
    }


def _own_handlers(config: TrainConfig, save_dir: str) -> Any:
    """Return the trainer's own handlers as the bundle writes them, with another folder for checkpoints."""
    handlers = config.trainer_argument("train_handlers")
    if not isinstance(handlers, list):
        return handlers
    return [{**part, "save_dir": save_dir} if is_saver(part) else part for part in handlers]


def _initialize(config: TrainConfig, trainer: str, *, loads: bool) -> dict[str, Any]:
    """Return the steps before the run: to check the names of overrides, and to load the weights."""
    check = {
        "_target_": "layertune_monai.check_overrides",
        "bundle_root": "@bundle_root" if "bundle_root" in config.parser else ".",
        "files": list(config.files),
        "handlers": [SECTION],
    }
    load = {
        "_target_": "layertune_monai.load_pretrained",
        "network": f"@{trainer}#network",
        "file": f"@{SECTION}#weights",
        "prefix": f"@{SECTION}#prefix",
        "allow_partial": f"@{SECTION}#allow_partial",
    }
    steps = [check, load] if loads else [check]
    before = config.parser.get("initialize")
    if isinstance(before, list):
        return {"+initialize": steps}
    return {"initialize": steps if before is None else [before, *steps]}


def _start(bundle: Path, weights: Path | None) -> tuple[str | None, tuple[str, ...]]:
    """Return the weights to load first, as a path relative to the bundle or an absolute one, and notes about them."""
    saved = f"What is trained is saved to {SAVE_DIR}, so that {WEIGHTS} stays as it is."
    if weights is not None:
        if not weights.is_file():
            raise BundleError(f"there is no file of weights at {weights}; give the path of a file: --weights FILE")
        path, root = weights.resolve(), bundle.resolve()
        return (path.relative_to(root) if path.is_relative_to(root) else path).as_posix(), (saved,)
    if (bundle / WEIGHTS).is_file():
        return WEIGHTS, (saved,)
    large = next(iter(bundle.glob("large_files.y*ml")), None)
    if large is not None and WEIGHTS in large.read_text(encoding="utf-8"):
        return WEIGHTS, (f"{WEIGHTS} is not downloaded yet: python -m monai.bundle download_large_files", saved)
    note = f"There is no {WEIGHTS}: training starts from what the configuration itself loads, or from initial weights."
    return None, (note, saved)


def _check_no_learner(bundle: Path, config: TrainConfig) -> None:
    if learners := config.learners():
        place = learners[0].replace("::", "#")
        raise BundleError(
            f"{config.files[0]} of {bundle} has a handler of layertune already, at {place}, and two handlers would "
            "change the same learning rates; run the bundle as it is and choose there, in our own bundle by --method"
        )


def _check_written_by_layertune(bundle: Path, name: str) -> None:
    path = inside(bundle, name)
    if not path.exists():
        return
    try:
        written = SECTION in json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        written = False
    if not written:
        raise BundleError(f"{path} exists already and was not written by layertune; rename it first")


def _write(path: Path, content: dict[str, Any]) -> None:
    try:
        write_file(path, json.dumps(content, indent=4) + "\n")
    except OSError as error:
        raise BundleError(f"{path} cannot be written: {error}") from error
