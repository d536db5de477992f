"""The base of the bundle's Python workflow: it reads numbers, paths and transforms from the configuration."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import torch
from monai.bundle import PythonicWorkflow, ReferenceResolver
from monai.utils import BundleProperty, set_determinism

from layertune_monai.bundle.folder import METADATA, check_paths
from layertune_monai.bundle.overrides import unknown_names
from layertune_monai.errors import BundleError

__all__ = ["BundleWorkflow"]


class BundleWorkflow(PythonicWorkflow):
    """Read the values of a workflow from ``configs/train.json``, where each of them can be overridden by name.

    Args:
        bundle_root: The root of the bundle, as ``layertune monai bundle DIR`` writes it.
        workflow_type: MONAI's name for the kind of workflow.
        config_file: The configuration to read instead of ``configs/train.json``.
        meta_file: The metadata to read instead of ``configs/metadata.json``.
        logging_file: The logging configuration to use instead of ``configs/logging.conf``. ``False`` leaves logging as
            it is.
        **override: Values of the configuration by name, such as ``method="bidirectional"``.

    Attributes:
        PARTS: The parts of a subclass beyond MONAI's own properties of a workflow, each with a description. A method
            ``get_<part>`` builds the part.

    Raises:
        BundleError: There is no bundle in ``bundle_root``, or the configuration has no value of an overridden name.

    Example:
        >>> import tempfile
        >>> from layertune_monai import write_bundle
        >>> class PrintRate(BundleWorkflow):
        ...     def run(self):
        ...         print(self.value("lr"))
        >>> PrintRate(str(write_bundle(tempfile.mkdtemp())), lr=0.1, logging_file=False).run()
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
        )
        unknown = [name for name in override if name not in self.parser]
        if unknown:
            raise unknown_names(unknown, self.parser.get())
        self.parser.update(pairs=override)
        self._overridden = list(override)
        for name, description in self.PARTS.items():
            self.properties[name] = {BundleProperty.DESC: description, BundleProperty.REQUIRED: False}

    def initialize(self) -> None:
        """Seed all random numbers, and discard the parts that were built before."""
        self.parser.parse(reset=True)
        super().initialize()
        set_determinism(seed=self.value("seed"))

    def check_all_read(self) -> None:
        """Refuse an overridden value that no part of this workflow has read. Call it when all parts are built.

        Raises:
            BundleError: A value was overridden without effect.
        """
        # MONAI keeps each value that was asked for, and each value that such a value refers to.
        read = set(self.parser.ref_resolver.resolved_content)
        unread = [name for name in self._overridden if not read & _with_parents(name)]
        if unread:
            raise BundleError(
                f"{type(self).__name__} does not read {', '.join(unread)}, because it builds that part in Python; "
                "override its method get_<part> in a subclass, or run the configuration: python -m monai.bundle run "
                "--config_file configs/train.json"
            )

    def value(self, name: str) -> Any:
        """Return a value of the configuration.

        Args:
            name: The id of the value, such as ``"lr"`` or ``"network_def#channels"``.
        """
        return self.parser.get_parsed_content(name)

    def values(self, *names: str) -> dict[str, Any]:
        """Return values of the configuration by name.

        Args:
            *names: The ids of the values.
        """
        return {name: self.value(name) for name in names}

    def get_bundle_root(self) -> str:
        """Return the root of the bundle."""
        return str(self.value("bundle_root"))

    def get_device(self) -> torch.device:
        """Return the device of the network."""
        device: torch.device = self.value("device")
        return device

    def get_dataset_dir(self) -> str:
        """Return the folder of the task."""
        return str(self.value("dataset_dir"))

    def get_max_epochs(self) -> int:
        """Return the number of epochs."""
        return int(self.value("epochs"))

    def get_val_interval(self) -> int:
        """Return the number of epochs between two validations."""
        return int(self.value("val_interval"))

    def finalize(self) -> None:
        """Do nothing, because nothing is left open."""


def _with_parents(name: str) -> set[str]:
    """Return the id and the ids of the sections around it: ``a::b`` and ``a`` for ``"a#b"``."""
    parts = ReferenceResolver.split_id(name)
    return {ReferenceResolver.sep.join(parts[:end]) for end in range(1, len(parts) + 1)}
