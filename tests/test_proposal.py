"""`train --init`: what labels are measured to be, that every proposal can be trained, and real volumes."""

from __future__ import annotations

import tomllib
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage
from strategies import in_memory, write_array

from flows import init
from flows.config import TrainConfig, validate
from flows.training_data import labelled_regions, settings_of, spec_of
from unet_core import training
from unet_core.architecture import UNetSpec
from unet_core.budget import GIB, training_bytes
from unet_core.errors import InputError
from unet_core.geometry import Box
from unet_core.proposal import Choice, ImageFacts, LabelFacts, Machine, measure_labels, propose
from unet_core.volumes import Volume

IMAGE = ImageFacts(
    shape=(100, 200, 300), voxel_size=(10.0, 10.0, 10.0), unit="nanometer", dtype="uint8", channels=1
)
MACHINE = Machine(device="cpu", memory=4 * GIB)
OBJECTS = LabelFacts(
    values={0: 900, **dict.fromkeys(range(1, 41), 10)},
    count=40,
    parts=None,
    background=0.7,
    open_background=0.5,
    boundary=0.1,
    touching=0.0,
    extent=(20.0, 20.0, 20.0),
    continuity=0.9,
    profiles=((1,) * 100, (1,) * 200, (1,) * 300),
    whole=True,
)


def values(choices: tuple[Choice, ...]) -> dict[str, Any]:
    assert all(choice.why for choice in choices)
    return {choice.key: choice.value for choice in choices}


def network(chosen: dict[str, Any], channels: int = 1) -> UNetSpec:
    """As `flows.training_data.spec_of` builds it."""
    return UNetSpec.build(
        ndim=chosen["ndim"],
        depth=chosen["depth"],
        base=chosen["base"],
        in_channels=channels,
        classes=chosen.get("classes") or {"interior-boundary": 3}.get(chosen["target"], 2),
        anisotropic_levels=chosen.get("anisotropic_levels", 0),
        norm=chosen["norm"],
        dropout=0.0,
    )


@st.composite
def facts(draw: st.DrawFn) -> tuple[ImageFacts, LabelFacts, Machine]:
    shape = draw(st.tuples(st.integers(1, 400), st.integers(2, 2000), st.integers(2, 2000)))
    share = st.floats(0, 1)
    sizes = st.tuples(st.floats(0.5, 200), st.floats(1, 20), st.floats(1, 20))
    values = draw(st.dictionaries(st.integers(1, 40), st.integers(1, 1000), min_size=1, max_size=30))
    sparse = draw(st.floats(0.01, 1))
    rng = np.random.default_rng(draw(st.integers(0, 2**16)))
    profiles = [(rng.random(n) < sparse).astype(int) for n in shape]
    for profile in profiles:
        profile[rng.integers(len(profile))] = 1
    labels = LabelFacts(
        values={0: draw(st.integers(1, 5000)), **values},
        count=len(values),
        parts=draw(st.none() | st.floats(1, 50)),
        background=draw(share),
        open_background=draw(share),
        boundary=draw(share),
        touching=draw(share),
        extent=draw(st.none() | st.tuples(*[st.floats(1, 500)] * 3)),
        continuity=draw(share),
        profiles=tuple(tuple(profile.tolist()) for profile in profiles),
        whole=draw(st.booleans()),
    )
    image = ImageFacts(
        shape=shape,
        voxel_size=draw(st.none() | sizes),
        unit=None,
        dtype=draw(st.sampled_from(["uint8", "uint16"])),
        channels=draw(st.sampled_from([1, 3])),
    )
    machine = Machine(
        device=draw(st.sampled_from(["cpu", "cuda"])), memory=draw(st.sampled_from([GIB, 8 * GIB, 80 * GIB]))
    )
    return image, labels, machine


@settings(max_examples=60)
@given(given_facts=facts())
def test_every_proposal_is_a_network_that_fits_and_boxes_apart(
    given_facts: tuple[ImageFacts, LabelFacts, Machine],
) -> None:
    image, labels, machine = given_facts
    chosen = values(propose(image, labels, machine))
    spec = network(chosen, image.channels)
    patch = tuple(map(int, chosen["patch"].split(",")))
    assert len(patch) == spec.ndim
    assert all(p % s == 0 for p, s in zip(patch, spec.stride))
    dtype = "float32" if machine.device == "cpu" else "bfloat16"
    assert training_bytes(spec, patch, chosen["batch"], dtype) <= machine.memory
    region, held_out = Box.parse(chosen["region"]), Box.parse(chosen["validation_region"])
    assert not region.intersect(held_out)
    assert Box.of_shape(image.shape).contains(region)
    assert Box.of_shape(image.shape).contains(held_out)
    # A slab of about a fifth: the two differ along one axis alone.
    sides = [list(zip(box.lower, box.upper)) for box in (region, held_out)]
    (axis,) = (a for a in range(3) if sides[0][a] != sides[1][a])
    length = region.shape[axis] + held_out.shape[axis]
    # Where few planes hold a label, the cut follows these.
    if length >= 5 and all(labels.profiles[axis]):
        assert held_out.shape[axis] == pytest.approx(0.2 * length, abs=1)
    if spec.ndim == 3:
        assert image.shape[0] > 1
        assert image.anisotropy <= 8
    # A table of the config has these keys; the rest is TOML's business.
    tables = {k.removeprefix("augment."): v for k, v in chosen.items() if k.startswith("augment.")}
    flat = {k: v for k, v in chosen.items() if not k.startswith("augment.")}
    validate(TrainConfig, {"to": "m", "image": "i", "labels": "l", **flat, "augment": tables})


@pytest.mark.parametrize(("ratio", "levels"), [(0.5, 0), (1.0, 0), (1.3, 0), (2.18, 1), (4.0, 2), (6.0, 3)])
def test_levels_leave_z_alone_until_voxels_are_about_cubes(ratio: float, levels: int) -> None:
    image = replace(IMAGE, voxel_size=(10 * ratio, 10.0, 10.0))
    labels = replace(OBJECTS, extent=(20.0, 100.0, 100.0))
    chosen = values(propose(image, labels, MACHINE))
    assert (chosen["ndim"], chosen["anisotropic_levels"]) == (3, min(levels, chosen["depth"]))
    assert chosen["depth"] >= levels - 1


def test_planes_are_trained_on_where_volumes_are_none() -> None:
    for change in (
        {"shape": (1, 200, 300)},
        {"shape": (8, 200, 300)},
        {"voxel_size": (90.0, 10.0, 10.0)},
        {"shape": (26, 520, 696), "voxel_size": None},
    ):
        assert values(propose(replace(IMAGE, **change), OBJECTS, MACHINE))["ndim"] == 2, change
    assert values(propose(IMAGE, replace(OBJECTS, continuity=0.1), MACHINE))["ndim"] == 2
    assert values(propose(IMAGE, OBJECTS, MACHINE))["ndim"] == 3
    # Independent planes are divided by whole planes.
    chosen = values(propose(IMAGE, replace(OBJECTS, continuity=0.1), MACHINE))
    assert chosen["validation_region"] == "80:100,0:200,0:300"


def test_larger_objects_want_deeper_networks_and_more_memory_larger_patches() -> None:
    def chosen(extent: float, memory: int = 4 * GIB, device: str = "cuda") -> dict[str, Any]:
        labels = replace(OBJECTS, extent=(extent,) * 3)
        return values(propose(IMAGE, labels, Machine(device=device, memory=memory)))

    assert chosen(12.0)["depth"] < chosen(80.0)["depth"]
    # Two cores would spend nine tenths of a step on the context of a deeper one.
    assert chosen(80.0, device="cpu")["depth"] == 2

    def size(memory: int) -> int:
        found = chosen(20.0, memory)
        return found["batch"] * int(np.prod([int(n) for n in found["patch"].split(",")]))

    assert size(GIB) < size(4 * GIB) < size(40 * GIB)
    with pytest.raises(InputError, match="no network fits"):
        chosen(20.0, 10**6)


def test_validation_is_held_out_where_labels_are() -> None:
    """A slab without a label is no slab to validate on: the other end is taken."""
    ends = (0,) * 100 + (1,) * 200
    labels = replace(OBJECTS, profiles=((1,) * 100, (1,) * 200, ends[::-1]))
    assert values(propose(IMAGE, labels, MACHINE))["validation_region"] == "0:100,160:200,0:300"
    crop = replace(OBJECTS, profiles=tuple((0,) * 50 + (1,) * 30 + (0,) * (n - 80) for n in IMAGE.shape))
    chosen = values(propose(IMAGE, crop, MACHINE))
    assert (chosen["region"], chosen["validation_region"]) == ("50:74,50:80,50:80", "74:80,50:80,50:80")


def measured(labels: np.ndarray, tmp_path: Path) -> LabelFacts:
    path = tmp_path / "labels.zarr"
    write_array(path, labels)
    volume = Volume.open(str(path))
    return measure_labels([(volume, volume.box)])


def target(labels: np.ndarray, tmp_path: Path) -> str:
    return values(propose(replace(IMAGE, shape=labels.shape), measured(labels, tmp_path), MACHINE))["target"]


def balls(apart: int, shape: tuple[int, ...] = (40, 60, 60)) -> np.ndarray:
    """Balls of radius 7 on a grid."""
    labels = np.zeros(shape, np.uint16)
    centres = np.indices(tuple(n // apart for n in shape)).reshape(3, -1).T * apart + apart // 2
    distance = np.sqrt(((np.indices(shape)[:, None] - centres.T[..., None, None, None]) ** 2).sum(0))
    nearest = distance.argmin(0)
    return np.where(distance.min(0) < 7.5, nearest + 1, labels).astype(np.uint16)


def voronoi(shape: tuple[int, ...] = (20, 50, 50), count: int = 30) -> np.ndarray:
    rng = np.random.default_rng(0)
    points = rng.uniform(0, shape, (count, 3))
    squares = ((np.indices(shape)[:, None] - points.T[..., None, None, None]) ** 2).sum(0)
    return (squares.argmin(0) + 1).astype(np.uint16)


def test_labels_are_told_apart(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    blobs = ndimage.gaussian_filter(rng.normal(size=(24, 64, 64)), 2)
    classes = np.digitize(blobs, np.quantile(blobs, [0.5, 0.8, 0.95])).astype(np.uint8)
    for number, (labels, expected) in enumerate(
        [
            (balls(20), "foreground"),
            (balls(13), "separated"),
            (voronoi(), "boundary"),
            (classes, "semantic"),
            ((blobs > 0).astype(np.uint8), "semantic"),
            ((blobs > 0).astype(np.uint8) * 255, "foreground"),
        ]
    ):
        assert target(labels, tmp_path / str(number)) == expected, expected


def test_what_is_measured(tmp_path: Path) -> None:
    labels = balls(20)
    facts = measured(labels, tmp_path)
    ids = np.unique(labels[labels > 0])
    assert facts.count == len(ids)
    assert facts.values == dict(zip(*(a.tolist() for a in np.unique(labels, return_counts=True))))
    assert facts.extent == tuple(extent_of_a_voxels_object(labels))
    assert facts.background == (labels == 0).mean()
    assert facts.touching == 0
    assert facts.parts == 1
    assert facts.whole
    for axis, profile in enumerate(facts.profiles):
        others = tuple(a for a in range(3) if a != axis)
        assert list(profile) == np.count_nonzero(labels, axis=others).tolist()


def extent_of_a_voxels_object(labels: np.ndarray) -> np.ndarray:
    """For each labelled voxel the extents of its object; their median."""
    boxes = ndimage.find_objects(labels.astype(int))
    sizes = [[s.stop - s.start for s in boxes[label - 1]] for label in labels[labels > 0]]
    return np.quantile(sizes, 0.5, axis=0, method="inverted_cdf")


def test_specks_count_by_their_size(tmp_path: Path) -> None:
    """Dense segmentations hold more specks than cells."""
    labels = balls(20)
    ends = labels.max()
    for number, place in enumerate(np.argwhere(labels == 0)[::97][:150], 1):
        labels[tuple(place)] = ends + number
    facts = measured(labels, tmp_path)
    assert facts.extent == tuple(extent_of_a_voxels_object(labels))
    assert min(facts.extent) > 10


def test_an_object_of_a_film_is_one_in_each_frame(tmp_path: Path) -> None:
    """It moves on, so that in a stack of frames each id has many parts: ids all the same."""
    frame = balls(20)[10]
    frame[frame > 8] = 0
    film = np.stack([np.roll(frame, (7 * z, 23 * z), (0, 1)) for z in range(9)])
    facts = measured(film, tmp_path / "facts")
    assert facts.continuity < 0.25
    assert facts.parts == pytest.approx(1, abs=0.5)  # a few are cut by the frame's edge
    assert target(film, tmp_path / "film") in ("foreground", "separated")


def test_a_region_of_one_voxel_is_refused(tmp_path: Path) -> None:
    facts = measured(np.ones((1, 1, 1), np.uint8), tmp_path)
    with pytest.raises(InputError, match="one voxel"):
        propose(IMAGE, facts, MACHINE, region=Box((0, 0, 0), (1, 1, 1)))


def test_planes_that_have_nothing_to_do_with_each_other(tmp_path: Path) -> None:
    labels = balls(20)
    shuffled = np.stack([np.roll(plane, (7 * z, 23 * z), (0, 1)) for z, plane in enumerate(labels)])
    assert measured(labels, tmp_path / "a").continuity > 0.6
    assert measured(shuffled, tmp_path / "b").continuity < 0.25


def test_the_first_of_several_volumes_may_hold_no_label():
    background, objects = (in_memory(a) for a in (np.zeros((40, 60, 60), np.uint16), balls(20)))
    facts = measure_labels([(background, background.box), (objects, objects.box)])
    chosen = values(propose(replace(IMAGE, shape=(40, 60, 60)), facts, MACHINE, divided=False))
    assert (chosen["target"], "region" in chosen) == ("foreground", False)


def test_a_huge_volume_is_looked_at_in_places(tmp_path: Path) -> None:
    array = zarr.create_array(
        str(tmp_path / "huge.zarr"), shape=(20000, 20000, 20000), dtype="u4", chunks=(64, 64, 64)
    )
    volume = Volume.open(str(tmp_path / "huge.zarr"))
    with pytest.raises(InputError, match="no labelled voxel") as refused:
        measure_labels([(volume, volume.box)])
    assert "--region" in refused.value.fix
    array[1000:1020, 1000:1020, 1000:1020] = 7
    facts = measure_labels([(volume, Box((990,) * 3, (1030,) * 3))])
    assert (facts.count, facts.extent) == (1, (20.0, 20.0, 20.0))


def ome(path: Path, data: np.ndarray, voxel_size: tuple[float, ...], unit: str | None = None) -> str:
    axes = "zyx"[-data.ndim :]
    group = zarr.open_group(str(path), mode="w")
    chunks = tuple(min(n, 64) for n in data.shape)
    group.create_array("0", data=data, chunks=chunks, dimension_names=list(axes))
    group.attrs["ome"] = {
        "version": "0.5",
        "multiscales": [
            {
                "axes": [{"name": a, "type": "space", **({"unit": unit} if unit else {})} for a in axes],
                "datasets": [
                    {
                        "path": "0",
                        "coordinateTransformations": [{"type": "scale", "scale": list(voxel_size)}],
                    }
                ],
            }
        ],
    }
    return str(path)


def two_steps(text: str, **changes: Any) -> tuple[dict[str, Any], training.Trained]:
    """Parse a proposal and train for two steps, narrower and on smaller patches, as tests must."""
    table = tomllib.loads(text)
    small = {"steps": 2, "validate_every": 2, "base": 2, "device": "cpu", "loaders": 1}
    config = validate(TrainConfig, {**table, **small, **changes})
    sources, weights, held_out = labelled_regions(config)
    spec = spec_of(config, sources)
    plan = training.prepare(sources, held_out, spec, settings_of(config, spec), weights=weights)
    plan = training.on_device(plan, device="cpu", dtype="float32")
    return table, training.run(plan)


@pytest.mark.usefixtures("one_thread")
def test_fib25_is_proposed_as_boundaries_in_3d_and_trains(tmp_path: Path) -> None:
    with h5py.File(Path(__file__).parent / "data" / "fib25" / "fib25_crop.h5") as file:
        raw, ids = file["raw"][:40, :72, :80], file["label"][:40, :72, :80]
    image = ome(tmp_path / "raw.zarr", raw, (10.0,) * 3, "nanometer")
    labels = ome(tmp_path / "ids.zarr", ids, (10.0,) * 3, "nanometer")
    table, trained = two_steps(
        init.propose(image, labels, to=str(tmp_path / "m")).text, patch="8,8,8", batch=1
    )
    assert (table["target"], table["ndim"], table["anisotropic_levels"]) == ("boundary", 3, 0)
    assert np.isfinite(trained.history.rows[-1]["loss"])
    assert trained.history.rows[-1]["scores"] is not None


@pytest.mark.usefixtures("one_thread")
def test_dsb2018_is_proposed_in_2d_and_trains(shared_data: Path, tmp_path: Path) -> None:
    with np.load(shared_data / "dsb2018" / "dsb2018.npz") as file:
        images = sorted(name for name in file.files if name.endswith("/image") and file[name].ndim == 2)
        names = [name.removesuffix("/image") for name in images[:6]]
        for name in names:
            ome(tmp_path / f"{name}.image.zarr", file[f"{name}/image"], (1.0, 1.0))
            ome(tmp_path / f"{name}.label.zarr", file[f"{name}/label"], (1.0, 1.0))
    one = (str(tmp_path / f"{names[0]}.{kind}.zarr") for kind in ("image", "label"))
    text = init.propose(*one, to=str(tmp_path / "m")).text
    table, trained = two_steps(text, patch="32,32", batch=1)
    assert (table["ndim"], table["target"]) == (2, "separated")
    assert table["border_weight"] == 10
    assert np.isfinite(trained.history.rows[-1]["loss"])
    # A set of images: whole ones are held out.
    every = (str(tmp_path / f"*.{kind}.zarr") for kind in ("image", "label"))
    text = init.propose(*every, to=str(tmp_path / "m")).text
    table = tomllib.loads(text)
    assert (len(table["pairs"]), len(table["validation"])) == (5, 1)
    assert "region" not in table
    validate(TrainConfig, table)


@pytest.mark.usefixtures("one_thread")
def test_bbbc050_is_proposed_anisotropic_and_trains(shared_data: Path, tmp_path: Path) -> None:
    with np.load(shared_data / "bbbc050_mouse_embryo" / "Emb01_t301.npz") as file:
        size = tuple(float(n) for n in file["anisotropy_zyx"])
        image = ome(tmp_path / "raw.zarr", file["image"], size)
        labels = ome(tmp_path / "ids.zarr", file["label"], size)
    table, trained = two_steps(
        init.propose(image, labels, to=str(tmp_path / "m")).text, patch="8,16,16", batch=1
    )
    assert (table["ndim"], table["anisotropic_levels"]) == (3, 1)
    assert table["target"] in ("foreground", "separated")
    assert trained.plan.spec.pools[0] == (1, 2, 2)
    assert np.isfinite(trained.history.rows[-1]["loss"])


def test_a_set_of_images_is_described_as_a_whole(tmp_path: Path) -> None:
    """Sizes of all, ids of all: each image has its own 1, 2, 3."""
    plane = balls(20)[10]
    for number, size in enumerate((40, 60, 50)):
        for kind in ("image", "label"):
            ome(tmp_path / f"{number}.{kind}.zarr", plane[:size], (1.0, 1.0))
    both = [str(tmp_path / f"*.{kind}.zarr") for kind in ("image", "label")]
    text = init.propose(*both, to="m", device="cpu", region="0:36,0:60").text
    assert "for 3 images: 1 × 40 × 60 to 1 × 60 × 60 (z, y, x)" in text
    ids = sum(len(np.unique(plane[:36])) - 1 for _ in range(3))
    assert f"{ids} ids with open background" in " ".join(text.replace("\n# ", " ").split())
    table = tomllib.loads(text)
    assert all(pair["region"] == "0:1,0:36,0:60" for pair in (*table["pairs"], *table["validation"]))
    ome(tmp_path / "3.image.zarr", np.stack([plane] * 2), (1.0, 1.0, 1.0))
    ome(tmp_path / "3.label.zarr", np.stack([plane] * 2), (1.0, 1.0, 1.0))
    assert "1 × 40 × 60 to 2 × 60 × 60" in init.propose(*both, to="m", device="cpu").text


def test_a_step_is_measured() -> None:
    """In 2D and in 3D."""
    for ndim, patch in ((2, (4, 8)), (3, (4, 4, 8))):
        spec = UNetSpec.build(ndim=ndim, depth=1, base=2, norm="batch")
        assert 0 < training.seconds_per_step(spec, patch, 2, device="cpu", dtype="float32") < 60


def test_images_of_different_channels_are_no_set() -> None:
    one = in_memory(np.zeros((1, 8, 8), np.uint8), name="grey")
    three = replace(one, url="colour", channels=(0, 1, 2))
    with pytest.raises(InputError, match="different numbers of channels") as refused:
        ImageFacts.of_several([one, three])
    assert "--channels" in refused.value.fix


def test_the_target_can_be_asked_for(tmp_path: Path) -> None:
    facts = measured(voronoi(), tmp_path)
    image = replace(IMAGE, shape=(20, 50, 50))
    for asked in ("foreground", "separated", "boundary", "interior-boundary", "semantic"):
        chosen = values(propose(image, facts, MACHINE, target=asked))
        assert chosen["target"] == asked
        assert ("classes" in chosen) == (asked == "semantic")
    many = replace(facts, values={**facts.values, 300: 5})
    with pytest.raises(InputError, match="no classes") as refused:
        propose(image, many, MACHINE, target="semantic")
    assert "separated" in refused.value.fix


def test_background_between_ids_is_not_called_open(tmp_path: Path) -> None:
    """Thin lines of 0 are counted, and said to be thin."""
    labels = voronoi()
    labels[:, ::12] = 0
    facts = measured(labels, tmp_path)
    assert facts.background > 0.06
    (choice,) = (c for c in propose(replace(IMAGE, shape=labels.shape), facts, MACHINE) if c.key == "target")
    assert choice.value == "boundary"
    assert f"{facts.background:.1%} of the voxels are 0, and 0.0% lie farther than 3 voxels" in choice.why


def test_the_text_explains_itself_and_names_every_other_setting(tmp_path: Path) -> None:
    labels = ome(tmp_path / "ids.zarr", balls(13, (40, 60, 60)), (2.0, 1.0, 1.0), "micrometer")
    proposed = init.propose(labels, labels, to="m", device="cpu", timed=True)
    text = proposed.text
    assert proposed.seconds is not None
    assert 0 < proposed.seconds < 1e5
    assert "take roughly" in text
    table = tomllib.loads(text)
    lines = text.splitlines()
    for key in table:
        place = next(i for i, line in enumerate(lines) if line.startswith((f"{key} =", f"[{key}]")))
        if key not in ("to", "image", "labels", "augment"):
            assert lines[place - 1].startswith("# "), key
    for name in TrainConfig.model_fields:
        if name not in ("pairs", "validation", "restart"):
            named = (f"{name} =", f"{name},", f"[{name}]")
            assert any(line.removeprefix("# ").startswith(named) for line in lines), name
    assert max(map(len, (line for line in lines if " = " not in line))) <= 102
    assert "2 × 1 × 1 micrometer" in text
