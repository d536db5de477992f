"""The folder of the bundle ``metalr_unet``: writing it, checking its paths, and describing its network."""

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

__all__ = ["METADATA", "NAME", "check_patch", "check_paths", "describe_task", "write_bundle"]

NAME = "metalr_unet"
METADATA = "configs/metadata.json"
FOLDERS = {"ckpt_dir": "models", "output_dir": "eval"}
"""The folders that the bundle's own configurations write to, by the names of their switches."""


def write_bundle(folder: str | Path) -> Path:
    """Write the bundle into a folder, with the weights of an untrained network so that all its commands work at once.

    Args:
        folder: A folder that is empty or does not exist yet.

    Returns:
        The folder.

    Raises:
        BundleError: The folder is not empty, or cannot be written.

    Example:
        >>> import tempfile
        >>> sorted(path.name for path in write_bundle(Path(tempfile.mkdtemp(), NAME)).iterdir())
        ['LICENSE', 'configs', 'docs', 'models']
    """
    folder = Path(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        fault = "is not empty" if folder.is_dir() else "is a file"
        raise BundleError(
            f"{folder} {fault}, and nothing is overwritten; give a folder that is empty or does not exist"
        )
    try:
        with as_file(files("layertune_monai") / NAME) as source:
            shutil.copytree(source, folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns("__pycache__"))
        (folder / "models").mkdir(exist_ok=True)
    except OSError as error:
        raise BundleError(f"{folder} cannot be written ({error.strerror}); give another folder") from error
    write_file(folder / "models" / "model.pt", partial(torch.save, _untrained_network(folder).state_dict()))
    return folder


def check_paths(bundle_root: str | Path, **paths: str | Path) -> None:
    """Refuse to run outside of a bundle, or with a path that leaves it.

    Evaluation, inference and export look for the model where training saves it, which is below the bundle's root.

    Args:
        bundle_root: The root of the bundle.
        **paths: Paths of the configuration by the names of their switches.

    Raises:
        BundleError: ``bundle_root`` holds no bundle, or a path leaves it.

    Example:
        >>> import tempfile
        >>> root = write_bundle(tempfile.mkdtemp())
        >>> check_paths(root, ckpt_dir=f"{root}/models")
        >>> check_paths(root, ckpt_dir=f"{root}/../models")
        Traceback (most recent call last):
        layertune_monai.errors.BundleError: ckpt_dir is ..., which is outside of the bundle in ...
    """
    root = Path(bundle_root).resolve()
    if not (root / METADATA).is_file():
        raise BundleError(
            f"there is no bundle in {root}, because it has no {METADATA}; run this in the bundle's folder, or name "
            "that folder: --bundle_root DIR"
        )
    for name, path in paths.items():
        if not Path(path).resolve().is_relative_to(root):
            raise BundleError(
                f"{name} is {Path(path).resolve()}, which is outside of the bundle in {root}; give a folder in it, as "
                f"in --{name} {bundle_root}/{FOLDERS.get(name, name)}/NAME"
            )


def check_patch(patch_size: Sequence[int], strides: Sequence[int]) -> None:
    """Refuse a patch size that the network cannot halve at each level.

    Args:
        patch_size: The number of voxels along each axis.
        strides: The strides of the network's levels.

    Raises:
        BundleError: A side is not a multiple of the product of all strides.

    Example:
        >>> check_patch([40, 56, 40], [2, 2, 2])
        >>> check_patch([40, 56, 42], [2, 2, 2])
        Traceback (most recent call last):
        layertune_monai.errors.BundleError: patch_size is [40, 56, 42], but this network takes multiples of 8; ...
    """
    step = prod(strides)
    if any(side < step or side % step for side in patch_size):
        nearest = [step * max(1, round(side / step)) for side in patch_size]
        raise BundleError(
            f"patch_size is {list(patch_size)}, but this network takes multiples of {step}; give, for example, "
            f"--patch_size '[{','.join(map(str, nearest))}]'"
        )


def describe_task(bundle_root: str | Path, info: TaskInfo) -> None:
    """Write the channels and classes of a task into the bundle's ``metadata.json``.

    Inference and export read them there, so they fit the trained model also where the data of the task is missing. Only
    the first process writes.

    Args:
        bundle_root: The root of the bundle.
        info: The channels and classes.
    """
    if dist.is_available() and dist.is_initialized() and dist.get_rank() > 0:
        return
    path = Path(bundle_root) / METADATA
    metadata = json.loads(path.read_text(encoding="utf-8"))
    data_format = metadata["network_data_format"]
    described = {("inputs", "image"): info.channels, ("outputs", "pred"): info.labels}
    for (side, name), names in described.items():
        data_format[side][name] |= {"num_channels": len(names), "channel_def": _by_number(names)}
    text = json.dumps(metadata, indent=4) + "\n"
    if text != path.read_text(encoding="utf-8"):
        write_file(path, text)


def _by_number(names: tuple[str, ...]) -> dict[str, str]:
    return {str(number): name for number, name in enumerate(names)}


def _untrained_network(folder: Path) -> torch.nn.Module:
    from monai.bundle import ConfigParser

    parser = ConfigParser()
    parser.read_config(folder / "configs" / "inference.json")
    parser.read_meta(folder / METADATA)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network: torch.nn.Module = parser.get_parsed_content("network_def")
    return network
