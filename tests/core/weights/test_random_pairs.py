"""Random networks under random names: whatever is paired, a hand mapping pairs the same way."""

import random
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor, nn

from layertune import WeightsError, load_weights

PAIRS = 300
WIDTHS = (2, 3, 4)
WORDS = ("conv", "norm", "proj", "layer", "block", "stage", "unit", "fc", "mlp", "attn")


def block(draw: random.Random, width: int) -> list[tuple[str, nn.Module]]:
    """Some layers that keep the width, several of which look alike."""
    kinds = {
        "conv": lambda: nn.Conv1d(width, width, 3),
        "norm": lambda: nn.BatchNorm1d(width),
        "fc": lambda: nn.Linear(width, width),
        "wide": lambda: nn.Linear(width, 2 * width),
    }
    return [
        (f"{kind}{index}", kinds[kind]()) for index, kind in enumerate(draw.choices(list(kinds), k=draw.randint(1, 4)))
    ]


def layers(draw: random.Random) -> list[tuple[str, nn.Module]]:
    """A stem, stages of blocks, and a head, each with its path."""
    width, found = draw.choice(WIDTHS), [("stem", nn.Conv1d(draw.choice((1, 3)), draw.choice(WIDTHS), 5))]
    for stage in range(draw.randint(1, 3)):
        plan = draw.getrandbits(32)
        for number in range(draw.randint(1, 3)):
            found += [(f"stage{stage}.{number}.{name}", module) for name, module in block(random.Random(plan), width)]
        width = draw.choice(WIDTHS)
    return [*found, ("head", nn.Linear(width, 7))]


def network(parts: Sequence[tuple[str, nn.Module]]) -> nn.Module:
    """Modules at these paths, in this order."""
    root = nn.Module()
    for path, module in parts:
        *parents, last = path.split(".")
        parent = root
        for word in parents:
            if not hasattr(parent, word):
                parent.add_module(word, nn.Module())
            parent = getattr(parent, word)
        parent.add_module(last, module)
    return root


def changed(draw: random.Random, parts: list[tuple[str, nn.Module]]) -> list[tuple[str, nn.Module, str]]:
    """New path, module and old path: renamed, with other orders within blocks, or without some layers."""
    words: dict[str, str] = {}
    kept = [part for part in parts if draw.random() > draw.choice((0.0, 0.0, 0.1))] or parts
    if draw.random() < 0.3:
        # Another order of the parts of every block, as another library may list them.
        blocks: dict[str, list[tuple[str, nn.Module]]] = {}
        for path, module in kept:
            blocks.setdefault(path.rpartition(".")[0] or path, []).append((path, module))
        turn = draw.randint(1, 3)
        kept = [part for group in blocks.values() for part in group[turn % len(group) :] + group[: turn % len(group)]]
    rename = draw.random() < 0.7
    deeper = draw.choice(("", "", "encoder.", "module.net."))

    def new(word: str) -> str:
        if word.isdecimal() or not rename:
            return word
        kind = word.rstrip("0123456789")
        words.setdefault(kind, f"{draw.choice(WORDS)}_{len(words)}_")
        return words[kind] + word.removeprefix(kind)

    return [(deeper + ".".join(map(new, path.split("."))), module, path) for path, module in kept]


def fresh(module: nn.Module) -> nn.Module:
    """A module of the same shapes with other values."""
    with torch.no_grad():
        for tensor in module.state_dict().values():
            if tensor.is_floating_point():
                tensor.uniform_(0.1, 1)
    return module


@pytest.mark.slow
def test_no_tensor_is_ever_loaded_into_another_place() -> None:
    loaded_whole = refused = 0
    for seed in range(PAIRS):
        draw = random.Random(seed)
        plan = draw.getrandbits(32)
        target = network([(path, fresh(module)) for path, module in layers(random.Random(plan))])
        parts = changed(draw, [(path, fresh(module)) for path, module in layers(random.Random(plan))])
        source = network([(path, module) for path, module, _ in parts])
        # By hand: the network's name of each tensor of the file.
        mapping = {f"{new}.{name}": f"{old}.{name}" for new, module, old in parts for name in module.state_dict()}
        weights: dict[str, Tensor] = source.state_dict()
        before = {name: tensor.clone() for name, tensor in target.state_dict().items()}
        try:
            loaded = load_weights(target, weights)
        except WeightsError:
            refused += 1
            assert all(torch.equal(tensor, before[name]) for name, tensor in target.state_dict().items()), seed
            continue
        wrong = {own: file for own, file in loaded.matched.items() if mapping[file] != own}
        assert not wrong, (seed, wrong)
        for own, file in loaded.matched.items():
            assert torch.equal(target.state_dict()[own], weights[file]), (seed, own)
        assert all(torch.equal(target.state_dict()[name], before[name]) for name in loaded.missing), seed
        loaded_whole += len(loaded.matched) == len(mapping)
    assert loaded_whole > PAIRS / 4, "the test is about weights that do belong together"
    assert refused < 2 * PAIRS / 3
