"""What the reference needs changed in docstrings that were written for readers of the source."""

from typing import Any

import griffe


class Docstrings(griffe.Extension):
    """Docstrings say ``Example:``, and end the line before an equation with ``::``: both get their Markdown form."""

    def on_instance(self, *, obj: griffe.Object, **_: Any) -> None:
        """Rewrite the docstring of one object before it is parsed into sections."""
        if obj.docstring is not None:
            text = obj.docstring.value.replace("Example:\n", "Examples:\n")
            obj.docstring.value = text.replace("::\n\n", ":\n\n")
