"""Handlers for MONAI's engines."""
