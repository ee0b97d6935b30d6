"""How much of a volume is kept, from a bounded number of its blocks."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass

from unet_core.errors import DataError
from unet_core.geometry import Grid
from unet_core.keeping.keeper import Keeper
from unet_core.tiling import Tiling

_MOST_BLOCKS = 64
_MOST_BYTES = 2**31  # and fewer blocks where they are large


@dataclass(frozen=True)
class Estimate:
    """Shares, 0 to 1, of what was looked at. Exact where that is all blocks."""

    voxels: float
    tiles: float
    blocks: float
    looked_at: int
    of_blocks: int

    @property
    def exact(self) -> bool:
        return self.looked_at == self.of_blocks


def estimate(keeper: Keeper, tiling: Tiling) -> Estimate:
    """Look at up to 64 blocks, spread evenly. Damaged ones are left out: they will fail by name."""
    blocks = tiling.blocks
    most = min(_MOST_BLOCKS, max(4, _MOST_BYTES // keeper.bytes_for(tiling.block)))
    kept = seen = tiles = all_tiles = blocks_kept = looked_at = 0
    for block in blocks.spread(most):
        box = block.intersect(tiling.roi)
        with suppress(DataError):
            found = keeper.of(box)
            looked_at += 1
            kept += int(found.sum())
            seen += box.size
            blocks_kept += bool(found.any())
            for tile in Grid(box, tiling.tile):
                all_tiles += 1
                tiles += bool(found[tile.intersect(box).relative_to(box.lower).slices].any())
    return Estimate(
        voxels=kept / max(seen, 1),
        tiles=tiles / max(all_tiles, 1),
        blocks=blocks_kept / max(looked_at, 1),
        looked_at=looked_at,
        of_blocks=len(blocks),
    )
