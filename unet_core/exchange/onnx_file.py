"""A checked ONNX file of a trained network."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from unet_core.architecture import UNetSpec
from unet_core.checkpoint import StoredModel
from unet_core.errors import InputError, RunError
from unet_core.exchange.extras import require
from unet_core.exchange.graph import INPUT, OPSET, build_graph
from unet_core.exchange.tile import TileNetwork, TileShape
from unet_core.geometry import Shape

_LARGEST = 2**31 - 1  # bytes of one protobuf message
RELATIVE, ABSOLUTE = 1e-4, 1e-5  # onnxruntime against torch; the second in units of the largest logit


def smallest_input(spec: UNetSpec) -> Shape:
    """A legal spatial input shape; all that add multiples of the stride to it are legal, too."""
    return spec.read_shape(spec.stride)


def export_onnx(stored: StoredModel, *, tiled: bool = False) -> bytes:
    """The model as ONNX: normalised intensities in, logits out; what it expects stands in its metadata.

    Parameters
    ----------
    tiled
        With `TileNetwork`'s halo, instead of the bare network whose output is smaller than its input.

    Raises
    ------
    InputError
        The extra `exchange` is not installed, or the model is too large for one ONNX file.
    RunError
        onnx's checker refuses the file, or onnxruntime's numbers are not torch's.
    """
    onnx, _ = require("onnx"), require("onnxruntime")
    network = stored.network()
    size = 4 * sum(parameter.numel() for parameter in network.parameters())
    if size > _LARGEST:
        raise InputError(
            "this model is too large for one ONNX file",
            where=stored.url,
            expected=f"at most {_LARGEST:,} bytes of weights",
            found=f"{size:,}",
        )
    model = build_graph(network, tiled=tiled)
    model.doc_string = "U-Net with valid convolutions (Ronneberger, Fischer, Brox 2015), float32."
    onnx.helper.set_model_props(model, _properties(stored, tiled=tiled))
    try:
        onnx.checker.check_model(model, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise RunError("the ONNX file is not valid", where=stored.url, found=error) from None
    data: bytes = model.SerializeToString()
    reference = TileNetwork(network) if tiled else network
    shape = TileShape.of(network.spec).minimum if tiled else smallest_input(network.spec)
    compare(data, reference, (1, network.spec.in_channels, *shape), where=stored.url)
    return data


def run_onnx(data: bytes, x: NDArray[np.float32]) -> NDArray[np.float32]:
    """The one output of an ONNX file for its one input, by onnxruntime on the CPU."""
    runtime = require("onnxruntime")
    session = runtime.InferenceSession(data, providers=["CPUExecutionProvider"])
    result: NDArray[np.float32] = session.run(None, {INPUT: x})[0]
    return result


def compare(data: bytes, network: nn.Module, shape: Shape, *, where: str) -> None:
    """Refuse an ONNX file that computes something else than the network, on noise of this shape.

    Raises
    ------
    RunError
        Names the largest difference.
    """
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        expected = network(x).numpy()
    found = run_onnx(data, x.numpy())
    largest = float(np.abs(expected).max())
    if found.shape != expected.shape or not np.allclose(
        found, expected, rtol=RELATIVE, atol=ABSOLUTE * largest
    ):
        differs = np.abs(found - expected).max() if found.shape == expected.shape else found.shape
        raise RunError(
            "onnxruntime computes something else than torch",
            where=where,
            expected=f"{expected.shape}, logits up to {largest:.3g}, the same to {RELATIVE:g} of each",
            found=f"a difference of {differs}",
            fix="report it, with the model",
        )


def _properties(stored: StoredModel, *, tiled: bool) -> dict[str, str]:
    """What a reader of the file needs beside the graph, each value as JSON."""
    card = stored.card
    spec, tile = card.spec, TileShape.of(card.spec)
    properties: dict[str, Any] = {
        "opset": OPSET,
        "axes": ["batch", "channel", *"zyx"[-spec.ndim :]],
        "smallest_input": tile.minimum if tiled else smallest_input(spec),
        "input_step": spec.stride,
        "classes": card.class_names,
        "target": card.target,
        # x -> (x - offset) / spread, per channel, before the network
        "offset": card.scale.offset,
        "spread": card.scale.spread,
        "model_digest": stored.digest,
    }
    if tiled:
        properties["halo"] = tile.halo
    else:
        properties["output_voxel_0_lies_on_input_voxel"] = spec.context[0]
    return {key: json.dumps(value) for key, value in properties.items()}
