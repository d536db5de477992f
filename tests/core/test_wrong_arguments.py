"""Arguments of another type, or in another order, are answered with what to pass."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from layertune import (
    AutoLR,
    LastLayer,
    LayertuneError,
    LRProfile,
    MetaLR,
    freeze,
    load_weights,
    map_layers,
    param_groups,
    trace,
)

NET = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 2))
MAP = map_layers(NET, torch.empty(2, 4))
PROFILE = LRProfile(("0",), (1,), (1,), [[1.0]], [[1.0]])
NETWORK_FIRST = "expected a network, a torch.nn.Module, not a .*; the network comes first"
OPTIMIZER = "expected a torch.optim.Optimizer, not a Sequential; build one"


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: load_weights(NET, "net.pt"), r"not the path of a file; read it first: .*read_weights\('net.pt'\)"),
        (lambda: load_weights(NET, Path("net.pt")), r"not the path of a file"),
        (lambda: load_weights(NET, NET), r"not a Sequential; give its state_dict\(\)"),
        (lambda: load_weights(NET, [torch.ones(1)]), "not a list, as read_weights returns them"),
        (lambda: load_weights(NET.state_dict(), NET), "takes the network first"),
        (lambda: MetaLR(NET), OPTIMIZER),
        (lambda: AutoLR(NET, NET), OPTIMIZER),
        (lambda: PROFILE.replay(NET), OPTIMIZER),
        (lambda: param_groups(MAP, NET, lr=0.1), NETWORK_FIRST),
        (lambda: param_groups(NET, torch.empty(2, 4), lr=0.1), "expected the layers of Sequential, a LayerMap, not"),
        (lambda: freeze(MAP, NET, LastLayer()), NETWORK_FIRST),
        (lambda: map_layers(torch.empty(2, 4), NET), NETWORK_FIRST),
        (lambda: trace(torch.empty(2, 4), NET), NETWORK_FIRST),
    ],
)
def test_wrong_arguments_are_answered_with_what_to_pass(call: Callable[[], Any], message: str) -> None:
    with pytest.raises(LayertuneError, match=message):
        call()


def test_pythons_own_error_names_a_misspelt_setting() -> None:
    optimizer = torch.optim.SGD(param_groups(NET, MAP, lr=0.1))
    with pytest.raises(TypeError, match=r"MetaLR.*'hyperlr'"):
        MetaLR(optimizer, hyperlr=0.1)  # type: ignore[call-arg]
