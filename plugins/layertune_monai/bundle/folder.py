"""The bundle ``metalr_unet``: put it into a folder, hold its paths together, say what its network takes and gives."""

import json
import shutil
from collections.abc import Sequence
from functools import partial
from importlib.resources import as_file, files
from math import prod
from pathlib import Path

import torch
import torch.distributed as dist

from layertune.files import write_file
from layertune_monai.bundle.decathlon import TaskInfo
from layertune_monai.errors import BundleError

__all__ = ["NAME", "check_patch", "check_paths", "describe_task", "write_bundle"]

NAME = "metalr_unet"
METADATA = "configs/metadata.json"
FOLDERS = {"ckpt_dir": "models", "output_dir": "eval"}
"""Where the bundle's own configurations put things."""


def write_bundle(folder: str | Path) -> Path:
    """Put the bundle into a folder, with the weights of a fresh network, so that every command works at once.

    Args:
        folder: is made; may be there if it is empty.

    Returns:
        The folder.

    Raises:
        BundleError: the folder holds something, or cannot be made.

    Example:
        >>> import tempfile
        >>> sorted(path.name for path in write_bundle(Path(tempfile.mkdtemp(), NAME)).iterdir())
        ['LICENSE', 'configs', 'docs', 'models']
    """
    folder = Path(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        what = "holds files already" if folder.is_dir() else "is a file"
        raise BundleError(f"{folder} {what}, and nothing is overwritten; give a folder that is empty or not there yet")
    try:
        with as_file(files("layertune_monai") / NAME) as source:
            shutil.copytree(source, folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns("__pycache__"))
        (folder / "models").mkdir(exist_ok=True)
    except OSError as error:
        raise BundleError(f"{folder} cannot be written ({error.strerror}); give another folder") from error
    write_file(folder / "models" / "model.pt", partial(torch.save, _fresh_network(folder).state_dict()))
    return folder


def check_paths(bundle_root: str | Path, **paths: str | Path) -> None:
    """Refuse to run outside of the bundle, or with a path that leaves it.

    Evaluation, inference and export look for the model where training puts it: below the bundle.

    Args:
        bundle_root: of the configuration.
        **paths: of the configuration, by name.

    Raises:
        BundleError: there is no bundle in ``bundle_root``, or a path leaves it.

    Example:
        >>> import tempfile
        >>> root = write_bundle(tempfile.mkdtemp())
        >>> check_paths(root, ckpt_dir=f"{root}/models")
        >>> check_paths(root, ckpt_dir=f"{root}/../models")
        Traceback (most recent call last):
        layertune_monai.errors.BundleError: ckpt_dir is ..., which leaves the bundle in ...
    """
    root = Path(bundle_root).resolve()
    if not (root / METADATA).is_file():
        raise BundleError(
            f"there is no bundle in {root}: it has no {METADATA}; run this in the bundle's folder, or name it: "
            "--bundle_root DIR"
        )
    for name, path in paths.items():
        if not Path(path).resolve().is_relative_to(root):
            raise BundleError(
                f"{name} is {Path(path).resolve()}, which leaves the bundle in {root}; give a folder in it, as "
                f"--{name} {bundle_root}/{FOLDERS.get(name, name)}/NAME"
            )


def check_patch(patch_size: Sequence[int], strides: Sequence[int]) -> None:
    """Refuse patches that the network cannot halve and put together again.

    Args:
        patch_size: voxels along each axis.
        strides: of the network's levels.

    Raises:
        BundleError: a side is no multiple of all strides together.

    Example:
        >>> check_patch([40, 56, 40], [2, 2, 2])
        >>> check_patch([40, 56, 42], [2, 2, 2])
        Traceback (most recent call last):
        layertune_monai.errors.BundleError: patch_size is [40, 56, 42], and this network takes multiples of 8; ...
    """
    step = prod(strides)
    if any(side < step or side % step for side in patch_size):
        fitting = [step * max(1, round(side / step)) for side in patch_size]
        raise BundleError(
            f"patch_size is {list(patch_size)}, and this network takes multiples of {step}; give, for one, "
            f"--patch_size '[{','.join(map(str, fitting))}]'"
        )


def describe_task(bundle_root: str | Path, info: TaskInfo) -> None:
    """Write into ``metadata.json`` what the network that is trained here takes and gives; the first process does.

    Inference and export read it, so that they fit the model also where the task's data is not at hand.

    Args:
        bundle_root: the bundle.
        info: of the task.
    """
    if dist.is_available() and dist.is_initialized() and dist.get_rank() > 0:
        return
    path = Path(bundle_root) / METADATA
    metadata = json.loads(path.read_text(encoding="utf-8"))
    data_format = metadata["network_data_format"]
    wanted = {("inputs", "image"): info.channels, ("outputs", "pred"): info.labels}
    for (side, name), names in wanted.items():
        data_format[side][name] |= {"num_channels": len(names), "channel_def": _numbered(names)}
    text = json.dumps(metadata, indent=4) + "\n"
    if text != path.read_text(encoding="utf-8"):
        write_file(path, text)


def _numbered(names: tuple[str, ...]) -> dict[str, str]:
    return {str(number): name for number, name in enumerate(names)}


def _fresh_network(folder: Path) -> torch.nn.Module:
    from monai.bundle import ConfigParser

    parser = ConfigParser()
    parser.read_config(folder / "configs" / "inference.json")
    parser.read_meta(folder / METADATA)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network: torch.nn.Module = parser.get_parsed_content("network_def")
    return network
