"""Patches lie inside their regions, hold what was asked for, and are functions of (seed, step, item)."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import SEEDS, boxes_within, mirror

from unet_core.errors import DataError, InputError
from unet_core.geometry import Box
from unet_core.normalisation import Scale
from unet_core.sampling import LabelledRegion, Labelling, Sampler, generator
from unet_core.targets import IGNORE
from unet_core.volumes import Volume

UNIT = Scale((0.0,), (1.0,))
SEMANTIC = Labelling(target="semantic", classes=3)
FOREGROUND = Labelling(target="foreground", classes=2)


def in_memory(data: np.ndarray, *, chunks: tuple[int, ...] = (5, 7, 9), name: str = "memory") -> Volume:
    """A volume without a folder: Hypothesis makes many."""
    array = zarr.create_array({}, data=data, chunks=tuple(min(c, n) for c, n in zip(chunks, data.shape)))
    return Volume(
        url=name,
        path="",
        axes="zyx",
        shape=data.shape,
        dtype=data.dtype,
        channels=(0,),
        timepoint=0,
        voxel_size=(1.0,) * 3,
        origin=(0.0,) * 3,
        unit=None,
        metadata_digest="",
        array=array,
    )


def position_coded(shape: tuple[int, ...]) -> np.ndarray:
    return np.arange(np.prod(shape), dtype=np.int32).reshape(shape)


def sampler_of(regions, labelling=FOREGROUND, patch=(4, 4, 4), margin=(2, 3, 1), **options) -> Sampler:
    return Sampler(
        sources=tuple(regions),
        scales=(UNIT,) * len(regions),
        labelling=labelling,
        patch=patch,
        margin=margin,
        **options,
    )


@st.composite
def cases(draw: st.DrawFn):
    shape = draw(st.tuples(*[st.integers(1, 14)] * 3))
    region = draw(boxes_within(shape))
    patch = draw(st.tuples(*[st.integers(1, 6)] * 3))
    margin = draw(st.tuples(*[st.integers(0, 6)] * 3))
    return shape, region, patch, margin


@settings(max_examples=60)
@given(case=cases(), seed=SEEDS, step=st.integers(0, 10**9), item=st.integers(0, 63))
def test_patches_are_what_the_volume_holds_there(case, seed, step, item):
    shape, region, patch, margin = case
    data = position_coded(shape)
    labels = (data % 3).astype(np.uint8)
    source = LabelledRegion(image=in_memory(data), labels=in_memory(labels), region=region)
    sampler = sampler_of([source], SEMANTIC, patch, margin, wanted=(1, 2))
    drawn = sampler.draw(generator(seed, step, item))

    # Inside the region; where the region is shorter than the patch, the patch covers it.
    for low, high, start, stop in zip(drawn.box.lower, drawn.box.upper, region.lower, region.upper):
        assert (start <= low and high <= stop) or (low <= start and stop <= high)
    assert drawn.box.shape == patch
    read = drawn.box.grow(margin, margin)
    np.testing.assert_array_equal(drawn.image[0], mirror(data, read))
    expected = np.full(patch, IGNORE)
    inside = drawn.box.intersect(region)
    expected[inside.relative_to(drawn.box.lower).slices] = labels[inside.slices]
    np.testing.assert_array_equal(drawn.classes, expected)

    again = sampler.draw(generator(seed, step, item))
    assert again.box == drawn.box
    np.testing.assert_array_equal(again.image, drawn.image)


def test_patches_do_not_depend_on_who_draws_them_and_when():
    rng = np.random.default_rng(0)
    data = rng.integers(0, 255, (30, 30, 30)).astype(np.uint8)
    source = LabelledRegion.whole(in_memory(data), in_memory((data > 250).astype(np.uint8)))
    sampler = sampler_of([source])
    keys = [(step, item) for step in range(20) for item in range(2)]

    def box(key: tuple[int, int]) -> Box:
        return sampler.draw(generator(5, *key)).box

    in_order = [box(key) for key in keys]
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(box, keys)) == in_order
    assert [box(key) for key in reversed(keys)] == in_order[::-1]
    assert len(set(in_order)) > 35  # and they differ
    assert [sampler.draw(generator(6, *key)).box for key in keys] != in_order


def test_every_position_of_a_region_is_drawn():
    shape = (7, 6, 5)
    region = Box((1, 0, 2), (6, 6, 5))
    source = LabelledRegion(
        image=in_memory(np.zeros(shape, np.uint8)), labels=in_memory(np.ones(shape, np.uint8)), region=region
    )
    sampler = sampler_of([source], patch=(3, 3, 3))
    lowers = {sampler.place(generator(0, step, 0))[1].lower for step in range(600)}
    assert lowers == {(z, y, x) for z in (1, 2, 3) for y in (0, 1, 2, 3) for x in (2,)}


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_share_of_patches_with_foreground(share):
    labels = np.zeros((40, 40, 40), np.uint8)
    labels[:12, :12] = 7  # about a tenth of the positions meet it
    volume = in_memory(labels, chunks=labels.shape)
    source = LabelledRegion.whole(volume, volume)
    plain = sampler_of([source], foreground=0.0)
    asked = sampler_of([source], foreground=share, redraws=60)
    steps = range(300)
    by_chance = np.mean([plain.place(generator(0, s, 0))[2].any() for s in steps])
    assert 0.05 < by_chance < 0.25
    found = np.mean([asked.place(generator(1, s, 0))[2].any() for s in steps])
    expected = share + (1 - share) * by_chance
    assert found == pytest.approx(expected, abs=0.08)  # 3 standard deviations of 300 draws


def test_rare_classes_are_wanted_as_much_as_frequent_ones():
    labels = np.ones((1, 60, 60), np.uint8)
    labels[0, 30, 30] = 2  # 64 of the 53 x 53 positions meet it
    volume = in_memory(labels, chunks=labels.shape)
    source = LabelledRegion.whole(volume, volume)
    sampler = sampler_of([source], SEMANTIC, (1, 8, 8), (0, 2, 2), foreground=1.0, wanted=(1, 2), redraws=150)
    share = np.mean([(sampler.place(generator(0, s, 0))[2] == 2).any() for s in range(80)])
    assert 0.33 < share < 0.67


def test_redraws_are_bounded_and_read_labels_only():
    class Counting(Volume):
        reads = 0

        def read(self, box):
            Counting.reads += 1
            return super().read(box)

    labels = np.zeros((20, 20, 20), np.uint8)
    volume = in_memory(labels)
    counted = Counting(**{name: getattr(volume, name) for name in Volume.__dataclass_fields__})
    source = LabelledRegion.whole(in_memory(labels), counted)
    sampler = sampler_of([source], foreground=1.0, redraws=6)
    sampler.draw(generator(0, 0, 0))
    assert Counting.reads == 7


def test_sources_are_drawn_by_the_size_of_their_regions():
    volume = in_memory(np.ones((10, 20, 30), np.uint8))
    sources = [  # one voxel and three: an error by one would show
        LabelledRegion(image=volume, labels=volume, region=Box((2, 3, 4), upper))
        for upper in ((3, 4, 5), (3, 4, 7))
    ]
    sampler = sampler_of(sources)
    drawn = np.mean([sampler.place(generator(0, s, 0))[0] for s in range(400)])
    assert drawn == pytest.approx(0.75, abs=0.07)


def test_each_source_is_normalised_by_its_own_scale():
    image = np.full((6, 6, 6), 10, np.uint8)
    source = LabelledRegion.whole(in_memory(image), in_memory(image))
    sampler = Sampler(
        sources=(source, source),
        scales=(Scale((0.0,), (10.0,)), Scale((10.0,), (1.0,))),
        labelling=FOREGROUND,
        patch=(2, 2, 2),
        margin=(1, 1, 1),
    )
    seen = {(p.source, float(p.image.max())) for p in (sampler.draw(generator(0, s, 0)) for s in range(20))}
    assert seen == {(0, 1.0), (1, 0.0)}


def test_boundaries_at_the_region_face_come_from_the_label_beyond_it():
    labels = np.ones((6, 1, 1), np.uint16)
    labels[3:] = 2
    source = LabelledRegion(
        image=in_memory(labels), labels=in_memory(labels), region=Box((0, 0, 0), (3, 1, 1))
    )
    labelling = Labelling(target="boundary", classes=2)
    assert labelling.read(source, Box((0, 0, 0), (4, 1, 1)))[:, 0, 0].tolist() == [0, 0, 1, IGNORE]
    flat = Labelling(target="boundary", classes=2, planar=True)
    assert not flat.read(source, Box((0, 0, 0), (3, 1, 1))).any()


def test_probe_counts_classes_and_finds_the_only_voxel():
    labels = np.zeros((40, 40, 40), np.uint8)
    labels[39, 39, 39] = 2
    source = LabelledRegion.whole(in_memory(labels), in_memory(labels))
    assert SEMANTIC.probe([source]).tolist() == [40**3 - 1, 0, 1]
    everywhere = in_memory(np.ones_like(labels))
    looked = SEMANTIC.probe([LabelledRegion.whole(everywhere, everywhere)], voxels=10_000)
    assert 5_000 < looked.sum() <= 40_000


def test_bad_regions_are_refused():
    image = in_memory(np.zeros((6, 6, 6), np.uint8))
    labels = in_memory(np.zeros((6, 6, 5), np.uint8))
    with pytest.raises(InputError, match="differ in shape"):
        LabelledRegion.whole(image, labels)
    with pytest.raises(InputError, match="beyond the volume"):
        LabelledRegion(image=image, labels=image, region=Box((0, 0, 0), (6, 7, 6)))
    with pytest.raises(InputError, match="empty"):
        LabelledRegion(image=image, labels=image, region=Box((1, 1, 1), (1, 3, 3)))
    with pytest.raises(InputError, match="integers"):
        LabelledRegion.whole(image, in_memory(np.zeros((6, 6, 6), np.float32)))


def test_labels_without_a_class_are_refused():
    image = in_memory(np.zeros((6, 6, 6), np.uint8))
    high = LabelledRegion.whole(image, in_memory(np.full((6, 6, 6), 4, np.uint8)))
    with pytest.raises(InputError, match="class 4"):
        SEMANTIC.probe([high])
    with pytest.raises(DataError, match="class 4"):
        sampler_of([high], SEMANTIC).draw(generator(0, 0, 0))
    empty = LabelledRegion.whole(image, image)
    with pytest.raises(InputError, match="only background"):
        FOREGROUND.probe([empty, empty])
    unlabelled = LabelledRegion.whole(image, image, ignore=0)
    with pytest.raises(InputError, match="nothing is labelled"):
        FOREGROUND.probe([unlabelled])
    # One region of background among others is a legitimate example.
    mixed = LabelledRegion.whole(image, in_memory(np.ones((6, 6, 6), np.uint8)))
    assert FOREGROUND.probe([empty, mixed]).tolist() == [216, 216]


def test_nan_fails_by_name():
    image = np.zeros((6, 6, 6), np.float32)
    image[3, 2, 1] = np.nan
    source = LabelledRegion.whole(in_memory(image), in_memory(np.ones((6, 6, 6), np.uint8)))
    with pytest.raises(DataError, match=r"\(3, 2, 1\)"):
        sampler_of([source], patch=(6, 6, 6), margin=(0, 0, 0)).draw(generator(0, 0, 0))


def test_overlap_is_of_voxels_of_one_image():
    image, other = (in_memory(np.zeros((9, 9, 9), np.uint8), name=name) for name in "ab")
    first = LabelledRegion(image=image, labels=image, region=Box((0, 0, 0), (5, 9, 9)))
    second = LabelledRegion(image=image, labels=image, region=Box((5, 0, 0), (9, 9, 9)))
    assert not first.overlaps(second)
    assert first.overlaps(LabelledRegion.whole(image, image))
    assert not first.overlaps(LabelledRegion.whole(other, other))
