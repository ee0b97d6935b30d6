"""The network as an ONNX graph, written operator by operator; any batch size and any legal spatial shape.

Written here and not by torch's exporter: that one takes 31 s for a small network where this takes
milliseconds, needs two more libraries, and wraps the sizes in shape arithmetic (measured with torch 2.13).
What a skip loses is the same number of voxels for every legal input, so here all crops are constants.
The graph is judged by onnx's checker and by onnxruntime's numbers (`onnx_file`, tests).

Weights keep their names in `unet_core.model.UNet`; batch norm is folded into the convolution before it,
which is exact up to rounding; dropout is for training only.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from unet_core.exchange.extras import require
from unet_core.exchange.tile import TileShape
from unet_core.geometry import Shape
from unet_core.model import UNet

# The oldest that has all operators used here in their present form, so that old runtimes can read it.
OPSET = 13
_IR_VERSION = 7  # the one that came with opset 13
INPUT, OUTPUT = "input", "logits"
_TO_THE_END = np.iinfo(np.int64).max


def build_graph(network: UNet, *, tiled: bool = False) -> Any:
    """An `onnx.ModelProto`, float32: `input` (batch, channels, *spatial) to `logits` (batch, classes, ...).

    Not tiled: what `UNet.forward` computes. `tiled`: what `TileNetwork.forward` computes.

    Raises
    ------
    InputError
        The extra `exchange` is not installed.
    """
    onnx = require("onnx")
    plain = copy.deepcopy(network).eval().float().cpu()
    spec = plain.spec
    graph = _Graph(onnx)
    x = INPUT
    if tiled:
        tile = TileShape.of(spec)
        x = graph.crop(x, *tile.crop)
        x = graph.crop(_unet(graph, plain, x), (0,) * spec.ndim, tile.surplus)
        halo = (0, 0, *tile.halo)
        x = graph.add("Pad", x, graph.constant("halo", np.array(halo + halo, np.int64)))
    else:
        x = _unet(graph, plain, x)
    graph.nodes[-1].output[0] = OUTPUT
    axes = "zyx"[-spec.ndim :]
    sizes_in: list[str | int] = ["batch", spec.in_channels, *axes]
    sizes_out: list[str | int] = ["batch", spec.classes, *(axes if tiled else (f"{a}_out" for a in axes))]
    value, number = onnx.helper.make_tensor_value_info, onnx.TensorProto.FLOAT
    made = onnx.helper.make_graph(
        graph.nodes,
        "unet",
        [value(INPUT, number, sizes_in)],
        [value(OUTPUT, number, sizes_out)],
        initializer=graph.constants,
    )
    opsets = [onnx.helper.make_opsetid("", OPSET)]
    return onnx.helper.make_model(
        made, opset_imports=opsets, ir_version=_IR_VERSION, producer_name="unet-flows"
    )


class _Graph:
    """Nodes and constants in the making; every method returns the name of what it computes."""

    def __init__(self, onnx: Any) -> None:
        self.onnx = onnx
        self.nodes: list[Any] = []
        self.constants: list[Any] = []

    def add(self, kind: str, *inputs: str, **attributes: Any) -> str:
        name = f"{kind}.{len(self.nodes)}"
        self.nodes.append(self.onnx.helper.make_node(kind, inputs, [name], name=name, **attributes))
        return name

    def constant(self, name: str, array: NDArray[Any]) -> str:
        self.constants.append(self.onnx.numpy_helper.from_array(array, name))
        return name

    def crop(self, x: str, lower: Sequence[int], upper: Sequence[int]) -> str:
        """Take voxels away at both ends of the spatial axes."""
        if not any(lower) and not any(upper):
            return x
        name = f"crop.{len(self.nodes)}"
        values = {
            "starts": list(lower),
            "ends": [-n if n else _TO_THE_END for n in upper],
            "axes": list(range(2, 2 + len(lower))),
        }
        parts = [self.constant(f"{name}.{key}", np.array(v, np.int64)) for key, v in values.items()]
        return self.add("Slice", x, *parts)

    def convolve(self, kind: str, x: str, name: str, layer: nn.Module, **attributes: Any) -> str:
        weight, bias = (getattr(layer, part).detach().numpy() for part in ("weight", "bias"))
        parts = self.constant(f"{name}.weight", weight), self.constant(f"{name}.bias", bias)
        return self.add(kind, x, *parts, kernel_shape=weight.shape[2:], **attributes)

    def double_conv(self, x: str, name: str, block: nn.Sequential) -> str:
        for position, layer in _folded(block):
            x = self.add("Relu", self.convolve("Conv", x, f"{name}.{position}", layer))
        return x

    def up_conv(self, x: str, name: str, layer: nn.Module, pool: Shape) -> str:
        if not isinstance(layer, nn.Sequential):
            return self.convolve("ConvTranspose", x, name, layer, strides=pool)
        scales = self.constant(f"{name}.0.scales", np.array((1, 1, *pool), np.float32))
        # Output voxel i is input voxel floor(i / factor): torch's "nearest".
        x = self.add(
            "Resize",
            x,
            "",
            scales,
            mode="nearest",
            coordinate_transformation_mode="asymmetric",
            nearest_mode="floor",
        )
        return self.convolve("Conv", x, f"{name}.1", layer[1])


def _unet(graph: _Graph, network: UNet, x: str) -> str:
    """`UNet.forward`, operator by operator."""
    spec = network.spec
    skips: list[str] = []
    for level, shapes in enumerate(spec.levels(spec.read_shape(spec.stride))[: spec.depth]):
        x = graph.double_conv(x, f"down.{level}", network.down[level])  # type: ignore[arg-type]
        lower = spec.crop_lower(level)
        upper = [n - a - m for n, a, m in zip(shapes.contracted, lower, shapes.expand_in)]
        skips.append(graph.crop(x, lower, upper))
        pool = spec.pools[level]
        x = graph.add("MaxPool", x, kernel_shape=pool, strides=pool)
    x = graph.double_conv(x, f"down.{spec.depth}", network.down[spec.depth])  # type: ignore[arg-type]
    for level in reversed(range(spec.depth)):
        x = graph.up_conv(x, f"up.{level}", network.up[level], spec.pools[level])
        x = graph.add("Concat", skips.pop(), x, axis=1)
        x = graph.double_conv(x, f"merge.{level}", network.merge[level])  # type: ignore[arg-type]
    return graph.convolve("Conv", x, "head", network.head)


def _folded(block: nn.Sequential) -> Iterator[tuple[int, nn.Module]]:
    """The convolutions of a block with their places in it, batch norm folded in."""
    for position, layer in enumerate(block):
        if not isinstance(layer, nn.Conv2d | nn.Conv3d):
            continue
        after = block[position + 1]
        if isinstance(after, nn.BatchNorm2d | nn.BatchNorm3d):
            yield position, nn.utils.fuse_conv_bn_eval(layer, after)
        else:
            yield position, layer
