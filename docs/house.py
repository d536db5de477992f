"""Draw the figure of the rooms and the imports between them: ``python docs/house.py`` writes ``docs/house.svg``.

The site is to fetch nothing when it is read, so this is an SVG file and no diagram that a script from elsewhere draws.
``tests/core/test_architecture.py`` compares the arrows with the imports.
"""

from pathlib import Path
from typing import NamedTuple

__all__ = ["ARROWS", "FILE", "draw"]

FILE = Path(__file__).with_name("house.svg")
FLOOR, HEIGHT = 62, 34  # pixels from floor to floor, and of a box


class Box(NamedTuple):
    """A room: its floor from the bottom, its left and right ends in pixels, and what it says."""

    floor: int
    left: int
    right: int
    text: str
    color: str = "#dbe9f6"


BOXES = {
    "ground": Box(0, 10, 750, "errors · files · restoring · old_paths", "#e8e8e8"),
    "layers": Box(1, 10, 750, "layers: which parameters form a layer, how deep"),
    "policies": Box(2, 10, 150, "policies"),
    "rates": Box(2, 170, 460, "rates: factors on an optimizer's lr"),
    "weights": Box(2, 480, 750, "weights: any host's files"),
    "autolr": Box(3, 170, 270, "autolr"),
    "metalr": Box(3, 300, 440, "metalr"),
    "alchemy": Box(3, 480, 750, "alchemy"),
    "plots": Box(4, 450, 750, "plots"),
    "hosts": Box(5, 300, 750, "hosts: all that two hosts need"),
    "layertune": Box(6, 10, 580, "layertune: the public names"),
    "cli": Box(6, 610, 750, "cli"),
    "plug-ins": Box(7, 10, 750, "layertune_timm · layertune_lightning · layertune_monai · layertune_nnunet", "#fde6cf"),
    "studies": Box(8, 10, 750, "layertune_studies: commands → results → engine → training → data → config", "#dff0d8"),
}

# From the room that imports to the one that it imports, at a place in pixels from the left. A room may also import what
# lies further along the arrows; those imports are left out of the figure.
ARROWS: dict[tuple[str, str], int] = {
    ("layers", "ground"): 380,
    ("policies", "layers"): 80,
    ("rates", "layers"): 315,
    ("weights", "layers"): 615,
    ("autolr", "rates"): 220,
    ("metalr", "rates"): 370,
    ("alchemy", "weights"): 615,
    ("plots", "rates"): 455,
    ("plots", "alchemy"): 615,
    ("hosts", "metalr"): 370,
    ("hosts", "plots"): 600,
    ("layertune", "policies"): 80,
    ("layertune", "autolr"): 220,
    ("layertune", "hosts"): 440,
    ("cli", "hosts"): 680,
    ("plug-ins", "layertune"): 295,
    ("plug-ins", "cli"): 680,
    ("studies", "plug-ins"): 380,
}
DASHED = {("plug-ins", "cli")}  # only the modules with commands import the command line


def draw() -> str:
    """Return the figure as the text of an SVG file."""
    height = (max(box.floor for box in BOXES.values()) + 1) * FLOOR
    parts = [_arrow(start, end, x, height) for (start, end), x in ARROWS.items()]
    parts += [_box(box, height) for box in BOXES.values()]
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 760 {height}" role="img" font-family="sans-serif" '
        'font-size="13" text-anchor="middle">\n<title>The rooms of layertune and the imports between them</title>\n'
        '<defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
        '<path d="M0 0L8 4L0 8z" fill="#555"/></marker></defs>\n'
        f'<rect width="760" height="{height}" rx="6" fill="#fff"/>\n'
    )
    return head + "\n".join(parts) + "\n</svg>\n"


def _top(box: Box, height: int) -> int:
    return height - box.floor * FLOOR - HEIGHT - (FLOOR - HEIGHT) // 2


def _box(box: Box, height: int) -> str:
    top, middle = _top(box, height), (box.left + box.right) // 2
    return (
        f'<rect x="{box.left}" y="{top}" width="{box.right - box.left}" height="{HEIGHT}" rx="5" fill="{box.color}" '
        f'stroke="#555"/><text x="{middle}" y="{top + HEIGHT // 2 + 5}" fill="#222">{box.text}</text>'
    )


def _arrow(start: str, end: str, x: int, height: int) -> str:
    low, high = _top(BOXES[end], height), _top(BOXES[start], height) + HEIGHT
    dash = ' stroke-dasharray="4 3"' if (start, end) in DASHED else ""
    return f'<path d="M{x} {high}V{low}" stroke="#555" stroke-width="1.3" marker-end="url(#tip)"{dash}/>'


if __name__ == "__main__":
    FILE.write_text(draw(), encoding="utf-8")
