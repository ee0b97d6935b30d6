"""What a block contributes to the object table: partial sums that add up exactly, in any order.

    Sums.of_block(A) + Sums.of_block(B) == Sums.of_block(A and B), to the bit

Everything is an integer (or a minimum or maximum), floating-point intensities too: they are summed as
multiples of a quantum, a power of two that the run has chosen.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import reduce
from io import BytesIO
from math import prod
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from unet_core.errors import DataError, InputError
from unet_core.geometry import Box, Grid, Shape
from unet_core.table.exact import sums_of_groups
from unet_core.table.layout import COORDINATE_LIMIT, FRAGMENT, object_row

_ROOM = 1024  # objects of a chunk, to begin with; a power of two
_CHECK = 16  # bytes of checksum before the rest
_EXACT = frozenset(["b1", "u1", "u2", "u4", "i1", "i2", "i4"])


@dataclass(frozen=True, eq=False)
class Sums:
    """Partial sums of the objects of one or more blocks.

    Attributes
    ----------
    rows
        One `layout.object_row` per object, ordered by id.
    fragments
        One `layout.FRAGMENT` per object and chunk that holds voxels of it, ordered by id, then chunk.
    """

    rows: NDArray[Any]
    fragments: NDArray[Any]

    @classmethod
    def of_block(
        cls,
        labels: NDArray[Any],
        box: Box,
        *,
        volume: Shape,
        chunk: Shape,
        image: NDArray[Any] | None = None,
        quanta: Sequence[float] = (),
        classes: NDArray[Any] | None = None,
        kinds: int = 0,
    ) -> Sums:
        """The sums of one block. Releases the GIL; needs little more than a chunk's memory.

        Parameters
        ----------
        labels
            (z, y, x) unsigned integers of `box`: final ids, 0 in the background.
        volume, chunk
            Shapes of the whole label array and of its chunks, z, y, x.
        image
            (c, z, y, x) intensities of the box; None: none are measured.
        quanta
            Per channel, what intensities are summed in multiples of: a power of two. See `quantum_of`.
        classes
            (z, y, x) uint8, each below `kinds`; None: objects have no class.

        Raises
        ------
        InputError
            Shapes that do not fit the box, coordinates beyond 2**24.
        """
        from unet_core.table import kernel

        channels = len(quanta)
        image = np.zeros((0, *box.shape), np.uint8) if image is None else image
        classes = np.zeros(box.shape, np.uint8) if classes is None else classes
        _check(box, volume, chunk, labels.shape, image.shape, (channels, *box.shape), classes.shape)
        exact = image.dtype.str[1:] in _EXACT and all(q == 1.0 for q in quanta)
        measured = kernel.measured_integers if exact else kernel.measured_numbers
        number = np.int64 if exact else np.float64
        inverse = 1.0 / np.asarray(quanta, np.float64)
        layout = object_row(kinds=kinds, channels=channels)
        across = Grid(Box.of_shape(volume), chunk).counts
        room = min(_ROOM, 1 << (prod(chunk) - 1).bit_length())
        parts = []
        for cell in Grid(box, chunk) if box else ():
            inside = cell.intersect(box).relative_to(box.lower).slices
            # One type of each: the kernel is compiled once, and a chunk more or less is no memory.
            part = np.ascontiguousarray(labels[inside], np.uint64)
            if not part.any():
                continue
            where = np.asarray(cell.intersect(box).lower, np.int64)
            intensities = np.ascontiguousarray(image[(slice(None), *inside)], number)
            kind = np.ascontiguousarray(classes[inside])
            while (found := measured(part, where, room, intensities, inverse, kind, kinds))[0] > room:
                room *= 8
            ids, voxels, first, last, moments, of_class, sums, extremes, unfit = (
                values[: found[0]] for values in found[1:]
            )
            rows = np.zeros(ids.size, layout)
            for name, values in (
                ("id", ids),
                ("voxels", voxels),
                ("lower", first),
                ("upper", last + 1),
                ("moments", moments),
                ("classes", of_class),
                ("intensities", sums),
                ("extremes", extremes),
                ("unfit", unfit),
            ):
                rows[name] = values
            fragments = np.zeros(ids.size, FRAGMENT)
            position = [a // c for a, c in zip(cell.lower, chunk)]
            fragments["id"], fragments["voxels"] = ids, voxels
            fragments["chunk"] = reduce(lambda at, pair: at * pair[0] + pair[1], zip(across, position), 0)
            parts.append((rows, fragments))
        if not parts:
            return cls(np.zeros(0, layout), np.zeros(0, FRAGMENT))
        return cls(
            merged_rows(np.concatenate([rows for rows, _ in parts])),
            merged_fragments(np.concatenate([fragments for _, fragments in parts])),
        )

    @classmethod
    def merge(cls, parts: Iterable[Sums]) -> Sums:
        """The sums of all blocks of one or more parts of one plan; associative and commutative to the bit."""
        several = list(parts)
        return cls(
            merged_rows(np.concatenate([part.rows for part in several])),
            merged_fragments(np.concatenate([part.fragments for part in several])),
        )

    def __add__(self, other: Sums) -> Sums:
        return Sums.merge([self, other])

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Sums):
            return NotImplemented
        return self._same(self.rows, other.rows) and self._same(self.fragments, other.fragments)

    __hash__ = None  # type: ignore[assignment]

    @staticmethod
    def _same(one: NDArray[Any], other: NDArray[Any]) -> bool:
        return one.dtype == other.dtype and one.tobytes() == other.tobytes()

    def to_bytes(self) -> bytes:
        """Checksum, then both arrays, compressed."""
        buffer = BytesIO()
        for array in (self.rows, self.fragments):
            np.save(buffer, array, allow_pickle=False)
        raw = buffer.getvalue()
        packed = pa.compress(raw, codec="zstd", asbytes=True)
        return _checked(len(raw).to_bytes(8, "little") + packed)

    @classmethod
    def from_bytes(cls, data: bytes, *, where: object = None) -> Sums:
        """What `to_bytes` made.

        Raises
        ------
        DataError
            Anything else.
        """
        if len(data) < _CHECK + 8 or _checked(data[_CHECK:]) != data:
            raise DataError(
                "the partial sums of a block are damaged",
                where=where,
                fix="unet-flows verify OUTPUT --repair, then the command that made it",
            )
        size = int.from_bytes(data[_CHECK : _CHECK + 8], "little")
        buffer = BytesIO(pa.decompress(data[_CHECK + 8 :], size, codec="zstd", asbytes=True))
        rows, fragments = (np.load(buffer, allow_pickle=False) for _ in range(2))
        return cls(rows, fragments)


def merged_rows(rows: NDArray[Any]) -> NDArray[Any]:
    """Partial rows of one layout in any order, as one row per object, ordered by id."""
    order = np.argsort(rows["id"], kind="stable")
    rows = rows[order]
    starts = _starts(rows["id"])
    if starts.size == rows.size:
        return rows
    merged = rows[starts]
    for name in ("voxels", "classes", "unfit"):
        merged[name] = np.add.reduceat(rows[name], starts, axis=0)
    for name in ("moments", "intensities"):
        merged[name] = sums_of_groups(rows[name], starts)
    merged["lower"] = np.minimum.reduceat(rows["lower"], starts, axis=0)
    merged["upper"] = np.maximum.reduceat(rows["upper"], starts, axis=0)
    merged["extremes"][..., 0] = np.minimum.reduceat(rows["extremes"][..., 0], starts, axis=0)
    merged["extremes"][..., 1] = np.maximum.reduceat(rows["extremes"][..., 1], starts, axis=0)
    return merged


def merged_fragments(fragments: NDArray[Any]) -> NDArray[Any]:
    """The same for fragments: one per object and chunk."""
    fragments = fragments[np.lexsort((fragments["chunk"], fragments["id"]))]
    starts = _starts(fragments["id"], fragments["chunk"])
    merged = fragments[starts]
    if starts.size < fragments.size:
        merged["voxels"] = np.add.reduceat(fragments["voxels"], starts)
    return merged


def _starts(*keys: NDArray[Any]) -> NDArray[np.intp]:
    """Where in sorted rows another key begins."""
    changes = np.zeros(max(keys[0].size - 1, 0), bool)
    for key in keys:
        changes |= key[1:] != key[:-1]
    return np.flatnonzero(np.concatenate([[True], changes])[: keys[0].size])


def _check(
    box: Box, volume: Shape, chunk: Shape, labels: Shape, image: Shape, wanted: Shape, classes: Shape
) -> None:
    # Within a chunk, sums of squared coordinates are taken in 64 bits.
    if prod(chunk) * max(chunk) ** 2 >= 2**62:
        raise InputError("chunks of this shape cannot be measured", found=chunk)
    if not Box.of_shape(volume).contains(box) or max(volume) > COORDINATE_LIMIT:
        raise InputError(
            "this block cannot be measured",
            expected=f"a box within {Box.of_shape(volume)}, and no axis longer than {COORDINATE_LIMIT:,}",
            found=box,
        )
    for name, found, expected in (
        ("labels", labels, box.shape),
        ("classes", classes, box.shape),
        ("image", image, wanted),
    ):
        if tuple(found) != expected:
            raise InputError(f"the {name} have another shape than the block", expected=expected, found=found)


def _checked(data: bytes) -> bytes:
    return hashlib.blake2b(data, digest_size=_CHECK).digest() + data
