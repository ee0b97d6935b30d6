"""Hypothesis strategies for networks, volumes and boxes, and the plain things tests make of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
import zarr
from hypothesis import assume
from hypothesis import strategies as st
from torch import nn

from unet_core.architecture import UNetSpec
from unet_core.geometry import Box, Shape
from unet_core.model import UNet
from unet_core.volumes import Volume

SEEDS = st.integers(0, 2**32 - 1)
DEEPEST = {2: 4, 3: 2}
# Multiply-accumulates of the smallest tile: keeps one example of a whole test near a tenth of a second.
CHEAP = 4e7


@st.composite
def network_specs(
    draw: st.DrawFn, *, ndim: int | None = None, min_depth: int = 0, cost: float = CHEAP
) -> UNetSpec:
    """Any cheap U-Net: 2D to depth 4, 3D to depth 2, regular and anisotropic, with and without batch norm."""
    ndim = ndim or draw(st.sampled_from([2, 3]))
    depth = draw(st.integers(min_depth, DEEPEST[ndim]))
    widths = draw(st.sampled_from(["any", "doubling", 8, 16]))
    if widths == "any":
        chosen = draw(st.lists(st.integers(1, 6), min_size=depth + 1, max_size=depth + 1))
    elif widths == "doubling":
        base = draw(st.integers(1, 4))
        chosen = [base * 2**level for level in range(depth + 1)]
    else:
        chosen = [widths] * (depth + 1)
    flat = draw(st.integers(0, depth)) if ndim == 3 else 0
    kernels, pools = [], []
    for level in range(depth + 1):
        if level < flat:
            kernels.append((1, 3, 3))
            pools.append((1, 2, 2))
        else:
            kernels.append(draw(st.just((3,) * ndim) | st.tuples(*[st.sampled_from([1, 3, 3, 3, 5])] * ndim)))
            pools.append(draw(st.just((2,) * ndim) | st.tuples(*[st.sampled_from([1, 2, 2, 3])] * ndim)))
    spec = UNetSpec(
        in_channels=draw(st.sampled_from([1, 1, 2, 3])),
        classes=draw(st.integers(2, 4)),
        widths=tuple(chosen),
        kernels=tuple(kernels),
        pools=tuple(pools[:depth]),
        upsampling=draw(st.sampled_from(["nearest", "transpose"])),
        norm=draw(st.sampled_from(["none", "batch"])),
    )
    assume(spec.macs(spec.read_shape(spec.stride)) <= cost)
    return spec


def random_network(spec: UNetSpec, seed: int) -> UNet:
    """A network in eval mode that depends on everything: random weights, biases and running statistics."""
    generator = torch.Generator().manual_seed(seed)
    model = UNet(spec).eval()
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if not tensor.is_floating_point():
                continue
            noise = torch.randn(tensor.shape, generator=generator)
            if tensor.ndim > 1:  # He's standard deviation keeps activations near 1 at any depth
                transposed = name.startswith("up.") and spec.upsampling == "transpose"
                incoming = tensor.shape[0] if transposed else tensor[0].numel()
                tensor.copy_(noise * (2 / incoming) ** 0.5)
            elif name.endswith("running_var"):
                tensor.copy_(0.5 + noise.abs())
            elif name.endswith("weight"):
                tensor.copy_(1 + 0.2 * noise)
            else:
                tensor.copy_(0.2 * noise)
    return model


def positive_network(spec: UNetSpec) -> UNet:
    """A float64 network with positive weights only: an infinite voxel makes every output infinite that it
    reaches, through sums and through max poolings, and leaves all others as they were."""
    generator = torch.Generator().manual_seed(0)
    model = UNet(spec).double().eval()
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.Conv2d | nn.Conv3d | nn.ConvTranspose2d | nn.ConvTranspose3d):
                weight = 0.5 + torch.rand(module.weight.shape, generator=generator, dtype=torch.float64)
                module.weight.copy_(weight / weight[0].numel())
    return model


def boxes(ndim: int = 3, *, low: int = -20, high: int = 20, longest: int = 12) -> st.SearchStrategy[Box]:
    """Boxes of at least one voxel, also with negative corners."""
    return st.tuples(
        st.tuples(*[st.integers(low, high)] * ndim), st.tuples(*[st.integers(1, longest)] * ndim)
    ).map(lambda pair: Box(pair[0], tuple(a + n for a, n in zip(*pair))))


@st.composite
def boxes_within(draw: st.DrawFn, shape: Shape) -> Box:
    """Boxes of at least one voxel inside an array of this shape."""
    edges = [sorted(draw(st.tuples(st.integers(0, n - 1), st.integers(1, n)))) for n in shape]
    return Box(tuple(a for a, _ in edges), tuple(max(b, a + 1) for a, b in edges))


def multiples(unit: Shape, most: int) -> st.SearchStrategy[Shape]:
    """Shapes that are 1 to `most` times `unit`, each axis for itself."""
    return st.tuples(*[st.integers(1, most)] * len(unit)).map(lambda k: tuple(a * b for a, b in zip(unit, k)))


def random_voxels(shape: Shape, dtype: Any, seed: int) -> np.ndarray:
    """Noise over the whole range of an integer type, or around 0 for floats."""
    rng = np.random.default_rng(seed)
    dtype = np.dtype(dtype)
    if dtype.kind == "f":
        return rng.normal(size=shape).astype(dtype)
    info = np.iinfo(dtype)
    return rng.integers(info.min, info.max, shape, dtype=dtype, endpoint=True)


def mirror(data: np.ndarray, box: Box) -> np.ndarray:
    """(..., z, y, x) data of a box that may reach beyond it, by numpy alone."""
    shape = data.shape[-3:]
    before = [max(0, -a) for a in box.lower]
    after = [max(0, b - n) for b, n in zip(box.upper, shape)]
    width = [(0, 0)] * (data.ndim - 3) + list(zip(before, after))
    padded = np.pad(data, width, mode="reflect")
    return padded[(..., *box.shift(before).slices)]


def in_memory(data: np.ndarray, *, chunks: tuple[int, ...] = (5, 7, 9), name: str = "memory") -> Volume:
    """A volume without a folder: Hypothesis makes many."""
    array = zarr.create_array({}, data=data, chunks=tuple(min(c, n) for c, n in zip(chunks, data.shape)))
    return Volume(
        url=name,
        path="",
        axes="zyx",
        shape=data.shape,
        dtype=data.dtype,
        channels=(0,),
        timepoint=0,
        voxel_size=(1.0,) * 3,
        origin=(0.0,) * 3,
        unit=None,
        metadata_digest="",
        array=array,
    )


def write_array(
    folder: Path,
    data: np.ndarray,
    *,
    axes: str | None = None,
    chunks: Shape | None = None,
    zarr_format: int = 3,
    attributes: dict[str, Any] | None = None,
) -> Path:
    """A plain Zarr array on disk."""
    array = zarr.create_array(
        store=str(folder),
        shape=data.shape,
        dtype=data.dtype,
        chunks=chunks or tuple(max(1, min(n, 16)) for n in data.shape),
        dimension_names=tuple(axes) if axes and zarr_format == 3 else None,
        zarr_format=zarr_format,
        attributes=attributes or {},
    )
    array[...] = data
    return folder


def seen_from(region: Box, labels: np.ndarray) -> np.ndarray:
    """The labels of a region and of one voxel around it, where 0 beyond the region says nothing."""
    margin = (1, 1, 1)
    there = np.pad(labels, 1, mode="edge")[region.shift(margin).grow(margin, margin).slices]
    return np.where(there > 0, there, np.pad(labels[region.slices], 1, mode="edge"))
