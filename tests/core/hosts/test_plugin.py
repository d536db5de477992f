"""Plug-ins are found by real entry points, and hosts by real metadata, both written into a temporary folder."""

import importlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from layertune.errors import LayertuneError, MissingPackageError
from layertune.hosts.plugin import Plugin, PluginStatus, import_host, plugins

Install = Callable[..., None]


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Install]:
    """Puts a distribution with its modules and entry points onto the path, as pip would."""
    monkeypatch.syspath_prepend(tmp_path)
    written: list[str] = []

    def write(name: str, version: str, entry_points: str = "", **modules: str) -> None:
        info = tmp_path / f"{name.replace('-', '_')}-{version}.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        (info / "entry_points.txt").write_text(f"[layertune.plugins]\n{entry_points}\n")
        for module, source in modules.items():
            (tmp_path / f"{module}.py").write_text(source)
            written.append(module)
        importlib.invalidate_caches()

    yield write
    for module in written:
        sys.modules.pop(module, None)


def a_plugin(**changes: str) -> Plugin:
    values = {"name": "Host", "distribution": "a-host", "lowest": "1.10", "module": "a_host", "extra": "host"}
    return Plugin(**(values | changes))


def plugin_source(plugin: Plugin) -> str:
    return f"from layertune.hosts.plugin import Plugin\nPLUGIN = {plugin!r}\n"


def row(name: str) -> PluginStatus:
    (found,) = [status for status in plugins() if status.name == name]
    return found


def test_a_host_in_a_version_that_works_is_usable_and_imports(install: Install) -> None:
    install("a-host", "1.10", a_host="VALUE = 3")
    install("a-plugin", "1", "host = a_plugin:PLUGIN", a_plugin=plugin_source(a_plugin()))
    assert row("Host") == PluginStatus(name="Host", plugin=a_plugin(), installed="1.10", reason=None)
    assert row("Host").usable
    assert import_host(a_plugin()).VALUE == 3


def test_listing_imports_no_host(install: Install) -> None:
    install("a-host", "1.10", a_host="raise RuntimeError('imported')")
    install("a-plugin", "1", "host = a_plugin:PLUGIN", a_plugin=plugin_source(a_plugin()))
    assert row("Host").usable
    with pytest.raises(RuntimeError, match="imported"):
        import_host(a_plugin())


def test_a_missing_host_is_answered_with_the_line_that_installs_it(install: Install) -> None:
    install("a-plugin", "1", "host = a_plugin:PLUGIN", a_plugin=plugin_source(a_plugin()))
    expected = "Host needs a-host>=1.10, which is not installed: pip install 'layertune[host]'"
    status = row("Host")
    assert (status.installed, status.usable, status.reason) == (None, False, expected)
    with pytest.raises(MissingPackageError) as caught:
        import_host(a_plugin())
    assert str(caught.value) == expected
    assert caught.value.name == "a_host"


def test_a_host_that_is_too_old_is_answered_with_both_versions(install: Install) -> None:
    # As strings, "1.9" would come after "1.10".
    install("a-host", "1.9", a_host="")
    install("a-plugin", "1", "host = a_plugin:PLUGIN", a_plugin=plugin_source(a_plugin()))
    expected = "Host needs a-host>=1.10, and 1.9 is installed: pip install --upgrade 'layertune[host]'"
    status = row("Host")
    assert (status.installed, status.usable, status.reason) == ("1.9", False, expected)
    with pytest.raises(MissingPackageError) as caught:
        import_host(a_plugin())
    assert str(caught.value) == expected


def test_the_install_line_names_the_distribution_that_has_the_extra() -> None:
    assert a_plugin(provider="layertune-more").install_line == "pip install 'layertune-more[host]'"


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        pytest.param("raise OSError('no licence')", "OSError: no licence", id="fails on import"),
        pytest.param("import package_that_nobody_has", "ModuleNotFoundError", id="import missing"),
        pytest.param("OTHER = 1", "AttributeError", id="object missing"),
        pytest.param("PLUGIN = 'text'", "should name a layertune.Plugin, and names 'text'", id="not a Plugin"),
        pytest.param(
            "from layertune.hosts.plugin import Plugin\n"
            "PLUGIN = Plugin(name='', distribution='', lowest='new', module='', extra='')",
            "InvalidVersion",
            id="no version",
        ),
    ],
)
def test_a_broken_plugin_is_a_row_and_the_others_stay(install: Install, source: str, reason: str) -> None:
    install("a-host", "2", a_host="")
    install("a-plugin", "1", "host = a_plugin:PLUGIN", a_plugin=plugin_source(a_plugin()))
    install("bad-plugin", "1", "bad = bad_plugin:PLUGIN", bad_plugin=source)
    status = row("bad")
    assert (status.plugin, status.installed, status.usable) == (None, None, False)
    assert reason in status.reason
    assert "bad_plugin:PLUGIN" in status.reason
    assert row("Host").usable


def test_a_submodule_of_the_host_can_be_asked_for() -> None:
    torch_host = a_plugin(distribution="torch", lowest="2.6", module="torch")
    assert import_host(torch_host, "nn.functional").__name__ == "torch.nn.functional"


def test_a_missing_host_is_one_of_our_errors_and_an_import_error() -> None:
    with pytest.raises(LayertuneError) as caught:
        import_host(a_plugin(distribution="package-that-nobody-has"))
    assert isinstance(caught.value, ImportError)


def test_a_lowest_version_that_is_none_is_refused_at_once() -> None:
    with pytest.raises(ValueError, match="newest"):
        a_plugin(lowest="newest")
