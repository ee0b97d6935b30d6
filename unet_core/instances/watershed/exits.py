"""Where pieces lead that leave their block: followed from block to block, as far as their faces are at hand.

    code of a block: 0 to 26, by raster order of its offset from the block that looks; 13 is that block itself

A piece leaves to a voxel of another block, which lies on one of its faces. The label there may leave that
block again. Heights grow along the way, so it ends: at a piece with a peak, or where no faces are at hand.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from unet_core.instances.blocking import Blocking, Offset
from unet_core.instances.faces import Faces, face_name
from unet_core.instances.watershed.block import NOWHERE

HERE = 13
LABELS, HEIGHTS, LEAVES_TO = "labels", "heights", "leaves to"  # of a block, beside its faces


def code_of(offset: Offset) -> int:
    """Number of the block at an offset."""
    return (offset[0] + 1) * 9 + (offset[1] + 1) * 3 + offset[2] + 1


def offset_of(code: int) -> Offset:
    """The offset of a block by its number."""
    return code // 9 - 1, code // 3 % 3 - 1, code % 3 - 1


class Exits:
    """Where the pieces of a block and of those around it lead.

    Parameters
    ----------
    faces
        By code: faces of labels, and `LEAVES_TO` (`block.Nodes`).
    """

    def __init__(self, blocking: Blocking, index: int, faces: Mapping[int, Faces]) -> None:
        self._blocking, self._index, self._faces = blocking, index, faces
        self._cell = np.array([a // b for a, b in zip(blocking.box(index).lower, blocking.block)])
        self._leave = {code: there[LEAVES_TO] != NOWHERE for code, there in faces.items()}
        # By code: how many labels of that block do not leave it.
        self.staying = np.zeros(27, np.uint32)
        for code, leave in self._leave.items():
            self.staying[code] = np.count_nonzero(~leave)

    def of_block(self) -> tuple[NDArray[np.uint32], NDArray[np.uint8], NDArray[np.uint32]]:
        """Labels of the block that leave it; code of the block where each leads, and its label there."""
        leaves = np.flatnonzero(self._leave[HERE]).astype(np.uint32) + np.uint32(1)
        return leaves, *self.resolve(np.full(len(leaves), HERE, np.uint8), leaves)

    def resolve(
        self, block: NDArray[np.uint8], label: NDArray[np.uint32]
    ) -> tuple[NDArray[np.uint8], NDArray[np.uint32]]:
        """(code, label) of what each (code, label) is a part of."""
        block, label = block.copy(), label.copy()
        going = np.arange(len(label))
        while len(going):
            to = self._leaves_to(block[going], label[going])
            going, to = going[to != NOWHERE], to[to != NOWHERE]
            there, found = self._at(to)
            known = found != 0
            going = going[known]
            block[going], label[going] = there[known], found[known]
        return block, label

    def order(self, block: NDArray[np.uint8], label: NDArray[np.uint32]) -> NDArray[np.uint32]:
        """Positions of labels among their block's: first come those that stay, then those that leave."""
        found = np.zeros(len(label), np.uint32)
        for code in map(int, np.unique(block)):
            leave, chosen = self._leave[code], block == code
            before = np.cumsum(leave) - leave  # of those that leave
            position = np.where(leave, self.staying[code] + before, np.arange(len(leave)) - before)
            found[chosen] = position[label[chosen].astype(np.int64) - 1]
        return found

    def _leaves_to(self, block: NDArray[np.uint8], label: NDArray[np.uint32]) -> NDArray[np.uint64]:
        found = np.full(len(label), NOWHERE)
        for code in np.unique(block):
            chosen = block == code
            found[chosen] = self._faces[int(code)][LEAVES_TO][label[chosen].astype(np.int64) - 1]
        return found

    def _at(self, places: NDArray[np.uint64]) -> tuple[NDArray[np.uint8], NDArray[np.uint32]]:
        """Code of the block and label of voxels on faces, by raster index; 0 where no faces are at hand."""
        voxels = np.stack(np.unravel_index(places.astype(np.int64), self._blocking.volume), axis=1)
        offsets = voxels // np.array(self._blocking.block) - self._cell
        around = (abs(offsets) <= 1).all(axis=1)
        codes = np.where(around, (offsets + 1) @ np.array([9, 3, 1]), 255).astype(np.uint8)
        found = np.zeros(len(places), np.uint32)
        for code in map(int, np.unique(codes)):
            there = self._blocking.neighbour(self._index, offset_of(code)) if code in self._faces else None
            if there is None:
                continue
            box, faces, chosen = self._blocking.box(there), self._faces[code], np.flatnonzero(codes == code)
            for axis, side in self._blocking.inner_sides(there):
                edge = box.upper[axis] - 1 if side else box.lower[axis]
                on_face = chosen[voxels[chosen, axis] == edge]
                i, j = (voxels[on_face, a] - box.lower[a] for a in range(3) if a != axis)
                found[on_face] = faces[face_name(LABELS, axis, side)][i, j]
        return codes, found
