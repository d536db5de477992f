"""Pairs by order and shape: what is sure, and what is left in doubt."""

from collections.abc import Sequence
from itertools import pairwise

import pytest

from layertune.weights.order import pair_by_order
from layertune.weights.structure import same_modules

Shapes = dict[str, tuple[int, ...]]


def chain(names: Sequence[str], widths: Sequence[int]) -> Shapes:
    """Linear layers of these names, one behind the other."""
    return {f"{name}.weight": (b, a) for name, (a, b) in zip(names, pairwise(widths), strict=True)}


def transformer(order: Sequence[str], depth: int, *, names: str = "blocks", width: int = 8) -> Shapes:
    """Blocks that list their parts in this order."""
    parts: dict[str, Shapes] = {
        "norm1": {"weight": (width,), "bias": (width,)},
        "attn": {"qkv.weight": (3 * width, width), "proj.weight": (width, width)},
        "norm2": {"weight": (width,), "bias": (width,)},
        "mlp": {"fc1.weight": (4 * width, width), "fc2.weight": (width, 4 * width)},
    }
    shapes: Shapes = {f"{names}_stem.weight": (width, 3, 2, 2)}
    for block in range(depth):
        for part in order:
            shapes |= {f"{names}.{block}.{part}.{rest}": shape for rest, shape in parts[part].items()}
    return {**shapes, f"{names}_norm.weight": (width,), f"{names}_norm.bias": (width,), f"{names}_head.weight": (5, 8)}


TIMM, OLD_MONAI = ("norm1", "attn", "norm2", "mlp"), ("mlp", "norm1", "attn", "norm2")


def test_the_same_order_pairs_every_block_with_its_own() -> None:
    ours, theirs = transformer(TIMM, 4), transformer(TIMM, 4, names="layers")
    found = pair_by_order(ours, theirs)
    assert len(found.pairs) == len(ours)
    assert all(own.replace("blocks", "layers") == file for own, file in found.pairs.items())


def test_another_order_within_blocks_is_in_doubt_and_never_off_by_one_block() -> None:
    found = pair_by_order(transformer(TIMM, 4), transformer(OLD_MONAI, 4, names="layers"))
    assert not found.pairs
    assert found.doubtful


@pytest.mark.parametrize(("own", "file"), [(4, 8), (8, 4), (4, 5)])
def test_another_number_of_equal_blocks_is_in_doubt(own: int, file: int) -> None:
    """The stem says that the first blocks belong together, the norm at the end that the last ones do."""
    found = pair_by_order(transformer(TIMM, own), transformer(TIMM, file, names="layers"))
    assert not found.pairs
    assert found.doubtful


def test_a_crossing_of_modules_is_found() -> None:
    shapes = dict.fromkeys(("a.1.w", "a.2.w", "b.1.w", "b.2.w", "c.1.w", "c.2.w"), (2, 2))
    names = list(shapes)
    assert same_modules(names, names, shapes, shapes)
    assert not same_modules(names[:4], names[1:5], shapes, shapes), "half a module is off"


def test_a_first_layer_for_other_channels_and_a_last_one_for_other_classes_are_neighbors() -> None:
    ours = chain("abcdef", [1, 4, 8, 16, 32, 16, 2])
    theirs = chain(["c1", "c2", "c3", "c4", "c5", "fc"], [3, 4, 8, 16, 32, 16, 10])
    found = pair_by_order(ours, theirs)
    assert found.pairs == {f"{own}.weight": f"c{number}.weight" for number, own in enumerate("bcde", start=2)}
    assert found.neighbors == {"a.weight": "c1.weight", "f.weight": "fc.weight"}


def test_a_network_without_the_end_of_the_files_keeps_its_first_layers() -> None:
    ours = chain(["conv_stem", "a", "b", "c"], [3, 4, 8, 16, 32])
    theirs = chain(["s", "d.0", "d.1", "d.2", "conv_head", "fc"], [3, 4, 8, 16, 32, 64, 10])
    assert list(pair_by_order(ours, theirs).pairs) == list(ours)
    decoder = {f"decoder.{name}": shape for name, shape in chain("xyz", [32, 16, 8, 2]).items()}
    inside = {f"encoder.model.{name}": shape for name, shape in ours.items()} | decoder
    assert list(pair_by_order(inside, theirs).pairs) == [f"encoder.model.{name}" for name in ours]


def test_equal_layers_are_paired_if_both_sides_have_as_many_of_them() -> None:
    ours = chain(["h.0", "h.1", "h.2", "h.3", "out"], [1, 1, 1, 1, 1, 2])
    theirs = chain(["l1", "l2", "l3", "l4", "fc"], [1, 1, 1, 1, 1, 7])
    assert pair_by_order(ours, theirs).pairs == {f"h.{n}.weight": f"l{n + 1}.weight" for n in range(4)}
    assert pair_by_order(ours, chain(["l1", "l2", "l3", "l4", "l5", "fc"], [1] * 6 + [7])).doubtful


def test_two_copies_in_the_file_are_named() -> None:
    one = chain("abc", [1, 2, 4, 8])
    two = {f"{copy}.net.{name}": shape for copy in ("student", "teacher") for name, shape in one.items()}
    found = pair_by_order(chain("xyz", [1, 2, 4, 8]), two)
    assert not found.pairs
    assert found.copies == ("student.net", "teacher.net")


def test_layers_without_a_common_run_are_not_paired() -> None:
    found = pair_by_order(chain("abc", [1, 2, 3, 4]), chain("xyz", [5, 6, 7, 8]))
    assert not found.pairs
    assert not found.doubtful
    assert not pair_by_order({}, {}).pairs


def test_running_statistics_follow_their_norms() -> None:
    conv: Shapes = {"a.weight": (4, 1, 3), "b.weight": (8, 4, 3)}
    ours = conv | {"n.weight": (8,), "n.bias": (8,), "n.running_mean": (8,), "n.num_batches_tracked": ()}
    theirs = {f"x_{name}": shape for name, shape in ours.items() if "num_batches" not in name}
    pairs = pair_by_order(ours, theirs).pairs
    assert pairs["n.running_mean"] == "x_n.running_mean"
    assert "n.num_batches_tracked" not in pairs


def test_a_run_does_not_end_with_one_of_two_equal_layers() -> None:
    """The file lacks the first or the second of two equal layers; nothing says which."""
    ours = chain(["s", "a", "b.0", "b.1", "h"], [3, 4, 8, 8, 8, 2])
    theirs = chain(["t", "u", "v.1", "k"], [3, 4, 8, 8, 5])
    assert pair_by_order(ours, theirs).pairs == {"s.weight": "t.weight", "a.weight": "u.weight"}
