"""Factors on an optimizer's learning rates: how they are applied, recorded, saved and replayed."""
