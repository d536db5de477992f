"""Models Genesis in MONAI: its 3D U-Net and its pretext task."""
