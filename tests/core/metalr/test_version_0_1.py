"""States that version 0.1 saved load, and the run goes on as it did there."""

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD

from layertune import MetaLR


def tensor(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


HISTORY = {
    "layers": ["stem", "head"],
    "steps": torch.tensor([1, 2]),
    "values": torch.tensor(
        [
            [[1.14791019032553376, 1.15711194700545095], [0.11479101903255338, 0.11571119470054510]],
            [[1.36354294005005361, 1.36981972269254815], [0.13635429400500537, 0.13698197226925482]],
        ],
        dtype=torch.float64,
    ),
    "stride": 1,
}
SCALES = (1.36354294005005361, 1.36981972269254815)
STEPS = [
    tensor(-0.39740192243776817, -0.03265404353340517),
    tensor(-0.24679083868443163),
    tensor(0.10331981568164350, 0.30457729787792903),
]
STATE = {
    0: {"momentum_buffer": tensor(2.91448043743440977, 0.23947939279570102)},
    1: {"momentum_buffer": tensor(1.80163005829215273)},
    2: {"momentum_buffer": tensor(-0.75425849088050656, -2.22348454203334978)},
}
OPTIONS = {
    "lr": 0.1,
    "momentum": 0.9,
    "dampening": 0,
    "weight_decay": 0,
    "nesterov": False,
    "maximize": False,
    "foreach": None,
    "differentiable": False,
    "fused": None,
    "meta_steps": 3,
}


def state(*, cut: bool) -> dict:
    """What ``optimizer.state_dict()`` gave after three steps of streaming, with the last one still to learn from."""
    if cut:
        step = {"lr": 0.1, "displacement": {number: step.clone() for number, step in enumerate(STEPS)}}
        own = {"meta_scale": tensor(*SCALES), "meta_step": step, "meta_history": HISTORY, "params": [0, 1, 2]}
        return copy.deepcopy({"state": STATE, "param_groups": [OPTIONS | own]})
    first = {
        "layer": "stem",
        "meta_scale": tensor(SCALES[0])[0],
        "meta_step": {"lr": 0.1, "displacement": {0: STEPS[0].clone()}},
        "meta_history": HISTORY,
        "params": [0],
    }
    second = {
        "layer": "head",
        "meta_scale": tensor(SCALES[1])[0],
        "meta_step": {"lr": 0.1, "displacement": {0: STEPS[1].clone(), 1: STEPS[2].clone()}},
        "params": [1, 2],
    }
    return copy.deepcopy({"state": STATE, "param_groups": [OPTIONS | first, OPTIONS | second]})


@pytest.mark.parametrize("first", ["load", "attach"])
@pytest.mark.parametrize("cut", [False, True], ids=["groups", "layers="])
def test_a_run_of_version_0_1_goes_on_as_it_did(cut: bool, first: str) -> None:
    weights = [
        nn.Parameter(tensor(-0.3501199396219719, -0.39789136041222983)),
        nn.Parameter(tensor(0.4065737730225347)),
        nn.Parameter(tensor(0.9027714477657511, 0.7715964046585102)),
    ]
    groups = [{"params": weights[:1], "layer": "stem"}, {"params": weights[1:], "layer": "head"}]
    layers = {"stem": weights[:1], "head": weights[1:]} if cut else None
    optimizer = SGD(weights if cut else groups, lr=0.1, momentum=0.9)
    if first == "load":
        optimizer.load_state_dict(state(cut=cut))
    metalr = MetaLR(optimizer, rule="proportional", hyper_lr=0.1, streaming=True, layers=layers)
    if first == "attach":
        optimizer.load_state_dict(state(cut=cut))
    assert metalr.steps == 3
    assert metalr.due
    for step in range(3, 6):
        for number, weight in enumerate(weights):
            slope = torch.cos(torch.arange(weight.numel(), dtype=torch.float64) + number + 0.3 * step)
            weight.grad = slope + 0.5 * weight.detach()
        optimizer.step()
    ended = [
        tensor(-1.5190559838181352, 0.058703772577271475),
        tensor(0.06476818890468754),
        tensor(1.4857869148793494, 1.5557309664346888),
    ]
    torch.testing.assert_close([weight.detach() for weight in weights], ended, rtol=1e-12, atol=1e-14)
    assert metalr.lrs == pytest.approx({"stem": 0.14366719499744232, "head": 0.1257296858653338}, rel=1e-12)
    assert [step for step, _ in metalr.history] == [1, 2, 3, 4, 5]
    rates = [rate for _, row in metalr.history for rate in row.values()]
    expected = [0.11479101903255338, 0.1157111947005451, 0.13635429400500537, 0.13698197226925482]
    expected += [0.15239496754100226, 0.14974834150929492, 0.15270204591330588, 0.1434377588764718]
    assert rates == pytest.approx([*expected, 0.14366719499744232, 0.12572968586533378], rel=1e-12)
