"""The LinkNet that is written anew computes what deepbet's own network computes."""

import warnings

import pytest
import torch

from layertune import load_weights, map_layers
from layertune.errors import MissingPackageError
from layertune_studies.training.linknet import LinkNet
from layertune_studies.training.network import pretrained_weights
from layertune_studies.training.packaged_weights import packaged_file

NAME = "deepbet-brain"


def require_deepbet() -> None:
    try:
        packaged_file(NAME)
    except MissingPackageError:
        pytest.skip("deepbet is not installed: pip install '.[pretrained]'")


def test_deepbets_network_gives_the_same_output() -> None:
    require_deepbet()
    network = LinkNet()
    assert load_weights(network, pretrained_weights(NAME, None)).summary() == "38 of 38 tensors loaded"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # torch 2.15 deprecates torch.jit
        # TorchScript runs code of its file, so no other file than the installed package's is loaded in this way.
        own = torch.jit.load(str(packaged_file(NAME)), map_location="cpu").eval()
    volume = torch.rand(2, 1, 32, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = own(volume)
        found = network(volume).softmax(1)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert float(expected.std()) > 0.01, "an output that hardly changes would compare nothing"


def test_the_layers_go_down_and_up_again() -> None:
    layers = map_layers(LinkNet(out_channels=3), torch.empty(2, 1, 32, 32, 64))
    assert set(layers.head.parameters) == {"tp_conv2.weight", "tp_conv2.bias"}
    assert layers[0].parameters == ("init.0.weight",)
    assert sum(len(layer.parameters) for layer in layers) == 38
