"""Patches lie in their regions, hold what was asked for, and follow from (seed, step, item) alone."""

from __future__ import annotations

import json
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
import torch
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import SEEDS, boxes_within, mirror, random_network

from unet_core import placement
from unet_core.architecture import UNetSpec
from unet_core.augment import AugmentSettings
from unet_core.errors import DataError, InputError
from unet_core.geometry import Box
from unet_core.labelling import LabelledRegion, Labelling
from unet_core.normalisation import Scale
from unet_core.placement import Places, find_places
from unet_core.sampling import Patch, Sampler, generator
from unet_core.targets import IGNORE
from unet_core.tiling import Footprint
from unet_core.volumes import Volume
from unet_core.weight_map import BorderWeight

NONE = AugmentSettings.none()
WARPED = AugmentSettings(deformed=1.0, brightness=0, contrast=0, gamma=0, noise=0, blur=0)
SEMANTIC = Labelling(target="semantic", classes=3)
FOREGROUND = Labelling(target="foreground", classes=2)
CONTEXT = Footprint(stride=(1, 1, 1), lower=(2, 3, 1), upper=(1, 2, 2))


def in_memory(data: np.ndarray, *, chunks=(16, 17, 18), voxel_size=(1.0,) * 3, name="memory") -> Volume:
    """A (z, y, x) or (c, z, y, x) volume without a folder: Hypothesis makes many."""
    chunks = (1,) * (data.ndim - 3) + tuple(min(c, n) for c, n in zip(chunks, data.shape[-3:]))
    return virtual(zarr.create_array({}, data=data, chunks=chunks), voxel_size=voxel_size, name=name)


def virtual(array: zarr.Array, *, voxel_size=(1.0,) * 3, name: str = "memory") -> Volume:
    return Volume(
        url=name,
        path="",
        axes="czyx"[4 - array.ndim :],
        shape=array.shape[-3:],
        dtype=array.dtype,
        channels=tuple(range(array.shape[0])) if array.ndim == 4 else (0,),
        timepoint=0,
        voxel_size=voxel_size,
        origin=(0.0,) * 3,
        unit=None,
        metadata_digest="",
        array=array,
    )


def sampler_of(regions, labelling=FOREGROUND, patch=(4, 4, 4), augment=NONE, **options) -> Sampler:
    channels = len(regions[0].image.channels)
    objects = options.get("balance") == "object"
    return Sampler(
        sources=tuple(regions),
        labelling=labelling,
        patch=patch,
        augment=augment,
        places=find_places(labelling, regions, objects=objects),
        **{
            "scales": (Scale((0.0,) * channels, (1.0,) * channels),) * len(regions),
            "footprint": CONTEXT,
            **options,
        },
    )


def draws(sampler: Sampler, count: int, seed: int = 0) -> list[Patch]:
    return [sampler.draw(generator(seed, step, 0)) for step in range(count)]


@pytest.fixture(autouse=True, scope="module")
def _compiled() -> None:
    """Outside of Hypothesis, which traces what it calls: compiling took it a minute."""
    volume = in_memory(np.ones((9, 9, 9), np.uint8))
    sampler_of([LabelledRegion.whole(volume, volume)], augment=WARPED).draw(generator(0, 0, 0))


@st.composite
def cases(draw: st.DrawFn):
    shape = draw(st.tuples(*[st.integers(1, 14)] * 3))
    region = draw(boxes_within(shape))
    patch = draw(st.tuples(*[st.integers(1, 6)] * 3))
    context = Footprint(
        stride=(1, 1, 1),
        lower=draw(st.tuples(*[st.integers(0, 6)] * 3)),
        upper=draw(st.tuples(*[st.integers(0, 6)] * 3)),
    )
    return shape, region, patch, context


@settings(max_examples=40)
@given(case=cases(), seed=SEEDS, step=st.integers(0, 10**9), item=st.integers(0, 63))
def test_patches_are_what_the_volume_holds_there(case, seed, step, item):
    shape, region, patch, context = case
    data = np.arange(np.prod(shape), dtype=np.int32).reshape(shape)
    labels = (1 + data % 2).astype(np.uint8)
    source = LabelledRegion(image=in_memory(data), labels=in_memory(labels), region=region)
    sampler = sampler_of([source], SEMANTIC, patch, footprint=context)
    drawn = sampler.draw(generator(seed, step, item))

    # Inside the region; where the region is shorter than the patch, the patch covers it.
    for low, high, start, stop in zip(drawn.box.lower, drawn.box.upper, region.lower, region.upper):
        assert (start <= low and high <= stop) or (low <= start and stop <= high)
    assert drawn.box.shape == patch
    np.testing.assert_array_equal(drawn.image[0], mirror(data, drawn.box.grow(context.lower, context.upper)))
    expected = np.full(patch, IGNORE)
    inside = drawn.box.intersect(region)
    expected[inside.relative_to(drawn.box.lower).slices] = labels[inside.slices]
    np.testing.assert_array_equal(drawn.classes, expected)
    assert drawn.border is None

    again = sampler.draw(generator(seed, step, item), augmented=False)
    assert again.box == drawn.box
    assert sampler.where(generator(seed, step, item)) == f"{source.image.url} in {drawn.box}"
    np.testing.assert_array_equal(again.image, drawn.image)


@settings(max_examples=20)
@given(
    seed=SEEDS,
    flat=st.booleans(),
    voxel_size=st.sampled_from([(1.0, 1.0, 1.0), (2.0, 1.0, 1.0), (5.0, 1.0, 1.0)]),
    region=st.sampled_from([Box((6, 6, 6), (30, 30, 30)), Box((10, 9, 8), (14, 15, 30))]),
)
def test_labels_stay_aligned_and_end_with_the_region(seed, flat, voxel_size, region):
    """The image holds its own coordinate, the labels the same in cells of 6 voxels; outside the region they
    hold a class that the network does not have: one read of it would be an error."""
    shape = (36, 36, 36)
    where = np.indices(shape)
    cells = (1 + where[0] // 6 * 36 + where[1] // 6 * 6 + where[2] // 6).astype(np.uint8)
    labels = np.full(shape, 254, np.uint8)
    labels[region.slices] = cells[region.slices]
    source = LabelledRegion(
        image=in_memory(where.astype(np.uint8), chunks=shape, voxel_size=voxel_size),
        labels=in_memory(labels, chunks=shape),
        region=region,
    )
    sampler = sampler_of(
        [source],
        Labelling(target="semantic", classes=217, planar=flat),
        (1, 7, 7) if flat else (5, 6, 6),
        WARPED,
        footprint=replace(CONTEXT, lower=(0, 3, 1), upper=(0, 2, 2)) if flat else CONTEXT,
    )
    for step in range(2):
        drawn = sampler.draw(generator(seed, step, 0))
        lower = sampler.footprint.lower
        places = drawn.image[(slice(None), *(slice(a, a + n) for a, n in zip(lower, drawn.classes.shape)))]
        faces = np.reshape(region.lower, (3, 1, 1, 1)), np.reshape(region.upper, (3, 1, 1, 1)) - 1
        inside = ((places > faces[0] - 0.499) & (places < faces[1] + 0.499)).all(axis=0)
        outside = ((places < faces[0] - 0.501) | (places > faces[1] + 0.501)).any(axis=0)
        labelled = drawn.classes != IGNORE
        assert labelled[inside].all()
        assert not labelled[outside].any()
        code = drawn.classes.astype(int) - 1
        for axis, found in enumerate((code // 36, code // 6 % 6, code % 6)):
            away = np.abs(places[axis] - (found * 6 + 2.5))
            assert away[labelled].max(initial=0) <= 3.001  # half a cell


def test_patches_do_not_depend_on_who_draws_them_and_when():
    rng = np.random.default_rng(0)
    data = rng.integers(0, 255, (30, 30, 30)).astype(np.uint8)
    labels = (data > 250).astype(np.uint8)
    source = LabelledRegion.whole(in_memory(data), in_memory(labels))
    options = {"augment": AugmentSettings(missing_slices=0.1, shifted_slices=0.1)}
    bordered = Labelling(target="foreground", classes=2, border=BorderWeight(sigma=1.0))
    sampler = sampler_of([source], bordered, **options)
    keys = [(step, item) for step in range(10) for item in range(2)]

    def patch(key: tuple[int, int], of: Sampler = sampler, seed: int = 5) -> tuple[Box, bytes, bytes, bytes]:
        drawn = of.draw(generator(seed, *key))
        assert drawn.border is not None
        return drawn.box, drawn.image.tobytes(), drawn.classes.tobytes(), drawn.border.tobytes()

    in_order = [patch(key) for key in keys]
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(patch, keys)) == in_order
    assert [patch(key) for key in reversed(keys)] == in_order[::-1]
    assert [patch(key, sampler_of([source], bordered, **options)) for key in keys] == in_order
    assert len(set(in_order)) == len(keys)  # and they differ
    assert [patch(key, seed=6) for key in keys] != in_order


@pytest.mark.parametrize("augment", [NONE, WARPED])
@pytest.mark.parametrize("ndim", [2, 3])
def test_the_image_is_what_the_network_wants(ndim, augment, one_thread):
    """The output covers the patch, and its surplus is less than one stride."""
    spec = UNetSpec.build(ndim=ndim, depth=2, base=2, upsampling="nearest")
    volume = in_memory(np.ones((1 if ndim == 2 else 20, 40, 40), np.uint8))
    footprint = Footprint.of(spec)
    patch = (1, 8, 12) if ndim == 2 else (8, 4, 8)
    source = LabelledRegion.whole(volume, volume)
    drawn = sampler_of([source], FOREGROUND, patch, augment, footprint=footprint).draw(generator(0, 0, 0))
    image = torch.from_numpy(drawn.image[:, 0] if ndim == 2 else drawn.image)
    with torch.no_grad():
        output = random_network(spec, 0)(image[None])
    for got, wanted, stride in zip(output.shape[2:], patch[3 - ndim :], spec.stride):
        assert wanted <= got < wanted + stride


def test_border_weights_move_with_the_classes():
    """Two objects and the gap between them: after any warp, weights lie in the gap and nowhere else."""
    labels = np.zeros((1, 60, 60), np.uint8)
    labels[0, :, 10:28], labels[0, :, 32:50] = 1, 2
    labelling = Labelling(target="foreground", classes=2, planar=True, border=BorderWeight())
    source = LabelledRegion.whole(in_memory(labels), in_memory(labels))
    flat = replace(CONTEXT, lower=(0, 2, 2), upper=(0, 2, 2))
    sampler = sampler_of([source], labelling, (1, 32, 32), WARPED, footprint=flat, foreground=0.0)
    met = 0
    for drawn in draws(sampler, 30):
        assert drawn.border is not None
        assert drawn.border.shape == drawn.classes.shape
        assert drawn.border.dtype == np.float32
        strong = drawn.border > 3.5  # 6.1 in the gap; halfway into an object 3.05
        met += strong.any()
        assert (drawn.classes[strong] == 0).all()
    assert met > 10


@pytest.mark.parametrize("room", [1.0, 1.5, 3.0])
def test_border_maps_that_do_not_fit_together_are_computed_box_by_box(room):
    """Cells of 64 voxels would be computed for every patch, and dropped before the next one."""
    labels = np.tile(np.kron(np.eye(2), np.ones((30, 30))), (1, 2, 2)).astype(np.uint8)
    whole = in_memory(labels)
    regions = [LabelledRegion.whole(whole, whole) for _ in range(3)]
    labelling = Labelling(target="foreground", classes=2, border=BorderWeight(sigma=1.0))
    limited = replace(labelling, cache_bytes=int(room * labels.size * 4))
    sampler, unlimited = (sampler_of(regions, known) for known in (limited, labelling))
    for one, other in zip(draws(sampler, 20), draws(unlimited, 20)):
        np.testing.assert_array_equal(one.border, other.border)
    assert bool(sampler._borders.cache_bytes) == (room == 3.0)


def test_every_position_of_a_region_is_drawn():
    shape = (7, 6, 5)
    region = Box((1, 0, 2), (6, 6, 5))
    volume = in_memory(np.ones(shape, np.uint8))
    source = LabelledRegion(image=volume, labels=volume, region=region)
    for share in (0.0, 1.0):
        sampler = sampler_of([source], patch=(3, 3, 3), foreground=share)
        lowers = {drawn.box.lower for drawn in draws(sampler, 250)}
        assert lowers == {(z, y, x) for z in (1, 2, 3) for y in (0, 1, 2, 3) for x in (2,)}


@pytest.mark.parametrize("augment", [NONE, WARPED])
@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_share_of_patches_with_foreground(share, augment):
    labels = np.zeros((30, 40, 40), np.uint8)
    labels[:, 20, 20] = 7
    volume = in_memory(labels, chunks=labels.shape)
    sampler = sampler_of([LabelledRegion.whole(volume, volume)], augment=augment, foreground=share)
    # By chance: 16 of 37 x 37 positions, 1.2 %
    found = np.mean([(drawn.classes == 1).any() for drawn in draws(sampler, 120)])
    assert found == pytest.approx(share + (1 - share) * 0.012, abs=0.14)  # 3 standard deviations
    if share == 1:
        assert found == 1


def test_rare_classes_are_drawn_as_often_as_frequent_ones():
    """1 voxel in 3600 beside a class that is everywhere; in two sources, only one of which has it."""
    labels = np.ones((1, 60, 60), np.uint8)
    common = in_memory(labels.copy())
    labels[0, 30, 30] = 2
    rare = in_memory(labels)
    sources = [LabelledRegion.whole(volume, volume) for volume in (common, rare)]
    sampler = sampler_of(sources, SEMANTIC, (1, 1, 1), foreground=1.0)
    patches = draws(sampler, 300)
    assert np.mean([drawn.classes[0, 0, 0] == 2 for drawn in patches]) == pytest.approx(0.5, abs=0.09)
    ones = [drawn.source for drawn in patches if drawn.classes[0, 0, 0] == 1]
    assert np.mean(ones) == pytest.approx(0.5, abs=0.13)


def test_objects_are_drawn_evenly_whatever_their_size():
    labels = np.zeros((4, 30, 30), np.uint16)
    labels[:, :20] = 9
    labels[0, 25, 25], labels[3, 29, 0] = 500, 70
    volume = in_memory(labels)
    source = LabelledRegion.whole(volume, volume)
    sampler = sampler_of([source], patch=(1, 1, 1), foreground=1.0, balance="object")
    met = [int(labels[drawn.box.lower]) for drawn in draws(sampler, 300)]
    for k in (9, 70, 500):
        assert np.mean(np.equal(met, k)) == pytest.approx(1 / 3, abs=0.085)
    assert len({drawn.box for drawn in draws(sampler, 100)}) > 6  # of the large one, several voxels


def test_sources_are_drawn_by_size_and_weight():
    volume = in_memory(np.ones((10, 20, 30), np.uint8))
    sources = [  # one voxel and three: an error by one would show
        LabelledRegion(image=volume, labels=volume, region=Box((2, 3, 4), upper))
        for upper in ((3, 4, 5), (3, 4, 7))
    ]
    for weights, share in ((None, 0.75), ((3.0, 1.0), 0.5), ((1.0, 0.0), 0.0)):
        for foreground in (0.0, 1.0):
            sampler = sampler_of(sources, weights=weights, foreground=foreground)
            drawn = np.mean([patch.source for patch in draws(sampler, 150)])
            assert drawn == pytest.approx(share, abs=0.125)


def test_sources_may_differ_in_size_scale_and_voxels():
    """Each is normalised by its own scale, and turned as its own voxels allow."""
    image = np.full((6, 6, 6), 10, np.uint8)
    coded = np.indices((30, 20, 20))[0].astype(np.uint8)
    sources = [
        LabelledRegion.whole(in_memory(data, voxel_size=size), in_memory(np.ones(data.shape, np.uint8)))
        for data, size in ((image, (1.0, 1.0, 1.0)), (coded, (1.0, 1.0, 1.0)), (coded, (5.0, 1.0, 1.0)))
    ]
    sampler = sampler_of(
        sources,
        augment=WARPED,
        weights=(100.0, 1.0, 1.0),
        scales=(Scale((0.0,), (10.0,)), Scale((0.0,), (1.0,)), Scale((0.0,), (1.0,))),
    )
    patches = draws(sampler, 100)
    assert {float(drawn.image.max()) for drawn in patches if drawn.source == 0} == {1.0}
    mixed = {k: [np.ptp(d.image[0, 3]) > 0 for d in patches if d.source == k] for k in (1, 2)}
    assert any(mixed[1])
    assert mixed[2]
    assert not any(mixed[2])  # its planes are thick sections: they stay planes


@settings(max_examples=20)
@given(seed=SEEDS, objects=st.booleans(), most=st.sampled_from([4, 40, 10**4]))
def test_places_are_what_they_say_and_bounded(seed, objects, most):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 3, (12, 13, 14)).astype(np.uint8) * rng.integers(0, 2, (12, 13, 14), np.uint8)
    labels[3, 3, 3] = 1
    region = Box((1, 2, 0), (11, 13, 12))
    source = LabelledRegion(image=in_memory(labels), labels=in_memory(labels), region=region)
    labelling = Labelling(target="foreground", classes=2) if objects else SEMANTIC
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(placement, "KEPT", most)
        patch.setattr(placement, "_FEWEST", 1)
        places = find_places(labelling, [source], objects=objects)
    inside = labels[region.slices].ravel()
    (found,) = places.sources
    assert found.probed == inside.size
    for k in range(1, labelling.classes):
        true = np.flatnonzero(inside > 0 if objects else inside == k)
        assert found.counts[k] == len(true)
        assert len(found.voxels[k]) == min(most, len(true))
        assert set(found.voxels[k]) <= set(true.tolist())
    if objects:
        assert sum(map(len, found.objects)) <= max(most, max(map(len, found.objects)))
        ids = [{int(inside[v]) for v in voxels} for voxels in found.objects]
        assert all(len(one) == 1 for one in ids)
        assert set.union(*ids) <= {1, 2}
    assert Places.from_dict(json.loads(json.dumps(places.to_dict()))) == places


def test_kept_voxels_and_objects_are_an_even_sample(monkeypatch):
    """Many objects, of 1 voxel or of 64: each is kept as likely, and their number is estimated."""
    labels = np.zeros((1, 256, 256), np.uint32)
    labels[0, :128] = 1 + np.arange(128)[:, None] // 8 * 32 + np.arange(256)[None] // 8  # 512 of 8 x 8
    small = np.flatnonzero(np.arange(128 * 256) % 16 == 0)  # 2048 of one voxel
    labels[0, 128:].ravel()[small] = 1000 + np.arange(len(small))
    volume = in_memory(labels, chunks=(1, 32, 32))
    monkeypatch.setattr(placement, "KEPT", 1200)
    monkeypatch.setattr(placement, "EACH", 2)
    (found,) = find_places(FOREGROUND, [LabelledRegion.whole(volume, volume)], objects=True).sources
    assert 900 < len(found.objects) <= 1200
    assert found.object_count == pytest.approx(2560, rel=0.1)
    large = np.mean([int(labels.ravel()[voxels[0]]) < 1000 for voxels in found.objects])
    assert large == pytest.approx(0.2, abs=0.05)
    above = np.mean(np.array(found.voxels[1]) < 128 * 256)  # 32768 of 34816 foreground voxels
    assert above == pytest.approx(0.941, abs=0.03)


def test_a_terabyte_takes_the_memory_of_little():
    """A virtual volume, 10^12 voxels: what is looked at, kept and read is bounded."""
    shape, chunks = (10_000,) * 3, (64,) * 3
    image, labels = (
        zarr.create_array({}, shape=shape, chunks=chunks, dtype=np.uint8, fill_value=value)
        for value in (7, 1)
    )
    source = LabelledRegion.whole(virtual(image), virtual(labels))
    tracemalloc.start()
    places = find_places(FOREGROUND, [source], objects=True, voxels=2**22)
    sampler = Sampler(
        sources=(source,), scales=(Scale((0.0,), (1.0,)),), labelling=FOREGROUND, footprint=CONTEXT,
        patch=(32, 32, 32), augment=WARPED, places=places, balance="object",
    )  # fmt: skip
    patches = draws(sampler, 6)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 100e6
    assert len(json.dumps(places.to_dict())) < 1e6
    assert len({drawn.box for drawn in patches}) == 6
    assert all((drawn.image == 7).all() and (drawn.classes == 1).all() for drawn in patches)


def test_only_what_a_patch_needs_is_read():
    class Watched(Volume):
        boxes: list[Box] = []  # noqa: RUF012

        def read(self, box):
            Watched.boxes.append(box)
            return super().read(box)

    volume = in_memory(np.ones((40, 60, 60), np.uint8), chunks=(40, 60, 60))
    watched = Watched(**{name: getattr(volume, name) for name in Volume.__dataclass_fields__})
    sampler = sampler_of([LabelledRegion.whole(watched, volume)], augment=WARPED)
    for drawn in draws(sampler, 40):
        assert drawn.image.shape == (1, 7, 9, 7)
    assert len(Watched.boxes) == 40
    assert all(n <= m for box in Watched.boxes for n, m in zip(box.shape, sampler.largest_read))
    assert max(sampler.largest_read) < 30


def test_labels_without_a_class_are_refused():
    image = in_memory(np.zeros((6, 6, 6), np.uint8))
    some = in_memory(np.ones((6, 6, 6), np.uint8))
    high = LabelledRegion.whole(image, in_memory(np.full((6, 6, 6), 4, np.uint8)))
    with pytest.raises(InputError, match="class 4"):
        find_places(SEMANTIC, [high])
    fine = sampler_of([LabelledRegion.whole(image, some)], SEMANTIC)
    with pytest.raises(DataError, match="class 4"):  # the labels were changed while training
        replace(fine, sources=(high,)).draw(generator(0, 0, 0))
    empty = LabelledRegion.whole(image, image)
    with pytest.raises(InputError, match="only background"):
        find_places(FOREGROUND, [empty, empty])
    with pytest.raises(InputError, match="nothing is labelled"):
        find_places(FOREGROUND, [LabelledRegion.whole(image, image, ignore=0)])
    # One region of background among others is a legitimate example.
    mixed = sampler_of([empty, LabelledRegion.whole(image, some)])
    assert mixed.places.counts.tolist() == [216, 216]
    assert {drawn.source for drawn in draws(mixed, 40)} == {0, 1}


def test_settings_that_do_not_go_together_are_refused():
    volume = in_memory(np.ones((6, 6, 6), np.uint8))
    source = LabelledRegion.whole(volume, volume)
    sampler = sampler_of([source])
    for change, expected in (
        ({"weights": (1.0, 2.0)}, "one per source"),
        ({"weights": (0.0,)}, "one above 0"),
        ({"scales": ()}, "one scale per source"),
        ({"foreground": 1.5}, "from 0 to 1"),
        ({"patch": (4, 4)}, "three positive sizes"),
        ({"balance": "size"}, "balance"),
        ({"balance": "object"}, "objects"),  # the places were found without
        ({"labelling": SEMANTIC}, "as many classes"),
    ):
        with pytest.raises(InputError, match=expected):
            replace(sampler, **change)
    with pytest.raises(InputError, match="labels are classes"):
        find_places(SEMANTIC, [source], objects=True)


def test_nan_fails_by_name():
    image = np.zeros((6, 6, 6), np.float32)
    image[3, 2, 1] = np.nan
    source = LabelledRegion.whole(in_memory(image), in_memory(np.ones((6, 6, 6), np.uint8)))
    with pytest.raises(DataError, match=r"\(3, 2, 1\)"):
        sampler_of([source], patch=(6, 6, 6)).draw(generator(0, 0, 0))


def test_real_cells_keep_their_outlines(shared_data):
    """DIC-HeLa: the labels themselves as the image. Warped linearly they are above one half where the classes
    are foreground, but for voxels on outlines."""
    path = shared_data / "ctc_dic_c2dh_hela" / "seq01.npz"
    if not path.is_file():
        pytest.skip(f"needs {path}")
    with np.load(path) as data:
        frame = int(np.flatnonzero(data["has_gt"])[0])
        labels = data["gt"][frame][None]
    image = in_memory((labels > 0).astype(np.uint8), chunks=(1, 512, 512))
    source = LabelledRegion.whole(image, in_memory(labels, chunks=(1, 512, 512)))
    flat = replace(CONTEXT, lower=(0, 30, 30), upper=(0, 30, 30))
    sampler = sampler_of([source], FOREGROUND, (1, 128, 128), WARPED, footprint=flat)
    for drawn in draws(sampler, 10):
        inside = drawn.image[0, :, 30:158, 30:158]
        labelled = drawn.classes != IGNORE
        agree = (inside > 0.5) == (drawn.classes == 1)
        assert agree[labelled & ((inside < 0.01) | (inside > 0.99))].all()
        assert agree[labelled].mean() > 0.985
