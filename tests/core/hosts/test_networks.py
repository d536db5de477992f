"""Networks by name are asked of plug-ins, found by real entry points in a temporary folder."""

import importlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from layertune.errors import MissingPackageError, ModelError
from layertune.hosts.networks import named_network
from layertune.hosts.plugin import lazy_names

Offer = Callable[[str, str], None]

PLUGIN = """
from layertune.hosts.plugin import Plugin, import_host
PLUGIN = Plugin(name="Host", distribution={distribution!r}, lowest="1", module="torch", extra="host", provider="more")
"""
NETWORKS = (
    PLUGIN
    + """
import torch
from layertune.hosts.networks import NamedNetwork, construct, empty_input

def names():
    import_host(PLUGIN)
    return ["TinyNetwork"]

def build(name, *, shape, arguments):
    import_host(PLUGIN)
    if name != "TinyNetwork":
        return None
    network = construct(torch.nn.Linear, name, dict(in_features=3, out_features=1) | dict(arguments))
    return NamedNetwork(network, empty_input(name, shape or (2, 3)), arguments)
"""
)
USABLE, MISSING = NETWORKS.format(distribution="torch"), NETWORKS.format(distribution="package-that-nobody-has")


@pytest.fixture
def offer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Offer]:
    """Install a module of networks under a name, as pip would."""
    monkeypatch.syspath_prepend(tmp_path)
    written: list[str] = []

    def install(name: str, source: str) -> None:
        info = tmp_path / f"{name}-1.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1\n")
        (info / "entry_points.txt").write_text(f"[layertune.networks]\n{name} = {name}_networks\n")
        (tmp_path / f"{name}_networks.py").write_text(source)
        written.append(f"{name}_networks")
        importlib.invalidate_caches()

    yield install
    for module in written:
        sys.modules.pop(module, None)


def test_a_network_of_an_installed_plug_in_is_made(offer: Offer) -> None:
    offer("another_host", USABLE)
    made = named_network("TinyNetwork")
    assert isinstance(made.network, torch.nn.Linear)
    assert made.example.shape == (2, 3)
    assert named_network("TinyNetwork", shape=(5, 3), arguments={"bias": False}).example.shape == (5, 3)


def test_a_constructor_that_refuses_its_arguments_is_one_clear_error(offer: Offer) -> None:
    offer("another_host", USABLE)
    with pytest.raises(ModelError, match=r"TinyNetwork cannot be made .*'depth': 3.* give or change them with --arg"):
        named_network("TinyNetwork", arguments={"depth": 3})


def test_an_unknown_name_is_answered_with_all_hosts_and_the_nearest_name(offer: Offer) -> None:
    offer("another_host", USABLE)
    with pytest.raises(ModelError, match=r"no network 'TinyNetwrok' in Host or MONAI or timm; the nearest: TinyNetwo"):
        named_network("TinyNetwrok")


def test_a_missing_host_hides_no_network_of_the_others(offer: Offer) -> None:
    offer("a_missing_host", MISSING)
    offer("another_host", USABLE)
    assert isinstance(named_network("TinyNetwork").network, torch.nn.Linear)
    with pytest.raises(ModelError, match=r"\(Host is not usable here: pip install 'more\[host\]'\)"):
        named_network("TinyNetwrok")


def test_a_plug_in_that_cannot_be_loaded_is_left_out_with_a_warning(offer: Offer) -> None:
    offer("a_broken_host", "raise OSError('no licence')")
    offer("another_host", USABLE)
    with pytest.warns(UserWarning, match="the networks of a_broken_host are left out: .*OSError: no licence"):
        assert isinstance(named_network("TinyNetwork").network, torch.nn.Linear)


def test_without_any_entry_point_the_answer_is_to_install_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("layertune.hosts.networks.NETWORKS", "a.group.that.nobody.has")
    with pytest.raises(MissingPackageError, match="install layertune again"):
        named_network("resnet18")


def test_a_lazy_name_is_found_once_and_its_module_is_imported_when_it_is_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "lazy_package"
    package.mkdir()
    source = """
from layertune.hosts.plugin import lazy_names
log = []
__getattr__ = lazy_names(__name__, PLUGIN, {"name": "lazy_package.name"}.get, before="lazy_package.before")
"""
    (package / "__init__.py").write_text(PLUGIN.format(distribution="torch") + source)
    (package / "before.py").write_text("import lazy_package\nlazy_package.log.append('before')\n")
    (package / "name.py").write_text("import lazy_package\nlazy_package.log.append('name')\nname = 3\n")
    monkeypatch.syspath_prepend(tmp_path)
    lazy = importlib.import_module("lazy_package")
    assert lazy.log == []
    # The module `lazy_package.name` does not take the place of the name that is spelled alike.
    assert (lazy.name, lazy.name) == (3, 3)
    assert lazy.log == ["before", "name"]
    with pytest.raises(AttributeError, match="module 'lazy_package' has no attribute 'nothing'"):
        _ = lazy.nothing
    for module in ("lazy_package", "lazy_package.before", "lazy_package.name"):
        sys.modules.pop(module, None)


def test_lazy_names_of_a_missing_host_are_answered_with_the_line_that_installs_it() -> None:
    namespace: dict[str, object] = {}
    exec(PLUGIN.format(distribution="package-that-nobody-has"), namespace)  # the text above, which is this test's own
    get_name = lazy_names(__name__, namespace["PLUGIN"], {"name": "math"}.get)
    with pytest.raises(MissingPackageError, match=r"pip install 'more\[host\]'"):
        get_name("name")
