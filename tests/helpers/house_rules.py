"""The rules of the house: which way imports may point, and how much a folder, a file and a chain may hold."""

from collections import Counter

from import_graph import Graph, Source, circles, floors

__all__ = ["HOSTS", "MOST_FLOORS", "broken_rules"]

# A room may import itself and the rooms before it in this list, but no room beside it. `layertune` stands for the
# public names, which the package's `__init__` collects.
CORE = (
    {"errors"},
    {"files", "restoring", "old_paths"},
    {"layers"},
    {"policies", "rates", "weights"},
    {"metalr", "autolr", "alchemy"},
    {"plots"},
    {"hosts"},
    {"layertune"},
    {"cli"},
)
STUDIES = (
    {"errors"},
    {"config"},
    {"data"},
    {"training"},
    {"engine"},
    {"results"},
    {"ranking", "bench"},
    {"commands"},
)
HOSTS = {"timm", "lightning", "pytorch_lightning", "monai", "ignite", "nnunetv2", "torchvision", "nilearn", "nibabel"}
HANDLERS = "layertune_monai.handlers"
SHARED_BY_HANDLERS = {"engine", "meta_loss", "report", "transform_state"}

MOST_FLOORS = 9
MOST_MODULES = 15
MOST_LINES = 300


def broken_rules(source: Source) -> dict[str, str]:
    """Return what breaks a rule of the house, with the rule that it breaks.

    Returns:
        The rule by the place: ``"importer -> imported"`` for an import, the module, the folder, or the modules of a
        circle.
    """
    broken = {
        f"{importer} -> {imported}": rule
        for importer, modules in source.imports.items()
        for imported in modules
        if (rule := _forbidden(importer, imported))
    }
    broken |= {
        f"{importer} -> {host}": "the core imports no host"
        for importer, packages in source.foreign.items()
        for host in packages & HOSTS
        if _package(importer) == "layertune"
    }
    broken |= {
        f"{module}: {text}": "the name of a module is written out, so that a search finds it"
        for module, texts in source.assembled.items()
        for text in texts
    }
    broken |= {", ".join(circle): "imports form no circle" for circle in circles(source.imports)}
    return broken | _rooms_without_floor(source) | _too_large(source) | _too_high(source.imports)


def _package(module: str) -> str:
    return module.partition(".")[0]


def _room(module: str) -> str:
    """Return the room of a module: the first folder or file within its package, or the package itself."""
    return module.split(".")[1] if "." in module else module


def _forbidden(importer: str, imported: str) -> str:
    """Return the rule that an import breaks; empty if it breaks none."""
    package, other = _package(importer), _package(imported)
    if package == "layertune" and other != "layertune":
        return "the core imports neither plug-ins nor studies"
    if other == "layertune" and _room(imported) == "cli" and _room(importer) not in {"cli", "commands"}:
        return "only commands import the command line"
    if package != other:
        if other == "layertune_studies":
            return "a plug-in does not import the studies"
        if "layertune" in {package, other} or package == "layertune_studies":
            return ""
        return "a plug-in does not import another plug-in"
    if importer.startswith(f"{HANDLERS}.") and imported.startswith(f"{HANDLERS}."):
        return "" if imported.split(".")[2] in SHARED_BY_HANDLERS else "a handler does not import another handler"
    floor = _floors_of_rooms(package)
    below, above = floor.get(_room(imported)), floor.get(_room(importer))
    if below is None or above is None or below < above or _room(imported) == _room(importer):
        return ""
    return f"{_room(importer)} does not import {_room(imported)}, which is not below it"


def _floors_of_rooms(package: str) -> dict[str, int]:
    floors_of_package = {"layertune": CORE, "layertune_studies": STUDIES}.get(package, ())
    return {room: number for number, rooms in enumerate(floors_of_package) for room in rooms}


def _rooms_without_floor(source: Source) -> dict[str, str]:
    rule = "every room has its floor in tests/helpers/house_rules.py"
    rooms = {(package, _room(module)) for module in source.files if (package := _package(module)) != _room(module)}
    return {
        f"{package}.{room}": rule
        for package, room in rooms
        if package in {"layertune", "layertune_studies"} and room not in _floors_of_rooms(package)
    }


def _too_large(source: Source) -> dict[str, str]:
    modules = {name: file for name, file in source.files.items() if file.suffix == ".py"}
    folders = Counter(name.rpartition(".")[0] for name, file in modules.items() if file.stem != "__init__")
    lines = {name: len(file.read_text(encoding="utf-8").splitlines()) for name, file in modules.items()}
    return {
        **{name: f"a folder has at most {MOST_MODULES} modules" for name in folders if folders[name] > MOST_MODULES},
        **{name: f"a file has at most {MOST_LINES} lines" for name in lines if lines[name] > MOST_LINES},
    }


def _too_high(imports: Graph) -> dict[str, str]:
    """Measure the core without its circles, which are reported on their own."""
    core = {module: modules for module, modules in imports.items() if _package(module) == "layertune"}
    circle_of = {module: number for number, circle in enumerate(circles(imports)) for module in circle}
    straight = {
        module: frozenset(
            other
            for other in modules & set(core)
            if module not in circle_of or circle_of[module] != circle_of.get(other)
        )
        for module, modules in core.items()
    }
    heights = floors(straight)
    return {module: f"the core has at most {MOST_FLOORS} floors" for module in heights if heights[module] > MOST_FLOORS}
