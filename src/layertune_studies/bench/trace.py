"""The cost of mapping the layers of a network: seconds and memory, each network in an interpreter of its own."""

import importlib
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from layertune.errors import MissingPackageError
from layertune.layers.layer_map import map_layers

__all__ = ["LIMITS", "TRACE_NETWORKS", "bench_trace", "measure_trace"]

LIMITS = {"seconds": 5.0, "extra_mb": 150.0}
"""Upper bounds for every network."""

Build = Callable[[], nn.Module]
T = TypeVar("T")
FEATURES = (32, 64, 128, 256, 320, 320)


def bench_trace(network: str, *, repeats: int = 1) -> dict[str, float]:
    """Map a network in fresh interpreters.

    Args:
        network: A name in ``TRACE_NETWORKS``.
        repeats: Number of interpreters, one after the other.

    Returns:
        The medians of what ``measure_trace`` returns.

    Raises:
        MissingPackageError: The host that has the network is not installed.
        KeyError: The network is unknown.
        subprocess.CalledProcessError: An interpreter ended with an error.

    Example:
        ``layertune bench trace`` runs it for each network and shows the medians beside their bounds.

        >>> "PlainConvUNet3d" in TRACE_NETWORKS
        True
    """
    if network not in TRACE_NETWORKS:
        raise KeyError(network)
    code = f"from layertune_studies.bench.trace import report; report({network!r}, {torch.get_num_threads()})"
    command = [sys.executable, "-W", "ignore", "-c", code]
    results = []
    for _ in range(repeats):
        answer = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout  # noqa: S603 - our own
        results.append(json.loads(answer.splitlines()[-1]))
        if "missing" in results[-1]:
            raise MissingPackageError(results[-1]["missing"])
    return {key: statistics.median(one[key] for one in results) for key in results[0]}


def measure_trace(name: str) -> dict[str, float]:
    """Map one network, once, in this interpreter, in which torch has not traced before.

    With the first fake tensors of a process torch imports its compiler, which takes some seconds and 150 MB. A program
    that imports MONAI or timm has spent them already. So they are measured separately.

    Args:
        name: A name in ``TRACE_NETWORKS``.

    Returns:
        ``seconds`` of ``map_layers``; ``extra_mb``, the peak of the resident memory during it minus the resident memory
        before (imports done and network built), in 10^6 bytes; ``import_seconds`` and ``import_mb`` of what torch
        imports first; ``layers``, the number of layers.

    Raises:
        KeyError: The network is unknown.
    """
    build, shape = TRACE_NETWORKS[name]
    model, example = build(), torch.empty(shape)
    _, import_seconds, import_mb = _costs_of(FakeTensorMode)
    layers, seconds, extra_mb = _costs_of(lambda: map_layers(model, example))
    return {
        "seconds": seconds,
        "extra_mb": extra_mb,
        "import_seconds": import_seconds,
        "import_mb": import_mb,
        "layers": len(layers),
    }


def _costs_of(call: Callable[[], T]) -> tuple[T, float, float]:
    """Return what a call returns, its seconds, and the megabytes by which it raised the peak."""
    before = _restart_peak()
    start = time.perf_counter()
    result = call()
    return result, time.perf_counter() - start, (_peak() - before) / 1e6


def report(name: str, threads: int) -> None:
    """Print a measurement as JSON, or the package that is missing."""
    torch.set_num_threads(threads)
    try:
        answer: dict[str, Any] = measure_trace(name)
    except ModuleNotFoundError as error:
        extra = "nnunet" if str(error.name).startswith("dynamic_network") else "studies"
        needed = f"{name} needs the package {error.name}, which is not installed: pip install 'layertune[{extra}]'"
        answer = {"missing": needed}
    sys.stdout.write(f"\n{json.dumps(answer)}\n")


def _restart_peak() -> int:
    """Restart the peak of the resident memory where the system can (Linux), and return the peak so far."""
    clear = Path("/proc/self/clear_refs")
    if clear.exists():
        clear.write_text("5")  # proc_pid_clear_refs(5): resets the peak resident set size
    return _peak()


def _peak() -> int:
    status = Path("/proc/self/status")
    if status.exists():
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
        return 1024 * int(line.split()[1])
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


def _nnunet(kind: str, dimensions: int) -> Build:
    """Return what makes nnU-Net's network, as planned for six resolution levels, with deep supervision."""

    def build() -> nn.Module:
        unet = importlib.import_module("dynamic_network_architectures.architectures.unet")
        blocks = (2,) * 6 if kind == "PlainConvUNet" else (1, 3, 4, 6, 6, 6)
        decoder = (2,) * 5 if kind == "PlainConvUNet" else (1,) * 5
        network: nn.Module = getattr(unet, kind)(
            1,
            6,
            FEATURES,
            nn.Conv3d if dimensions == 3 else nn.Conv2d,
            3,
            (1, 2, 2, 2, 2, 2),
            blocks,
            3,
            decoder,
            conv_bias=True,
            norm_op=nn.InstanceNorm3d if dimensions == 3 else nn.InstanceNorm2d,
            norm_op_kwargs={"eps": 1e-5, "affine": True},
            nonlin=nn.LeakyReLU,
            nonlin_kwargs={"inplace": True},
            deep_supervision=True,
        )
        return network

    return build


def _monai(kind: str, *args: Any, **kwargs: Any) -> Build:
    def build() -> nn.Module:
        from monai.networks import nets

        network: nn.Module = getattr(nets, kind)(*args, **kwargs)
        return network

    return build


def _timm(name: str) -> Build:
    def build() -> nn.Module:
        import timm

        return timm.create_model(name)

    return build


TRACE_NETWORKS: dict[str, tuple[Build, tuple[int, ...]]] = {
    **{
        f"{kind}{dimensions}d": (_nnunet(kind, dimensions), (2, 1) + (128,) * dimensions)
        for kind in ("PlainConvUNet", "ResidualEncoderUNet")
        for dimensions in (2, 3)
    },
    **{
        name: (build, (2, 1) + (side,) * 3)
        for name, build, side in (
            ("UNet", _monai("UNet", 3, 1, 2, (16, 32, 64, 128, 256), (2, 2, 2, 2), num_res_units=2), 128),
            ("DynUNet", _monai("DynUNet", 3, 1, 3, [3] * 5, [1, 2, 2, 2, 2], [2] * 4, deep_supervision=True), 128),
            ("BasicUNet", _monai("BasicUNet", 3, 1, 2), 128),
            ("AttentionUnet", _monai("AttentionUnet", 3, 1, 2, (16, 32, 64, 128), (2, 2, 2)), 128),
            ("VNet", _monai("VNet", 3, 1, 2), 128),
            ("SegResNet", _monai("SegResNet", 3, 8, 1, 2), 128),
            ("UNETR", _monai("UNETR", 1, 2, (96, 96, 96)), 96),
            ("SwinUNETR", _monai("SwinUNETR", 1, 2, feature_size=24), 96),
        )
    },
    **{
        name: (_timm(name), (2, 3, 224, 224))
        for name in (
            "resnet18",
            "resnet50",
            "densenet121",
            "efficientnet_b0",
            "vit_tiny_patch16_224",
            "convnext_tiny",
            "swin_tiny_patch4_window7_224",
        )
    },
}
"""By name: a function that makes the network, and the shape of the input that it is mapped with."""
