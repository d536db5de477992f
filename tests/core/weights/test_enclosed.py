"""Pairs inside modules that both sides call the same."""

from layertune.weights.enclosed import pair_enclosed

Shapes = dict[str, tuple[int, ...]]


def blocks(parts: dict[str, tuple[int, ...]], depth: int = 3) -> Shapes:
    return {f"blocks.{block}.{name}": shape for block in range(depth) for name, shape in parts.items()}


NORM1, NORM2 = {"norm1.weight": (8,)}, {"norm2.weight": (8,)}


def test_no_block_takes_the_tensors_of_another_one_whatever_their_order() -> None:
    own = blocks({**NORM1, **NORM2, "mlp.fc1.weight": (16, 8), "mlp.fc2.weight": (8, 16)})
    file = blocks({"mlp.linear1.weight": (16, 8), "mlp.linear2.weight": (8, 16), **NORM1, **NORM2})
    pairs, ambiguous = pair_enclosed(own, file)
    assert not ambiguous
    assert pairs == {
        f"blocks.{block}.mlp.fc{n}.weight": f"blocks.{block}.mlp.linear{n}.weight" for block in range(3) for n in (1, 2)
    }


def test_what_stands_elsewhere_in_the_module_is_ambiguous_and_named() -> None:
    own = blocks({**NORM1, "proj.weight": (8, 8), **NORM2}, 1)
    file = blocks({"out.weight": (8, 8), **NORM1, **NORM2}, 1)
    assert pair_enclosed(own, file) == ({}, {"blocks.0.proj.weight": ["blocks.0.out.weight"]})


def test_a_shape_that_is_there_twice_is_ambiguous() -> None:
    own = blocks({**NORM1, "a.weight": (8, 8), **NORM2}, 1)
    file = blocks({**NORM1, "x.weight": (8, 8), **NORM2, "y.weight": (8, 8)}, 1)
    pairs, ambiguous = pair_enclosed(own, file)
    assert not pairs
    assert ambiguous == {"blocks.0.a.weight": ["blocks.0.x.weight", "blocks.0.y.weight"]}


def test_words_that_say_nothing_of_the_order_are_ambiguous() -> None:
    own = {**NORM1, "query.weight": (8, 8), "key.weight": (8, 8), **NORM2}
    file = {**NORM1, "k.weight": (8, 8), "q.weight": (8, 8), **NORM2}
    pairs, ambiguous = pair_enclosed(own, file)
    assert not pairs
    assert set(ambiguous) == {"query.weight", "key.weight"}


def test_numbers_say_the_order_and_statistics_follow() -> None:
    norm = {"weight": (8,), "running_mean": (8,)}
    own = {**NORM1, **{f"bn{n}.{name}": shape for n in (1, 2) for name, shape in norm.items()}, **NORM2}
    file = {**NORM1, **{f"_b{n}.{name}": shape for n in (0, 1) for name, shape in norm.items()}, **NORM2}
    pairs, _ = pair_enclosed(own, file)
    assert pairs["bn2.running_mean"] == "_b1.running_mean"
    assert len(pairs) == 4
