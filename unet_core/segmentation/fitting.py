"""The tile that fits: what a worker needs for each, and which of those that it can hold is the fastest."""

from __future__ import annotations

from dataclasses import dataclass, replace

from unet_core import budget
from unet_core.architecture import UNetSpec
from unet_core.devices import device_kind, fast_dtype
from unet_core.geometry import Box, Shape
from unet_core.keeping import Keeper
from unet_core.segmentation.request import SegmentRequest
from unet_core.tile_choice import Rates, TileOption, choose_tile, tile_options
from unet_core.tiling import Footprint, Tiling, chunk_and_shard
from unet_core.volumes import Volume


def decided(dtype: str, device: str) -> str:
    """A type as it is planned with: "auto" only where there is something to decide on a real tile."""
    return "float32" if dtype == "auto" and fast_dtype(device) is None else dtype


def counted(dtype: str, device: str) -> str:
    """The type that memory is counted in: where it is open, the one that will be taken but for odd networks.

    If float32 is taken after all, the tile is chosen anew (`Planned.in_float32`).
    """
    return fast_dtype(device) or "float32" if dtype == "auto" else dtype


@dataclass(frozen=True)
class Fitting:
    """Tiles of one network over one region.

    `dtype` is the one that memory is counted in: never "auto". `tile_memory` is what one forward pass may
    take on the workers' device, as found when the run was planned; None for a run that goes on.
    """

    request: SegmentRequest
    volume: Volume
    spec: UNetSpec
    roi: Box
    device: str
    dtype: str
    keeper: Keeper | None
    tile_memory: int | None

    @property
    def memory(self) -> int:
        """Bytes that one forward pass may take."""
        return self.request.memory or self._tile_memory()

    def _tile_memory(self) -> int:
        return budget.tile_memory(self.device) if self.tile_memory is None else self.tile_memory

    def tiling(self, tile: Shape, block: Shape | None = None) -> Tiling:
        """Tiles of this shape, in blocks of a shard or of what is asked for."""
        chunk, shard = chunk_and_shard(tile, self.volume.shape)
        return Tiling(
            volume=self.volume.shape,
            roi=self.roi,
            footprint=Footprint.of(self.spec),
            tile=tile,
            chunk=chunk,
            shard=shard,
            block=block or shard,
        )

    def needed(self, tiling: Tiling) -> budget.WorkerMemory:
        """What one worker needs, the part of a mask that it reads included."""
        memory = budget.worker_memory(
            self.spec,
            tiling,
            dtype=self.dtype,
            device=self.device,
            input_item=self.volume.dtype.itemsize,
            input_chunk=self.volume.chunk_shape,
            probabilities=self.request.probabilities,
        )
        beside = 0 if self.keeper is None else self.keeper.bytes_for(tiling.block)
        return replace(memory, input=memory.input + beside)

    def macs(self, tiling: Tiling) -> int:
        """Multiply-accumulates of the whole region."""
        read = tiling.read_shape[3 - self.spec.ndim :]
        return tiling.tile_count * self.spec.padded().macs(read)

    def choose(self, rates: Rates | None) -> Shape:
        """The fastest tile (z, y, x) that fits; InputError where none does."""

        def held(tile: Shape) -> int:
            return self.needed(self.tiling(tile)).total

        return choose_tile(
            self.spec,
            self.volume.shape,
            self.roi,
            dtype=self.dtype,
            device=self.device,
            memory=self.memory,
            rates=rates,
            held=None if self.request.memory is None else held,
        )

    def options(self, tiling: Tiling, rates: Rates | None) -> list[TileOption]:
        """Tiles that this one was chosen from, the best first; all tiles where it was asked for."""
        read = tiling.read_shape[3 - self.spec.ndim :]
        memory = budget.forward_bytes(self.spec, read, self.dtype, self.device)
        # Where it was chosen, those that take more did not fit; of a GPU elsewhere nothing else is known.
        if self.request.tile is not None and self.device == device_kind():
            memory = self._tile_memory()
        return tile_options(
            self.spec,
            self.volume.shape,
            self.roi,
            dtype=self.dtype,
            device=self.device,
            memory=memory,
            rates=rates,
        )
