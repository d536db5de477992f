"""The rules of the house hold for all packages, and the core works without any host."""

import ast
import inspect
import itertools
import json
import runpy
import subprocess
import sys
import typing
from collections.abc import Mapping
from pathlib import Path

import pytest

import layertune
from house_rules import HOSTS, broken_rules
from import_graph import circles, floors, reachable, read_source

ROOT = Path(__file__).parents[2]
PACKAGES = [ROOT / "src/layertune", ROOT / "src/layertune_studies", *sorted((ROOT / "plugins").glob("layertune_*"))]

# Run in a fresh interpreter: which forbidden packages does `import layertune` load, or try to load?
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


def test_all_packages_keep_the_rules_of_the_house() -> None:
    assert broken_rules(read_source(*PACKAGES)) == {}


# A made-up tree in which every rule is kept. Its imports go up to the limits.
SOUND = {
    "layertune/__init__.py": "from layertune.hosts.plugin import Plugin\nfrom layertune.metalr import MetaLR",
    "layertune/errors.py": "import torch",
    "layertune/files.py": "from layertune.errors import LayertuneError",
    "layertune/old_paths.py": "",
    "layertune/layers/__init__.py": "",
    "layertune/layers/trace.py": "from layertune.files import write\nfrom layertune.layers import names",
    "layertune/layers/names.py": "",
    "layertune/policies/policies.py": "from layertune.layers.trace import trace",
    "layertune/rates/profile.py": "",
    "layertune/weights/order.py": "",
    "layertune/metalr/__init__.py": "from layertune.rates.profile import LRProfile",
    "layertune/autolr/autolr.py": "",
    "layertune/alchemy/norms.py": "",
    "layertune/plots/rates.py": "from layertune.metalr import MetaLR",
    "layertune/hosts/plugin.py": "GROUP = 'layertune.plugins'\ndef draw():\n    from layertune.plots.rates import plot",
    "layertune/cli/app.py": "import layertune\nimport typer",
    "layertune_monai/__init__.py": "import monai\nfrom layertune import MetaLR",
    "layertune_monai/commands.py": "from layertune.cli.app import app",
    "layertune_monai/train.json": '{"_target_": "layertune_monai.MetaLRHandler", "lr": "$layertune.map_layers(@net)"}',
    "layertune_monai/handlers/metalr.py": "from layertune_monai.handlers.engine import network_of",
    "layertune_monai/handlers/alchemy.py": "from layertune_monai.handlers.report import report",
    "layertune_monai/handlers/engine.py": "",
    "layertune_monai/handlers/report.py": "",
    "layertune_timm/__init__.py": "import timm",
    "layertune_studies/__init__.py": "",
    "layertune_studies/errors.py": "",
    "layertune_studies/config/study.py": "from layertune_studies.errors import StudyError",
    "layertune_studies/data/case.py": "",
    "layertune_studies/training/loop.py": "from layertune_monai import MetaLRHandler",
    "layertune_studies/engine/run.py": "from layertune_studies.config.study import Study",
    "layertune_studies/results/table.py": "",
    "layertune_studies/commands/study.py": "from layertune.cli.app import app",
}
CHAIN = {f"layertune/layers/floor{n}.py": f"import layertune.layers.floor{n - 1}" for n in range(2, 11)}
CROWD = {f"layertune/layers/module{n}.py": "" for n in range(14)}


def broken_in(folder: Path, files: Mapping[str, str]) -> dict[str, str]:
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return broken_rules(read_source(*sorted(folder.iterdir())))


def test_a_tree_that_keeps_all_rules_breaks_none(tmp_path: Path) -> None:
    assert broken_in(tmp_path, SOUND) == {}


@pytest.mark.parametrize(
    ("importer", "imported", "rule"),
    [
        ("layertune.errors", "layertune.layers.names", "not below it"),
        ("layertune.files", "layertune.old_paths", "not below it"),
        ("layertune.restoring", "layertune.layers.names", "not below it"),
        ("layertune.old_paths", "layertune.layers.names", "not below it"),
        ("layertune.layers.a", "layertune", "not below it"),
        ("layertune.layers.a", "layertune.policies.policies", "not below it"),
        ("layertune.layers.a", "layertune.metalr", "not below it"),
        ("layertune.rates.a", "layertune.metalr", "not below it"),
        ("layertune.rates.a", "layertune.policies.policies", "not below it"),
        ("layertune.weights.a", "layertune.autolr.autolr", "not below it"),
        ("layertune.policies.a", "layertune.alchemy.norms", "not below it"),
        ("layertune.metalr.a", "layertune.autolr.autolr", "not below it"),
        ("layertune.metalr.a", "layertune.hosts.plugin", "not below it"),
        ("layertune.autolr.a", "layertune.alchemy.norms", "not below it"),
        ("layertune.alchemy.a", "layertune.metalr", "not below it"),
        ("layertune.alchemy.a", "layertune.plots.rates", "not below it"),
        ("layertune.plots.a", "layertune.hosts.plugin", "not below it"),
        ("layertune.hosts.a", "layertune.cli.app", "only commands"),
        ("layertune.hosts.a", "layertune_timm", "neither plug-ins nor studies"),
        ("layertune.cli.a", "layertune_studies", "neither plug-ins nor studies"),
        ("layertune.hosts.a", "timm", "no host"),
        ("layertune_timm.a", "layertune.cli.app", "only commands"),
        ("layertune_timm.a", "layertune_monai", "another plug-in"),
        ("layertune_timm.a", "layertune_studies", "not import the studies"),
        ("layertune_monai.handlers.a", "layertune_monai.handlers.metalr", "another handler"),
        ("layertune_monai.handlers.engine", "layertune_monai.handlers.alchemy", "another handler"),
        ("layertune_studies.config.a", "layertune_studies.data.case", "not below it"),
        ("layertune_studies.data.a", "layertune_studies.training.loop", "not below it"),
        ("layertune_studies.data.a", "layertune.cli.app", "only commands"),
        ("layertune_studies.training.a", "layertune_studies.engine.run", "not below it"),
        ("layertune_studies.engine.a", "layertune_studies.results.table", "not below it"),
        ("layertune_studies.results.a", "layertune_studies.commands.study", "not below it"),
    ],
)
def test_an_import_that_a_rule_forbids_is_found(tmp_path: Path, importer: str, imported: str, rule: str) -> None:
    file = f"{importer.replace('.', '/')}.py"
    ((place, broken),) = broken_in(tmp_path, {**SOUND, file: f"import {imported}"}).items()
    assert place == f"{importer} -> {imported}"
    assert rule in broken


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("import layertune_timm.groupers", id="import"),
        pytest.param("import layertune_timm.groupers as layers", id="import as"),
        pytest.param("from layertune_timm import groupers", id="from"),
        pytest.param("from layertune_timm.groupers import bidirectional", id="from the module"),
        pytest.param("def f():\n    from layertune_timm import groupers", id="within a function"),
        pytest.param("if TYPE_CHECKING:\n    from layertune_timm import groupers", id="for type checkers"),
        pytest.param("try:\n    import layertune_timm.groupers\nexcept ImportError:\n    pass", id="within try"),
        pytest.param("import_module('layertune_timm.groupers')", id="by importlib"),
        pytest.param("names = {'a': 'layertune_timm.groupers'}", id="name of a module"),
        pytest.param("name = 'layertune_timm.groupers:bidirectional'", id="name of an object"),
        pytest.param("config = {'_target_': 'layertune_timm.groupers.bidirectional'}", id="target"),
        pytest.param("run(sys.executable, '-m', 'layertune_timm.groupers')", id="another process"),
    ],
)
def test_every_way_to_import_a_module_counts(tmp_path: Path, text: str) -> None:
    files = {**SOUND, "layertune_timm/groupers.py": "", "layertune/hosts/a.py": text}
    assert broken_in(tmp_path, files) == {
        "layertune.hosts.a -> layertune_timm.groupers": "the core imports neither plug-ins nor studies"
    }


@pytest.mark.parametrize(
    "text",
    ["importlib.import_module('layertune_timm')", "config = {'_target_': 'layertune_timm.bidirectional'}"],
)
def test_a_string_that_names_a_whole_package_counts_where_it_is_imported(tmp_path: Path, text: str) -> None:
    assert list(broken_in(tmp_path, {**SOUND, "layertune/hosts/a.py": text})) == ["layertune.hosts.a -> layertune_timm"]


def test_names_in_a_configuration_count(tmp_path: Path) -> None:
    config = '{"imports": ["$import layertune_timm as t"], "handlers": [{"_target_": "layertune_monai.commands.run"}]}'
    broken = broken_in(tmp_path, {**SOUND, "layertune_monai/configs/train.json": config})
    assert list(broken) == ["layertune_monai.configs.train.json -> layertune_timm"]


def test_a_relative_import_counts(tmp_path: Path) -> None:
    files = {**SOUND, "layertune/layers/a.py": "from ..policies import policies\nfrom .names import unwrap"}
    assert list(broken_in(tmp_path, files)) == ["layertune.layers.a -> layertune.policies.policies"]


@pytest.mark.parametrize(
    "text", ["f'layertune_monai.{name}'", "'layertune_monai.' + name", "'layertune_monai.%s' % name"]
)
def test_the_name_of_a_module_is_not_put_together(tmp_path: Path, text: str) -> None:
    ((place, rule),) = broken_in(tmp_path, {**SOUND, "layertune_monai/a.py": f"import_module({text})"}).items()
    assert place.startswith("layertune_monai.a: ")
    assert "written out" in rule


def test_a_circle_is_found_also_where_each_import_is_allowed(tmp_path: Path) -> None:
    files = {
        **SOUND,
        "layertune/layers/a.py": "import layertune.layers.b",
        "layertune/layers/b.py": "def f():\n    import layertune.layers.c",
        "layertune/layers/c.py": "if TYPE_CHECKING:\n    import layertune.layers.a",
    }
    assert broken_in(tmp_path, files) == {
        "layertune.layers.a, layertune.layers.b, layertune.layers.c": "imports form no circle"
    }


@pytest.mark.parametrize("room", ["layertune.attic", "layertune_studies.script"])
def test_a_room_without_a_floor_is_found(tmp_path: Path, room: str) -> None:
    files = {**SOUND, f"{room.replace('.', '/')}.py": "import layertune.errors"}
    assert broken_in(tmp_path, files) == {room: "every room has its floor in tests/helpers/house_rules.py"}


def test_a_tenth_floor_in_the_core_is_found(tmp_path: Path) -> None:
    files = {**SOUND, "layertune/layers/floor1.py": "", **CHAIN}
    assert broken_in(tmp_path, files) == {"layertune.layers.floor10": "the core has at most 9 floors"}


def test_a_sixteenth_module_in_a_folder_is_found(tmp_path: Path) -> None:
    # `__init__` does not count, and the sound tree has two modules there.
    assert broken_in(tmp_path, {**SOUND, **CROWD}) == {"layertune.layers": "a folder has at most 15 modules"}


def test_a_file_of_301_lines_is_found(tmp_path: Path) -> None:
    files = {**SOUND, "layertune/layers/a.py": "\n" * 301, "layertune/layers/b.py": "\n" * 300}
    assert broken_in(tmp_path, files) == {"layertune.layers.a": "a file has at most 300 lines"}


def test_the_figure_of_the_house_shows_the_imports() -> None:
    """An arrow for each import that no chain of other arrows stands for; the file is what the script draws."""
    house = runpy.run_path(str(ROOT / "docs" / "house.py"))
    rooms: dict[str, set[str]] = {name: set() for name in house["BOXES"]}
    for importer, modules in read_source(*PACKAGES).imports.items():
        rooms[box_of(importer)] |= {box_of(module) for module in modules}
    graph = {room: frozenset(others) - {room} for room, others in rooms.items()}
    arrows = {
        (room, other)
        for room, others in graph.items()
        for other in others
        if not any(other in reachable(between, graph) for between in others - {other})
    }
    assert arrows == set(house["ARROWS"]), "draw the rooms in docs/house.py as they are"
    assert house["FILE"].read_text(encoding="utf-8") == house["draw"](), "run python docs/house.py"


def box_of(module: str) -> str:
    package, _, rest = module.partition(".")
    if package != "layertune":
        return "studies" if package == "layertune_studies" else "plug-ins"
    room = rest.partition(".")[0]
    return "ground" if room in {"errors", "files", "restoring", "old_paths"} else room or "layertune"


def test_floors_and_circles_of_a_small_graph() -> None:
    graph = {"a": frozenset("bc"), "b": frozenset("c"), "c": frozenset(), "d": frozenset("a")}
    assert floors(graph) == {"c": 1, "b": 2, "a": 3, "d": 4}
    assert circles(graph) == []
    assert circles({**graph, "c": frozenset("a")}) == [["a", "b", "c"]]


@pytest.mark.slow
def test_the_core_imports_and_gives_all_its_names_without_any_host() -> None:
    command = [sys.executable, "-c", WITHOUT_HOSTS, json.dumps(sorted(HOSTS))]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout) == {"tried": [], "loaded": [], "names": len(layertune.__all__)}


@pytest.mark.parametrize("name", layertune.__all__)
def test_every_public_name_says_what_it_is(name: str) -> None:
    value = getattr(layertune, name)
    # A type alias cannot hold a docstring. The string below it says what it is, as the reference shows it.
    documentation = string_below(name) if typing.get_origin(value) else inspect.getdoc(value)
    assert documentation
    # A dataclass without a docstring gets its signature as one.
    assert not documentation.startswith(f"{name}(")
    assert documentation.splitlines()[0].endswith((".", "?", ":")), "the first line is a sentence"


def string_below(name: str) -> str:
    """The string that follows the assignment of a name in the core, as ``docs/api.md`` shows it."""
    for file in (ROOT / "src/layertune").rglob("*.py"):
        body = ast.parse(file.read_text()).body
        for statement, below in itertools.pairwise(body):
            match statement, below:
                case ast.Assign(targets=[ast.Name(id=found)]), ast.Expr(value=ast.Constant(value=str(text))):
                    if found == name:
                        return inspect.cleandoc(text)
    return ""


def test_public_names_are_named_once() -> None:
    """Their order is ruff's, which has names in capitals first."""
    assert sorted(layertune.__all__) == sorted(set(layertune.__all__))
