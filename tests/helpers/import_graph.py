"""The graph of all imports between the project's modules, read from their source without running it."""

import ast
import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from graphlib import TopologicalSorter
from pathlib import Path

__all__ = ["Graph", "Source", "circles", "floors", "reachable", "read_source"]

Graph = Mapping[str, frozenset[str]]

IMPORT_FUNCTIONS = {"import_module", "find_spec", "__import__", "run_module"}
DOTTED_PATH = r"[A-Za-z_]\w*(?:\.\w+)*"


@dataclass(frozen=True)
class Source:
    """The modules of some packages and what they import.

    Attributes:
        files: The file of each module, by the module's full name. A JSON file counts as a module, since MONAI imports
            what its ``_target_`` entries name; its name keeps the ending, as in ``"package.configs.train.json"``.
        imports: The modules of these packages that each module imports, wherever the import is written.
        foreign: The top-level names of all other packages that each module imports.
        assembled: The strings in each module that put the name of a module together from parts. Nobody can tell which
            modules such a string imports.
    """

    files: Mapping[str, Path]
    imports: Graph
    foreign: Graph
    assembled: Graph


def read_source(*packages: Path) -> Source:
    """Read the imports of all modules in the given package folders.

    An import counts at module level, within functions, and under ``TYPE_CHECKING``. A string counts as an import where
    it is the full name of a submodule, or of something in one, and where a function of ``importlib`` gets it.
    """
    files = {name: file for package in packages for name, file in _modules(package)}
    imports, foreign, assembled = {}, {}, {}
    for name, file in files.items():
        paths, parts = _paths_in(file, name, files)
        modules = {path: _module_of(path, files) for path in paths}
        imports[name] = frozenset(module for module in modules.values() if module) - {name}
        foreign[name] = frozenset(path.partition(".")[0] for path, module in modules.items() if not module)
        assembled[name] = frozenset(parts)
    return Source(files, imports, foreign, assembled)


def _modules(package: Path) -> Iterator[tuple[str, Path]]:
    for file in sorted([*package.rglob("*.py"), *package.rglob("*.json")]):
        path = file.relative_to(package.parent)
        parts = path.with_suffix("").parts if file.suffix == ".py" else path.parts
        yield ".".join(parts[:-1] if parts[-1] == "__init__" else parts), file


def _module_of(path: str, files: Collection[str]) -> str:
    """Return the module that a dotted path names, or in which it names something; empty for a foreign path."""
    parts = path.split(".")
    modules = (".".join(parts[:end]) for end in range(len(parts), 0, -1))
    return next((module for module in modules if module in files), "")


def _paths_in(file: Path, name: str, files: Collection[str]) -> tuple[set[str], set[str]]:
    """Return the dotted paths that a file imports, and its strings that put the name of a module together."""
    text = file.read_text(encoding="utf-8")
    if file.suffix == ".json":
        # The strings of a MONAI bundle also name modules within expressions, so every dotted path of ours counts.
        return {path for path in re.findall(DOTTED_PATH, text) if _module_of(path, files)}, set()
    nodes = list(ast.walk(ast.parse(text, filename=str(file))))
    paths = [_paths_of(node, name, files, is_package=file.stem == "__init__") for node in nodes]
    parts = {ast.unparse(node) for node in nodes if _is_assembled(node, files)}
    return set().union(*paths), parts


def _paths_of(node: ast.AST, name: str, files: Collection[str], *, is_package: bool) -> set[str]:
    match node:
        case ast.Import():
            return {alias.name for alias in node.names}
        case ast.ImportFrom():
            # `from package import name` imports the module `package.name` if there is one, and else the package.
            base = _absolute(node, name, is_package=is_package)
            return {f"{base}.{alias.name}" for alias in node.names}
        case ast.Call():
            return _imported_by_call(node)
        case ast.Dict():
            return {path for path in _targets(node) if _module_of(path, files)}
        case ast.Constant(value=str(text)):
            path = text.replace(":", ".")
            # The name of a top-level package alone also begins other names, such as entry-point groups.
            is_module = re.fullmatch(DOTTED_PATH, path) and "." in _module_of(path, files)
            return {path} if is_module else set()
    return set()


def _absolute(node: ast.ImportFrom, name: str, *, is_package: bool) -> str:
    if not node.level:
        return str(node.module)
    parts = name.split(".")
    parts = parts[: len(parts) - node.level + is_package]
    return ".".join([*parts, node.module] if node.module else parts)


def _imported_by_call(node: ast.Call) -> set[str]:
    called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
    texts = {word.value for word in node.args if isinstance(word, ast.Constant) and isinstance(word.value, str)}
    return {text for text in texts if re.fullmatch(DOTTED_PATH, text)} if called in IMPORT_FUNCTIONS else set()


def _targets(node: ast.Dict) -> set[str]:
    pairs = zip(node.keys, node.values, strict=True)
    entries = {getattr(key, "value", None): getattr(value, "value", None) for key, value in pairs}
    return {str(entries["_target_"])} if "_target_" in entries else set()


def _is_assembled(node: ast.AST, files: Collection[str]) -> bool:
    match node:
        case (
            ast.JoinedStr(values=[ast.Constant(value=str(text)), _, *_]) | ast.BinOp(left=ast.Constant(value=str(text)))
        ):
            return bool(re.fullmatch(rf"{DOTTED_PATH}\.(?:%s)?", text)) and text.partition(".")[0] in files
    return False


def circles(imports: Graph) -> list[list[str]]:
    """Return the groups of modules that import each other in a circle, directly or through others."""
    reached = {module: reachable(module, imports) for module in imports}
    groups = {tuple(sorted(other for other in reached[module] if module in reached[other])) for module in imports}
    return [list(group) for group in sorted(groups) if group]


def reachable(module: str, imports: Graph) -> set[str]:
    """Return all modules that a module imports, directly or through others."""
    seen: set[str] = set()
    pending = [module]
    while pending:
        new = imports[pending.pop()] - seen
        seen |= new
        pending += new
    return seen


def floors(imports: Graph) -> dict[str, int]:
    """Return the floor of each module: 1 without imports, else one above the highest module that it imports.

    Raises:
        CycleError: The imports have a circle.
    """
    heights: dict[str, int] = {}
    for module in TopologicalSorter(imports).static_order():
        heights[module] = 1 + max((heights[other] for other in imports[module]), default=0)
    return heights
