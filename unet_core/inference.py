"""The exact overlap-tile engine: one network, one fixed tile shape, the same bits in whatever order.

Source: Ronneberger 2015, "overlap-tile strategy". What makes it exact stands in DESIGN.md; here every
tile goes through the same kernels at the same shapes, with batch 1, and only its valid part is kept.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from unet_core.budget import slab_planes
from unet_core.devices import DTYPES, exact_arithmetic, fast_dtype
from unet_core.errors import DataError, UnfitWorkerError
from unet_core.geometry import Box, hull
from unet_core.model import UNet, channels_last
from unet_core.normalisation import Scale, require_finite
from unet_core.prepared import prepare
from unet_core.streamed import streamed
from unet_core.tiling import Tile, Tiling
from unet_core.volumes import Volume

DTYPE_AGREEMENT = 0.999


class Predictor:
    """A network ready to predict tiles on one device in one dtype."""

    def __init__(self, network: UNet, *, scale: Scale, device: str, dtype: str = "float32") -> None:
        if device == "cuda" and not torch.cuda.is_available():
            raise UnfitWorkerError(
                "this run needs a GPU and this process sees none",
                expected="a CUDA device",
                found=f"torch {torch.__version__}, no CUDA device",
                fix="run it where a GPU is; there is no silent fallback to the CPU",
            )
        self.spec = network.spec
        self.device = device
        self._device = torch.device(device)
        # Moved once: a copy of what is not pinned waits for all that the GPU was given to do before.
        self._offset, self._factor = (torch.from_numpy(n).to(self._device) for n in scale.numbers)
        self._dtype = dtype
        self._axis = 3 - self.spec.ndim  # of z, y, x: the one that planes come along
        self._copies = torch.cuda.Stream() if device == "cuda" else None  # type: ignore[no-untyped-call]
        exact_arithmetic()
        self._model = prepare(network, device=device, dtype=DTYPES[dtype])

    @torch.inference_mode()
    def logits(self, data: NDArray[Any], tile: Tile, *, scaled: bool = False) -> Tensor:
        """(channel, z, y, x) intensities of `tile.read` to (class, z, y, x) logits of `tile.write`.

        `scaled`: the intensities are what the network wants already, not raw.
        """
        return torch.cat([part for _, part in self.parts(data, tile, scaled=scaled)], dim=1 + self._axis)

    @torch.inference_mode()
    def start(self, data: NDArray[Any], tile: Tile, *, probabilities: bool = False) -> Started:
        """Begin to predict `tile.write`. On a GPU this returns at once: begin the next, then take this."""
        shape, empty = tile.write.shape, partial(torch.empty, dtype=torch.uint8, device=self._device)
        classes = empty(shape)
        chances = empty((self.spec.classes, *shape)) if probabilities else None
        for at, logits in self.parts(data, tile):
            classes[at] = logits.argmax(dim=0)
            if chances is not None:
                chances[(slice(None), *at)] = torch.softmax(logits.float(), dim=0).mul_(255).round_()
            del logits
        return Started(classes, chances)

    def classes(self, logits: Tensor) -> NDArray[np.uint8]:
        """The most likely class per voxel, uint8 (z, y, x)."""
        result: NDArray[np.uint8] = logits.argmax(dim=0).to(torch.uint8).cpu().numpy()
        return result

    def parts(
        self, data: NDArray[Any], tile: Tile, *, scaled: bool = False
    ) -> Iterator[tuple[tuple[slice, ...], Tensor]]:
        """Logits (class, z, y, x) of one slab after the other, each with its place in `tile.write`."""
        axis, done = self._axis, 0
        shape = data.shape[1 + axis :]
        planes = slab_planes(self.spec, shape, self._dtype, self.device)
        for x in streamed(self._model, self._slabs(data, planes, scaled), shape, planes):
            logits = x[0, : self.spec.classes]  # the rest only fills up
            logits = logits if axis == 0 else logits.unsqueeze(1)
            # The surplus above the last whole stride is another tile's: 388 -> 384.
            inside = (n - done if a == axis else n for a, n in enumerate(tile.write.shape))
            logits = logits[(slice(None), *(slice(n) for n in inside))]
            start, done = done, done + logits.shape[1 + axis]
            yield (*[slice(None)] * axis, slice(start, done)), logits
            del x, logits  # or they would be alive beside the next ones

    def _slabs(self, data: NDArray[Any], planes: int, scaled: bool) -> Iterator[Tensor]:
        """(1, channel, n, ...) in the network's type and memory format, so many planes at a time."""
        for start in range(0, data.shape[1 + self._axis], planes):
            part = data[(*[slice(None)] * (1 + self._axis), slice(start, start + planes))]
            yield self._ready(part, scaled)

    def _ready(self, data: NDArray[Any], scaled: bool) -> Tensor:
        # On its own, so that no version of a slab is alive beside the last while the network works.
        x = self._on_device(data) if scaled else self._scaled(data)
        x = x if self._axis == 0 else x.squeeze(1)
        return x[None].to(dtype=DTYPES[self._dtype], memory_format=channels_last(self.spec.ndim))

    def _scaled(self, data: NDArray[Any]) -> Tensor:
        """`Scale.apply`, to the bit, by all threads or on the GPU, which gets the raw type: fewer bytes."""
        raw = self._on_device(data.astype(data.dtype.newbyteorder("="), copy=False))
        return raw.to(torch.float32, copy=True).sub_(self._offset).mul_(self._factor)

    def _on_device(self, data: NDArray[Any]) -> Tensor:
        x = torch.from_numpy(data)
        if self._copies is None:
            return x
        pinned = torch.empty(x.shape, dtype=x.dtype, pin_memory=True).copy_(x)
        # On a stream of its own: else the copy would wait for the tile before this one.
        with torch.cuda.stream(self._copies):
            moved = pinned.to(self._device, non_blocking=True)
        torch.cuda.current_stream().wait_stream(self._copies)
        moved.record_stream(torch.cuda.current_stream())
        return moved


class Started:
    """The prediction of one tile, which a GPU may still be computing."""

    def __init__(self, classes: Tensor, probabilities: Tensor | None) -> None:
        self._classes = _begin_copy(classes)
        self._probabilities = None if probabilities is None else _begin_copy(probabilities)
        self._copied = None
        if classes.is_cuda:
            self._copied = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._copied.record()

    def take(self) -> tuple[NDArray[np.uint8], NDArray[np.uint8] | None]:
        """Classes uint8 (z, y, x); probabilities uint8 (class, z, y, x), p = v / 255, or None."""
        if self._copied is not None:
            self._copied.synchronize()
        chances = self._probabilities
        return self._classes.numpy(), None if chances is None else chances.numpy()


def _begin_copy(tensor: Tensor) -> Tensor:
    if not tensor.is_cuda:
        return tensor
    host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
    return host.copy_(tensor, non_blocking=True)


@dataclass(frozen=True)
class BlockResult:
    """One block's output, clipped to volume and ROI: classes (z, y, x), probabilities (class, z, y, x)."""

    box: Box
    classes: NDArray[np.uint8]
    probabilities: NDArray[np.uint8] | None


@dataclass(frozen=True)
class BlockInput:
    """What one block is computed of: raw intensities (channel, z, y, x) of `read`, which its tiles need."""

    index: int
    tiles: tuple[Tile, ...]
    read: Box
    data: NDArray[Any]


def predict_block(
    volume: Volume, tiling: Tiling, index: int, predictor: Predictor, *, probabilities: bool = False
) -> BlockResult:
    """Compute one block: one read, one forward pass per tile.

    Raises
    ------
    DataError
        NaN or infinite intensities in what the block reads, with their place.
    """
    return compute_block(read_block(volume, tiling, index), tiling, predictor, probabilities=probabilities)


def read_block(
    volume: Volume, tiling: Tiling, index: int, *, tiles: Sequence[Tile] | None = None
) -> BlockInput:
    """Read what `compute_block` needs; raises as `predict_block`.

    Parameters
    ----------
    tiles
        Those of the block to compute, the rest being 0; None: all. No more is read than they need.
    """
    tiles = tuple(tiling.tiles(index)) if tiles is None else tuple(tiles)
    if not tiles:
        return BlockInput(index, (), Box((0, 0, 0), (0, 0, 0)), np.empty((0, 0, 0, 0), volume.dtype))
    read = hull(tile.read for tile in tiles)
    data = volume.read(read)
    require_finite(data, read, volume, error=DataError)
    return BlockInput(index, tiles, read, data)


def compute_block(
    source: BlockInput, tiling: Tiling, predictor: Predictor, *, probabilities: bool = False
) -> BlockResult:
    """`predict_block` of what was read."""
    box = tiling.block_box(source.index)
    classes = np.zeros(box.shape, np.uint8)
    chances = np.zeros((predictor.spec.classes, *box.shape), np.uint8) if probabilities else None

    def settle(tile: Tile, started: Started) -> None:
        kept = tile.keep.relative_to(tile.write.lower).slices
        target = tile.keep.relative_to(box.lower).slices
        found, likely = started.take()
        classes[target] = found[kept]
        if chances is not None and likely is not None:
            chances[(slice(None), *target)] = likely[(slice(None), *kept)]

    last: tuple[Tile, Started] | None = None
    for tile in source.tiles:
        part = tile.read.relative_to(source.read.lower).slices
        started = predictor.start(source.data[(slice(None), *part)], tile, probabilities=probabilities)
        if last is not None:
            settle(*last)
        last = tile, started
    if last is not None:
        settle(*last)
    return BlockResult(box, classes, chances)


def choose_dtype(network: UNet, data: NDArray[Any], tile: Tile, *, scale: Scale, device: str) -> str:
    """Decide `--dtype auto` on one real tile: the device's fast type where it gives the same labels.

    "The same" is at least 99.9 % of the tile's voxels; else float32. Nothing is timed: the same command would
    give other labels on a busy machine.
    """
    fast = fast_dtype(device)
    if fast is None:
        return "float32"
    labels = {}
    for dtype in ("float32", fast):
        predictor = Predictor(network, scale=scale, device=device, dtype=dtype)
        labels[dtype] = predictor.classes(predictor.logits(data, tile))
    agreement = float((labels["float32"] == labels[fast]).mean())
    return fast if agreement >= DTYPE_AGREEMENT else "float32"


def predict_tiles(
    volume: Volume, tiling: Tiling, predictor: Predictor
) -> Iterator[tuple[Box, NDArray[np.uint8]]]:
    """All blocks of a tiling in this process, as (box, classes); for validation and tests."""
    for index in range(len(tiling.blocks)):
        result = predict_block(volume, tiling, index, predictor)
        yield result.box, result.classes
