"""The command line: ``layertune``."""

from layertune.cli.app import app, main

__all__ = ["app", "main"]
