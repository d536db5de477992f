"""Models Genesis' pretext task: restore a volume from a deformed one (Zhou et al. 2019).

Four deformations, as MONAI transforms of one channel-first volume whose intensities lie in [0, 1], and
`genesis_pretext`, which applies them with the published probabilities.
"""

from abc import abstractmethod
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

MARGIN = 3  # voxels between a painted box and the border, where the volume is large enough
MOST_BOXES = 5
ONE_MORE_BOX = 0.95


def genesis_pretext(*, image: str = "image", target: str = "target", windows: int = 10_000) -> Compose:
    """Make a training pair of a volume: the deformed one, and what it should be restored to.

    In this order: flips of both (0.4); local shuffling (0.5); a non-linear intensity (0.9); painting (0.9), of which
    0.8 out-painting and 0.2 in-painting. The loss is the mean squared error; the published cubes are 64 x 64 x 32.

    Args:
        image: key of the volume, (1, x, y, z) with intensities in [0, 1]; it holds the deformed volume afterwards.
        target: key under which the volume is kept.
        windows: that are shuffled; fewer for volumes smaller than the published cubes, or they overlap more.

    Returns:
        A transform of a dictionary; ``set_random_state(seed)`` fixes its draws.

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
    """Flip along up to three axes, drawn with repetition; each after another that was flipped.

    Args:
        keys: of volumes that are flipped alike.
        prob: of each flip.
        most: flips.
    """

    def __init__(self, keys: Sequence[Hashable], prob: float = 0.4, most: int = 3) -> None:
        MapTransform.__init__(self, keys)
        self.prob, self.most = prob, most
        self.axes: list[int] = []

    def randomize(self, data: Any) -> None:
        """Draw the axes, for a volume of that many dimensions."""
        self.axes = []
        while len(self.axes) < self.most and self.R.random_sample() < self.prob:
            self.axes.append(int(self.R.randint(1, data)))

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Flip the volumes."""
        found = dict(data)
        self.randomize(found[self.keys[0]].ndim)
        for key in self.key_iterator(found):
            for axis in self.axes:
                found[key] = torch.flip(torch.as_tensor(found[key]), (axis,))
        return found


class RandLocalShuffle(RandCoarseTransform):
    """Shuffle the voxels inside many small windows, each read from the volume as it was.

    MONAI's ``RandCoarseShuffle`` reads what earlier windows have written, so with overlapping windows voxels wander out
    of their own; and its windows have one range of sizes, not one that follows the volume's.

    Args:
        windows: how many.
        part: the largest window has the volume's sides divided by this, at least 1.
        prob: of shuffling at all.
    """

    def __init__(self, windows: int = 10_000, part: int = 10, prob: float = 0.5) -> None:
        super().__init__(windows, 1, prob=prob)
        self.part = part

    def randomize(self, img_size: Sequence[int]) -> None:
        """Draw the windows."""
        self.max_spatial_size = tuple(max(1, side // self.part) for side in img_size)
        super().randomize(img_size)

    def _transform_holes(self, img: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        before = img.copy()
        for window in self.hole_coords:
            for channel, values in enumerate(before[window]):
                img[window][channel] = self.R.permutation(values.reshape(-1)).reshape(values.shape)
        return img


class RandBezierIntensity(RandomizableTransform):
    """Map intensities by a cubic Bézier curve from (0, 0) over two random points to (1, 1).

    Half of the curves are rising; of the others only x is put in order while y runs the other way, so they turn the
    contrast round and need not be monotone. MONAI's ``RandHistogramShift`` draws rising piecewise linear maps only,
    over the volume's own range.

    Args:
        prob: of mapping at all.
        points: of the curve's table.
    """

    def __init__(self, prob: float = 0.9, points: int = 1000) -> None:
        super().__init__(prob)
        self.points = points
        self.curve: tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]] | None = None

    def randomize(self, data: Any = None) -> None:
        """Draw the curve."""
        super().randomize(data)
        if self._do_transform:
            t = np.linspace(0.0, 1.0, self.points)
            (x1, y1), (x2, y2) = self.R.random_sample((2, 2))
            x, y = (3 * (1 - t) ** 2 * t * a + 3 * (1 - t) * t**2 * b + t**3 for a, b in ((x1, x2), (y1, y2)))
            self.curve = (np.sort(x), y[::-1] if self.R.random_sample() < 0.5 else np.sort(y))

    def __call__(self, img: NdarrayOrTensor) -> NdarrayOrTensor:
        """Map the volume."""
        self.randomize()
        if not self._do_transform or self.curve is None:
            return img
        values, *_ = convert_data_type(img, np.ndarray)
        return convert_to_dst_type(np.interp(values, *self.curve), dst=img)[0]


class _RandPainting(RandCoarseDropout):
    """Noise in boxes or around them; boxes of a size that follows the volume's, some voxels away from the border.

    MONAI's ``RandCoarseDropout`` draws the number of boxes evenly, lets them touch the border, and takes sizes in
    voxels; the painting itself is its own.
    """

    def __init__(self, *, inside: bool, prob: float) -> None:
        super().__init__(1, 1, dropout_holes=inside, fill_value=(0.0, 1.0), prob=prob)

    def randomize(self, img_size: Sequence[int]) -> None:
        """Draw the boxes."""
        RandomizableTransform.randomize(self, None)
        self.hole_coords = []
        while self._do_transform and len(self.hole_coords) < MOST_BOXES:
            if self.hole_coords and self.R.random_sample() >= ONE_MORE_BOX:
                break
            self.hole_coords.append((slice(None), *(self._edge(side) for side in img_size)))

    def _edge(self, side: int) -> slice:
        length = max(1, self._length(side))
        margin = min(MARGIN, (side - length) // 2)
        start = int(self.R.randint(margin, side - length - margin + 1))
        return slice(start, start + length)

    @abstractmethod
    def _length(self, side: int) -> int:
        """Voxels that a box is long, along a side of so many voxels."""


class RandInPainting(_RandPainting):
    """Fill up to five boxes, of a sixth to a third of the volume's sides, with uniform noise.

    Args:
        prob: of painting at all.
    """

    def __init__(self, prob: float = 0.18) -> None:
        super().__init__(inside=True, prob=prob)

    def _length(self, side: int) -> int:
        return int(self.R.randint(side // 6, side // 3 + 1))


class RandOutPainting(_RandPainting):
    """Keep up to five boxes, of three to four sevenths of the volume's sides, and fill all else with uniform noise.

    Args:
        prob: of painting at all.
    """

    def __init__(self, prob: float = 0.72) -> None:
        super().__init__(inside=False, prob=prob)

    def _length(self, side: int) -> int:
        return side - int(self.R.randint(3 * side // 7, 4 * side // 7 + 1))


class OnKeyd(Randomizable, MapTransform):
    """Apply a transform of a volume to one key, and hand on the random state."""

    def __init__(self, key: str, transform: Transform) -> None:
        MapTransform.__init__(self, key)
        self.transform = transform

    def set_random_state(self, seed: int | None = None, state: RandomState | None = None) -> "OnKeyd":
        """Fix the draws."""
        super().set_random_state(seed, state)
        if isinstance(self.transform, Randomizable):
            self.transform.set_random_state(state=self.R)
        return self

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Transform the volume."""
        found = dict(data)
        for key in self.key_iterator(found):
            found[key] = self.transform(found[key])
        return found
