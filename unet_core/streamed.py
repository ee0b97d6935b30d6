"""A forward pass as a stream of planes: the same function, in memory that does not grow along one axis.

    slab of planes -> convolutions -+-> skip: waits for the planes below it -+-> convolutions -> head
                                    +-> pooling -> level below -> up-sampling +

A valid convolution needs its last kernel - 1 input planes once more, a pooling what did not divide, and a
skip waits for the levels below: nothing else is kept, and nothing is computed twice. What is kept has its
place from the beginning, so that only a slab's own tensors come and go. One slab of all planes is the usual
forward pass. A plane of a 2D network is a row. `unet_core.budget.forward_bytes` counts what is alive here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from math import prod

from torch import Tensor, nn

from unet_core.architecture import LevelShapes
from unet_core.geometry import Shape, ceil_div
from unet_core.prepared import PreparedUNet


def streamed(network: PreparedUNet, slabs: Iterable[Tensor], shape: Shape, planes: int) -> Iterator[Tensor]:
    """Logits (1, padded classes, m, ...) of an input that comes in slabs along its first spatial axis.

    Parameters
    ----------
    slabs
        (1, in_channels, n, ...) in the network's type and `channels_last`.
    shape
        Spatial shape of all slabs together: a legal input.
    planes
        The most that a slab has; if that is all, there is one slab.
    """
    top = _Level(network, 0, network.spec.levels(shape), planes, once=planes >= shape[0])
    for slab in slabs:
        features = top.push(slab)
        if features is not None:
            yield network.head(features)
        del slab, features  # or they would be alive beside the next ones


class _Level:
    """One level and those below it. Planes go in as they come and out once they are known; None: none yet.

    At most `planes` go in at a time, or all `once`; at most `most` come out.
    """

    def __init__(
        self,
        network: PreparedUNet,
        level: int,
        shapes: tuple[LevelShapes, ...],
        planes: int,
        *,
        once: bool,
    ) -> None:
        spec, here = network.spec, shapes[level]
        kernel, width = spec.kernels[level], spec.widths[level]
        above = spec.widths[level - 1] if level else spec.in_channels
        room = _Room(network, here.input, planes, once)
        self._down = _Convolutions(network.down[level], kernel, room, (above, width))
        self.most = planes
        self._below: _Level | None = None
        if level == spec.depth:
            return
        factors, up, crop = spec.pools[level], network.up[level], spec.crop_lower(level)
        self._pooling = _Pooling(network, factors)
        self._below = _Level(network, level + 1, shapes, ceil_div(planes, factors[0]), once=once)
        self.most = self._below.most * factors[0]
        # The expanding path is behind by what it never reaches, and by what no pooling below divided yet.
        behind = here.contracted[0] - crop[0] - here.expand_in[0]
        behind += prod(pool[0] for pool in spec.pools[level:]) - 1
        waiting = min(planes + behind, here.expand_in[0])
        self._skip = _Skip(network.empty(width, (waiting, *here.expand_in[1:])), crop, here.expand_in)
        if isinstance(up, nn.Sequential):  # nearest neighbour, then a convolution with kernel = factors
            enlarged = tuple(n * f for n, f in zip(shapes[level + 1].output, factors))
            room = _Room(network, enlarged, self.most, once)
            self._enlarge, self._up = up[0], room.convolution(up[1], factors[0], spec.widths[level + 1])
        else:
            self._enlarge, self._up = nn.Identity(), _Convolution(up, 0, None)
        room = _Room(network, here.expand_in, self.most, once)
        self._merge = _Convolutions(network.merge[level], kernel, room, (2 * width, width), beside=True)

    def push(self, x: Tensor | None) -> Tensor | None:
        if self._below is None:
            return self._down.push(x)
        up = self._upsampled(self._below.push(self._contracted(x)))
        if up is None:
            return None
        width = up.shape[1]
        joined = self._merge.first.space(up.shape[2])
        self._skip.pop_into(joined[:, :width])
        joined[:, width:] = up
        del up
        return self._merge.run()

    def _contracted(self, x: Tensor | None) -> Tensor | None:
        down = self._down.push(x)
        if down is None:
            return None
        self._skip.push(down)
        return self._pooling.push(down)

    def _upsampled(self, below: Tensor | None) -> Tensor | None:
        return None if below is None else self._up.push(self._enlarge(below))


@dataclass(frozen=True)
class _Room:
    """For what a convolution is given: `planes` at a time, or all `once`, each as in `shape`."""

    network: PreparedUNet
    shape: Shape
    planes: int
    once: bool

    def convolution(
        self, layer: nn.Module, kernel: int, channels: int, *, beside: bool = False
    ) -> _Convolution:
        """`beside`: its channels come from two places, and must be joined in any case."""
        overlap = kernel - 1
        if not beside and (overlap == 0 or self.once):
            return _Convolution(layer, overlap, None)
        most = min(overlap + self.planes, self.shape[0])
        room = partial(self.network.empty, channels, (most, *self.shape[1:]))
        return _Convolution(layer, overlap, room, lasting=not self.once)

    def after(self, kernel: Shape) -> _Room:
        return replace(self, shape=tuple(n - k + 1 for n, k in zip(self.shape, kernel)))


class _Convolution:
    """A convolution of planes that come one slab after the other, or all at once where nothing is joined.

    `room` makes the place to join them in: for all slabs, or `lasting` only while it is needed.
    """

    def __init__(
        self, layer: nn.Module, overlap: int, room: Callable[[], Tensor] | None, *, lasting: bool = True
    ) -> None:
        self._layer, self._overlap = layer, overlap
        self._make, self._lasting = room, lasting
        self._room = room() if room is not None and lasting else None
        self._filled = 0

    def push(self, x: Tensor | None) -> Tensor | None:
        if x is None:
            return None
        if self._make is None:
            return self._convolved(x)
        self.space(x.shape[2]).copy_(x)
        del x
        return self.run()

    def space(self, planes: int) -> Tensor:
        """Where the next planes are to be put, behind those that are kept."""
        if self._room is None:
            assert self._make is not None
            self._room = self._make()
        self._filled += planes
        return self._room[:, :, self._filled - planes : self._filled]

    def run(self) -> Tensor | None:
        """The convolution of what is in the room; its last planes stay, for those to come."""
        assert self._room is not None
        if self._filled <= self._overlap:
            return None
        x = self._room[:, :, : self._filled]
        result = self._convolved(x)
        if not self._lasting:
            self._room = None
            return result
        last = x[:, :, self._filled - self._overlap :]
        # A copy between where planes are few, for then the two parts share some.
        x[:, :, : self._overlap] = last.clone() if self._filled < 2 * self._overlap else last
        self._filled = self._overlap
        return result

    def _convolved(self, x: Tensor) -> Tensor:
        result: Tensor = self._layer(x)
        return result


class _Convolutions:
    """The two convolutions of a level, each with its ReLU. `channels`: into the first, and out of both."""

    def __init__(
        self, block: nn.Module, kernel: Shape, room: _Room, channels: tuple[int, int], *, beside: bool = False
    ) -> None:
        assert isinstance(block, nn.Sequential)
        self.first = room.convolution(block[:2], kernel[0], channels[0], beside=beside)
        self._second = room.after(kernel).convolution(block[2:], kernel[0], channels[1])

    def push(self, x: Tensor | None) -> Tensor | None:
        return self._second.push(self.first.push(x))

    def run(self) -> Tensor | None:
        return self._second.push(self.first.run())


class _Pooling:
    """Max pooling of the planes that its factor divides; the rest waits for more."""

    def __init__(self, network: PreparedUNet, factors: Shape) -> None:
        self._network, self._factors = network, factors
        self._rest: Tensor | None = None

    def push(self, x: Tensor) -> Tensor | None:
        if self._rest is not None:
            kept = self._rest.shape[2]
            joined = self._network.empty(x.shape[1], (kept + x.shape[2], *x.shape[3:]))
            joined[:, :, :kept], joined[:, :, kept:] = self._rest, x
            x = joined
        whole = x.shape[2] // self._factors[0] * self._factors[0]
        rest = x[:, :, whole:]
        self._rest = rest.clone() if rest.shape[2] else None
        return self._network.pool(x[:, :, :whole], self._factors) if whole else None


class _Skip:
    """A ring of what the contracting path found, until the expanding path comes to the same planes."""

    def __init__(self, ring: Tensor, lower: Shape, shape: Shape) -> None:
        self._ring = ring
        self._ahead, self._left = lower[0], shape[0]
        self._middle = tuple(slice(start, start + n) for start, n in zip(lower[1:], shape[1:]))
        self._pushed = self._popped = 0

    def push(self, x: Tensor) -> None:
        """Keep the middle of these planes, and of all planes the middle ones."""
        ahead = min(self._ahead, x.shape[2])
        used = min(self._left, x.shape[2] - ahead)
        self._ahead, self._left = self._ahead - ahead, self._left - used
        middle = x[(slice(None), slice(None), slice(ahead, ahead + used), *self._middle)]
        for here, there in self._places(self._pushed, used):
            self._ring[:, :, here] = middle[:, :, there]
        self._pushed += used
        assert self._pushed - self._popped <= self._ring.shape[2]

    def pop_into(self, target: Tensor) -> None:
        """The next planes, as many as `target` has."""
        for here, there in self._places(self._popped, target.shape[2]):
            target[:, :, there] = self._ring[:, :, here]
        self._popped += target.shape[2]

    def _places(self, start: int, count: int) -> Iterator[tuple[slice, slice]]:
        """Where planes are in the ring, and among those that are meant."""
        size, done = self._ring.shape[2], 0
        while done < count:
            at = (start + done) % size
            part = min(size - at, count - done)
            yield slice(at, at + part), slice(done, done + part)
            done += part
