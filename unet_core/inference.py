"""The exact overlap-tile engine: one network, one fixed tile shape, the same bits in whatever order.

Source: Ronneberger 2015, "overlap-tile strategy". What makes it exact stands in DESIGN.md; here every
tile goes through the same kernel at the same shape, with batch 1, and only its valid part is kept.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import psutil
import torch
from numpy.typing import NDArray
from torch import Tensor

from unet_core.errors import DataError, UnfitWorkerError
from unet_core.geometry import Box, hull
from unet_core.model import UNet, channels_last, for_inference
from unet_core.normalisation import Scale, require_finite
from unet_core.tiling import Tile, Tiling
from unet_core.volumes import Volume

DTYPE_AGREEMENT = 0.999
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def device_kind() -> str:
    """What runs share: "cuda" where a GPU is, else "cpu". A run keeps the kind it began with."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def fast_dtype(device: str) -> str | None:
    """The 16-bit type that this device computes natively; None where there is none, as on older CPUs."""
    if device == "cuda":
        return "bfloat16" if torch.cuda.is_bf16_supported(including_emulation=False) else "float16"
    features = torch.cpu.get_capabilities()
    return "bfloat16" if features.get("avx512_bf16") or features.get("amx_bf16") else None


def free_memory(device: str) -> int:
    """Bytes that this process could allocate there now."""
    if device == "cuda":
        return int(torch.cuda.mem_get_info()[0])
    return int(psutil.virtual_memory().available)


def exact_arithmetic() -> None:
    """One way to compute on GPUs, from here on in this process."""
    # Two modes of float32 would give two results; and an algorithm chosen by timing, many.
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.deterministic = True


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
        self._scale = scale
        self._device = torch.device(device)
        self._dtype = DTYPES[dtype]
        self._format = channels_last(self.spec.ndim)
        exact_arithmetic()
        model = for_inference(network).to(device=self._device, dtype=self._dtype)
        self._model = model.to(memory_format=self._format)  # type: ignore[call-overload]

    def logits(self, data: NDArray[Any], tile: Tile) -> Tensor:
        """(channel, z, y, x) raw intensities of `tile.read` to (class, z, y, x) logits of `tile.write`."""
        return self.forward(self._scale.apply(data), tile)

    @torch.inference_mode()
    def forward(self, scaled: NDArray[np.float32], tile: Tile) -> Tensor:
        """`logits` of intensities that are scaled already."""
        flat = self.spec.ndim == 2
        x = torch.from_numpy(scaled)
        x = x.squeeze(1) if flat else x
        x = x[None].to(device=self._device, dtype=self._dtype, memory_format=self._format)
        logits = self._model(x)[0, : self.spec.classes]  # the rest only fills up
        logits = logits.unsqueeze(1) if flat else logits
        # The surplus above the last whole stride is another tile's: 388 -> 384.
        result: Tensor = logits[(slice(None), *(slice(n) for n in tile.write.shape))]
        return result

    def classes(self, logits: Tensor) -> NDArray[np.uint8]:
        """The most likely class per voxel, uint8 (z, y, x)."""
        result: NDArray[np.uint8] = logits.argmax(dim=0).to(torch.uint8).cpu().numpy()
        return result

    def probabilities(self, logits: Tensor) -> NDArray[np.uint8]:
        """Softmax as uint8 (class, z, y, x): p = v / 255."""
        p = torch.softmax(logits.float(), dim=0)
        result: NDArray[np.uint8] = p.mul_(255).round_().to(torch.uint8).cpu().numpy()
        return result


@dataclass(frozen=True)
class BlockResult:
    """One block's output, clipped to volume and ROI: classes (z, y, x), probabilities (class, z, y, x)."""

    box: Box
    classes: NDArray[np.uint8]
    probabilities: NDArray[np.uint8] | None


def predict_block(
    volume: Volume,
    tiling: Tiling,
    index: int,
    predictor: Predictor,
    *,
    probabilities: bool = False,
    tiles: Sequence[Tile] | None = None,
) -> BlockResult:
    """Compute one block: one read, one forward pass per tile.

    Parameters
    ----------
    tiles
        Those of the block to compute, the rest being 0; None: all. No more is read than they need.

    Raises
    ------
    DataError
        NaN or infinite intensities in what the block reads, with their place.
    """
    box = tiling.block_box(index)
    classes = np.zeros(box.shape, np.uint8)
    chances = np.zeros((predictor.spec.classes, *box.shape), np.uint8) if probabilities else None
    if tiles is not None and not tiles:
        return BlockResult(box, classes, chances)
    read = tiling.block_read_box(index) if tiles is None else hull(tile.read for tile in tiles)
    data = volume.read(read)
    require_finite(data, read, volume, error=DataError)
    for tile in tiling.tiles(index) if tiles is None else tiles:
        source = tile.read.relative_to(read.lower).slices
        logits = predictor.logits(data[(slice(None), *source)], tile)
        kept = tile.keep.relative_to(tile.write.lower).slices
        target = tile.keep.relative_to(box.lower).slices
        classes[target] = predictor.classes(logits)[kept]
        if chances is not None:
            chances[(slice(None), *target)] = predictor.probabilities(logits)[(slice(None), *kept)]
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


def measure_speed(network: UNet, *, device: str, dtype: str) -> float:
    """Multiply-accumulates per second of one small tile on this device; for predicting a run's time."""
    spec = network.spec
    shape = spec.read_shape((256,) * 2 if spec.ndim == 2 else (32,) * 3)
    write = Box.of_shape((1,) * (3 - spec.ndim) + spec.legal_write_shape(shape))
    scale = Scale((0.0,) * spec.in_channels, (1.0,) * spec.in_channels)
    predictor = Predictor(network, scale=scale, device=device, dtype=dtype)
    data = np.zeros((spec.in_channels, *(1,) * (3 - spec.ndim), *shape), np.float32)
    tile = Tile(read=write, write=write, keep=write)
    seconds = []
    for _ in range(3):
        began = time.perf_counter()
        predictor.classes(predictor.logits(data, tile))
        seconds.append(time.perf_counter() - began)
    return spec.padded().macs(shape) / min(seconds)


def predict_tiles(
    volume: Volume, tiling: Tiling, predictor: Predictor
) -> Iterator[tuple[Box, NDArray[np.uint8]]]:
    """All blocks of a tiling in this process, as (box, classes); for validation and tests."""
    for index in range(len(tiling.blocks)):
        result = predict_block(volume, tiling, index, predictor)
        yield result.box, result.classes
