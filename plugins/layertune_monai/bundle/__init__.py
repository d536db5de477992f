"""The bundle ``metalr_unet``: its folder, its configuration, and what its configuration names."""

from layertune_monai.bundle.folder import NAME, check_patch, check_paths, describe_task, write_bundle

__all__ = ["NAME", "check_patch", "check_paths", "describe_task", "write_bundle"]
