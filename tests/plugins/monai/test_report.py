"""What MONAI users see of learned rates, and the errors for what they can get wrong."""

from pathlib import Path
from typing import Any

import pytest
import torch
from monai.data import DataLoader
from monai.engines import SupervisedTrainer
from monai.handlers import MLFlowHandler, StatsHandler, TensorBoardStatsHandler
from monai.networks.nets import UNet
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.nn.parallel import DistributedDataParallel
from torch.optim import SGD

import layertune.hosts.plugin
import layertune_monai
from layertune import BiDirectional, LastLayer, LayertuneError, MissingPackageError, PolicyError, map_layers
from layertune.policies.by_name import METHODS, scheme
from layertune_monai import LayerFreezeHandler, MetaLRHandler, param_groups
from monai_runs import LAYERS, LEARN, META, SIZE, batches, items, network, sgd, train


def test_the_rates_are_metrics_of_the_engine_and_reach_its_log(monkeypatch: pytest.MonkeyPatch) -> None:
    net = network()
    optimizer = sgd(net)
    handler = MetaLRHandler(optimizer, META, **LEARN)
    log, logged = StatsHandler(output_transform=lambda output: output["loss"]), []
    monkeypatch.setattr(log.logger, "info", logged.append)
    # The log's turn comes first at the end of an epoch.
    engine = train(net, optimizer, log, handler)
    assert {name: engine.state.metrics[f"lr/{name}"] for name in LAYERS} == handler.lrs
    lines = [line for line in logged if "Metrics" in line]
    assert len(lines) == 2
    assert f"lr/4: {handler.lrs['4']:.4f}" in lines[-1]


# MLflow asks SQLAlchemy for what it has deprecated.
@pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy is deprecated")
def test_the_rates_reach_mlflow(tmp_path: Path) -> None:
    net = network()
    optimizer = sgd(net)
    handler = MetaLRHandler(optimizer, META, **LEARN)
    log = MLFlowHandler(tracking_uri=f"sqlite:///{tmp_path}/runs.db", output_transform=lambda output: output["loss"])
    train(net, optimizer, log, handler)
    (run,) = log.client.search_runs([log.experiment.experiment_id])
    read = log.client.get_metric_history(run.info.run_id, "lr/4")
    assert [point.step for point in read] == [1, 2]
    assert read[-1].value == handler.lrs["4"]


def test_the_rates_reach_tensorboard(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    net = network()
    optimizer = sgd(net)
    handler = MetaLRHandler(optimizer, META, **LEARN)
    board = TensorBoardStatsHandler(log_dir=str(tmp_path), output_transform=lambda output: output["loss"])
    train(net, optimizer, board, handler)
    board.close()
    read = EventAccumulator(str(tmp_path)).Reload()
    values = [event.value for event in read.Scalars("lr/4")]
    assert [event.step for event in read.Scalars("lr/4")] == [1, 2]
    assert values[-1] == pytest.approx(handler.lrs["4"], rel=1e-6)


def test_an_empty_run_writes_no_figure(tmp_path: Path) -> None:
    net = network()
    optimizer = sgd(net)
    handler = MetaLRHandler(optimizer, META, rule="joint", every=100, output_dir=tmp_path)
    train(net, optimizer, handler)
    assert handler.profile is None
    assert not list(tmp_path.iterdir())


class NoNetwork(SupervisedTrainer):
    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        del self.network, self.loss_function


def detached(engine: Any, batch: Any) -> Tensor:
    return cross_entropy(engine.network(batch["image"]), batch["label"]).detach()


def other_optimizer() -> SGD:
    return sgd(network())


OTHER_MAP = map_layers(nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2)), torch.ones(1, 2))


@pytest.mark.parametrize(
    ("of_handler", "of_engine", "message"),
    [
        pytest.param({"hyper_lr": -1.0}, {}, "hyper_lr must be finite and >= 0", id="setting"),
        pytest.param({"meta_loader": []}, {}, "yields no batch in pass 1", id="empty loader"),
        pytest.param({"meta_loader": DataLoader([], batch_size=1)}, {}, "length 0", id="empty data"),
        pytest.param({"meta_loader": None}, {}, "is a list; give a meta_loader", id="no loader to reorder"),
        pytest.param(
            {"meta_loader": [{"image": META[0]["image"]}]},
            {},
            r"which is \{image: Tensor\}, where a training batch is \{image: Tensor, label: Tensor\}",
            id="batch without a label",
        ),
        pytest.param(
            {"meta_loader": [{"label": META[0]["label"]}]}, {}, "give a meta_loader whose batches look alike", id="key"
        ),
        pytest.param({}, {"kind": NoNetwork}, "NoNetwork has no network, loss_function", id="engine"),
        pytest.param({"meta_loss": lambda *_: None}, {}, "gave NoneType", id="no loss"),
        pytest.param({"meta_loss": detached}, {}, "gave a tensor without a gradient", id="detached loss"),
        pytest.param({"optimizer": other_optimizer}, {}, "another optimizer than that of", id="optimizer"),
        pytest.param({"layers": lambda _: OTHER_MAP}, {}, "no network in Sequential has exactly the 4", id="map"),
    ],
)
def test_mistakes_with_the_handler_give_one_clear_error(of_handler, of_engine, message: str) -> None:
    net = network()
    optimizer = sgd(net)
    settings = {"meta_loader": META} | of_handler
    given = settings.pop("optimizer", lambda: optimizer)()
    with pytest.raises(LayertuneError, match=message):
        train(net, optimizer, MetaLRHandler(given, **settings), **of_engine)


@pytest.mark.parametrize("make", [lambda of: MetaLRHandler(of, META), lambda _: LayerFreezeHandler("last")])
def test_a_handler_attached_after_the_run_began_gives_one_clear_error(make: Any) -> None:
    net = network()
    optimizer = sgd(net)
    engine = train(net, optimizer, epochs=1)
    with pytest.raises(LayertuneError, match=r"SupervisedTrainer that has begun \(iteration 4\); attach it before run"):
        make(optimizer).attach(engine)


def test_a_loss_that_fails_on_its_own_keeps_its_error() -> None:
    def failing(*_: Any) -> Tensor:
        raise ZeroDivisionError("mine")

    net = network()
    optimizer = sgd(net)
    with pytest.raises(ZeroDivisionError, match="mine"):
        train(net, optimizer, MetaLRHandler(optimizer, META, meta_loss=failing))


def test_an_old_monai_gives_the_line_that_upgrades_it(monkeypatch) -> None:
    monkeypatch.setattr(layertune.hosts.plugin, "_installed", lambda _: "1.3.0")
    monkeypatch.delitem(vars(layertune_monai), "MetaLRHandler")
    with pytest.raises(MissingPackageError, match=r"pip install --upgrade 'layertune\[monai\]'"):
        _ = layertune_monai.MetaLRHandler


def test_frozen_layers_train_as_a_network_in_which_only_the_others_train() -> None:
    ours, theirs = network(), network()
    one = sgd(ours)
    two = sgd(theirs[6])
    handler = LayerFreezeHandler(LastLayer())
    train(ours, one, handler)
    train(theirs, two)
    torch.testing.assert_close(list(ours.parameters()), list(theirs.parameters()), rtol=0, atol=0)
    assert handler.frozen == ("0.weight", "0.bias", "1.weight", "1.bias", "4.weight", "4.bias")
    handler.undo()
    assert all(parameter.requires_grad for parameter in ours.parameters())


def test_param_groups_freeze_what_they_leave_out() -> None:
    net = network()
    groups = param_groups(net, lr=0.1, input_shape=[2, 1, 8, 8], policy="layer_wise", weight_decay=0.01, head_lr=1.0)
    assert [(group["layer"], group["lr"], group["weight_decay"]) for group in groups] == [
        ("4", 0.1, 0.01),
        ("4", 0.1, 0.0),
        ("6", 1.0, 0.01),
        ("6", 1.0, 0.0),
    ]
    assert [name for name, p in net.named_parameters() if not p.requires_grad] == [
        f"{i}.{p}" for i in (0, 1) for p in ("weight", "bias")
    ]


def test_param_groups_ask_for_what_they_need(tmp_path: Path) -> None:
    net = network()
    with pytest.raises(LayertuneError, match="needs the shape of an input"):
        param_groups(net, lr=0.1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/init", rank=0, world_size=1)
    try:
        wrapped = DistributedDataParallel(net)
        with pytest.raises(LayertuneError, match="freeze before the network is wrapped"):
            param_groups(wrapped, lr=0.1, input_shape=[2, 1, 8, 8], policy="last")
        assert len(param_groups(wrapped, lr=0.1, input_shape=[2, 1, 8, 8])) == 3
    finally:
        torch.distributed.destroy_process_group()


@pytest.mark.parametrize("method", METHODS)
def test_every_method_trains_the_head(method: str) -> None:
    layers = map_layers(network(), torch.zeros(2, 1, 8, 8))
    scales = scheme(method)(layers)
    assert scales[-1] == 1.0
    assert (0.0 in scales) == (method in ("bidirectional", "layer_wise", "last_layer"))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"method": "magic"}, "method is one of metalr, metalr_streaming"),
        ({"method": "last", "m": 1, "n": 2}, "m=1 belongs to the method 'bidirectional'"),
        ({"method": "bidirectional", "m": 1}, "give both or neither"),
        ({"method": "all", "first": 1}, "first=1 belongs to the method 'layer_wise'"),
    ],
)
def test_an_unknown_method_or_another_methods_number_is_refused(settings, message: str) -> None:
    with pytest.raises(PolicyError, match=message):
        scheme(**settings)


def test_a_loader_of_items_gives_meta_batches() -> None:
    net = network()
    optimizer = sgd(net)
    handler = MetaLRHandler(optimizer, **LEARN)
    train(net, optimizer, handler, loader=DataLoader(items(), batch_size=SIZE))
    assert len(set(handler.lrs.values())) == len(LAYERS)
    assert len(batches()) == 4


@pytest.mark.parametrize("by_handler", [False, True])
def test_the_log_says_which_layers_train(caplog: pytest.LogCaptureFixture, by_handler: bool) -> None:
    """MONAI's residual U-Net goes down in its first block, so that block has depth 2 of 4 by levels and is frozen."""
    net = UNet(2, 1, 2, (4, 4, 4), (2, 2), num_res_units=2, norm="batch")
    with caplog.at_level("INFO", logger="layertune_monai"):
        if by_handler:
            handler = LayerFreezeHandler(BiDirectional(2, 3), depth="I2")
            train(net, sgd(net), handler, epochs=1, loss_function=lambda prediction, _: prediction.mean())
        else:
            param_groups(net, lr=0.1, input_shape=[2, 1, 8, 8], policy=BiDirectional(2, 3), depth="I2")
    (line,) = [record.message for record in caplog.records if "Layers with their depths by I2" in record.message]
    tuned, frozen = line.partition("; tuned: ")[2].split("; frozen: ")
    assert tuned == "model.2.0.conv (1), model.2.1.conv.unit0.conv (4)"
    assert frozen.startswith("model.0 (2), model.1.submodule.0 (3), ")


def test_the_norms_alone_train_and_the_log_says_so(caplog: pytest.LogCaptureFixture) -> None:
    net = network()
    with caplog.at_level("INFO", logger="layertune_monai"):
        groups = param_groups(net, lr=0.1, input_shape=[2, 1, 8, 8], policy="norm_only", train_head=True)
    assert {id(p) for group in groups for p in group["params"]} == {id(p) for i in (1, 6) for p in net[i].parameters()}
    assert "18 of 206 parameters train, in 1, 6; the others are frozen" in caplog.text


def test_a_meta_loader_that_is_not_used_gives_a_warning() -> None:
    with pytest.warns(UserWarning, match="meta_loader has no effect with streaming=True"):
        MetaLRHandler(sgd(network()), META, streaming=True)
