"""Readers of each kind of data set; each returns a function that reads a case, the paths, and the set's own split."""

import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from zipfile import BadZipFile, is_zipfile

import numpy as np
import torch
from monai.apps import DecathlonDataset
from monai.transforms import (
    Compose,
    EnsureChannelFirstd,
    LoadImaged,
    NormalizeIntensityd,
    Resized,
    ResizeWithPadOrCropd,
    ScaleIntensityRanged,
    ScaleIntensityRangePercentilesd,
    Spacingd,
    SpatialPadd,
)
from torch import Tensor

from layertune_studies.config.sets import DataSet
from layertune_studies.config.study import Data
from layertune_studies.data.brains import CONTRASTS, SIZE, make_brain, tissue_maps
from layertune_studies.data.case import Case, plain_tensor, seed_from
from layertune_studies.errors import DataError

__all__ = ["read_brains", "read_decathlon", "read_images", "read_medmnist", "read_volumes"]

Parts = tuple[list[int], list[int], list[int]]
Read = tuple[Callable[[int], Case], list[Path], Parts | None]
KEYS = ("image", "label")
# Of the training images of ImageNet, by channel, with intensities in [0, 1].
IMAGENET_MEAN, IMAGENET_DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
# The errors of readers for a file that is damaged, of another kind, or incomplete.
UNREADABLE = (OSError, EOFError, ValueError, LookupError, RuntimeError, BadZipFile, zlib.error)


def read_medmnist(data: Data, place: Path, data_set: DataSet) -> Read:
    """Read a set of MedMNIST by its own dataset class, with its own split; intensities are in [-1, 1]."""
    import medmnist

    flag, _, size = place.stem.partition("_")
    known = getattr(medmnist, medmnist.INFO[flag]["python_class"]) if flag in medmnist.INFO else None
    if known is None or place.suffix != ".npz" or size not in ("", *map(str, known.available_sizes)):
        raise DataError(f"{place} is none of MedMNIST's files: {', '.join(medmnist.INFO)}. {data_set.page()}")
    if not is_zipfile(place):
        raise DataError(f"{place} cannot be read (it is cut off, or no .npz file); get it again. {data_set.page()}")
    number_of = _numbers(medmnist.INFO[flag]["label"], data_set)
    images: list[Any] = []
    labels: list[int] = []
    parts: list[list[int]] = []
    for split in ("train", "val", "test"):
        try:
            one = known(split=split, root=str(place.parent), download=False, size=int(size) if size else None)
            pairs = list(zip(one.imgs, one.labels[:, 0].tolist(), strict=True))
        except UNREADABLE as error:
            raise DataError(f"{place} cannot be read ({error}); get it again. {data_set.page()}") from error
        parts.append(list(range(len(images), len(images) + len(pairs))))
        images += [image for image, _ in pairs]
        labels += [number_of.get(int(label), int(label)) for _, label in pairs]

    def case(number: int) -> Case:
        image = torch.from_numpy(images[number].copy()).float()
        image = image[None] if image.ndim == 2 else image.movedim(-1, 0)
        return Case(_prepared(image / 127.5 - 1, data), torch.tensor(labels[number]))

    return case, [Path(f"{place}[{number}]") for number in range(len(images))], (parts[0], parts[1], parts[2])


def read_images(data: Data, place: Path, data_set: DataSet) -> Read:
    """Read images by torchvision's ImageFolder; the folders train, val and test are the split if they are there.

    A missing val folder is cut from the training images by the study's folds.
    """
    from torchvision.datasets import ImageFolder

    names = [name for name in ("train", "val", "test") if (place / name).is_dir()]
    folders: dict[str, Any] = {}
    for name in names if {"train", "test"} <= set(names) else [""]:
        try:
            folders[name] = ImageFolder(str(place / name))
        except OSError as error:
            raise DataError(
                f"{place / name} holds no images in folders of classes ({error}). {data_set.page()}"
            ) from None
    classes = _classes({name for folder in folders.values() for name in folder.classes}, data, place, data_set)
    samples: list[tuple[str, int]] = []
    ends: dict[str, list[int]] = {}
    for name, folder in folders.items():
        ends[name] = list(range(len(samples), len(samples) + len(folder.samples)))
        samples += [(path, classes.index(folder.classes[label])) for path, label in folder.samples]
    paths = [Path(path) for path, _ in samples]

    def case(number: int) -> Case:
        path, label = samples[number]
        return Case(_prepared(_picture(Path(path), data_set.channels), data), torch.tensor(label))

    if "" in ends:
        return case, paths, None
    train, validation = ends["train"], ends.get("val", [])
    if not validation:
        from layertune_studies.data.split import split_cases

        rest, validation, other = split_cases([str(paths[number]) for number in train], data.split)
        train, validation = [train[index] for index in rest + other], [train[index] for index in validation]
    return case, paths, (train, validation, ends["test"])


def read_decathlon(data: Data, place: Path, data_set: DataSet) -> Read:
    """Read the labelled cases of a Decathlon task by MONAI's DecathlonDataset."""
    if not (place / "dataset.json").is_file():
        raise DataError(f"there is no dataset.json in {place}. {data_set.page()}")
    try:
        cases = DecathlonDataset(
            root_dir=place.parent,
            task=place.name,
            section="training",
            val_frac=0.0,
            cache_rate=0.0,
            download=False,
            transform=_volume_transform(data),
        )
    except UNREADABLE as error:
        raise DataError(
            f"{place / 'dataset.json'} is of no task of the Decathlon ({error}). {data_set.page()}"
        ) from error
    paths = [Path(one["image"]) for one in cases.data]
    return (lambda number: _volume(lambda: cases[number], paths[number])), paths, None


def read_volumes(data: Data, place: Path, data_set: DataSet) -> Read:
    """Read NIfTI files, of which an image and its label map have the same name."""
    images = sorted((place / "imagesTr").glob("*.nii*")) if (place / "imagesTr").is_dir() else []
    lone = [path.name for path in images if not (place / "labelsTr" / path.name).is_file()]
    if not images or lone:
        problem = f"no label for {lone[0]} in labelsTr" if lone else "no NIfTI file in imagesTr"
        raise DataError(f"{place}: {problem}. {data_set.page()}")
    transform = _volume_transform(data)

    def case(number: int) -> Case:
        path = images[number]
        return _volume(lambda: transform({"image": path, "label": place / "labelsTr" / path.name}), path)

    return case, images, None


def read_brains(data: Data, place: Path, data_set: DataSet) -> Read:
    """Make brains from the MNI152 template; the number of a brain says its shape, whatever its contrast."""
    assert data.split.counts is not None
    x, y, z = data.size or SIZE
    maps, contrast = tissue_maps((x, y, z)), CONTRASTS[data.contrast or "t2"]
    last_steps = Compose(_last_steps(data))
    first, second, third = np.cumsum(data.split.counts).tolist()

    def case(number: int) -> Case:
        brain = last_steps(vars(make_brain(maps, contrast, seed=seed_from(data.split.seed, number))))
        return Case(plain_tensor(brain["image"]), plain_tensor(brain["label"]))

    parts = list(range(first)), list(range(first, second)), list(range(second, third))
    return case, [place / f"brain {number} of {data_set.kind}" for number in range(third)], parts


def _volume_transform(data: Data) -> Any:
    scaled = (
        NormalizeIntensityd(keys="image", channel_wise=True)
        if data.window is None
        else ScaleIntensityRanged("image", *data.window, b_min=0.0, b_max=1.0, clip=True)
    )
    steps = [LoadImaged(keys=KEYS), EnsureChannelFirstd(keys=KEYS)]
    if data.spacing is not None:
        steps.append(Spacingd(keys=KEYS, pixdim=data.spacing, mode=("bilinear", "nearest")))
    steps.append(scaled)
    if data.size is not None:
        steps.append(ResizeWithPadOrCropd(keys=KEYS, spatial_size=data.size))
    elif data.patch is not None:
        steps.append(SpatialPadd(keys=KEYS, spatial_size=data.patch))
    return Compose([*steps, *_last_steps(data)])


def _last_steps(data: Data) -> list[Any]:
    steps: list[Any] = []
    if data.resample is not None:
        steps.append(Resized(KEYS, data.resample, mode=("area", "nearest-exact")))
    if data.percentiles is not None:
        steps.append(ScaleIntensityRangePercentilesd("image", *data.percentiles, b_min=0.0, b_max=1.0, clip=True))
    return steps


def _volume(read: Callable[[], Any], path: Path) -> Case:
    try:
        case = read()
    except RuntimeError as error:  # MONAI's, whatever its transforms met
        raise DataError(f"{path} or its label cannot be read: {error.__cause__ or error}; repair the files") from error
    image, label = (plain_tensor(case[key]) for key in KEYS)
    return Case(image.float(), label.round().to(torch.int16))


def _numbers(names: Mapping[str, str], data_set: DataSet) -> dict[int, int]:
    """Return the class of each of MedMNIST's labels in the set's own order, if the classes are those of the file."""
    classes = data_set.classes or ()
    if set(names.values()) != set(classes):
        return {}
    return {int(number): classes.index(name) for number, name in names.items()}


def _classes(folders: set[str], data: Data, place: Path, data_set: DataSet) -> list[str]:
    """Return the classes in the set's order; of a user's folder the normal finding first, then the others by name."""
    unknown = sorted(folders - set(data_set.classes or folders))
    if unknown:
        known = ", ".join(data_set.classes or ())
        raise DataError(f"the folder {unknown[0]} is no class of {data_set.folder}: {known}. {data_set.page()}")
    if data_set.classes is not None:
        return list(data_set.classes)
    if not data.binary and data.classes is not None and data.classes != len(folders):
        names = ", ".join(sorted(folders))
        raise DataError(f"data.classes is {data.classes}, and {place} has {len(folders)} folders of classes: {names}")
    if data.normal is not None and data.normal not in folders:
        raise DataError(f"data.normal {data.normal!r} is no class of {place}; there are {', '.join(sorted(folders))}")
    return sorted(folders, key=lambda name: (name != data.normal, name))


def _picture(path: Path, channels: int) -> Tensor:
    """Read an image, with intensities in [-1, 1], channels first."""
    from PIL import Image

    try:
        with Image.open(path) as picture:
            array = np.asarray(picture.convert("L" if channels == 1 else "RGB"), dtype=np.float32)
    except (OSError, SyntaxError, ValueError) as error:  # Pillow's, of a file that is cut off or damaged
        raise DataError(f"{path} cannot be read as an image: {error}") from error
    return torch.from_numpy(array).reshape(*array.shape[:2], channels).movedim(-1, 0) / 127.5 - 1


def _prepared(image: Tensor, data: Data) -> Tensor:
    """Resize and normalise an image, whose intensities are in [-1, 1], as the study says."""
    sized = _sized(image, data.size)
    if data.normalise is None:
        return sized
    if len(sized) not in (1, 3):
        raise DataError(f"normalise imagenet takes images of 1 or 3 channels, and {data.set} has {len(sized)}")
    mean, deviation = (torch.tensor(values)[:, None, None] for values in (IMAGENET_MEAN, IMAGENET_DEVIATION))
    return ((sized + 1) / 2 - mean) / deviation


def _sized(image: Tensor, size: tuple[int, ...] | None) -> Tensor:
    if size is None or tuple(image.shape[1:]) == size:
        return image
    resized: Tensor = torch.nn.functional.interpolate(
        image[None], size=size, mode="bilinear", antialias=True, align_corners=False
    )[0]
    return resized
