"""The figures, by what is drawn: boxes, lines, axes, colours and texts, not pixels."""

import importlib
import io
import itertools
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace

import matplotlib as mpl
import numpy as np
import pytest
import torch
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch
from matplotlib.text import Text

from layertune import Layer, LayerMap, LRProfile, ProfileError, map_layers
from layertune.plots.network import HEIGHT, ROW, WIDTH, chain_layout, plot_network, u_layout
from layertune.plots.rates import plot_lrs_over_depth, plot_lrs_over_time
from layertune.plots.style import short_names


def a_map(roles: Sequence[tuple[str, int | None]], names: Sequence[str] | None = None) -> LayerMap:
    names = names or [f"net.layer{index}" for index in range(1, len(roles) + 1)]
    rows = zip(names, roles, strict=True)
    layers = [Layer(name, (f"{name}.weight",), depth, *where) for depth, (name, where) in enumerate(rows, 1)]
    return LayerMap(tuple(layers), "I1", "block")


U = a_map(
    [
        ("encoder", 0), ("encoder", 0), ("encoder", 1), ("encoder", 2), ("bottleneck", 2),
        ("decoder", 1), ("decoder", 0), ("decoder", 0), ("decoder", 0), ("head", 0),
    ]
)  # fmt: skip
CHAIN = a_map([*(("encoder", level) for level in range(9)), ("head", 9)])


def a_profile(layers: int = 4, records: int = 8, *, depths: list[int] | None = None) -> LRProfile:
    generator = np.random.default_rng(0)
    lrs = (10.0 ** generator.uniform(-4, -1, (records, layers))).tolist()
    names = [f"net.layer{index}" for index in range(1, layers + 1)]
    steps = [10 * index for index in range(1, records + 1)]
    return LRProfile(names, depths or list(range(1, layers + 1)), steps, lrs, lrs)


def rising(layers: LayerMap) -> dict[str, float]:
    return {layer.name: 1e-4 * 2.0**layer.depth for layer in layers}


def boxes(ax: Axes) -> dict[str, FancyBboxPatch]:
    return {str(patch.get_gid()): patch for patch in ax.patches if isinstance(patch, FancyBboxPatch)}


def arrows(ax: Axes) -> list[FancyArrowPatch]:
    return [patch for patch in ax.patches if isinstance(patch, FancyArrowPatch)]


def drawn(ax: Axes) -> Axes:
    """Warnings of the layout and of missing glyphs come when a figure is drawn."""
    FigureCanvasAgg(ax.figure).draw()
    return ax


@pytest.mark.slow
def test_figures_need_no_pyplot_and_switch_no_backend() -> None:
    program = (
        "import sys, matplotlib; before = dict(matplotlib.rcParams)\n"
        "from layertune import LRProfile\n"
        "from layertune.plots.rates import plot_lrs_over_depth\n"
        "ax = plot_lrs_over_depth(LRProfile(['a', 'b'], [1, 2], [1], [[1, 1]], [[1, 2]]))\n"
        "ax.figure.savefig(sys.stdout.buffer)\n"
        "assert 'matplotlib.pyplot' not in sys.modules\n"
        "assert dict(matplotlib.rcParams) == before"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode()
    assert done.stdout.startswith(b"\x89PNG")


# Rates over depth


def test_over_depth_shows_the_converged_rates_by_depth_on_a_log_axis() -> None:
    profile = a_profile(4, depths=[1, 3, 2, 4])
    ax = drawn(plot_lrs_over_depth(profile))
    (line,) = ax.lines
    rates = profile.converged()
    assert ax.get_yscale() == "log"
    assert [label.get_text() for label in ax.get_xticklabels()] == ["layer1", "layer3", "layer2", "layer4"]
    assert list(line.get_xdata()) == [1, 2, 3, 4]
    assert list(line.get_ydata()) == [rates[f"net.layer{index}"] for index in (1, 3, 2, 4)]
    assert ax.get_legend() is None


def test_over_depth_tells_several_profiles_apart_by_colour_and_marker() -> None:
    named = {f"task {index}": a_profile() for index in range(4)}
    ax = drawn(plot_lrs_over_depth(named))
    assert [text.get_text() for text in ax.get_legend().get_texts()] == list(named)
    assert len({line.get_color() for line in ax.lines}) == len({line.get_marker() for line in ax.lines}) == 4


def test_over_depth_leaves_a_gap_for_a_rate_of_zero() -> None:
    ax = plot_lrs_over_depth(LRProfile(["a", "b", "c"], [1, 2, 3], [1], [[1, 0, 1]], [[0.1, 0, 0.2]]))
    assert np.isnan(ax.lines[0].get_ydata()).tolist() == [False, True, False]


def test_over_depth_names_all_of_few_layers_and_some_of_many() -> None:
    few, many = (drawn(plot_lrs_over_depth(a_profile(number))) for number in (24, 60))
    assert [label.get_text() for label in few.get_xticklabels()] == [f"layer{number}" for number in range(1, 25)]
    assert few.get_xlabel() == "layer of net, shallow to deep"
    assert [label.get_text() for label in many.get_xticklabels()] == [f"layer{number}" for number in range(1, 61, 3)]
    assert many.get_xlabel() == "layer of net, shallow to deep, one in 3 named"


@pytest.mark.parametrize("rates", [[0.01, 0.01], [0.01, 0.01001], [0.01, 0.0103], [0.011, 0.017], [1e-4, 1.0]])
def test_ticks_of_rates_are_true_and_tell_rates_apart(rates: list[float]) -> None:
    ax = drawn(plot_lrs_over_depth(LRProfile(["a", "b"], [1, 2], [1], [[1, 1]], [rates])))
    low, high = ax.get_ylim()
    shown = [
        (tick.get_loc(), tick.label1.get_text()) for tick in ax.yaxis.get_major_ticks() if low <= tick.get_loc() <= high
    ]
    values = [float(text.strip("$").replace(r"\times10^{", "e").replace("10^{", "1e").rstrip("}")) for _, text in shown]
    assert values == pytest.approx([place for place, _ in shown], rel=1e-6)
    assert len({text for _, text in shown}) == len(shown) >= 2


def test_one_step_has_an_axis_of_whole_steps() -> None:
    ax = drawn(plot_lrs_over_time(LRProfile(["a", "b"], [1, 2], [7], [[1, 1]], [[0.1, 0.2]])))
    assert [label.get_text() for label in ax.get_xticklabels()] == ["6", "7", "8"]


def test_over_depth_draws_on_given_axes() -> None:
    ax = Figure().add_subplot()
    assert plot_lrs_over_depth(a_profile(), ax=ax) is ax


@pytest.mark.parametrize(
    ("profiles", "fault"),
    [
        ({}, "no profile"),
        ({"a": a_profile(3), "b": a_profile(4)}, "do not share an axis"),
        ({"a": a_profile(4), "b": a_profile(4, depths=[1, 2, 2, 3])}, "do not share an axis"),
        (LRProfile(["a"], [1], [], [], []), "has no records"),
        (LRProfile(["a"], [1], [1], [[0]], [[0]]), "^no layer has a rate above 0"),
        ({"mine": LRProfile(["a"], [1], [1], [[0]], [[0]])}, "^no layer of profile 'mine' has a rate above 0"),
    ],
)
def test_over_depth_refuses_what_it_cannot_show(profiles: LRProfile | dict[str, LRProfile], fault: str) -> None:
    with pytest.raises(ProfileError, match=fault):
        plot_lrs_over_depth(profiles)


# Rates over time


def test_over_time_draws_one_line_a_layer_and_names_them() -> None:
    profile = a_profile(12)
    ax = drawn(plot_lrs_over_time(profile))
    assert ax.get_yscale() == "log"
    for column, line in enumerate(ax.lines):
        assert tuple(line.get_xdata()) == profile.steps
        assert list(line.get_ydata()) == [row[column] for row in profile.lrs]
    assert [text.get_text() for text in ax.get_legend().get_texts()] == short_names(profile.layers)
    assert ax.figure.axes == [ax]


def test_over_time_has_a_colour_bar_for_many_layers() -> None:
    ax = drawn(plot_lrs_over_time(a_profile(30)))
    assert ax.get_legend() is None
    assert [axes.get_ylabel() for axes in ax.figure.axes if axes is not ax] == ["depth"]
    assert len(ax.lines) == 30


def lightness(color: object) -> float:
    return float(np.dot(to_rgba(color)[:3], [0.2126, 0.7152, 0.0722]))


def test_over_time_lines_get_lighter_with_depth_and_never_fade() -> None:
    found = [lightness(line.get_color()) for line in plot_lrs_over_time(a_profile(20)).lines]
    assert found == sorted(found)
    assert len(set(found)) == 20
    assert max(found) < 0.75


def test_over_time_gives_layers_of_one_depth_one_colour() -> None:
    colors = [line.get_color() for line in plot_lrs_over_time(a_profile(4, depths=[1, 2, 1, 3])).lines]
    assert colors[0] == colors[1]  # sorted by depth
    assert len(set(colors)) == 3


def test_over_time_shows_a_single_record() -> None:
    assert {line.get_marker() for line in drawn(plot_lrs_over_time(a_profile(4, records=1))).lines} == {"o"}


@pytest.mark.parametrize("lrs", [[], [[0.0, 0.0]]])
def test_over_time_refuses_what_it_cannot_show(lrs: list[list[float]]) -> None:
    with pytest.raises(ProfileError, match="no rate above 0"):
        plot_lrs_over_time(LRProfile(["a", "b"], [1, 2], list(range(1, len(lrs) + 1)), lrs, lrs))


# The network


@pytest.mark.parametrize("layers", [U, CHAIN], ids=["U", "chain"])
def test_each_layer_is_one_box_with_its_depth_and_name(layers: LayerMap) -> None:
    ax = drawn(plot_network(layers, rising(layers)))
    assert set(boxes(ax)) == {layer.name for layer in layers}
    texts = [text.get_text() for text in ax.texts]
    for layer in layers:
        assert str(layer.depth) in texts
        assert layer.name.removeprefix("net.") in texts


@pytest.mark.parametrize("layers", [U, CHAIN], ids=["U", "chain"])
def test_a_higher_rate_is_a_lighter_box(layers: LayerMap) -> None:
    names = np.random.default_rng(0).permutation([layer.name for layer in layers]).tolist()
    rates = dict(zip(names, rising(layers).values(), strict=True))
    found = boxes(plot_network(layers, rates))
    by_rate = [lightness(found[name].get_facecolor()) for name in sorted(rates, key=lambda name: rates[name])]
    assert by_rate == sorted(by_rate)
    assert len(set(by_rate)) == len(layers)


def test_colours_go_by_the_logarithm_of_the_rate() -> None:
    layers = a_map([("encoder", 0), ("encoder", 1), ("head", 2)])
    ax = plot_network(layers, {"net.layer1": 1e-5, "net.layer2": 1e-3, "net.layer3": 1e-1})
    assert boxes(ax)["net.layer2"].get_facecolor() == pytest.approx(mpl.colormaps["viridis"](0.5))
    (bar,) = [axes for axes in ax.figure.axes if axes is not ax]
    assert bar.get_xscale() == "log"
    assert bar.get_xlim() == pytest.approx((1e-5, 1e-1))
    assert bar.get_xlabel() == "learned learning rate"


def test_the_u_goes_down_on_the_left_and_up_on_the_right() -> None:
    layout = u_layout(U)
    centre = {layer.depth: layout.centres[layer.name] for layer in U}
    left, right = centre[1][0], centre[10][0]
    assert {centre[depth][0] for depth in (1, 2, 3, 4)} == {left}
    assert {centre[depth][0] for depth in (6, 7, 8, 9, 10)} == {right}
    assert left < centre[5][0] < right
    heights = [centre[depth][1] for depth in range(1, 11)]
    assert heights[:5] == sorted(heights[:5], reverse=True)
    assert heights[4:] == sorted(heights[4:])


def with_feeds(layers: LayerMap, feeds: dict[int, tuple[int, ...]]) -> LayerMap:
    """Layers that read others, by depth."""
    fed = [replace(layer, feeds=tuple(layers[n - 1].name for n in feeds.get(layer.depth, ()))) for layer in layers]
    return replace(layers, layers=tuple(fed))


def test_skip_connections_join_what_reads_with_what_is_read() -> None:
    # 1 and 2 are summed by a shortcut, so both reach 7: the later of the level is the one that is drawn.
    u = with_feeds(U, {1: (2, 7), 2: (3, 7), 3: (4, 6), 4: (5,), 5: (6,), 6: (7,), 7: (8,), 8: (9,), 9: (10,)})
    layout = u_layout(u)
    centre = {layer.depth: layout.centres[layer.name] for layer in u}
    ends = {(start[1], end[1]) for start, end in layout.skips}
    assert ends == {(centre[2][1], centre[7][1]), (centre[3][1], centre[6][1])}
    assert all(start[1] == end[1] and start[0] < end[0] for start, end in layout.skips)
    assert len(arrows(plot_network(u, rising(u)))) == 3  # and the way itself


def test_skip_connections_of_a_strided_u_climb_a_level() -> None:
    u = with_feeds(U, {2: (3, 10), 3: (4, 7)})
    centre = {layer.depth: u_layout(u).centres[layer.name] for layer in u}
    assert {(start[1], end[1]) for start, end in u_layout(u).skips} == {
        (centre[2][1], centre[10][1]),
        (centre[3][1], centre[7][1]),
    }


@pytest.mark.parametrize("size", [1, 3, 4, 18, 19, 60])
def test_a_chain_reads_like_a_text(size: int) -> None:
    layers = a_map([*(("encoder", None),) * (size - 1), ("head", None)])
    centres = list(chain_layout(layers).centres.values())
    assert centres == sorted(centres, key=lambda point: (-point[1], point[0]))
    assert len({x for x, _ in centres}) <= (3 if size <= 18 else 6)


def test_a_u_without_levels_is_drawn_as_a_chain() -> None:
    layers = a_map([("encoder", None), ("bottleneck", None), ("decoder", None), ("head", None)])
    assert len(arrows(drawn(plot_network(layers, rising(layers))))) == 1


@pytest.mark.parametrize("layout", [u_layout(U), chain_layout(U), chain_layout(CHAIN)])
def test_boxes_do_not_touch(layout) -> None:
    points = list(layout.centres.values())
    for index, (x, y) in enumerate(points):
        for other_x, other_y in points[index + 1 :]:
            assert abs(x - other_x) > WIDTH or abs(y - other_y) > HEIGHT
    assert ROW > HEIGHT


def test_a_profile_gives_its_converged_rates() -> None:
    profile = a_profile(len(U))
    by_profile, by_values = boxes(plot_network(U, profile)), boxes(plot_network(U, profile.converged()))
    assert {n: b.get_facecolor() for n, b in by_profile.items()} == {n: b.get_facecolor() for n, b in by_values.items()}


def test_a_profile_of_another_host_fits_behind_its_prefix() -> None:
    values = {f"model.{layer.name}": rate for layer, rate in zip(U, rising(U).values(), strict=True)}
    assert {n: b.get_facecolor() for n, b in boxes(plot_network(U, values)).items()} == {
        n: b.get_facecolor() for n, b in boxes(plot_network(U, rising(U))).items()
    }


def test_layers_without_a_rate_are_drawn_as_not_trained() -> None:
    values = rising(U)
    del values["net.layer1"]
    values["net.layer2"] = 0.0
    ax = drawn(plot_network(U, values))
    grey = {name for name, box in boxes(ax).items() if len(set(box.get_facecolor()[:3])) == 1}
    assert grey == {"net.layer1", "net.layer2"}
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["not trained"]
    assert plot_network(U, rising(U)).get_legend() is None


def test_equal_rates_share_a_colour() -> None:
    ax = drawn(plot_network(U, dict.fromkeys(rising(U), 1e-3)))
    assert len({box.get_facecolor() for box in boxes(ax).values()}) == 1


@pytest.mark.parametrize(
    ("values", "fault"),
    [
        ({"net.other": 1.0}, "another network"),
        ({"net.layer1": -1.0}, "at least 0"),
        ({"net.layer1": float("nan")}, "finite"),
        ({"net.layer1": 0.0}, "no layer has a rate above 0"),
        ({}, "no layer has a rate above 0"),
    ],
)
def test_wrong_values_are_refused(values: dict[str, float], fault: str) -> None:
    with pytest.raises(ProfileError, match=fault):
        plot_network(U, values)


def test_the_network_can_stand_beside_another_with_a_smaller_font() -> None:
    left, right = Figure(figsize=(7, 2.5), layout="constrained").subplots(1, 2)
    assert plot_network(U, rising(U), ax=left, label="factor") is left
    plot_network(CHAIN, rising(CHAIN), ax=right)
    drawn(left)
    assert left.texts[-1].get_fontsize() < 6.5
    assert "factor" in [axes.get_ylabel() for axes in left.figure.axes]


def overlaps(texts: Sequence[Text]) -> list[tuple[str, str]]:
    extents = [(text.get_text(), text.get_window_extent()) for text in texts]
    pairs = itertools.combinations(extents, 2)
    return [(one, other) for (one, extent), (other, other_extent) in pairs if extent.overlaps(other_extent)]


def real_networks() -> list[str]:
    return ["basic_unet", "swin_unetr", "plain_conv_unet", "resnet18", "vit_tiny"]


def real_map(name: str) -> LayerMap:
    if name in ("basic_unet", "swin_unetr"):
        nets = importlib.import_module("monai.networks.nets")
        volume = torch.empty(1, 1, 64, 64, 64)
        return map_layers(nets.BasicUNet(3, 1, 2) if name == "basic_unet" else nets.SwinUNETR(1, 2), volume)
    if name == "plain_conv_unet":
        unet = importlib.import_module("dynamic_network_architectures.architectures.unet")
        nn = torch.nn
        net = unet.PlainConvUNet(1, 6, [4] * 6, nn.Conv3d, 3, [1, *[2] * 5], 2, 2, 2, norm_op=nn.InstanceNorm3d)
        return map_layers(net, torch.empty(1, 1, 64, 64, 64), granularity="module")
    timm = importlib.import_module("timm")
    model = timm.create_model({"resnet18": "resnet18", "vit_tiny": "vit_tiny_patch16_224"}[name])
    return map_layers(model, torch.empty(1, 3, 224, 224))


@pytest.mark.slow
@pytest.mark.parametrize("name", real_networks())
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_real_networks_are_drawn_whole_and_legible(name: str) -> None:
    layers = real_map(name)
    ax = drawn(plot_network(layers, rising(layers)))
    assert overlaps(ax.texts) == []
    frames = [box.get_window_extent() for box in boxes(ax).values()]
    assert len(frames) == len(layers)
    for text in ax.texts:
        extent = text.get_window_extent()
        for frame in [ax.figure.bbox, *(frame for frame in frames if frame.overlaps(extent))]:
            sticks_out = not frame.x0 <= extent.x0 < extent.x1 <= frame.x1
            assert not sticks_out, f"{text.get_text()} sticks out"
        assert ax.figure.bbox.y0 <= extent.y0 < extent.y1 <= ax.figure.bbox.y1
    assert {text.get_fontsize() for text in ax.texts} == {6.5}


@pytest.mark.parametrize("kind", ["pdf", "svg"])
def test_figures_are_written_as_vectors(kind: str) -> None:
    for ax in (plot_network(U, rising(U)), plot_lrs_over_time(a_profile(20)), plot_lrs_over_depth(a_profile())):
        file = io.BytesIO()
        ax.figure.savefig(file, format=kind)
        assert file.tell() > 1000


# Short names


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["conv1", "layer1.0", "layer1.1", "fc"], ["conv1", "layer1.0", "layer1.1", "fc"]),
        (["conv_0", "down_1.convs", "final_conv"], ["conv_0", "down_1", "final_conv"]),
        (["model.0", "model.1.submodule.0", "model.1.submodule.1"], ["0", "1.submodule.0", "1.submodule.1"]),
        (["encoder.stages.0.0.convs", "decoder.stages.0.convs"], ["encoder", "decoder"]),
        (["net"], ["net"]),
        (["a.b", "a.b.c"], ["b", "b.c"]),
        (
            ["swinViT.layers1.0.blocks.0", "swinViT.layers1.0.blocks.1", "out"],
            ["s.lay1.0.blo.0", "s.lay1.0.blo.1", "out"],
        ),
        (["averyveryverylongword", "b"], ["ave", "b"]),
        ([".".join("12345678901234"), ".".join("12345678901235")], ["4", "5"]),
    ],
)
def test_short_names(names: list[str], expected: list[str]) -> None:
    assert short_names(names) == expected


def test_short_names_keep_their_end_as_a_last_resort() -> None:
    names = ["1.2.3.4.5.6.7.8.9", "1.2.3.4.5.6.7.8.8", "0"]
    assert short_names(names, width=6) == ["…7.8.9", "…7.8.8", "0"]
