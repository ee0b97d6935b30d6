"""Tiled = whole, the promise everything else stands on.

The whole is computed without any of our tiling: numpy mirrors the volume, the plain torch network (not the
one made for inference) runs once over all of it, and the surplus is cropped.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import (
    SEEDS,
    boxes,
    boxes_within,
    mirror,
    multiples,
    network_specs,
    random_network,
    random_voxels,
    write_array,
)

from unet_core.architecture import UNetSpec
from unet_core.geometry import Box, Shape, ceil_div, round_up
from unet_core.inference import Predictor, predict_block, predict_tiles
from unet_core.model import UNet
from unet_core.normalisation import Scale
from unet_core.tiling import Footprint, Tile, Tiling
from unet_core.volumes import Volume

RELATIVE = 1e-5  # of the largest logit: what float32 may differ by between two tile shapes


@dataclass(frozen=True)
class Scene:
    """A network, an image (channel, z, y, x) and how to cut it."""

    spec: UNetSpec
    image: np.ndarray
    tile: Shape
    block: Shape
    seed: int

    @property
    def scale(self) -> Scale:
        per_channel = self.image.reshape(len(self.image), -1).astype(np.float64)
        spread = per_channel.std(axis=1)
        return Scale(tuple(per_channel.mean(axis=1)), tuple(np.where(spread > 0, spread, 1.0)))

    def network(self) -> UNet:
        return random_network(self.spec, self.seed)

    def tiling(self, roi: Box | None = None, block: Shape | None = None) -> Tiling:
        shape = self.image.shape[1:]
        return Tiling(
            volume=shape,
            roi=roi or Box.of_shape(shape),
            footprint=Footprint.of(self.spec),
            tile=self.tile,
            chunk=self.tile,
            shard=self.tile,
            block=block or self.block,
        )

    def volume(self, folder: Path) -> Volume:
        chunks = (1, *(max(1, n // 2) for n in self.image.shape[1:]))
        return Volume.open(str(write_array(folder, self.image, axes="czyx", chunks=chunks)))


@st.composite
def scenes(draw: st.DrawFn) -> Scene:
    spec = draw(network_specs())
    stride = Footprint.of(spec).stride
    flat = 3 - spec.ndim
    # Small and prime, thinner than the context, down to one voxel, and up to a few tiles.
    shape = tuple(
        draw(st.integers(1, 3) if axis < flat else st.integers(1, max(7, 2 * s + 3)))
        for axis, s in enumerate(stride)
    )
    tile = tuple(
        1 if axis < flat else s * draw(st.integers(fewest := ceil_div(n, 3 * s), fewest + 1))
        for axis, (n, s) in enumerate(zip(shape, stride))
    )
    seed = draw(SEEDS)
    dtype = draw(st.sampled_from(["uint8", "uint16", "int16", "float32"]))
    image = random_voxels((spec.in_channels, *shape), dtype, seed)
    return Scene(spec, image, tile, draw(multiples(tile, 3)), seed)


@dataclass(frozen=True)
class Prediction:
    """Classes (z, y, x) as `predict_block` places them, logits (class, z, y, x) as its tiles say they lie."""

    classes: np.ndarray
    logits: np.ndarray


@pytest.fixture(autouse=True, scope="module")
def thin_slabs() -> Iterator[None]:
    """Tiles as small as these would be computed at once; here as large ones are, in slabs of a few planes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("unet_core.budget.forward._SLAB", 2**13)
        yield


class Recorder(Predictor):
    """Keeps the logits of every tile where the tile claims to be, and refuses a voxel kept twice."""

    def __init__(self, network: UNet, *, scale: Scale, shape: Shape) -> None:
        super().__init__(network, scale=scale, device="cpu")
        self.kept = np.full((network.spec.classes, *shape), np.nan, np.float32)

    def parts(
        self, data: np.ndarray, tile: Tile, *, scaled: bool = False
    ) -> Iterator[tuple[tuple[slice, ...], torch.Tensor]]:
        logits = np.full((self.spec.classes, *tile.write.shape), np.nan, np.float32)
        for place, part in super().parts(data, tile, scaled=scaled):
            logits[(slice(None), *place)] = part
            yield place, part
        target = (slice(None), *tile.keep.slices)
        assert np.isnan(self.kept[target]).all(), f"{tile.keep} is computed twice"
        self.kept[target] = logits[(slice(None), *tile.keep.relative_to(tile.write.lower).slices)]


def predict(scene: Scene, volume: Volume, tiling: Tiling, order: list[int] | None = None) -> Prediction:
    """All blocks through the real engine, in the given order; voxels outside the ROI stay 255 and NaN."""
    recorder = Recorder(scene.network(), scale=scene.scale, shape=volume.shape)
    classes = np.full(volume.shape, 255, np.uint8)
    for index in order or range(len(tiling.blocks)):
        result = predict_block(volume, tiling, index, recorder)
        assert (classes[result.box.slices] == 255).all()
        classes[result.box.slices] = result.classes
    return Prediction(classes, recorder.kept)


def whole(scene: Scene) -> np.ndarray:
    """Logits (class, z, y, x) of the whole volume by one forward pass of the plain network."""
    foot = Footprint.of(scene.spec)
    shape = scene.image.shape[1:]
    offset, spread = (np.reshape(v, (-1, 1, 1, 1)) for v in (scene.scale.offset, scene.scale.spread))
    image = ((scene.image.astype(np.float64) - offset) / spread).astype(np.float32)
    upper = tuple(round_up(n, s) - n + u for n, s, u in zip(shape, foot.stride, foot.upper))
    width = [(0, 0), *zip(foot.lower, upper)]
    x = torch.from_numpy(np.pad(image, width, mode="reflect"))
    network = scene.network()
    with torch.inference_mode():
        if scene.spec.ndim == 2:
            logits = torch.stack([network(plane[None])[0] for plane in x.unbind(1)], dim=1)
        else:
            logits = network(x[None])[0]
    return logits.numpy()[(slice(None), *Box.of_shape(shape).slices)]


def assert_same(prediction: Prediction, expected: np.ndarray) -> None:
    """Logits to float32 rounding; classes everywhere but where the two best logits are nearer than that."""
    tolerance = RELATIVE * np.abs(expected).max()
    np.testing.assert_allclose(prediction.logits, expected, rtol=0, atol=tolerance)
    second, best = np.sort(expected, axis=0)[-2:]
    differing = prediction.classes != expected.argmax(axis=0)
    assert (best - second)[differing].max(initial=0) < 2 * tolerance


def assert_same_bits(found: np.ndarray, expected: np.ndarray) -> None:
    unsigned = f"u{expected.itemsize}"
    np.testing.assert_array_equal(
        np.ascontiguousarray(found).view(unsigned), np.ascontiguousarray(expected).view(unsigned)
    )


@pytest.mark.usefixtures("one_thread")
@settings(max_examples=50)
@given(scene=scenes())
def test_tiled_equals_whole(scene, tmp_path_factory):
    volume = scene.volume(tmp_path_factory.mktemp("whole") / "v.zarr")
    assert_same(predict(scene, volume, scene.tiling()), whole(scene))


@pytest.mark.usefixtures("one_thread")
@settings(max_examples=25)
@given(scene=scenes(), data=st.data())
def test_one_tile_shape_gives_the_same_bits_whatever_blocks_order_and_roi(scene, data, tmp_path_factory):
    volume = scene.volume(tmp_path_factory.mktemp("bits") / "v.zarr")
    reference = predict(scene, volume, scene.tiling())

    other = scene.tiling(block=data.draw(multiples(scene.tile, 3), label="block"))
    order = data.draw(st.permutations(range(len(other.blocks))), label="order")
    shuffled = predict(scene, volume, other, order)
    assert_same_bits(shuffled.logits, reference.logits)
    assert_same_bits(shuffled.classes, reference.classes)

    roi = data.draw(boxes_within(volume.shape), label="roi")
    part = predict(scene, volume, scene.tiling(roi=roi))
    inside = (slice(None), *roi.slices)
    assert_same_bits(part.logits[inside], reference.logits[inside])
    assert_same_bits(part.classes[roi.slices], reference.classes[roi.slices])
    assert np.isfinite(part.logits).sum() == part.logits[inside].size
    assert (part.classes != 255).sum() == roi.size


def scene_of(spec: UNetSpec, shape: Shape, tile: Shape, *, dtype: str = "uint8", seed: int = 7) -> Scene:
    image = random_voxels((spec.in_channels, *shape), dtype, seed)
    return Scene(spec, image, tile, tile, seed)


@pytest.mark.parametrize(
    ("spec", "shape", "tile"),
    [
        pytest.param(
            UNetSpec.build(ndim=3, depth=3, base=4), (19, 8, 11), (8, 16, 16), id="3D depth 3 transpose"
        ),
        pytest.param(
            UNetSpec.build(
                ndim=3, depth=3, base=3, upsampling="nearest", norm="batch", in_channels=2, classes=3
            ),
            (5, 17, 9),
            (8, 16, 16),
            id="3D depth 3 nearest, batch norm",
        ),
        pytest.param(
            # Small kernels at the bottom keep the context, and the test, small.
            replace(
                UNetSpec.build(ndim=3, depth=4, base=2),
                kernels=((3, 3, 3), (3, 3, 3), (3, 3, 3), (1, 3, 3), (1, 1, 3)),
            ),
            (3, 17, 7),
            (16, 16, 16),
            id="3D depth 4 transpose",
        ),
        pytest.param(
            UNetSpec.build(ndim=3, depth=4, base=2, anisotropic_levels=2, upsampling="nearest", norm="batch"),
            (5, 18, 3),
            (4, 16, 16),
            id="3D depth 4 nearest, anisotropic",
        ),
        pytest.param(
            UNetSpec.build(ndim=2, depth=4, base=16), (2, 37, 50), (1, 32, 16), id="2D depth 4, 16 channels"
        ),
        pytest.param(
            UNetSpec.build(ndim=3, depth=2, base=16, upsampling="nearest"),
            (9, 8, 13),
            (8, 8, 8),
            id="3D depth 2, 16 channels",
        ),
    ],
)
def test_deep_networks(spec, shape, tile, tmp_path):
    scene = scene_of(spec, shape, tile)
    prediction = predict(scene, scene.volume(tmp_path / "v.zarr"), scene.tiling())
    assert_same(prediction, whole(scene))


def test_tile_shapes_agree(tmp_path):
    spec = UNetSpec.build(ndim=3, depth=2, base=4, norm="batch")
    scene = scene_of(spec, (7, 9, 13), (4, 4, 8), dtype="uint16")
    volume = scene.volume(tmp_path / "v.zarr")
    expected = predict(scene, volume, scene.tiling()).logits
    for tile in ((4, 8, 16), (8, 12, 4), (16, 4, 8)):
        cut = scene_of(spec, (7, 9, 13), tile, dtype="uint16")
        assert_same(predict(cut, volume, cut.tiling()), expected)


def test_a_stack_of_planes_is_its_planes(tmp_path):
    spec = UNetSpec.build(ndim=2, depth=2, base=4, in_channels=2, norm="batch")
    scene = scene_of(spec, (4, 13, 22), (1, 8, 16))
    stack = predict(scene, scene.volume(tmp_path / "stack.zarr"), scene.tiling())
    for z in range(4):
        plane = Scene(spec, scene.image[:, z : z + 1], scene.tile, scene.tile, scene.seed)
        volume = Volume.open(str(write_array(tmp_path / f"{z}.zarr", plane.image[:, 0], axes="cyx")))
        # One scale for the stack, as a run has it.
        recorder = Recorder(plane.network(), scale=scene.scale, shape=volume.shape)
        classes = np.full(volume.shape, 255, np.uint8)
        for box, part in predict_tiles(volume, plane.tiling(), recorder):
            classes[box.slices] = part
        assert_same_bits(recorder.kept, stack.logits[:, z : z + 1])
        assert_same_bits(classes, stack.classes[z : z + 1])


class Misaligned(Tiling):
    """A grid that is one voxel off the stride on `axis`, all else being right."""

    axis: int

    def _off(self, box: Box) -> Box:
        return box.shift([-1 if axis == self.axis else 0 for axis in range(3)])

    def tiles(self, index):
        for tile in super().tiles(index):
            write = self._off(tile.write)
            yield Tile(self._off(tile.read), write, write.intersect(tile.keep))

    def block_read_box(self, index):
        read = super().block_read_box(index)
        return Box(self._off(read).lower, read.upper)


@pytest.mark.parametrize("upsampling", ["nearest", "transpose"])
@pytest.mark.parametrize(("ndim", "axis"), [(2, 1), (2, 2), (3, 0), (3, 1), (3, 2)])
def test_a_misaligned_grid_fails_the_same_assertion(ndim, upsampling, axis, tmp_path):
    spec = UNetSpec.build(ndim=ndim, depth=2, base=4, upsampling=upsampling)
    tile = (1, 8, 8) if ndim == 2 else (4, 4, 4)
    scene = scene_of(spec, (4, 8, 8), tile)
    volume = scene.volume(tmp_path / "v.zarr")
    expected = whole(scene)
    right = scene.tiling()
    wrong = Misaligned(**{field.name: getattr(right, field.name) for field in fields(right)})
    object.__setattr__(wrong, "axis", axis)
    assert_same(predict(scene, volume, right), expected)
    misplaced = predict(scene, volume, wrong)
    # The last layer of voxels per tile is nobody's now; leave it out, so that only values can fail.
    covered = np.isfinite(misplaced.logits).all(axis=0)
    assert covered.mean() >= 0.7
    with pytest.raises(AssertionError, match="Not equal to tolerance"):
        assert_same(
            Prediction(misplaced.classes[covered], misplaced.logits[:, covered]), expected[:, covered]
        )


class Echo:
    """Instead of a network: gives back the raw voxels that lie under the tile's write box."""

    def __init__(self, spec: UNetSpec) -> None:
        self.spec = spec
        self._lower = Footprint.of(spec).lower

    def start(self, data: np.ndarray, tile: Tile, *, probabilities: bool) -> SimpleNamespace:
        assert data.shape[1:] == tile.read.shape
        found = data[(slice(None), *Box.of_shape(tile.write.shape).shift(self._lower).slices)]
        return SimpleNamespace(take=lambda: [found[0], found])


def coordinates(shape: Shape) -> np.ndarray:
    """(3, z, y, x): every voxel holds its own position."""
    return np.stack(np.meshgrid(*(np.arange(n) for n in shape), indexing="ij")).astype(np.uint8)


@settings(max_examples=40)
@given(spec=network_specs(), shape=st.tuples(*[st.integers(1, 40)] * 3), data=st.data())
def test_position_coded_voxels_come_back_to_their_place(spec, shape, data, tmp_path_factory):
    spec = UNetSpec(**{**spec.to_dict(), "in_channels": 3, "classes": 3})
    foot = Footprint.of(spec)
    tile = tuple(s * ceil_div(data.draw(st.integers(4, 20)), s) if s > 1 else 8 for s in foot.stride)
    tile = (1, *tile[1:]) if spec.ndim == 2 else tile
    shape = (min(shape[0], 5), *shape[1:]) if spec.ndim == 2 else shape
    scene = Scene(spec, coordinates(shape), tile, data.draw(multiples(tile, 3)), 0)
    roi = data.draw(boxes_within(shape))
    volume = scene.volume(tmp_path_factory.mktemp("coded") / "v.zarr")
    tiling = scene.tiling(roi=roi)
    found = np.full((3, *shape), 255, np.uint8)
    for index in range(len(tiling.blocks)):
        result = predict_block(volume, tiling, index, Echo(spec), probabilities=True)
        found[(slice(None), *result.box.slices)] = result.probabilities
        np.testing.assert_array_equal(result.classes, result.probabilities[0])
    expected = np.full((3, *shape), 255, np.uint8)
    expected[(slice(None), *roi.slices)] = scene.image[(slice(None), *roi.slices)]
    np.testing.assert_array_equal(found, expected)


@settings(max_examples=30)
@given(shape=st.tuples(*[st.integers(1, 9)] * 3), data=st.data())
def test_position_coded_voxels_mirror_as_numpy_does(shape, data, tmp_path_factory):
    image = coordinates(shape)
    folder = write_array(tmp_path_factory.mktemp("mirror") / "v.zarr", image, axes="czyx")
    volume = Volume.open(str(folder))
    for _ in range(4):
        box = data.draw(boxes(low=-30, high=20))
        np.testing.assert_array_equal(volume.read(box), mirror(image, box))
