"""ONNX files: valid for onnx's checker; onnxruntime computes what torch computes, at every legal shape."""

from __future__ import annotations

import json
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import SEEDS, multiples, network_specs, random_network
from torch.nn import functional as F

from unet_core.architecture import UNetSpec
from unet_core.checkpoint import load_model
from unet_core.errors import InputError, RunError
from unet_core.exchange import (
    OPSET,
    TileNetwork,
    TileShape,
    build_graph,
    export_onnx,
    run_onnx,
    smallest_input,
)
from unet_core.exchange.extras import require
from unet_core.exchange.onnx_file import compare

onnx = require("onnx")
pytestmark = pytest.mark.usefixtures("one_thread")


def logits(network: torch.nn.Module, x: torch.Tensor) -> np.ndarray:
    with torch.inference_mode():
        return network(x).numpy()


@settings(max_examples=40)
@given(spec=network_specs(cost=1e7), seed=SEEDS, tiled=st.booleans(), batch=st.integers(1, 2), data=st.data())
def test_onnxruntime_computes_what_torch_computes(spec, seed, tiled, batch, data):
    """One file for all: the shapes are drawn anew for the same session."""
    network = random_network(spec, seed)
    model = build_graph(network, tiled=tiled)
    onnx.checker.check_model(model, full_check=True)
    reference = TileNetwork(network) if tiled else network
    smallest = TileShape.of(spec).minimum if tiled else smallest_input(spec)
    for more in (smallest, tuple(n + s for n, s in zip(smallest, data.draw(multiples(spec.stride, 2))))):
        x = torch.randn((batch, spec.in_channels, *more), generator=torch.Generator().manual_seed(seed))
        expected = logits(reference, x)
        found = run_onnx(model.SerializeToString(), x.numpy())
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize("upsampling", ["transpose", "nearest"])
@pytest.mark.parametrize(("ndim", "flat"), [(2, 0), (3, 0), (3, 1)])
def test_a_file_of_a_stored_model(ndim, flat, upsampling, make_model):
    spec = UNetSpec.build(
        ndim=ndim, depth=2, base=4, norm="batch", upsampling=upsampling, anisotropic_levels=flat, classes=3
    )
    stored = load_model(str(make_model(spec)))
    data = export_onnx(stored)
    model = onnx.load_from_string(data)
    assert [(o.domain, o.version) for o in model.opset_import] == [("", OPSET)]
    operators = {node.op_type for node in model.graph.node}
    assert operators <= {"Conv", "ConvTranspose", "Relu", "MaxPool", "Slice", "Concat", "Resize"}
    sizes = [d.dim_param or d.dim_value for d in model.graph.input[0].type.tensor_type.shape.dim]
    assert sizes == ["batch", 1, *"zyx"[-ndim:]]
    properties = {p.key: json.loads(p.value) for p in model.metadata_props}
    assert properties["model_digest"] == stored.digest
    assert properties["smallest_input"] == list(spec.read_shape(spec.stride))
    assert properties["input_step"] == list(spec.stride)
    assert properties["output_voxel_0_lies_on_input_voxel"] == list(spec.context[0])
    assert (properties["offset"], properties["spread"]) == ([0.0], [255.0])
    for n in range(3):
        shape = [a + n * s for a, s in zip(properties["smallest_input"], properties["input_step"])]
        x = torch.randn(1, 1, *shape, generator=torch.Generator().manual_seed(n))
        expected = logits(stored.network(), x)
        found = run_onnx(data, x.numpy())
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5 * np.abs(expected).max())


@settings(max_examples=30)
@given(spec=network_specs(cost=1e7), seed=SEEDS, data=st.data())
def test_tiles_with_their_halo_cropped_are_the_whole(spec, seed, data):
    """As other software tiles: reflect at the faces by the halo, crop it, lay inner parts side by side."""
    network, tile = random_network(spec, seed), TileShape.of(spec)
    volume = data.draw(multiples(spec.stride, 2))
    x = np.random.default_rng(seed).normal(size=(spec.in_channels, *volume)).astype(np.float32)

    def mirrored(lower, upper):
        return torch.from_numpy(np.pad(x, [(0, 0), *zip(lower, upper)], mode="reflect"))[None]

    whole = logits(network, mirrored(*spec.context))[(..., *(slice(n) for n in volume))]
    padded = mirrored(tile.halo, tile.halo)
    inner = (..., *(slice(h, -h or None) for h in tile.halo))
    found = np.full_like(whole, np.nan)
    for index in np.ndindex(*(n // s for n, s in zip(volume, tile.step))):
        lower = [i * s for i, s in zip(index, tile.step)]
        block = padded[(..., *(slice(a, a + n) for a, n in zip(lower, tile.minimum)))]
        place = (..., *(slice(a, a + s) for a, s in zip(lower, tile.step)))
        found[place] = logits(TileNetwork(network), block)[inner]
    np.testing.assert_allclose(found, whole, rtol=0, atol=1e-5 * np.abs(whole).max())


@given(spec=network_specs(cost=1e7), size=st.integers(1, 70))
def test_a_tile_reaches_the_size_that_is_asked_for(spec, size):
    tile = TileShape.of(spec)
    for n, h, s, least in zip(tile.near(size), tile.halo, tile.step, tile.minimum):
        assert size <= n - 2 * h < size + s
        assert (n - least) % s == 0


def test_the_halo_of_the_papers_network():
    """572 - 388 = 184 voxels are lost, 92 below; with the poolings' slack of 4, 96 above."""
    tile = TileShape.of(UNetSpec.paper())
    assert (tile.halo, tile.step, tile.minimum) == ((96, 96), (16, 16), (208, 208))


def test_a_tile_is_zero_in_its_halo():
    network = TileNetwork(random_network(UNetSpec.build(ndim=2, depth=1, base=2), 0))
    h = network.shape.halo[0]
    found = logits(network, torch.ones(1, 1, *network.shape.minimum))
    assert found[..., h:-h, h:-h].all()
    assert not (found - F.pad(torch.from_numpy(found[..., h:-h, h:-h]), [h] * 4).numpy()).any()


def test_another_function_is_not_let_through():
    spec = UNetSpec.build(ndim=2, depth=1, base=2)
    data = build_graph(random_network(spec, 0)).SerializeToString()
    shape = (1, 1, *smallest_input(spec))
    compare(data, random_network(spec, 0), shape, where="here")
    with pytest.raises(RunError, match="something else than torch"):
        compare(data, random_network(spec, 1), shape, where="here")
    with pytest.raises(RunError, match="something else than torch"):
        compare(data, TileNetwork(random_network(spec, 0)), shape, where="here")


def test_a_model_too_large_for_one_file(make_model, monkeypatch):
    monkeypatch.setattr("unet_core.exchange.onnx_file._LARGEST", 1000)
    stored = load_model(str(make_model()))
    with pytest.raises(InputError, match="too large for one ONNX file") as refused:
        export_onnx(stored)
    assert refused.value.where == stored.url


@pytest.mark.parametrize("library", ["onnx", "onnxruntime"])
def test_a_missing_library(library, make_model, monkeypatch):
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(InputError, match="not installed") as refused:
        export_onnx(load_model(str(make_model())))
    assert refused.value.where == library
    assert "pip install" in refused.value.fix
    assert "exchange" in refused.value.fix
