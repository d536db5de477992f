"""The pretext task of Models Genesis: restore a volume from a deformed one (Zhou et al. 2019).

The four deformations are MONAI transforms of one channel-first volume with intensities in [0, 1]. ``genesis_pretext``
applies them with the published probabilities.
"""

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from monai.config import NdarrayOrTensor
from monai.transforms import (
    Compose,
    CopyItemsd,
    Identity,
    MapTransform,
    OneOf,
    RandCoarseDropout,
    Randomizable,
    RandomizableTransform,
    Transform,
)
from monai.transforms.intensity.array import RandCoarseTransform
from monai.utils import convert_data_type, convert_to_dst_type
from numpy.random import RandomState

__all__ = [
    "RandBezierIntensity",
    "RandFlipsd",
    "RandInPainting",
    "RandLocalShuffle",
    "RandOutPainting",
    "genesis_pretext",
]

MARGIN = 3
"""The number of voxels between a painted box and the border, where the volume is large enough."""
MAX_BOXES = 5
NEXT_BOX_PROB = 0.95
"""The probability that another box follows, up to ``MAX_BOXES``."""


def genesis_pretext(*, image: str = "image", target: str = "target", windows: int = 10_000) -> Compose:
    """Return the transform that makes a training pair of a volume: the deformed volume and the one to restore.

    It applies, in this order: flips of both (probability 0.4), local shuffling (0.5), a non-linear map of the
    intensities (0.9), and painting (0.9), of which 0.8 is out-painting and 0.2 in-painting. Train with the mean squared
    error. The published cubes have 64 x 64 x 32 voxels.

    Args:
        image: The key of the volume, of shape (1, x, y, z), with intensities in [0, 1]. It holds the deformed volume
            afterwards.
        target: The key under which the volume to restore is kept.
        windows: The number of windows that are shuffled. Give fewer for volumes smaller than the published cubes, where
            they overlap more.

    Returns:
        A transform of a dictionary. Its ``set_random_state(seed)`` fixes all random numbers.

    Example:
        >>> pretext = genesis_pretext().set_random_state(0)
        >>> pair = pretext({"image": torch.rand(1, 32, 32, 16)})
        >>> pair["image"].shape == pair["target"].shape, bool((pair["image"] == pair["target"]).all())
        (True, False)
    """
    painting = OneOf([Identity(), RandOutPainting(prob=1.0), RandInPainting(prob=1.0)], weights=[0.1, 0.72, 0.18])
    return Compose(
        [
            CopyItemsd(image, names=[target]),
            RandFlipsd([image, target]),
            OnKeyd(image, RandLocalShuffle(windows)),
            OnKeyd(image, RandBezierIntensity()),
            OnKeyd(image, painting),
        ]
    )


class RandFlipsd(Randomizable, MapTransform):
    """Flip volumes along randomly drawn axes. Each flip follows with a probability if the one before was made.

    An axis may be drawn more than once.

    Args:
        keys: The keys of the volumes, which are all flipped alike.
        prob: The probability of the next flip.
        most: The largest number of flips.
    """

    def __init__(self, keys: Sequence[Hashable], prob: float = 0.4, most: int = 3) -> None:
        MapTransform.__init__(self, keys)
        self.prob, self.most = prob, most
        self.axes: list[int] = []

    def randomize(self, data: Any) -> None:
        """Draw the axes.

        Args:
            data: The number of dimensions of the volume.
        """
        self.axes = []
        while len(self.axes) < self.most and self.R.random_sample() < self.prob:
            self.axes.append(int(self.R.randint(1, data)))

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Flip the volumes.

        Args:
            data: The dictionary that holds the volumes, which is left as it is.
        """
        flipped = dict(data)
        self.randomize(flipped[self.keys[0]].ndim)
        for key in self.key_iterator(flipped):
            for axis in self.axes:
                flipped[key] = torch.flip(torch.as_tensor(flipped[key]), (axis,))
        return flipped


class RandLocalShuffle(RandCoarseTransform):
    """Shuffle the voxels inside many small windows. Each window is read from the volume as it was.

    MONAI's ``RandCoarseShuffle`` reads what earlier windows have written, so voxels leave their own windows where these
    overlap. It also has one range of window sizes for all volumes.

    Args:
        windows: The number of windows.
        part: The divisor of the volume's sides that gives the sides of the largest window, which are at least 1.
        prob: The probability of shuffling at all.
    """

    def __init__(self, windows: int = 10_000, part: int = 10, prob: float = 0.5) -> None:
        super().__init__(windows, 1, prob=prob)
        self.part = part

    def randomize(self, img_size: Sequence[int]) -> None:
        """Draw the windows.

        Args:
            img_size: The sides of the volume in voxels.
        """
        self.max_spatial_size = tuple(max(1, side // self.part) for side in img_size)
        super().randomize(img_size)

    def _transform_holes(self, img: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        shuffled = img.copy()  # a data set may hold the volume itself for the next epoch
        for window in self.hole_coords:
            for channel, values in enumerate(img[window]):
                shuffled[window][channel] = self.R.permutation(values.reshape(-1)).reshape(values.shape)
        return shuffled


class RandBezierIntensity(RandomizableTransform):
    """Map intensities by a cubic Bézier curve from (0, 0) over two random points to (1, 1).

    Half of the curves rise. The other half turns the contrast round: the x of the table is sorted and y runs backwards,
    so such a curve need not be monotone. MONAI's ``RandHistogramShift`` draws rising, piecewise linear maps alone, over
    the volume's own range.

    Args:
        prob: The probability of mapping at all.
        points: The number of points in the table of the curve.
    """

    def __init__(self, prob: float = 0.9, points: int = 1000) -> None:
        super().__init__(prob)
        self.points = points
        self.curve: tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]] | None = None

    def randomize(self, data: Any = None) -> None:
        """Draw the curve.

        Args:
            data: Not used; MONAI passes it.
        """
        super().randomize(data)
        if self._do_transform:
            t = np.linspace(0.0, 1.0, self.points)
            (x1, y1), (x2, y2) = self.R.random_sample((2, 2))
            x, y = (3 * (1 - t) ** 2 * t * a + 3 * (1 - t) * t**2 * b + t**3 for a, b in ((x1, x2), (y1, y2)))
            self.curve = (np.sort(x), y[::-1] if self.R.random_sample() < 0.5 else np.sort(y))

    def __call__(self, img: NdarrayOrTensor) -> NdarrayOrTensor:
        """Map the intensities of a volume.

        Args:
            img: The volume, of any shape.
        """
        self.randomize()
        if not self._do_transform or self.curve is None:
            return img
        values, *_ = convert_data_type(img, np.ndarray)
        return convert_to_dst_type(np.interp(values, *self.curve), dst=img)[0]


class _RandPainting(RandCoarseDropout):
    """Fill random boxes, or all around them, with uniform noise.

    MONAI's ``RandCoarseDropout`` does the painting. It draws the number of boxes evenly, lets them touch the border and
    takes sizes in voxels; here the sizes follow the volume's, and boxes keep away from the border.

    Args:
        inside: Whether the noise fills the boxes, or else all around them.
        smallest: The smallest painted share of a side, as a numerator and a denominator.
        largest: The largest painted share of a side.
        prob: The probability of painting at all.
    """

    def __init__(self, *, inside: bool, smallest: tuple[int, int], largest: tuple[int, int], prob: float) -> None:
        super().__init__(1, 1, dropout_holes=inside, fill_value=(0.0, 1.0), prob=prob)
        self.smallest, self.largest = smallest, largest

    def randomize(self, img_size: Sequence[int]) -> None:
        """Draw the boxes.

        Args:
            img_size: The sides of the volume in voxels.
        """
        RandomizableTransform.randomize(self, None)
        self.hole_coords = []
        while self._do_transform and len(self.hole_coords) < MAX_BOXES:
            if self.hole_coords and self.R.random_sample() >= NEXT_BOX_PROB:
                break
            self.hole_coords.append((slice(None), *(self._edge(side) for side in img_size)))

    def _transform_holes(self, img: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        """Paint a copy, since MONAI fills boxes in the volume itself, which a data set may hold for the next epoch."""
        painted: np.ndarray[Any, Any] = super()._transform_holes(img.copy())
        return painted

    def _edge(self, side: int) -> slice:
        (low, low_of), (high, high_of) = self.smallest, self.largest
        painted = int(self.R.randint(low * side // low_of, high * side // high_of + 1))
        length = max(1, painted if self.dropout_holes else side - painted)
        margin = min(MARGIN, (side - length) // 2)
        start = int(self.R.randint(margin, side - length - margin + 1))
        return slice(start, start + length)


class RandInPainting(_RandPainting):
    """Fill up to five boxes, of a sixth to a third of the volume's sides, with uniform noise.

    Args:
        prob: The probability of painting at all.
    """

    def __init__(self, prob: float = 0.18) -> None:
        super().__init__(inside=True, smallest=(1, 6), largest=(1, 3), prob=prob)


class RandOutPainting(_RandPainting):
    """Keep up to five boxes, of three to four sevenths of the volume's sides, and fill the rest with uniform noise.

    Args:
        prob: The probability of painting at all.
    """

    def __init__(self, prob: float = 0.72) -> None:
        super().__init__(inside=False, smallest=(3, 7), largest=(4, 7), prob=prob)


class OnKeyd(Randomizable, MapTransform):
    """Apply a transform of a volume to one key of a dictionary.

    Args:
        key: The key of the volume.
        transform: The transform, which gets the random state of this one.
    """

    def __init__(self, key: str, transform: Transform) -> None:
        MapTransform.__init__(self, key)
        self.transform = transform

    def set_random_state(self, seed: int | None = None, state: RandomState | None = None) -> "OnKeyd":
        """Fix the random numbers of the transform.

        Args:
            seed: The seed of a new generator; ``None`` draws one.
            state: A generator to use instead of a seed.
        """
        super().set_random_state(seed, state)
        if isinstance(self.transform, Randomizable):
            self.transform.set_random_state(state=self.R)
        return self

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Transform the volume.

        Args:
            data: The dictionary that holds the volume, which is left as it is.
        """
        transformed = dict(data)
        for key in self.key_iterator(transformed):
            transformed[key] = self.transform(transformed[key])
        return transformed
