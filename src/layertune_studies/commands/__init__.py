"""The studies' commands: ``layertune study``, ``bench``, ``demo`` and ``rank``."""
