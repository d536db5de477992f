"""The bundle ``metalr_unet``, what its configuration names, and the adaptation of other bundles."""

# Bundles of version 0.1 import these names from here, when this package was a module.
from layertune_monai.bundle.folder import NAME, check_patch, check_paths, describe_task, write_bundle

__all__ = ["NAME", "check_patch", "check_paths", "describe_task", "write_bundle"]
