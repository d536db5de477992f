"""The graph of all imports between the project's modules, read from their source without running it."""

import ast
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from graphlib import TopologicalSorter
from pathlib import Path

__all__ = ["Source", "circles", "floors", "read_source"]

IMPORTERS = {"import_module", "find_spec", "__import__", "run_module"}


@dataclass(frozen=True)
class Source:
    """The modules of some packages and what they import of each other.

    Attributes:
        files: The file of each module by the module's full name. A JSON file counts as a module, since MONAI imports
            what its ``_target_`` entries name; its name keeps the ending, as in ``"package.configs.train.json"``.
        imports: The modules that each module imports, wherever the import is written.
        assembled: Pairs of a module and a string in it that puts the name of a module together from parts. Nobody can
            tell which modules such a string imports.
    """

    files: Mapping[str, Path]
    imports: Mapping[str, frozenset[str]]
    assembled: tuple[tuple[str, str], ...]


def read_source(*packages: Path) -> Source:
    """Read the imports of all modules in the given package folders.

    An import counts at module level, within functions, and under ``TYPE_CHECKING``. A string counts as an import where
    it is the full name of a submodule, or of something in one, and where a function of ``importlib`` gets it.
    """
    files = {name: file for package in packages for name, file in _modules(package)}
    imports: dict[str, frozenset[str]] = {}
    assembled: list[tuple[str, str]] = []
    for name, file in files.items():
        text = file.read_text(encoding="utf-8")
        if file.suffix == ".json":
            found = _names_in_json(text, files)
        else:
            tree = ast.parse(text, filename=str(file))
            found = {_module_of(path, files) for path in _imported_paths(tree, name, file, files)}
            assembled += [(name, part) for part in _assembled_paths(tree, files)]
        imports[name] = frozenset(module for module in found if module not in {None, name})
    return Source(files, imports, tuple(assembled))  # type: ignore[arg-type]  # None was left out


def _modules(package: Path) -> Iterator[tuple[str, Path]]:
    for file in sorted([*package.rglob("*.py"), *package.rglob("*.json")]):
        path = file.relative_to(package.parent)
        parts = path.with_suffix("").parts if file.suffix == ".py" else path.parts
        yield ".".join(parts[:-1] if parts[-1] == "__init__" else parts), file


def _module_of(path: str, files: Mapping[str, Path]) -> str | None:
    """Return the module that a dotted path names, or in which it names something; None for a foreign path."""
    parts = path.split(".")
    for end in range(len(parts), 0, -1):
        module = ".".join(parts[:end])
        if module in files:
            return module
    return None


def _imported_paths(tree: ast.Module, name: str, file: Path, files: Mapping[str, Path]) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = _absolute(node, name, is_package=file.stem == "__init__")
            # `from package import name` imports the module `package.name` if there is one, and else the package.
            yield from (f"{base}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Call) and _called_name(node) in IMPORTERS:
            yield from (
                word.value for word in node.args if isinstance(word, ast.Constant) and isinstance(word.value, str)
            )
        elif isinstance(node, ast.Dict):
            yield from _targets(node)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            path = node.value.replace(":", ".")
            # The top package alone is also part of other names, as that of an entry-point group.
            if re.fullmatch(r"\w+(\.\w+)+", path) and "." in (_module_of(path, files) or ""):
                yield path


def _absolute(node: ast.ImportFrom, name: str, *, is_package: bool) -> str:
    if not node.level:
        return str(node.module)
    parts = name.split(".")
    parts = parts[: len(parts) - node.level + is_package]
    return ".".join([*parts, node.module] if node.module else parts)


def _called_name(node: ast.Call) -> str:
    called = node.func
    return called.attr if isinstance(called, ast.Attribute) else called.id if isinstance(called, ast.Name) else ""


def _targets(node: ast.Dict) -> Iterator[str]:
    for key, value in zip(node.keys, node.values, strict=True):
        if isinstance(key, ast.Constant) and key.value == "_target_" and isinstance(value, ast.Constant):
            yield str(value.value)


def _names_in_json(text: str, files: Mapping[str, Path]) -> set[str | None]:
    """A bundle's strings also name modules within expressions, so every dotted path in the file counts."""
    return {
        _module_of(path, files) for path in re.findall(r"[A-Za-z_]\w*(?:\.\w+)*", text) if path.split(".")[0] in files
    }


def _assembled_paths(tree: ast.Module, files: Mapping[str, Path]) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr) and len(node.values) > 1:
            first = node.values[0]
        elif isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add | ast.Mod):
            first = node.left
        else:
            continue
        text = first.value if isinstance(first, ast.Constant) else None
        if isinstance(text, str) and re.match(r"\w+(\.\w+)*\.(%s)?$", text) and text.split(".")[0] in files:
            yield ast.unparse(node)


def circles(imports: Mapping[str, frozenset[str]]) -> list[list[str]]:
    """Return the groups of modules that import each other in a circle, directly or through others."""
    reached = {module: _reachable(module, imports) for module in imports}
    groups = {tuple(sorted(other for other in reached[module] if module in reached[other])) for module in imports}
    return [list(group) for group in sorted(groups) if group]


def _reachable(module: str, imports: Mapping[str, frozenset[str]]) -> set[str]:
    seen: set[str] = set()
    pending = [module]
    while pending:
        new = imports[pending.pop()] - seen
        seen |= new
        pending += new
    return seen


def floors(imports: Mapping[str, frozenset[str]]) -> dict[str, int]:
    """Return the floor of each module: 1 without imports, else one above the highest module that it imports.

    Raises:
        CycleError: The imports have a circle.
    """
    heights: dict[str, int] = {}
    for module in TopologicalSorter(imports).static_order():
        heights[module] = 1 + max((heights[other] for other in imports[module]), default=0)
    return heights
