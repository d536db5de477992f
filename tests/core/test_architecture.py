"""The core needs no host, and its imports point one way."""

import ast
import inspect
import json
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import layertune

CORE = Path(layertune.__file__).parent
HOSTS = ["timm", "lightning", "pytorch_lightning", "monai", "ignite", "nnunetv2", "torchvision", "nilearn", "nibabel"]

# Asked of a fresh interpreter: which forbidden packages does `import layertune` load, or try to load?
WITHOUT_HOSTS = """
import json, sys

forbidden = set(json.loads(sys.argv[1]))
tried = []

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in forbidden:
            tried.append(name)
            raise ModuleNotFoundError(f"blocked: {name}", name=name)

import torch
loaded_by_torch = {name.partition(".")[0] for name in sys.modules}
sys.meta_path.insert(0, Blocked())
import layertune
values = [getattr(layertune, name) for name in layertune.__all__]
loaded = {name.partition(".")[0] for name in sys.modules} - loaded_by_torch
print(json.dumps({"tried": tried, "loaded": sorted(loaded & forbidden), "names": len(values)}))
"""

# From the ground up: what a concept may never reach, not even through others.
NEVER_REACHES = {
    "errors": {"trace", "layers", "policies", "groups", "metalr", "cli"},
    "trace": {"layers", "policies", "groups", "metalr", "autolr", "alchemy", "profile", "plots", "cli"},
    "layers": {"policies", "groups", "metalr", "autolr", "alchemy", "profile", "plots", "cli"},
    "policies": {"groups", "metalr", "autolr", "alchemy", "profile", "plots", "cli"},
    "groups": {"metalr", "autolr", "alchemy", "profile", "plots", "cli"},
    "profile": {"metalr", "autolr", "alchemy", "plots", "cli"},
    "norms": {"alchemy", "metalr", "autolr", "cli"},
    "metalr": {"autolr", "alchemy", "plots", "cli"},
    "plugin": {"trace", "layers", "policies", "groups", "metalr", "cli"},
}


def for_types_only(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"


def imports(path: Path, *, module_level: bool = False) -> set[str]:
    """The full names of all modules that a file imports: anywhere, or only what runs when it is imported.

    What is imported for type checkers only never runs, and does not count.
    """
    tree = ast.parse(path.read_text(encoding="utf-8"), filename=str(path))
    found: set[str] = set()
    pending: list[ast.AST] = [tree]
    while pending:
        node = pending.pop()
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            # `from package import name` may name a module of the package or an object in it: both are kept.
            found |= {str(node.module), *(f"{node.module}.{alias.name}" for alias in node.names)}
        if for_types_only(node) or (module_level and isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)):
            continue
        pending += ast.iter_child_nodes(node)
    return found


@pytest.fixture(scope="module")
def graph() -> dict[str, set[str]]:
    """Module -> the modules of the core that it imports; `__init__` is left out, since it re-exports."""
    paths = {path.stem: path for path in CORE.glob("*.py") if path.stem != "__init__"}
    imported = {name: imports(path) for name, path in paths.items()}
    return {name: {other for other in paths if f"layertune.{other}" in imported[name]} - {name} for name in paths}


def reachable(graph: dict[str, set[str]], start: str) -> set[str]:
    seen: set[str] = set()
    pending = [start]
    while pending:
        new = graph[pending.pop()] - seen
        seen |= new
        pending += new
    return seen


@pytest.mark.slow
def test_the_core_imports_and_gives_all_its_names_without_any_host() -> None:
    command = [sys.executable, "-c", WITHOUT_HOSTS, json.dumps(HOSTS)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout) == {"tried": [], "loaded": [], "names": len(layertune.__all__)}


def test_imports_in_the_core_form_no_cycle(graph: dict[str, set[str]]) -> None:
    order = list(TopologicalSorter(graph).static_order())  # a CycleError names the cycle
    assert set(order) == set(graph)
    assert order.index("trace") < order.index("layers") < order.index("groups")


@pytest.mark.parametrize("name", NEVER_REACHES)
def test_imports_in_the_core_point_one_way(graph: dict[str, set[str]], name: str) -> None:
    assert reachable(graph, name) & NEVER_REACHES[name] == set()


def test_only_the_command_line_reads_the_public_names(graph: dict[str, set[str]]) -> None:
    """A module that imports from the package itself would import everything, and in a circle."""
    modules = {f"layertune.{name}" for name in graph}
    for name in set(graph) - {"cli"}:
        from_package = {module for module in imports(CORE / f"{name}.py") if module.startswith("layertune.")}
        from_modules = {module for module in from_package if module.rpartition(".")[0] in modules}
        assert from_package - from_modules <= modules, f"{name} imports a public name from the package"


def test_the_core_imports_studies_and_plug_ins_only_when_asked_for_them(graph: dict[str, set[str]]) -> None:
    for name in graph:
        tops = {module.partition(".")[0] for module in imports(CORE / f"{name}.py", module_level=True)}
        assert not {top for top in tops if top.startswith("layertune_")}, name


def test_no_file_of_the_core_names_a_host_in_an_import(graph: dict[str, set[str]]) -> None:
    for name in graph:
        tops = {module.partition(".")[0] for module in imports(CORE / f"{name}.py")}
        assert tops & set(HOSTS) == set(), name


@pytest.mark.parametrize("name", layertune.__all__)
def test_every_public_name_says_what_it_is(name: str) -> None:
    value = getattr(layertune, name)
    assert value.__doc__
    # A dataclass without a docstring gets its signature as one.
    assert not value.__doc__.startswith(f"{name}(")
    assert inspect.getdoc(value).splitlines()[0].endswith((".", "?", ":")), "the first line is a sentence"


def test_public_names_are_sorted_and_named_once() -> None:
    assert list(layertune.__all__) == sorted(set(layertune.__all__))
