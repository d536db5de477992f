"""What mkdocs runs while it builds the site."""

from pathlib import Path
from typing import Any


def on_page_markdown(markdown: str, *, page: Any, **_: Any) -> str:
    """Put the README on the first page; its links count from the repository, those of the site from docs/."""
    if page.file.src_uri != "index.md":
        return markdown
    readme = Path(page.file.abs_src_path).parents[1] / "README.md"
    return readme.read_text(encoding="utf-8").replace("](docs/", "](")
