"""Labelled regions and what their labels mean: classes, and border maps that no cell and no cache changes."""

from __future__ import annotations

import pickle
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from threading import Event

import numpy as np
import pytest
import zarr
from hypothesis import given
from hypothesis import strategies as st
from strategies import SEEDS, boxes_within, in_memory

from unet_core.errors import DataError, InputError
from unet_core.geometry import Box
from unet_core.labelling import PROBE_VOXELS, LabelledRegion, Labelling, spread
from unet_core.recent import Recent
from unet_core.targets import IGNORE
from unet_core.volumes import Volume
from unet_core.weight_map import BorderWeight

SEMANTIC = Labelling(target="semantic", classes=3)
FOREGROUND = Labelling(target="foreground", classes=2)
NARROW = BorderWeight(sigma=1.0)  # in 3D its map has cells of 64 voxels


def speckles(shape: tuple[int, ...], seed: int) -> np.ndarray:
    """Small objects; id 9 stands for voxels that nobody labelled."""
    rng = np.random.default_rng(seed)
    return np.where(rng.random(shape) < 0.02, rng.integers(1, 10, shape), 0).astype(np.uint16)


def watched(volume: Volume) -> tuple[Volume, list[Box]]:
    """The volume, and the boxes that will have been read from it."""
    boxes: list[Box] = []

    class Watched(Volume):
        def read(self, box):
            boxes.append(box)
            return super().read(box)

    return Watched(**{name: getattr(volume, name) for name in Volume.__dataclass_fields__}), boxes


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


@pytest.mark.parametrize("target", ["boundary", "interior-boundary", "separated", "foreground"])
@pytest.mark.parametrize("planar", [False, True])
def test_a_labelled_crop_in_a_volume_of_zeros_has_no_boundary_at_its_faces(target, planar):
    """Its faces are no membranes: the classes are those that the crop has by itself."""
    crop = np.repeat(np.repeat(np.arange(1, 19).reshape(2, 3, 3), 4, 1), 4, 2).repeat(3, 0).astype(np.uint16)
    crop[2, 5, :] = 0
    around = np.pad(crop, 3)
    region = Box.of_shape(crop.shape).shift((3, 3, 3))
    source = LabelledRegion(image=in_memory(around), labels=in_memory(around), region=region)
    alone = LabelledRegion.whole(in_memory(crop), in_memory(crop))
    labelling = Labelling(target=target, classes=3 if target == "interior-boundary" else 2, planar=planar)
    expected = labelling.read(alone, alone.region)
    np.testing.assert_array_equal(labelling.read(source, region), expected)
    part = Box((2, 0, 3), (6, 7, 12))
    np.testing.assert_array_equal(labelling.read(source, part.shift((3, 3, 3))), expected[part.slices])


def test_planes_that_stand_alone_are_read_alone():
    labels, read = watched(in_memory(speckles((9, 12, 13), 0)))
    source = LabelledRegion.whole(labels, labels)
    flat = Labelling(target="separated", classes=2, planar=True, border=NARROW, cache_bytes=0)
    box = Box((4, 0, 0), (5, 12, 13))
    flat.read(source, box)
    flat.border_of(source, box)
    assert {(b.lower[0], b.upper[0]) for b in read} == {(4, 5)}


def test_probe_counts_classes_and_finds_the_only_voxel():
    labels = np.zeros((40, 40, 40), np.uint8)
    labels[39, 39, 39] = 2
    source = LabelledRegion.whole(in_memory(labels), in_memory(labels))
    assert SEMANTIC.probe([source]).tolist() == [40**3 - 1, 0, 1]
    everywhere = in_memory(np.ones_like(labels))
    looked = SEMANTIC.probe([LabelledRegion.whole(everywhere, everywhere)], voxels=10_000)
    assert 5_000 < looked.sum() <= 40_000


@pytest.mark.parametrize(
    "chunk", [(1, 8192, 8192), (1, 4096, 4096), (1, 256, 256), (64, 64, 64), (1024, 1024, 1024)]
)
def test_a_bounded_part_is_looked_at_whatever_the_chunks(chunk):
    array = zarr.create_array({}, shape=(1024, 8192, 8192), chunks=chunk, dtype=np.uint8)
    volume = replace(in_memory(np.zeros((1, 1, 1), np.uint8)), array=array, shape=array.shape)
    found = list(spread(LabelledRegion.whole(volume, volume), PROBE_VOXELS))
    assert 2**25 < sum(box.size for box in found) <= PROBE_VOXELS
    assert max(box.size for box in found) <= 2**23


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


def test_overlap_is_of_voxels_of_one_image():
    image, other = (in_memory(np.zeros((9, 9, 9), np.uint8), name=name) for name in "ab")
    first = LabelledRegion(image=image, labels=image, region=Box((0, 0, 0), (5, 9, 9)))
    second = LabelledRegion(image=image, labels=image, region=Box((5, 0, 0), (9, 9, 9)))
    assert not first.overlaps(second)
    assert first.overlaps(LabelledRegion.whole(image, image))
    assert not first.overlaps(LabelledRegion.whole(other, other))


def test_labels_without_a_class_are_refused_by_name():
    image = in_memory(np.zeros((6, 6, 6), np.uint8))
    labels = np.full((6, 6, 6), 4, np.uint8)
    labels[3:] = 7
    high = LabelledRegion.whole(image, in_memory(labels, name="nuclei"))
    with pytest.raises(InputError, match=r"nuclei(.|\n)*classes 4, 7"):
        SEMANTIC.probe([high])
    with pytest.raises(DataError, match="class 4"):
        SEMANTIC.read(high, Box((0, 0, 0), (2, 6, 6)))
    assert Labelling(target="semantic", classes=8).probe([high])[[4, 7]].tolist() == [108, 108]


def test_regions_without_anything_to_learn_are_refused():
    image = in_memory(np.zeros((6, 6, 6), np.uint8))
    empty = LabelledRegion.whole(image, image)
    with pytest.raises(InputError, match="only background"):
        FOREGROUND.probe([empty, empty])
    unlabelled = LabelledRegion.whole(image, image, ignore=0)
    with pytest.raises(InputError, match="nothing is labelled"):
        FOREGROUND.probe([unlabelled])
    # One region of background among others is a legitimate example.
    mixed = LabelledRegion.whole(image, in_memory(np.ones((6, 6, 6), np.uint8)))
    assert FOREGROUND.probe([empty, mixed]).tolist() == [216, 216]


@st.composite
def bordered(draw: st.DrawFn):
    """A region that meets up to four cells of its border map, and a box that may reach beyond it."""
    shape = draw(st.sampled_from([(6, 80, 80), (70, 8, 70)]))
    region = draw(boxes_within(shape))
    margin = draw(st.tuples(*[st.integers(0, 5)] * 3))
    box = draw(boxes_within(region.shape)).shift(region.lower).grow(margin, margin)
    labels = in_memory(speckles(shape, draw(SEEDS)), chunks=(40, 40, 40))
    source = LabelledRegion(
        image=replace(labels, voxel_size=draw(st.sampled_from([(1.0, 1.0, 1.0), (5.0, 2.0, 2.0)]))),
        labels=labels,
        region=region,
        ignore=draw(st.sampled_from([None, 9])),
    )
    target = draw(st.sampled_from(["foreground", "separated", "boundary", "interior-boundary"]))
    classes = 3 if target == "interior-boundary" else 2
    return source, box, Labelling(target=target, classes=classes, planar=draw(st.booleans()), border=NARROW)


@given(case=bordered())
def test_a_boxs_border_is_that_of_the_whole_region_cut_out(case):
    source, box, labelling = case
    region = source.region
    labels = source.labels.read(region)[0]
    classes = labelling.read(source, region)
    # "separated" leaves less of its objects; the others leave them whole.
    objects = classes == 1 if labelling.target == "separated" else labels > 0
    ids = np.where(objects & (classes != IGNORE), labels, 0)
    whole = NARROW.of(ids, source.image.voxel_size, planar=labelling.planar)
    whole[classes == IGNORE] = 0
    expected = np.zeros(box.shape, np.float32)
    inside = box.intersect(region)
    expected[inside.relative_to(box.lower).slices] = whole[inside.relative_to(region.lower).slices]

    cached = labelling.border_of(source, box)
    assert cached.dtype == np.float32
    np.testing.assert_array_equal(cached, expected)
    np.testing.assert_array_equal(labelling.border_of(source, box), expected)
    np.testing.assert_array_equal(replace(labelling, cache_bytes=0).border_of(source, box), expected)


def test_planes_of_2d_networks_have_cells_of_their_own():
    labels = in_memory(speckles((2, 12, 530), 0), chunks=(1, 12, 200))
    source = LabelledRegion.whole(labels, labels)
    labelling = Labelling(target="separated", classes=2, planar=True, border=NARROW)
    ids = np.where(labelling.read(source, source.region) == 1, labels.read(labels.box)[0], 0)
    found = labelling.border_of(source, labels.box)
    np.testing.assert_array_equal(found, NARROW.of(ids, (1.0,) * 3, planar=True))
    assert (found > 0).any(axis=(1, 2)).all()


def test_without_a_border_weight_there_is_no_map_and_without_objects_no_weight():
    labels = in_memory(speckles((4, 5, 6), 0))
    assert FOREGROUND.border_of(LabelledRegion.whole(labels, labels), labels.box) is None
    with pytest.raises(InputError, match="needs objects"):
        Labelling(target="semantic", classes=3, border=BorderWeight())


def test_threads_compute_a_cell_once_and_agree():
    labels, read = watched(in_memory(speckles((4, 130, 130), 0), chunks=(4, 130, 130)))
    source = LabelledRegion.whole(labels, labels)
    labelling = Labelling(target="foreground", classes=2, border=NARROW)
    boxes = [Box((0, y, x), (4, y + 50, x + 50)) for y in range(0, 80, 16) for x in range(0, 80, 16)]
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda box: labelling.border_of(source, box), boxes))
    assert len(read) == 4  # cells of 64 voxels, and the boxes end at 114
    alone = replace(labelling, cache_bytes=0)
    for box, values in zip(boxes, found):
        np.testing.assert_array_equal(values, alone.border_of(source, box))


def test_regions_too_large_for_the_cache_are_not_computed_beyond_the_box():
    labels = in_memory(np.zeros((1, 2000, 2000), np.uint8), chunks=(1, 500, 500))
    labelling = Labelling(target="foreground", classes=2, border=NARROW, cache_bytes=2**20)
    volume, read = watched(labels)
    source = LabelledRegion.whole(labels, volume)
    labelling.border_of(source, Box((0, 1000, 1000), (1, 1010, 1010)))
    assert read == [Box((-1, 993, 993), (2, 1017, 1017))]  # 6 sigma, and the targets' margin


def test_recent_arrays_fill_no_more_than_their_bytes_and_the_oldest_goes_first():
    recent, made = Recent(100), []

    def get(key: int, size: int = 40) -> np.ndarray:
        return recent.get("owner", key, lambda: made.append(key) or np.full(size, key, np.uint8))

    for key in (1, 2, 1, 3):  # 2 was used longest ago
        assert (get(key) == key).all()
        assert recent.held <= 100
    assert made == [1, 2, 3]
    get(1)
    get(2)
    assert made == [1, 2, 3, 2]
    get(4, size=101)
    assert recent.held <= 100
    assert pickle.loads(pickle.dumps(recent)).capacity == 100


def test_owners_are_told_apart_by_identity_also_after_their_death():
    recent = Recent(2**20)
    for k in range(50):  # a dead owner's address is soon given away again
        assert recent.get([k], "key", lambda k=k: np.array([k])) == [k]


def test_a_failure_reaches_all_who_wait_and_is_not_kept():
    recent, begun, go_on = Recent(100), Event(), Event()

    def fail():
        begun.set()
        go_on.wait()
        raise DataError("a corrupt chunk")

    with ThreadPoolExecutor(2) as pool:
        asked = [pool.submit(recent.get, "owner", 0, fail)]
        begun.wait()
        asked.append(pool.submit(recent.get, "owner", 0, fail))
        go_on.set()
        for future in asked:
            with pytest.raises(DataError, match="corrupt"):
                future.result()
    assert recent.get("owner", 0, lambda: np.array([5])) == [5]
