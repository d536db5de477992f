"""MetaLR against autograd, finite differences and the slow reference; what it must leave alone; what it refuses."""

import copy
import itertools
import math
import warnings

import pytest
import timm.optim
import torch
from torch import Tensor, nn

from layertune import MetaLR, OptimizerError, map_layers, meta_pass, param_groups
from reference import ReferenceMetaLR

OPTIMIZERS = {
    "sgd": (torch.optim.SGD, "sgd", {}),
    "nesterov": (torch.optim.SGD, "sgd", {"momentum": 0.9, "nesterov": True, "weight_decay": 1e-2}),
    "adam": (torch.optim.Adam, "adam", {"weight_decay": 1e-2}),
    "adamw": (torch.optim.AdamW, "adamw", {"weight_decay": 5e-2}),
    "lion": (timm.optim.Lion, "lion", {"weight_decay": 1e-2}),
}
HYPER_LR = {"additive": 1e-5, "proportional": 5e-2, "cosine": 5e-2, "joint": 5e-2}


def network() -> nn.Module:
    torch.manual_seed(0)
    parts = [nn.Conv2d(1, 3, 3), nn.Tanh(), nn.Conv2d(3, 4, 3), nn.Tanh(), nn.Flatten(), nn.Linear(64, 2)]
    return nn.Sequential(*parts).double()


def batches(count: int, seed: int = 1) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    options = {"generator": generator, "dtype": torch.float64}
    return [(torch.randn(5, 1, 8, 8, **options), torch.randn(5, 2, **options)) for _ in range(count)]


def attach(net: nn.Module, optimizer: str, lr: float = 1e-2, head_lr: float | None = None, **settings):
    layers = map_layers(net, torch.empty(1, 1, 8, 8, dtype=torch.float64))
    kind, _, options = OPTIMIZERS[optimizer]
    groups = param_groups(net, layers, lr=lr, head_lr=head_lr)
    for group in groups:  # the reference decays every parameter alike
        group.pop("weight_decay")
    built = kind(groups, **options)
    return built, MetaLR(built, **settings)


def backward(net: nn.Module, batch: tuple[Tensor, Tensor]) -> None:
    nn.functional.mse_loss(net(batch[0]), batch[1]).backward()


def exact_step(net: nn.Module, optimizer, metalr: MetaLR, train, meta) -> None:
    optimizer.zero_grad()
    backward(net, train)
    optimizer.step()
    optimizer.zero_grad()
    with meta_pass(net):
        backward(net, meta)
    metalr.adapt()


def reference_for(net: nn.Module, metalr: MetaLR, optimizer: str, **settings) -> ReferenceMetaLR:
    names = {id(p): name for name, p in net.named_parameters()}
    layers = {g["layer"]: [names[id(p)] for p in g["params"]] for g in metalr.optimizer.param_groups}
    _, direction, options = OPTIMIZERS[optimizer]
    return ReferenceMetaLR(net, layers, lr=metalr.lrs, direction=direction, **settings, **options)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_h_is_the_derivative_by_autograd_and_by_finite_differences(optimizer: str) -> None:
    eta, train, meta = 1e-6, *batches(2)
    net = network()
    built, metalr = attach(net, optimizer, hyper_lr=eta, rule="additive", max_change=1e6, min_lr=0.0)
    reference = reference_for(net, metalr, optimizer, eta=eta)
    before = metalr.lrs
    start = {name: p.detach().clone() for name, p in net.named_parameters()}
    exact_step(net, built, metalr, train, meta)
    h = {layer: (before[layer] - lr) / eta for layer, lr in metalr.lrs.items()}

    g = reference.gradient(start, train)
    u = {n: reference.direction(start[n], g[n], {}, **reference.options) for n in start}
    reference.step(train, meta)
    for layer, value in h.items():
        assert value == pytest.approx(reference.h[layer].item(), rel=1e-5)
        shift = 1e-6
        losses = []
        for sign in (1, -1):
            alpha = {j: lr + sign * shift * (j == layer) for j, lr in before.items()}
            moved = {n: start[n] - alpha[j] * u[n] for j, names in reference.layers.items() for n in names}
            losses.append(reference.loss(moved, meta).item())
        assert value == pytest.approx((losses[0] - losses[1]) / (2 * shift), rel=1e-5)


@pytest.mark.parametrize(("sign", "factor"), [(1, math.exp(0.6)), (-1, math.exp(-0.6))])
def test_layers_that_agree_move_together_six_times_as_fast_as_one(sign: int, factor: float) -> None:
    layers = [nn.Parameter(torch.zeros(3)), nn.Parameter(torch.zeros(2))]
    optimizer = torch.optim.SGD([{"params": [layer], "lr": 1e-4} for layer in layers])
    metalr = MetaLR(optimizer, hyper_lr=0.1, rule="joint")
    for slope in (1, sign):  # of a linear loss: the meta gradient points as the training gradient does, or against it
        optimizer.zero_grad()
        sum(slope * layer.sum() for layer in layers).backward()
        if metalr.due:
            metalr.adapt()
        else:
            optimizer.step()
    assert list(metalr.lrs.values()) == pytest.approx([1e-4 * factor] * 2, rel=1e-6)


@pytest.mark.parametrize("rule", HYPER_LR)
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_twenty_steps_equal_the_slow_reference(optimizer: str, rule: str) -> None:
    net = network()
    settings = {"rule": rule, "min_lr": 9.9e-3, "max_lr": 1.2e-2, "max_change": 1.05}
    built, metalr = attach(net, optimizer, hyper_lr=HYPER_LR[rule], **settings)
    reference = reference_for(net, metalr, optimizer, eta=HYPER_LR[rule], **settings)
    rates = set()
    for train, meta in zip(batches(20, seed=1), batches(20, seed=2), strict=True):
        exact_step(net, built, metalr, train, meta)
        reference.step(train, meta)
        rates |= set(metalr.lrs.values())
        for layer, lr in metalr.lrs.items():
            assert lr == pytest.approx(reference.alpha[layer].item(), rel=1e-9)
        for name, parameter in net.named_parameters():
            torch.testing.assert_close(parameter.detach(), reference.theta[name], rtol=1e-9, atol=1e-12)
    assert len(rates) > 20, "the rates did not move, so the comparison shows nothing"


def test_streaming_learns_from_the_next_training_gradient() -> None:
    train = batches(6)
    net, twin = network(), network()
    built, metalr = attach(net, "nesterov", hyper_lr=1e-2, rule="proportional", streaming=True)
    other, exact = attach(twin, "nesterov", hyper_lr=1e-2, rule="proportional")
    kept: list[Tensor] = []
    for batch, following in itertools.pairwise(train):
        built.zero_grad()
        backward(net, batch)
        built.step()
        other.zero_grad()
        if exact.steps == 0:
            backward(twin, batch)
        else:  # streaming takes its step with the gradient from before the correction
            for parameter, grad in zip(twin.parameters(), kept, strict=True):
                parameter.grad = grad
        other.step()
        other.zero_grad()
        backward(twin, following)
        kept = [parameter.grad.clone() for parameter in twin.parameters()]
        exact.adapt()
    built.zero_grad()
    backward(net, train[-1])
    built.step()
    assert metalr.lrs == pytest.approx(exact.lrs, rel=1e-12)
    assert len(set(metalr.lrs.values())) == 3


@pytest.mark.parametrize("every", [1, 3])
def test_every_k_learns_at_each_kth_step_only(every: int) -> None:
    net = network()
    built, metalr = attach(net, "sgd", hyper_lr=1e-2, rule="proportional", every=every)
    due = []
    for train, meta in zip(batches(6, seed=1), batches(6, seed=2), strict=True):
        built.zero_grad()
        backward(net, train)
        built.step()
        due.append(metalr.due)
        if metalr.due:
            built.zero_grad()
            backward(net, meta)
            metalr.adapt()
    assert due == [(step % every) == 0 for step in range(1, 7)]
    assert [step for step, _ in metalr.history] == list(range(every, 7, every))


@pytest.mark.parametrize("optimizer", ["nesterov", "adamw", "lion"])
@pytest.mark.parametrize("mode", ["exact", "streaming"])
def test_layers_of_a_single_group_learn_what_their_own_groups_would(optimizer: str, mode: str) -> None:
    settings = {"hyper_lr": 5e-2, "rule": "proportional", "streaming": mode == "streaming"}
    net, twin = network(), network()
    built, grouped = attach(net, optimizer, **settings)
    kind, _, options = OPTIMIZERS[optimizer]
    names = {id(p): name for name, p in net.named_parameters()}
    parameters = dict(twin.named_parameters())
    layers = {g["layer"]: [parameters[names[id(p)]] for p in g["params"]] for g in built.param_groups}
    single = kind([{"params": list(twin.parameters())}, {"params": []}], lr=1e-2, **options)
    cut = MetaLR(single, layers=layers, **settings)
    for step, (train, meta) in enumerate(zip(batches(6, seed=1), batches(6, seed=2), strict=True)):
        if step == 3:  # what was learned is saved with the single group
            single.load_state_dict(copy.deepcopy(single.state_dict()))
        for model, its_optimizer, metalr in ((net, built, grouped), (twin, single, cut)):
            if mode == "exact":
                exact_step(model, its_optimizer, metalr, train, meta)
            else:
                its_optimizer.zero_grad()
                backward(model, train)
                its_optimizer.step()
    assert cut.lrs == pytest.approx(grouped.lrs, rel=1e-9)
    assert len(set(cut.lrs.values())) == 3
    for a, b in zip(net.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)


def test_layers_that_leave_a_parameter_out_are_refused() -> None:
    net = network()
    with pytest.raises(OptimizerError, match="2 of the optimizer's 6 parameters are in none of the 2 given"):
        MetaLR(
            torch.optim.SGD(net.parameters(), lr=1e-2),
            hyper_lr=0.1,
            layers={"a": list(net[0].parameters()), "b": list(net[2].parameters())},
        )


class WithNoise(nn.Module):
    """Running statistics and dropout: what a second pass could disturb."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU())
        self.head = nn.Sequential(nn.Dropout(0.5), nn.Flatten(), nn.Linear(144, 2))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.stem(x))


@pytest.mark.parametrize("rule", ["joint", "free"])
@pytest.mark.parametrize("mode", ["exact", "streaming"])
@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.AdamW])
def test_hyper_lr_zero_is_bit_identical_to_no_metalr(mode: str, kind, rule: str) -> None:
    def run(mode: str | None) -> dict[str, Tensor]:
        torch.manual_seed(3)
        net = WithNoise()
        options = {"momentum": 0.9} if kind is torch.optim.SGD else {}
        optimizer = kind(param_groups(net, map_layers(net, torch.empty(2, 1, 8, 8)), lr=1e-2), **options)
        metalr = None if mode is None else MetaLR(optimizer, hyper_lr=0.0, rule=rule, streaming=mode == "streaming")
        data = torch.utils.data.TensorDataset(torch.randn(24, 1, 8, 8), torch.randn(24, 2))
        for _ in range(3):
            for batch in torch.utils.data.DataLoader(data, batch_size=4, shuffle=True):
                optimizer.zero_grad()
                backward(net, batch)
                optimizer.step()
                if metalr is not None and mode == "exact":
                    optimizer.zero_grad()
                    with meta_pass(net):
                        backward(net, (torch.randn(4, 1, 8, 8), torch.randn(4, 2)))
                    metalr.adapt()
        return {**net.state_dict(), "random state": torch.get_rng_state()}

    plain, with_metalr = run(None), run(mode)
    assert all(torch.equal(plain[name], with_metalr[name]) for name in plain)


@pytest.mark.parametrize("rule", ["joint", "free"])
def test_detach_leaves_nothing_behind(rule: str) -> None:
    net = network()
    layers = map_layers(net, torch.empty(1, 1, 8, 8, dtype=torch.float64))
    optimizer = torch.optim.SGD(param_groups(net, layers, lr=1e-2), momentum=0.9)
    before = {key: copy.copy(value) for key, value in optimizer.__dict__.items() if "hooks" in key}
    keys = [set(group) for group in optimizer.param_groups]
    modules = {name: set(module.__dict__) for name, module in net.named_modules()}
    metalr = MetaLR(optimizer, hyper_lr=1e-3, rule=rule, streaming=True)
    for batch in batches(3):
        optimizer.zero_grad()
        backward(net, batch)
        optimizer.step()
    optimizer.state_dict()
    metalr.detach()
    assert [set(group) for group in optimizer.param_groups] == keys
    assert [group["lr"] for group in optimizer.param_groups] == [1e-2] * 3
    assert {key: value for key, value in optimizer.__dict__.items() if "hooks" in key} == before
    assert {name: set(module.__dict__) for name, module in net.named_modules()} == modules
    assert not any(set(state) - {"momentum_buffer"} for state in optimizer.state.values())


@pytest.mark.parametrize("rule", ["proportional", "free"])
def test_a_step_that_raises_leaves_the_schedules_rates(rule: str) -> None:
    class Interrupted(torch.optim.SGD):
        fails = False

        def step(self, closure=None):
            if self.fails:
                raise KeyboardInterrupt
            super().step(closure)

    net = network()
    layers = map_layers(net, torch.empty(1, 1, 8, 8, dtype=torch.float64))
    optimizer = Interrupted(param_groups(net, layers, lr=1e-2))
    metalr = MetaLR(optimizer, hyper_lr=1e-2, rule=rule)
    exact_step(net, optimizer, metalr, *batches(2))
    learned = metalr.lrs
    backward(net, batches(1)[0])
    optimizer.fails = True
    with pytest.raises(KeyboardInterrupt):
        optimizer.step()
    assert metalr.lrs == learned
    assert [group["lr"] for group in optimizer.state_dict()["param_groups"]] == [1e-2] * 3
    optimizer.fails = False
    optimizer.step()
    assert metalr.steps == 2
    assert [group["lr"] for group in optimizer.param_groups] == [1e-2] * 3
    metalr.detach()
    assert [group["lr"] for group in optimizer.param_groups] == [1e-2] * 3


def state_of(net: nn.Module, metalr: MetaLR) -> dict:
    parameters = {name: p.detach().clone() for name, p in net.named_parameters()}
    return {"parameters": parameters, "lrs": metalr.lrs, "steps": metalr.steps}


def assert_same(a: dict, b: dict) -> None:
    assert a["lrs"] == b["lrs"]
    assert a["steps"] == b["steps"]
    assert all(torch.equal(a["parameters"][name], b["parameters"][name]) for name in a["parameters"])


@pytest.mark.parametrize("rule", ["joint", "free"])
def test_adapt_before_any_step_is_an_error_and_changes_nothing(rule: str) -> None:
    net = network()
    _, metalr = attach(net, "sgd", hyper_lr=1e-2, rule=rule)
    backward(net, batches(1)[0])
    before = state_of(net, metalr)
    with pytest.raises(OptimizerError, match=r"optimizer\.step\(\) first"):
        metalr.adapt()
    assert_same(state_of(net, metalr), before)


@pytest.mark.parametrize("rule", ["joint", "free"])
def test_a_missing_meta_gradient_is_an_error_and_changes_nothing(rule: str) -> None:
    net = network()
    built, metalr = attach(net, "sgd", hyper_lr=1e-2, rule=rule)
    backward(net, batches(1)[0])
    built.step()
    built.zero_grad()
    before = state_of(net, metalr)
    with pytest.raises(OptimizerError, match="no meta gradient"):
        metalr.adapt()
    assert_same(state_of(net, metalr), before)
    assert metalr.due


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("rule", [*HYPER_LR, "free"])
def test_a_meta_gradient_that_is_not_finite_teaches_nothing_and_warns_once(rule: str, value: float) -> None:
    net = network()
    built, metalr = attach(net, "sgd", hyper_lr=HYPER_LR.get(rule, 0.05), rule=rule)
    exact_step(net, built, metalr, *batches(2))
    for attempt in range(2):
        built.zero_grad()
        backward(net, batches(1)[0])
        built.step()
        before = state_of(net, metalr)
        for parameter in net.parameters():
            parameter.grad = torch.zeros_like(parameter)
        net[2].weight.grad[0, 0, 0, 0] = value
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            metalr.adapt()
        assert [item.category for item in caught] == [RuntimeWarning] * (attempt == 0)
        assert_same(state_of(net, metalr), before)
    assert metalr.skipped == 2


def test_one_group_is_refused_with_the_way_to_make_groups() -> None:
    with pytest.raises(OptimizerError, match="param_groups"):
        MetaLR(torch.optim.SGD(network().parameters(), lr=1e-2), rule="joint")


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        (torch.optim.ASGD, {}),
        (torch.optim.Rprop, {}),
        (timm.optim.RMSpropTF, {"momentum": 0.9}),
        (timm.optim.MADGRAD, {}),
    ],
)
def test_an_optimizer_that_is_not_linear_in_lr_is_refused_by_name(kind, options) -> None:
    net = network()
    layers = map_layers(net, torch.empty(1, 1, 8, 8, dtype=torch.float64))
    with pytest.raises(OptimizerError, match=kind.__name__):
        MetaLR(kind(param_groups(net, layers, lr=1e-2), **options), hyper_lr=1e-2)


def test_an_unknown_optimizer_is_tried_and_refused_when_not_linear() -> None:
    class SquareRoot(torch.optim.SGD):
        def step(self):
            for group in self.param_groups:
                for parameter in group["params"]:
                    parameter.data.add_(parameter.grad, alpha=-(group["lr"] ** 0.5))

    net = network()
    layers = map_layers(net, torch.empty(1, 1, 8, 8, dtype=torch.float64))
    groups = param_groups(net, layers, lr=1e-2)
    with pytest.raises(OptimizerError, match="SquareRoot"):
        MetaLR(SquareRoot(groups), hyper_lr=1e-2)


def test_flattened_shards_are_refused() -> None:
    net = network()
    net[0].weight._fsdp_flattened = True
    with pytest.raises(OptimizerError, match="fully_shard instead"):
        attach(net, "sgd", hyper_lr=0.1)


def test_the_floor_bounds_learning_and_never_lifts_the_schedule() -> None:
    net = network()
    built, metalr = attach(net, "sgd", hyper_lr=0.5, rule="cosine", min_lr=5e-3, max_change=10.0)
    for group in built.param_groups:
        group["lr"] = 1e-3
    train, _ = batches(2)
    exact_step(net, built, metalr, train, (train[0], train[1] * -5))
    assert all(lr >= 1e-3 * (1 - 1e-12) for lr in metalr.lrs.values())


@pytest.mark.parametrize("second", ["metalr", "replay"])
@pytest.mark.parametrize("first", ["metalr", "replay"])
def test_rates_are_multiplied_by_one_at_a_time(first: str, second: str) -> None:
    net = network()
    built, metalr = attach(net, "sgd", hyper_lr=0.1, rule="proportional")
    exact_step(net, built, metalr, *batches(2))
    profile = metalr.profile()
    metalr.detach()
    put = {"metalr": lambda: MetaLR(built, hyper_lr=0.1), "replay": lambda: profile.replay(built)}
    attached = put[first]()
    with pytest.raises(OptimizerError, match="attached to this optimizer already"):
        put[second]()
    attached.detach()
    put[second]().detach()


@pytest.mark.parametrize("rule", ["cosine", "free"])
def test_a_parameter_without_meta_gradient_counts_as_one_with_a_gradient_of_zero(rule: str) -> None:
    rates = []
    for missing in (True, False):
        net = network()
        built, metalr = attach(net, "sgd", hyper_lr=0.5, rule=rule)
        train, meta = batches(2)
        backward(net, train)
        built.step()
        built.zero_grad()
        backward(net, meta)
        net[2].bias.grad = None if missing else torch.zeros(4, dtype=torch.float64)
        metalr.adapt()
        rates.append(metalr.lrs)
    assert rates[0] == rates[1]


def test_complex_weights_learn_by_their_real_and_imaginary_parts() -> None:
    torch.manual_seed(0)
    weights = [nn.Parameter(torch.randn(3, dtype=torch.complex128)) for _ in range(2)]
    start = [weight.detach().clone() for weight in weights]
    optimizer = torch.optim.SGD([{"params": [weight]} for weight in weights], lr=0.1)
    metalr = MetaLR(optimizer, hyper_lr=1e-6, rule="additive", max_change=1e6, min_lr=0.0)
    (weights[0] * weights[1]).abs().sum().backward()
    u = [weight.grad.clone() for weight in weights]
    optimizer.step()
    optimizer.zero_grad()
    alpha = torch.full((2,), 0.1, dtype=torch.float64, requires_grad=True)
    moved = [theta - alpha[j] * u[j] for j, theta in enumerate(start)]
    (h,) = torch.autograd.grad((moved[0] * moved[1]).abs().pow(2).sum(), alpha)
    (weights[0] * weights[1]).abs().pow(2).sum().backward()
    metalr.adapt()
    assert [(0.1 - lr) / 1e-6 for lr in metalr.lrs.values()] == pytest.approx(h.tolist(), rel=1e-5)


def test_layers_are_given_by_their_parameters() -> None:
    net = network()
    layers = map_layers(net, torch.empty(1, 1, 8, 8, dtype=torch.float64))
    optimizer = torch.optim.SGD(net.parameters(), lr=1e-2)
    with pytest.raises(OptimizerError, match="parameters_of"):
        MetaLR(optimizer, hyper_lr=0.1, layers=layers)
    held = layers.parameters_of(net)
    with pytest.raises(OptimizerError, match=r"\['0'\] are in a later layer"):
        MetaLR(optimizer, hyper_lr=0.1, layers={**held, "all": list(net.parameters())[:1]})
    assert list(MetaLR(optimizer, hyper_lr=0.1, layers=held).lrs) == ["0", "2", "5"]


def test_a_layer_that_joins_in_the_middle_keeps_the_others_histories() -> None:
    net = network()
    held = map_layers(net, torch.empty(1, 1, 8, 8, dtype=torch.float64)).parameters_of(net)
    optimizer = torch.optim.SGD([*held["0"], *held["5"]], lr=1e-2)
    metalr = MetaLR(optimizer, hyper_lr=0.1, rule="proportional", layers=held)
    exact_step(net, optimizer, metalr, *batches(2))
    before = metalr.history[0][1]
    optimizer.add_param_group({"params": held["2"]})
    assert metalr.history[0][1] == {"0": before["0"], "2": 0.0, "5": before["5"]}
    optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    assert metalr.history[0][1] == {"0": before["0"], "2": 0.0, "5": before["5"]}
