"""The data sets that studies can name, each with its source, its licence and the layout of its folder."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from layertune_studies.errors import DataError

__all__ = ["MNI", "SETS", "DataSet", "named_set", "require_folder"]

Kind = Literal["medmnist", "decathlon", "images", "volumes", "brains"]


@dataclass(frozen=True)
class DataSet:
    """The page of a data set.

    Attributes:
        kind: How the cases are read: ``"medmnist"`` by MedMNIST's class, ``"decathlon"`` by MONAI's
            ``DecathlonDataset``, ``"images"`` by torchvision's ``ImageFolder``, ``"volumes"`` by MONAI's NIfTI reader;
            ``"brains"`` are made from a template.
        title: What the data set is, in one line.
        source: Where to get it.
        licence: Its licence, as its authors give it.
        layout: The layout of its folder.
        folder: The name of its folder below the folder of all data; of MedMNIST's sets, of its file.
        classes: Names of the classes. The background or the normal finding comes first. A set of MedMNIST has the names
            of its own file. None if the user's study gives the classes.
        channels: Number of channels of an image.
    """

    kind: Kind
    title: str
    source: str
    licence: str
    layout: str
    folder: str
    classes: tuple[str, ...] | None
    channels: int = 1

    @property
    def volumes(self) -> bool:
        """Whether the cases are volumes with label maps, and not images with one label each."""
        return self.kind in ("decathlon", "volumes", "brains")

    def page(self) -> str:
        """Return what a user without the data needs to know, in one paragraph."""
        return f"{self.title}. Source: {self.source}. Licence: {self.licence}. Layout: {self.layout}."


MNI = "mni152"
IMAGES = "one folder a class, {} with PNG or JPEG images, or train, val and test with such folders each"
VOLUMES = "imagesTr/CASE.nii.gz and labelsTr/CASE.nii.gz, one pair a case"
DECATHLON = "the task's folder as its archive gives it, with dataset.json, imagesTr and labelsTr"
MSD = "http://medicaldecathlon.com"
ANY = "your own"

SETS: dict[str, DataSet] = {
    "pneumoniamnist": DataSet(
        "medmnist",
        "PneumoniaMNIST: 5,856 chest X-rays of children (Kermany et al. 2018), 28 x 28",
        "https://medmnist.com, the file pneumoniamnist.npz",
        "CC BY 4.0",
        "the file pneumoniamnist.npz in the folder of all data",
        "pneumoniamnist.npz",
        ("normal", "pneumonia"),
    ),
    "breastmnist": DataSet(
        "medmnist",
        "BreastMNIST: 780 breast ultrasound images (Al-Dhabyani et al. 2020), 28 x 28",
        "https://medmnist.com, the file breastmnist.npz",
        "CC BY 4.0",
        "the file breastmnist.npz in the folder of all data",
        "breastmnist.npz",
        ("normal, benign", "malignant"),
    ),
    "chest-xray": DataSet(
        "images",
        "Chest X-ray: 5,856 images, normal and pneumonia (Kermany, Zhang and Goldbaum 2018)",
        "https://data.mendeley.com/datasets/rscbjbr9sj",
        "CC BY 4.0",
        IMAGES.format("chest_xray/train/NORMAL, chest_xray/train/PNEUMONIA and the same below test"),
        "chest_xray",
        ("NORMAL", "PNEUMONIA"),
        channels=3,
    ),
    "pocus": DataSet(
        "images",
        "POCUS: 2,116 frames of lung ultrasound, regular, bacterial pneumonia and COVID-19 (Born et al. 2021)",
        "https://github.com/jannisborn/covid19_ultrasound, whose scripts cut the videos into frames",
        "given video by video in the data set's own list",
        IMAGES.format("pocus/regular, pocus/pneumonia, pocus/covid"),
        "pocus",
        ("regular", "pneumonia", "covid"),
        channels=3,
    ),
    "busi": DataSet(
        "images",
        "BUSI: 780 breast ultrasound images, normal, benign and malignant (Al-Dhabyani et al. 2020)",
        "https://scholar.cu.edu.eg/?q=afahmy/pages/dataset; masks are left out",
        "given by the authors on that page; the article is CC BY 4.0",
        IMAGES.format("busi/normal, busi/benign, busi/malignant"),
        "busi",
        ("normal", "benign", "malignant"),
        channels=3,
    ),
    "breast-ultrasound": DataSet(
        "images",
        "BUSI in grey at 256 x 256: 780 breast ultrasound images, normal, benign and malignant (Al-Dhabyani et al. "
        "2020); the images of one woman are not marked, and some are near copies of each other",
        "https://scholar.cu.edu.eg/?q=afahmy/pages/dataset; masks are left out, images resampled",
        "given by the authors on that page; the article is CC BY 4.0",
        IMAGES.format("breast_ultrasound/normal, breast_ultrasound/benign, breast_ultrasound/malignant"),
        "breast_ultrasound",
        ("normal", "benign", "malignant"),
    ),
    "brain-tumour-mri": DataSet(
        "images",
        "Brain Tumor Classification (MRI), the Training part: 2,870 slices, no tumour, glioma, meningioma and "
        "pituitary tumour (Bhuvaji et al. 2020); the slices of one patient are not marked",
        "https://www.kaggle.com/datasets/sartajbhuvaji/brain-tumor-classification-mri",
        "given by the authors on that page",
        IMAGES.format("brain_tumour_mri/no_tumor, glioma_tumor, meningioma_tumor, pituitary_tumor"),
        "brain_tumour_mri",
        ("no_tumor", "glioma_tumor", "meningioma_tumor", "pituitary_tumor"),
    ),
    "hippocampus": DataSet(
        "decathlon",
        "Task04_Hippocampus of the Medical Segmentation Decathlon: 260 labelled MRI, anterior and posterior",
        MSD,
        "CC BY-SA 4.0",
        DECATHLON,
        "Task04_Hippocampus",
        ("background", "anterior", "posterior"),
    ),
    "lits": DataSet(
        "decathlon",
        "LiTS as Task03_Liver of the Medical Segmentation Decathlon: 131 labelled CT, liver and tumour",
        MSD,
        "CC BY-SA 4.0",
        DECATHLON,
        "Task03_Liver",
        ("background", "liver", "tumour"),
    ),
    "brats17": DataSet(
        "decathlon",
        "BraTS'17 as Task01_BrainTumour of the Medical Segmentation Decathlon: 484 labelled MRI of four sequences",
        MSD,
        "CC BY-SA 4.0",
        DECATHLON,
        "Task01_BrainTumour",
        ("background", "oedema", "non-enhancing tumour", "enhancing tumour"),
        channels=4,
    ),
    "acdc": DataSet(
        "volumes",
        "ACDC: cine MRI of the heart, both ventricles and the myocardium (Bernard et al. 2018)",
        "https://www.creatis.insa-lyon.fr/Challenge/acdc/, after registration",
        "for research, as the challenge's page says",
        f"{VOLUMES}; the frames at end diastole and end systole are cases of their own",
        "acdc",
        ("background", "right ventricle", "myocardium", "left ventricle"),
    ),
    "nsclc-radiomics": DataSet(
        "volumes",
        "NSCLC-Radiomics: CT of lung cancer with outlines of the tumour (Aerts et al. 2014)",
        "https://www.cancerimagingarchive.net/collection/nsclc-radiomics/, its DICOM series and segmentations "
        "written as NIfTI",
        "CC BY-NC 3.0",
        VOLUMES,
        "nsclc_radiomics",
        ("background", "tumour"),
    ),
    MNI: DataSet(
        "brains",
        "Brains made from the MNI152 template: deformed, with the contrast, bias field, blur and noise of a scan",
        "the package nilearn, which brings the template",
        "the template may be used for any purpose, with its copyright notice (McConnell Brain Imaging Centre)",
        "none, since the cases are made",
        "",
        ("background", "grey matter", "white matter"),
    ),
    "decathlon": DataSet(
        "decathlon", "A task of the Medical Segmentation Decathlon", MSD, "CC BY-SA 4.0", DECATHLON, "task", None
    ),
    "images": DataSet(
        "images", "A folder of images", ANY, ANY, IMAGES.format("any names,"), "images", None, channels=3
    ),
    "volumes": DataSet("volumes", "A folder of volumes", ANY, ANY, VOLUMES, "volumes", None),
}


def named_set(name: str) -> dict[str, Any]:
    """Return the part of a data section that names a set of segmentations.

    Args:
        name: ``"mni152"``, or the folder of a task of the Medical Segmentation Decathlon with two foreground classes.

    Example:
        >>> named_set("Task04_Hippocampus"), named_set("Task02_Heart")
        ({'set': 'hippocampus'}, {'set': 'decathlon', 'folder': 'Task02_Heart', 'classes': 3})
    """
    known = {
        data_set.folder: key for key, data_set in SETS.items() if data_set.kind == "decathlon" and data_set.classes
    }
    if name == MNI or name in known:
        return {"set": known.get(name, name)}
    return {"set": "decathlon", "folder": name, "classes": 3}


def require_folder(name: str, root: Path | None, folder: str | None = None) -> Path:
    """Return the folder of a data set, or an empty path for a set that is made.

    Args:
        name: The name of the set.
        root: The folder of all data.
        folder: Its folder below ``root``; by default the one that the set's page names.

    Raises:
        DataError: The folder is not there; the message holds the set's page.
    """
    known = SETS[name]
    below = folder or known.folder
    if not below:
        return Path()
    if root is None:
        raise DataError(f"no folder of data was given; use --root DIR or LAYERTUNE_DATA. {known.page()}")
    if not (root / below).exists():
        raise DataError(f"there is no {below} in {root}. {known.page()}")
    return root / below
