"""The border weight map: the loss counts more where background separates objects (Ronneberger 2015, eq. 2).

    w(x) = wc(x) + w0 * exp(-(d1(x) + d2(x))² / 2 sigma²)

d1 and d2 are the distances to the nearest and the second nearest object. This module makes the second
term; class weights wc are the loss's. The paper measures to "the border of the cell"; here that is the
centre of the object's nearest voxel, so that d1 of background next to an object is 1.

Distances are Euclidean and in units of the smallest voxel edge, the paper's pixels: right in volumes with
thick slices. Where d1 + d2 exceeds 6 sigma the term is 0 by definition (it would be w0 * 1.5e-8), so labels
further off than that do not matter: a crop with `reach` around it has the whole map's values, to the bit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, isfinite
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unet_core.errors import InputError
from unet_core.geometry import Box, Shape

_SIGMAS = 6  # d1 + d2 beyond which the term is 0


@dataclass(frozen=True, kw_only=True)
class BorderWeight:
    """Height w0 and width sigma (in smallest voxel edges) of the border term; the paper's by default.

    Raises
    ------
    InputError
        A negative or infinite w0, a sigma that is not above 0.
    """

    w0: float = 10.0
    sigma: float = 5.0

    def __post_init__(self) -> None:
        for name, value, right in (
            ("w0", self.w0, isfinite(self.w0) and self.w0 >= 0),
            ("sigma", self.sigma, isfinite(self.sigma) and self.sigma > 0),
        ):
            if not right:
                expected = "0 or more" if name == "w0" else "a width in voxels, above 0"
                raise InputError("not a border weight", where=name, expected=expected, found=value)

    def reach(self, voxel_size: Sequence[float], *, planar: bool = False) -> Shape:
        """Voxels of labels, z, y, x, that matter beyond a box on each side."""
        edges = _edges(voxel_size, planar=planar)
        z, y, x = (ceil(_SIGMAS * self.sigma / edge) for edge in edges)
        return (0 if planar else z, y, x)

    def of(
        self,
        ids: NDArray[Any],
        voxel_size: Sequence[float],
        *,
        planar: bool = False,
        within: Box | None = None,
    ) -> NDArray[np.float32]:
        """The border term of an array of ids.

        Parameters
        ----------
        ids
            (z, y, x) integers, one per object, 0 in the background.
        voxel_size
            z, y, x, any unit.
        planar
            Planes stand alone: distances within y and x only.
        within
            The box of `ids` that is wanted; all by default. Saves most of the time in 3D where the rest is
            `reach`.

        Returns
        -------
        float32 (z, y, x) of `within`, 0 in objects. Values depend on distances alone: the same labels give
        the same bits in any crop that holds them. Releases the GIL; takes about 30 bytes per voxel.
        """
        # Here, because numba takes half a second, and seconds to compile when it is first called.
        from unet_core.nearest_objects import border_term

        edges = _edges(voxel_size, planar=planar)
        box = Box.of_shape(ids.shape) if within is None else within
        limit = _SIGMAS * self.sigma
        found: NDArray[np.float32] = border_term(
            _numbered(ids), box.lower, box.upper, edges, limit, self.w0, self.sigma, planar
        )
        return found


def _edges(voxel_size: Sequence[float], *, planar: bool) -> tuple[float, float, float]:
    """Voxel edges in units of the smallest one; z does not count where planes stand alone."""
    z, y, x = (float(edge) for edge in voxel_size)
    smallest = min(y, x) if planar else min(z, y, x)
    return z / smallest, y / smallest, x / smallest


def _numbered(ids: NDArray[Any]) -> NDArray[np.int32]:
    """The ids as 1, 2, ... of one type, 0 staying 0: half the memory of 64 bits, and one compilation."""
    flat = ids.ravel()
    starts = np.flatnonzero(np.concatenate([[True], flat[1:] != flat[:-1]])[: flat.size])
    number = np.unique(flat[starts], return_inverse=True)[1] + 1
    number = np.where(flat[starts] == 0, 0, number).astype(np.int32)
    numbered: NDArray[np.int32] = np.repeat(number, np.diff(np.append(starts, flat.size)))
    return numbered.reshape(ids.shape)
