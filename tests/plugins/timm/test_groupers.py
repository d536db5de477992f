"""The groupers agree with timm: its scales, schedulers, exclusions and variants of models."""

import pytest
import timm
import torch
from timm.models import group_parameters
from timm.optim import create_optimizer, create_optimizer_v2, param_groups_layer_decay
from timm.scheduler import CosineLRScheduler, StepLRScheduler
from timm.utils import ModelEmaV3, NativeScaler
from torch import nn

import layertune_timm
from layertune import GammaPenalty, LayertuneError, MetaLR, ModelError, PolicyError, norm_only

MODELS = {
    "resnet18": (10, 6),
    "resnet50": (18, 6),
    "densenet121": (60, 6),
    "efficientnet_b0": (18, 9),
    "vit_tiny_patch16_224": (14, 14),
    "convnext_tiny": (20, 6),
    "swin_tiny_patch4_window7_224": (14, 6),
}


def grouped(groups: list[dict], key: str) -> dict[int, object]:
    return {id(parameter): group.get(key) for group in groups for parameter in group["params"]}


@pytest.mark.parametrize("name", MODELS)
def test_layers_are_timms_own(name: str) -> None:
    with torch.device("meta"):
        model = timm.create_model(name)
    layers = layertune_timm.map_layers(model), layertune_timm.map_layers(model, coarse=True)
    assert tuple(len(of) for of in layers) == MODELS[name]
    assert set(layers[0].head.parameters) >= {n for n, _ in model.named_parameters() if n.startswith("head.fc")}


@pytest.mark.parametrize("name", MODELS)
def test_layer_decay_has_timms_own_scales_and_exclusions(name: str) -> None:
    with torch.device("meta"):
        model = timm.create_model(name)
    exempt = model.no_weight_decay() if hasattr(model, "no_weight_decay") else ()
    theirs = param_groups_layer_decay(model, weight_decay=0.05, no_weight_decay_list=exempt, layer_decay=0.75)
    optimizer = create_optimizer_v2(
        model, "adamw", lr=1e-3, weight_decay=0.05, param_group_fn=layertune_timm.layer_decay(0.75)
    )
    ours = optimizer.param_groups
    assert grouped(ours, "lr_scale") == grouped(theirs, "lr_scale")
    assert grouped(ours, "weight_decay") == grouped(theirs, "weight_decay")


def test_layer_decay_with_fallback_is_timms_own() -> None:
    with torch.device("meta"):
        model = timm.create_model("vit_tiny_patch16_224")
    patterns = ["*.attn.*", "cls_token"]
    theirs = param_groups_layer_decay(model, layer_decay=0.75, fallback_list=patterns)
    ours = layertune_timm.layer_decay(0.75, fallback=patterns)(model)
    assert grouped(ours, "use_fallback") == grouped(theirs, "use_fallback")


def test_a_fallback_may_be_a_single_pattern() -> None:
    with torch.device("meta"):
        model = timm.create_model("vit_tiny_patch16_224")
    alone, listed = (layertune_timm.all_layers(fallback=fallback)(model) for fallback in ("*.attn.*", ["*.attn.*"]))
    assert grouped(alone, "use_fallback") == grouped(listed, "use_fallback")
    assert None in grouped(alone, "use_fallback").values()


@pytest.mark.parametrize("coarse", [False, True])
def test_inverse_size_goes_by_the_numbers_of_weights_that_timm_groups(coarse: bool) -> None:
    model = timm.create_model("resnet18", num_classes=2)
    members = group_parameters(model, model.group_matcher(coarse=coarse)).values()
    sizes = [sum(model.get_parameter(name).numel() for name in names) for names in members]
    expected = sorted((min(sizes) / size) ** 0.5 for size in sizes)
    groups = layertune_timm.inverse_size(0.5, coarse=coarse)(model)
    by_layer = {group["layer"]: group["lr_scale"] for group in groups}
    assert sorted(by_layer.values()) == pytest.approx(expected)


def test_a_learned_factor_keeps_the_rates_of_inverse_size_under_timms_scheduler() -> None:
    model = timm.create_model("resnet18", num_classes=2, in_chans=1)
    scales = {group["layer"]: group["lr_scale"] for group in layertune_timm.inverse_size()(model)}
    optimizer = create_optimizer_v2(model, "sgd", lr=1.0, param_group_fn=layertune_timm.inverse_size())
    scheduler = CosineLRScheduler(optimizer, t_initial=4, t_in_epochs=False)
    metalr = MetaLR(optimizer, streaming=True)
    for step in range(1, 4):
        optimizer.zero_grad()
        model(torch.randn(2, 1, 32, 32)).square().sum().backward()
        optimizer.step()
        scheduler.step_update(step)
    largest = max(metalr.lrs.values())
    assert {name: rate / largest for name, rate in metalr.lrs.items()} == pytest.approx(scales)
    assert 0 < largest < 0.1, "learned, and not the rate that was given"


def test_frozen_parameters_do_not_change_the_scales_of_others() -> None:
    model = timm.create_model("resnet18")
    scales = grouped(layertune_timm.layer_decay(0.5)(model), "lr_scale")
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(not name.startswith(("conv1", "layer1", "fc")))
    thawed = grouped(layertune_timm.layer_decay(0.5)(model), "lr_scale")
    assert thawed == {key: scales[key] for key in thawed}
    assert len(thawed) < len(scales)


@pytest.mark.parametrize(
    ("grouper", "depths"),
    [
        (layertune_timm.all_layers(), range(1, 11)),
        (layertune_timm.last_layer(), [10]),
        (layertune_timm.layer_wise(8), [8, 9, 10]),
        (layertune_timm.bidirectional(m=3, n=6), [1, 2, 7, 8, 9, 10]),
    ],
)
def test_static_schemes_train_their_depths_with_the_factorys_rate(grouper, depths) -> None:
    optimizer = create_optimizer_v2(timm.create_model("resnet18"), "sgd", lr=1e-2, param_group_fn=grouper)
    assert sorted({group["depth"] for group in optimizer.param_groups}) == list(depths)
    assert {group["lr"] for group in optimizer.param_groups} == {1e-2}


def small_model() -> nn.Module:
    """A ResNet-18 with an eighth of the channels."""
    torch.manual_seed(0)
    block = timm.models.resnet.BasicBlock
    return timm.models.ResNet(block, (2, 2, 2, 2), num_classes=2, in_chans=1, channels=(8, 16, 32, 64)).double()


def used_rates(model: nn.Module, optimizer: torch.optim.Optimizer) -> list[float]:
    """-d/u of a plain SGD step with gradient 1."""
    before = {id(p): p.detach().clone() for p in model.parameters()}
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    return [(before[id(g["params"][0])] - g["params"][0].detach()).mean().item() for g in optimizer.param_groups]


# For each scheduler: how to make it, and its factor on the rates after the first of two steps.
SCHEDULES = {
    "none": (None, 1.0),
    "torch's steps": (lambda of: torch.optim.lr_scheduler.StepLR(of, step_size=1, gamma=0.5), 0.5),
    "torch's factors": (lambda of: torch.optim.lr_scheduler.LambdaLR(of, lambda step: 0.7**step), 0.7),
    "torch's cosine": (lambda of: torch.optim.lr_scheduler.CosineAnnealingLR(of, T_max=2), 0.5),
    "timm's steps": (lambda of: StepLRScheduler(of, decay_t=1, decay_rate=0.5), 0.5),
    "timm's cosine": (lambda of: CosineLRScheduler(of, t_initial=2), 0.5),
    "timm's warm-up": (lambda of: CosineLRScheduler(of, t_initial=4, warmup_t=2, warmup_lr_init=0.0), None),
}


# Groups with their own rates work with all schedulers, groups with lr_scale with timm's schedulers only.
WITH_OWN_RATES = [pytest.param(name, True, id=f"{name}, lr") for name in SCHEDULES]
WITH_SCALES = [pytest.param(name, False, id=f"{name}, lr_scale") for name in SCHEDULES if name.startswith("timm's")]


@pytest.mark.parametrize(("schedule", "own_rates"), WITH_OWN_RATES + WITH_SCALES)
def test_layer_decay_trains_at_the_intended_rates_under_any_scheduler(schedule: str, own_rates: bool) -> None:
    make, factor = SCHEDULES[schedule]
    model = small_model()
    fn = layertune_timm.layer_decay(0.5, lr=0.1 if own_rates else None)
    optimizer = create_optimizer_v2(model, "momentum", lr=0.1, momentum=0.0, param_group_fn=fn)
    intended = [0.1 * 0.5 ** (10 - group["depth"]) for group in optimizer.param_groups]
    scheduler = make(optimizer) if make else None
    factors = (0.0, 0.5) if factor is None else (1.0, factor)
    assert used_rates(model, optimizer) == pytest.approx([factors[0] * rate for rate in intended])
    if scheduler:
        scheduler.step(*[1] * schedule.startswith("timm's"))
    assert used_rates(model, optimizer) == pytest.approx([factors[1] * rate for rate in intended])


def train_step(model: nn.Module, optimizer: torch.optim.Optimizer, seed: int, scaler=None) -> None:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(4, 1, 32, 32, generator=generator, dtype=torch.float64)
    y = torch.randint(0, 2, (4,), generator=generator)
    optimizer.zero_grad()
    loss = nn.functional.cross_entropy(model(x), y)
    if scaler is None:
        loss.backward()
        optimizer.step()
    else:
        scaler(loss, optimizer, clip_grad=1.0, parameters=model.parameters())


def learning(model: nn.Module) -> tuple[torch.optim.Optimizer, MetaLR]:
    optimizer = create_optimizer_v2(
        model, "sgd", lr=1e-2, weight_decay=1e-4, param_group_fn=layertune_timm.all_layers()
    )
    return optimizer, MetaLR(optimizer, hyper_lr=0.1, rule="proportional", streaming=True)


def test_learned_rates_survive_a_checkpoint(tmp_path) -> None:
    model = small_model()
    optimizer, metalr = learning(model)
    scheduler = CosineLRScheduler(optimizer, t_initial=6, lr_min=1e-5, t_in_epochs=False)
    for step in range(6):
        train_step(model, optimizer, step)
        scheduler.step_update(step + 1)
        if step == 2:
            torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, tmp_path / "last.pth")
    again = small_model()
    resumed, metalr_again = learning(again)
    saved = torch.load(tmp_path / "last.pth", weights_only=True)
    again.load_state_dict(saved["model"])
    resumed.load_state_dict(saved["optimizer"])
    scheduler = CosineLRScheduler(resumed, t_initial=6, lr_min=1e-5, t_in_epochs=False)
    scheduler.step_update(3)
    for step in range(3, 6):
        train_step(again, resumed, step)
        scheduler.step_update(step + 1)
    assert metalr_again.lrs == metalr.lrs
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))
    assert len(set(metalr.lrs.values())) == 10


def test_ema_averages_the_corrected_weights_and_native_scaler_steps_as_a_plain_loop() -> None:
    runs = []
    for scaler in (None, NativeScaler("cpu")):
        model = small_model()
        optimizer, metalr = learning(model)
        ema = ModelEmaV3(model, decay=0.5)
        for step in range(3):
            if scaler is None:
                train_step_clipped(model, optimizer, step)
            else:
                train_step(model, optimizer, step, scaler)
            ema.update(model, step)
        runs.append((metalr.lrs, [p.detach() for p in ema.module.parameters()]))
    assert runs[0][0] == pytest.approx(runs[1][0], rel=1e-9)
    for plain, scaled in zip(runs[0][1], runs[1][1], strict=True):
        torch.testing.assert_close(plain, scaled, rtol=1e-9, atol=1e-12)


def train_step_clipped(model: nn.Module, optimizer: torch.optim.Optimizer, seed: int) -> None:
    def step_after_clipping(loss, optimizer, clip_grad, parameters) -> None:
        loss.backward()
        nn.utils.clip_grad_norm_(list(parameters), clip_grad)
        optimizer.step()

    train_step(model, optimizer, seed, step_after_clipping)


@pytest.mark.parametrize("name", ["resnet18", "vit_tiny_patch16_224"])
def test_feature_extractors_one_channel_stems_and_new_classifiers(name: str) -> None:
    features = timm.create_model(name, features_only=True, in_chans=1)
    layers = layertune_timm.map_layers(features)
    assert sum(len(layer.parameters) for layer in layers) == len(list(features.parameters()))
    changed = timm.create_model(name, in_chans=1, num_classes=3)
    changed.reset_classifier(5)
    groups = layertune_timm.last_layer()(changed)
    assert {id(p) for group in groups for p in group["params"]} == {
        id(p) for p in changed.get_classifier().parameters()
    }


@pytest.mark.parametrize(
    "name", ["vit_tiny_patch16_224", pytest.param("swin_tiny_patch4_window7_224", marks=pytest.mark.slow)]
)
def test_a_feature_extractor_for_images_of_another_size_has_the_same_layers(name: str) -> None:
    with torch.device("meta"):
        usual, small = (timm.create_model(name, features_only=True, img_size=size) for size in (224, 112))
    assert [layer.parameters for layer in layertune_timm.map_layers(small)] == [
        layer.parameters for layer in layertune_timm.map_layers(usual)
    ]


def test_a_feature_extractor_learns_its_rates() -> None:
    model = timm.create_model("resnet18", features_only=True, in_chans=1, out_indices=(1, 2))
    optimizer, _ = learning(model)
    for _ in range(3):
        optimizer.zero_grad()
        sum(level.square().mean() for level in model(torch.randn(2, 1, 64, 64))).backward()
        optimizer.step()
    reached = {group["layer"] for group in optimizer.param_groups if group["params"][0].grad is not None}
    assert len(reached) == 5
    assert all((float(group["meta_scale"]) != 1) == (group["layer"] in reached) for group in optimizer.param_groups)


def test_a_pretrained_one_channel_stem_and_a_new_classifier_are_layers_as_before(tmp_path) -> None:
    options = {"channels": (8, 16, 32, 64)}
    source = timm.create_model("resnet18", **options)
    torch.save(source.state_dict(), tmp_path / "weights.pth")
    model = timm.create_model(
        "resnet18",
        pretrained=True,
        pretrained_cfg_overlay={"file": str(tmp_path / "weights.pth")},
        in_chans=1,
        num_classes=3,
        **options,
    )
    torch.testing.assert_close(model.conv1.weight, source.conv1.weight.sum(1, keepdim=True))
    torch.testing.assert_close(model.layer4[1].conv2.weight, source.layer4[1].conv2.weight)
    layers = layertune_timm.map_layers(model)
    assert layers.head.parameters == ("fc.weight", "fc.bias")
    assert [layer.parameters for layer in layers] == [layer.parameters for layer in layertune_timm.map_layers(source)]


def test_create_optimizer_takes_the_groups() -> None:
    class Arguments:
        opt, lr, weight_decay, momentum = "sgd", 1e-2, 1e-4, 0.9

    optimizer = create_optimizer(Arguments, layertune_timm.last_layer()(timm.create_model("resnet18")))
    assert {(group["layer"], group["lr"]) for group in optimizer.param_groups} == {("fc", 1e-2)}
    assert sorted(group["weight_decay"] for group in optimizer.param_groups) == [0.0, 1e-4]


def test_a_policy_that_does_not_fit_is_one_clear_error() -> None:
    with pytest.raises(PolicyError, match="below d = 10"):
        layertune_timm.bidirectional(m=3, n=10)(timm.create_model("resnet18"))


def test_a_model_without_layers_is_one_clear_error() -> None:
    with pytest.raises(LayertuneError, match="map_layers"):
        layertune_timm.all_layers()(nn.Linear(2, 2))


def names_in(groups: list[dict], model: nn.Module) -> set[str]:
    held = grouped(groups, "layer")
    return {name for name, parameter in model.named_parameters() if id(parameter) in held}


@pytest.mark.parametrize("name", ["resnet18", "vit_tiny_patch16_224"])
def test_norm_only_groups_are_the_norms(name: str) -> None:
    with torch.device("meta"):
        model = timm.create_model(name)
    kinds = (nn.BatchNorm2d, nn.LayerNorm)
    norms = {f"{path}.{own}" for path, m in model.named_modules() if isinstance(m, kinds) for own in ("weight", "bias")}
    head = {"resnet18": "fc"}.get(name, "head")
    assert names_in(layertune_timm.norm_only()(model), model) == norms
    more = names_in(layertune_timm.norm_only(head=True)(model), model)
    assert more - norms == {f"{head}.weight", f"{head}.bias"}
    biases = names_in(layertune_timm.norm_only(biases=True)(model), model)
    assert {name for name in biases - norms if not name.endswith("bias")} == set()
    assert f"{head}.bias" in biases
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_norm_only_trains_the_norms_and_the_penalty_goes_into_the_loss() -> None:
    torch.manual_seed(0)
    block = timm.models.resnet.BasicBlock
    model = timm.models.ResNet(block, (1, 1, 1, 1), num_classes=2, in_chans=1, zero_init_last=False)
    before = {name: value.clone() for name, value in model.named_parameters()}
    optimizer = create_optimizer_v2(model, "sgd", lr=0.1, weight_decay=1e-2, param_group_fn=layertune_timm.norm_only())
    penalty, scaler = GammaPenalty(model, weight=1.0), NativeScaler("cpu")
    with norm_only(model):
        loss = model(torch.randn(4, 1, 32, 32)).square().mean() + penalty()
        scaler(loss, optimizer, clip_grad=1.0, parameters=model.parameters())
    moved = {name for name, value in model.named_parameters() if not torch.equal(value, before[name])}
    assert moved == names_in(optimizer.param_groups, model)


def test_norm_only_refuses_a_model_without_norms() -> None:
    with pytest.raises(ModelError, match="has no normalisation layer"):
        layertune_timm.norm_only()(timm.create_model("vgg11", num_classes=2))
