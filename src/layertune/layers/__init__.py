"""Layers of a network: which parameters belong together, in which order they run, and how deep they are."""
