"""The bundle's configuration as a Pythonic workflow reads it: numbers, paths and transforms."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import torch
from monai.bundle import PythonicWorkflow
from monai.utils import BundleProperty, set_determinism

from layertune_monai.bundle.folder import METADATA, check_paths

__all__ = ["BundleWorkflow"]


class BundleWorkflow(PythonicWorkflow):
    """A workflow whose values are those of ``configs/train.json``, each of which may be overridden by name.

    Args:
        bundle_root: the bundle, as ``layertune monai bundle DIR`` puts it.
        workflow_type: MONAI's word for what this is.
        config_file: instead of ``configs/train.json``.
        meta_file: instead of ``configs/metadata.json``.
        logging_file: instead of ``configs/logging.conf``; ``False`` leaves logging as it is.
        **override: values of the configuration, as ``method="bidirectional"``.

    Attributes:
        PARTS: what a class has beside MONAI's own properties of its workflow, each made by ``get_<part>``.

    Example:
        >>> import tempfile
        >>> from layertune_monai.bundle.folder import write_bundle
        >>> class Telling(BundleWorkflow):
        ...     def run(self):
        ...         print(self.value("lr"))
        >>> Telling(str(write_bundle(tempfile.mkdtemp())), lr=0.1, logging_file=False).run()
        0.1
    """

    PARTS: ClassVar[Mapping[str, str]] = {}

    def __init__(
        self,
        bundle_root: str = ".",
        workflow_type: str = "train",
        config_file: str | None = None,
        meta_file: str | None = None,
        logging_file: str | bool | None = None,
        **override: Any,
    ) -> None:
        root = Path(bundle_root)
        check_paths(root)
        logging = str(root / "configs" / "logging.conf") if logging_file is None else logging_file
        super().__init__(
            workflow_type=workflow_type,
            config_file=config_file or str(root / "configs" / "train.json"),
            meta_file=meta_file or str(root / METADATA),
            logging_file=str(logging) if logging else None,
            bundle_root=bundle_root,
            **override,
        )
        for name, description in self.PARTS.items():
            self.properties[name] = {BundleProperty.DESC: description, BundleProperty.REQUIRED: False}

    def initialize(self) -> None:
        """Seed, and forget what was made before."""
        self.parser.parse(reset=True)
        super().initialize()
        set_determinism(seed=self.value("seed"))

    def value(self, name: str) -> Any:
        """A value of the configuration."""
        return self.parser.get_parsed_content(name)

    def values(self, *names: str) -> dict[str, Any]:
        """Values of the configuration, by name."""
        return {name: self.value(name) for name in names}

    def get_bundle_root(self) -> str:
        """The bundle's folder."""
        return str(self.value("bundle_root"))

    def get_device(self) -> torch.device:
        """Where the network trains."""
        device: torch.device = self.value("device")
        return device

    def get_dataset_dir(self) -> str:
        """Folder of the task."""
        return str(self.value("dataset_dir"))

    def get_max_epochs(self) -> int:
        """Epochs in all."""
        return int(self.value("epochs"))

    def get_val_interval(self) -> int:
        """Epochs between validations."""
        return int(self.value("val_interval"))

    def finalize(self) -> None:
        """Nothing is left open."""
