"""Elastic deformation as in the paper: random displacements on a coarse grid, a cubic spline between them.

Source: Ronneberger 2015, section 3.1 ("random displacement vectors on a coarse 3 by 3 grid", "10 pixels
standard deviation", "bicubic interpolation"); in 3D Çiçek 2016, section 3.

    node            node            node          the nodes span all that the network reads: patch and
    |---------------|---------------|             context; first and last one lie on its outermost voxels
    |--lower--|==== patch ====|--upper--|
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.interpolate import CubicSpline

from unet_core.geometry import Shape

CLIP = 3.0  # standard deviations: bounds what is read
# Çiçek 2016 displaces by 4 voxels between nodes 32 apart. Nearer ones would fold the image.
_STEEPEST = 1 / 8


@dataclass(frozen=True)
class Elastic:
    """A displacement field. `vectors`: float64 (3, nodes z, y, x), in voxels; `splines`: per axis float64
    (voxels, nodes), the weight of each node at each voxel. Displacement at (z, y, x): the sum over all nodes
    of vector * splines[0][z] * splines[1][y] * splines[2][x]."""

    vectors: NDArray[np.float64]
    splines: tuple[NDArray[np.float64], ...]

    def at(self, position: Sequence[int]) -> NDArray[np.float64]:
        """Displacement of one voxel, counted from the outermost one."""
        z, y, x = (spline[p] for spline, p in zip(self.splines, position))
        result: NDArray[np.float64] = np.einsum("dkji,k,j,i->d", self.vectors, z, y, x)
        return result

    def on(self, positions: Sequence[NDArray[np.intp]]) -> NDArray[np.float64]:
        """Displacements (3, z, y, x) on a lattice: some voxels of each axis."""
        z, y, x = (spline[p] for spline, p in zip(self.splines, positions))
        result: NDArray[np.float64] = np.einsum("dkji,zk,yj,xi->dzyx", self.vectors, z, y, x, optimize=True)
        return result

    def between(self, positions: Sequence[NDArray[np.intp]]) -> NDArray[np.float64]:
        """Per axis of displacement, no voxel within a lattice differs more from what lies around it there:
        a curve whose second differences are at most c leaves its chord over g voxels by at most c g² / 8."""
        sums = [np.abs(spline).sum(axis=1).max() for spline in self.splines]
        bends = [np.abs(np.diff(spline, 2, axis=0)).sum(axis=1).max(initial=0) for spline in self.splines]
        gaps = [np.diff(p).max(initial=0) for p in positions]
        slack = sum(
            bend * gap**2 / 8 * np.prod(sums[:axis] + sums[axis + 1 :])
            for axis, (bend, gap) in enumerate(zip(bends, gaps))
        )
        result: NDArray[np.float64] = np.abs(self.vectors).max(axis=(1, 2, 3)) * slack
        return result


@dataclass(frozen=True)
class ElasticGrid:
    """Where the nodes lie, and how far they may move, for one shape and voxel size.

    `deviation`: standard deviation per axis, in voxels; 0 for axes that do not move.
    """

    shape: Shape
    nodes: Shape
    deviation: tuple[float, ...]

    @classmethod
    def of(
        cls, shape: Shape, voxel_size: Sequence[float], moving: Sequence[int], *, elastic: float, nodes: int
    ) -> ElasticGrid:
        """`nodes` along the longest edge, in physical units; at about the same distance along the others.

        Displacements are drawn in units of the finest voxel edge; their standard deviation is at most an
        eighth of the distance of the nodes.
        """
        finest = min((voxel_size[axis] for axis in moving), default=1.0)
        edges = [(n - 1) * size / finest for n, size in zip(shape, voxel_size)]
        distance = max(edges) / (nodes - 1) or 1.0
        counts = tuple(1 + round(edge / distance) for edge in edges)
        nearest = min((edge / (count - 1) for edge, count in zip(edges, counts) if count > 1), default=0.0)
        deviation = min(elastic, nearest * _STEEPEST)
        scale = [finest / voxel_size[axis] if axis in moving else 0.0 for axis in range(3)]
        return cls(shape, counts, tuple(deviation * s for s in scale))

    def draw(self, rng: np.random.Generator) -> Elastic:
        """Gaussian displacements at the nodes; no voxel is displaced by more than `bound`."""
        vectors = np.clip(rng.standard_normal((3, *self.nodes)), -CLIP, CLIP)
        drawn = Elastic(vectors, tuple(_spline(n, count) for n, count in zip(self.shape, self.nodes)))
        positions = [lattice(0, n - 1) for n in self.shape]
        # Between nodes a spline overshoots: where it does so beyond the bound, all is made smaller.
        longest = np.abs(drawn.on(positions)).max(axis=(1, 2, 3)) + drawn.between(positions)
        factor = np.reshape(self.deviation * np.minimum(1, CLIP / longest), (3, 1, 1, 1))
        return Elastic(vectors * factor, drawn.splines)

    @property
    def bound(self) -> NDArray[np.float64]:
        """No displacement of any draw is longer, per axis, in voxels."""
        return CLIP * np.array(self.deviation)


def lattice(first: int, last: int) -> NDArray[np.intp]:
    """About 16 steps per axis from the first to the last voxel, both included."""
    return np.unique(np.linspace(first, last, 17).round().astype(np.intp))


@lru_cache(maxsize=64)
def _spline(voxels: int, nodes: int) -> NDArray[Any]:
    """Weights (voxels, nodes) of the cubic spline through evenly spaced nodes, mirrored at its ends."""
    if nodes == 1:
        weights: NDArray[Any] = np.ones((voxels, 1))
    else:
        places = np.linspace(0, voxels - 1, nodes)
        # Mirrored at its ends, a smooth curve is level there.
        weights = CubicSpline(places, np.eye(nodes), bc_type="clamped")(np.arange(voxels))
    weights = np.ascontiguousarray(weights)
    weights.flags.writeable = False  # shared by all threads; and numba compiles for each kind of array anew
    return weights
