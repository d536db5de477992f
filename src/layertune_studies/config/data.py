"""The section of a study's file on its images: where they come from, and how they are prepared."""

import re
from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from layertune_studies.config.section import Count, Fraction, Positive, Section, Several, nearest, new_key
from layertune_studies.config.sets import SETS

__all__ = ["Augment", "Data", "Split"]

Share = Annotated[float, Field(ge=0, le=1)]
Strength = Annotated[float, Field(ge=0)]


class Split(Section):
    """How cases are split where the data set comes without a split of its own.

    Attributes:
        folds: Number of parts. One is the test set, the next one the validation set, the rest are for training.
        fold: The part that is the test set, counted from 0.
        seed: Seed of the shuffling.
        group: A regular expression, as ``(patient[0-9]+)``. Cases in whose paths its first group matches the same text
            stay in one part.
        counts: The numbers of training, validation and test cases, dealt out one after the other from the shuffled
            cases. It replaces the folds; by default there are folds.
        alike: Images whose correlation is above this number, between 0 and 1, count as near copies of each other and
            stay in one part, as do near copies of near copies. By default images are not compared.
    """

    folds: Annotated[int, Field(ge=3)] = 5
    fold: Annotated[int, Field(ge=0)] = 0
    seed: Annotated[int, Field(ge=0)] = 0
    group: str | None = None
    counts: tuple[Count, Count, Count] | None = new_key(None)
    alike: Fraction | None = new_key(None)

    @field_validator("group")
    @classmethod
    def _regular(cls, group: str | None) -> str | None:
        try:
            re.compile(group or "")
        except re.error as error:
            raise ValueError(f"{group!r} is no regular expression ({error}); write one, as (patient[0-9]+)") from None
        return group

    @model_validator(mode="after")
    def _fold_exists(self) -> "Split":
        if self.counts is not None and self.group is not None:
            raise ValueError("counts deal out single cases, and group keeps cases together; leave one of them out")
        if self.alike is not None and (self.counts is not None or self.group is not None):
            raise ValueError("alike keeps near copies together in folds; leave out counts and group, or alike")
        if self.fold >= self.folds:
            raise ValueError(f"fold is {self.fold}, and the {self.folds} folds are counted from 0 to {self.folds - 1}")
        return self


class Augment(Section):
    """How training batches are augmented; each change is made to half of the images.

    Attributes:
        flip: Probability that an image is flipped, from left to right.
        contrast: The intensities are multiplied by a random factor between 1 - contrast and 1 + contrast.
        brightness: A random number between -brightness and brightness is added to the intensities.
        noise: Largest standard deviation of the Gaussian noise that is added.
    """

    flip: Share = 0.5
    contrast: Strength = 0.2
    brightness: Strength = 0.2
    noise: Strength = 0.1


class Data(Section):
    """The images, and how they are prepared.

    Attributes:
        set: The name of a data set, or ``"images"`` or ``"volumes"`` for a folder of your own.
        folder: Its folder below the folder of all data; by default the one that the set's page names.
        size: The size of the images in pixels (two numbers) or voxels (three); by default their own. Images are
            resized, volumes are cropped or padded.
        resample: Voxels that a volume is resampled to after it was cropped or padded, along its three axes.
        spacing: Millimetres that a volume is resampled to, along its three axes.
        window: The lowest and highest intensity of a volume, which are scaled to [0, 1]; by default intensities are
            scaled to mean 0 and variance 1.
        percentiles: Lower and upper percentile of a volume's intensities that are scaled to [0, 1].
        contrast: Contrast of the brains that are made for the set mni152: ``"t1"`` or ``"t2"``, as in scans with that
            weighting.
        patch: Size of the random crops that are trained on, for images smaller than ``size``. In evaluation a window of
            this size slides over a volume, and images are cropped in the middle.
        normalise: ``"imagenet"``: images get three channels with the mean and the standard deviation that networks
            pre-trained on ImageNet expect; by default intensities are in [-1, 1] and the channels are the data set's.
        classes: Number of classes, background included, for a folder of your own.
        normal: In a folder of your own images, the class that is the normal finding. It becomes class 0, whose recall
            is the specificity; by default the first class in the alphabet.
        labelled: The numbers of labelled cases that are compared; ``"all"`` for the whole training set.
        holdout: Share of the labelled cases that is kept for meta batches; by default meta batches are fresh batches of
            all labelled cases, without augmentation. They never hold validation or test cases.
        validation: The number of validation cases that are used; by default all.
        test: The number of test cases that are used; by default all.
        split: How to split data sets that have no train/validation/test split of their own.
        reserved: The number of training cases that are kept for pre-training and are never labelled cases; by default
            that of the pre-training task.
        draw: ``"random"``: each seed draws its labelled cases from all training cases; ``"disjoint"``: the first seed
            gets the first training cases, the second seed the next ones, so that no two seeds share a case.
        augment: Whether training batches are augmented by flips, contrast, brightness and noise; or a section with the
            strength of each.
        binary: Whether all classes but the first are merged into one.
    """

    set: str
    folder: str | None = None
    size: tuple[Count, ...] | None = None
    resample: tuple[Count, ...] | None = new_key(None)
    spacing: tuple[Positive, ...] | None = None
    window: tuple[float, float] | None = None
    percentiles: tuple[float, float] | None = new_key(None)
    contrast: Literal["t1", "t2"] | None = new_key(None)
    patch: tuple[Count, ...] | None = None
    normalise: Literal["imagenet"] | None = new_key(None)
    classes: Annotated[int, Field(ge=2)] | None = None
    normal: str | None = new_key(None)
    labelled: Several[Count | Literal["all"]] = ("all",)
    holdout: Fraction | None = None
    validation: Count | None = None
    test: Count | None = None
    split: Split = Split()
    reserved: Count | None = new_key(None)
    draw: Literal["random", "disjoint"] = new_key("random")
    augment: bool | Augment = True
    binary: bool = False

    @model_validator(mode="after")
    def _known(self) -> "Data":
        if self.set not in SETS:
            raise ValueError(f"{self.set!r} is no data set{nearest(self.set, SETS)}; there are {', '.join(SETS)}")
        if self.classes is None and SETS[self.set].classes is None:
            raise ValueError(f"data.set {self.set} does not say how many classes there are; give data.classes")
        if self.normal is not None and self.set != "images":
            raise ValueError(
                f"normal is for a folder of your own, data.set images; {self.set} has its normal finding first"
            )
        return self

    @model_validator(mode="after")
    def _made_here(self) -> "Data":
        if SETS[self.set].kind != "brains":
            if self.contrast is not None:
                raise ValueError(f"contrast is for the made brains of mni152, and {self.set} holds images as they are")
        elif self.split.counts is None:
            raise ValueError(f"{self.set} makes its cases; give split.counts, how many for training, validation, test")
        if self.draw == "disjoint" and "all" in self.labelled:
            raise ValueError("draw disjoint gives each seed other cases; give numbers in labelled, not all")
        return self

    @model_validator(mode="after")
    def _suits_images(self) -> "Data":
        found = SETS[self.set]
        if self.normalise is not None and found.volumes:
            raise ValueError(f"normalise is for images, and {self.set} holds volumes; leave it out")
        if self.split.alike is not None and found.kind != "images":
            raise ValueError(f"split.alike is for folders of images, and {self.set} is none; leave it out")
        if self.patch is not None and self.size is None and not found.volumes:
            raise ValueError("patch crops images of one size; give data.size too, a little larger than the patch")
        return self

    @model_validator(mode="after")
    def _fits_the_axes(self) -> "Data":
        volumes = SETS[self.set].volumes
        axes, what = (3, "volumes") if volumes else (2, "images")
        keys = ("size", "resample", "spacing", "patch")
        lists = {key: given for key in keys if (given := getattr(self, key)) is not None}
        for key in ("resample", "spacing", "window", "percentiles"):
            if getattr(self, key) is not None and not volumes:
                raise ValueError(f"{key} is for volumes, and {self.set} holds images; leave it out")
        for key, given in lists.items():
            if len(given) != axes:
                raise ValueError(
                    f"{key} is {list(given)}, and {self.set} holds {what}; give {axes} numbers, one an axis"
                )
        if self.window is not None and self.percentiles is not None:
            raise ValueError("window and percentiles both say how intensities are scaled; leave one of them out")
        for key, pair in (("window", self.window), ("percentiles", self.percentiles)):
            if pair is not None and pair[0] >= pair[1]:
                raise ValueError(f"{key} is {list(pair)}; give the lower number first, then the higher one")
        if self.size and self.patch and any(part > whole for part, whole in zip(self.patch, self.size, strict=True)):
            raise ValueError(f"patch is {list(self.patch)}, which does not fit into size {list(self.size)}")
        return self
