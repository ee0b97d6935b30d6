"""Queries against the plain way: the whole label volume in memory, and every object looked at by itself."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
import tifffile
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from labelled import CLASSES, write_labels
from scipy import ndimage

from unet_core.errors import DataError, InputError
from unet_core.geometry import Box
from unet_core.ledger import RunRecord, set_status
from unet_core.query import Labels, save_crop, save_mask, save_table
from unet_core.query.expression import parse
from unet_core.volumes import Store, Volume

SHAPE = (9, 26, 22)
SIZE = np.array([2.0, 0.5, 0.25])


def make_arrays(seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    smooth = ndimage.gaussian_filter(rng.normal(size=SHAPE), 1.2)
    # Two classes that touch, so that objects have neighbours.
    parts = [ndimage.label(m)[0] for m in (smooth > 0.12, (smooth > 0.03) & (smooth <= 0.12))]
    both = np.where(parts[0] > 0, parts[0], np.where(parts[1] > 0, parts[1] + parts[0].max(), 0))
    ids, first = np.unique(both, return_index=True)
    order = np.argsort(first[ids > 0])
    table = np.zeros(both.max() + 1, np.uint32)
    table[ids[ids > 0][order]] = np.arange(1, order.size + 1)
    image = rng.integers(0, 1000, (2, *SHAPE), dtype="u2")
    return table[both], image, np.where(parts[0] > 0, 1, np.where(parts[1] > 0, 2, 0)).astype("u1")


LABELS, IMAGE, OF_CLASS = make_arrays()
COUNT = int(LABELS.max())
BOXES = [None, *ndimage.find_objects(LABELS)]
LARGEST = int(np.bincount(LABELS.ravel())[1:].argmax()) + 1


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_labels(str(tmp_path_factory.mktemp("query")), LABELS, IMAGE, OF_CLASS)


@pytest.fixture(scope="module")
def labels(url: str) -> Labels:
    return Labels.open(url)


def box_of(identity: int) -> Box:
    return Box(*zip(*((s.start, s.stop) for s in BOXES[identity])))


def test_info_says_what_is_there(labels: Labels, url: str) -> None:
    info = labels.info()
    assert info["objects"] == COUNT
    assert (info["status"], info["shape"], info["unit"]) == ("complete", list(SHAPE), "micrometer")
    assert info["classes"] == list(CLASSES)
    assert set(info["columns"]) >= {
        "id",
        "class",
        "volume",
        "z0",
        "axis_minor",
        "mean_1",
        "touches_border",
        "blocks",
    }
    json.dumps(info)


def test_at_finds_the_id_of_a_voxel_and_of_a_physical_place(labels: Labels) -> None:
    for voxel in ((0, 0, 0), (8, 25, 21), *np.argwhere(LABELS == LARGEST)[:3].tolist()):
        expected = int(LABELS[tuple(voxel)])
        assert labels.at(voxel) == expected
        place = np.array([10.0, 0.0, -5.0]) + SIZE * voxel
        assert labels.at((place + 0.4 * SIZE).tolist(), physical=True) == expected
    for wrong in ((9, 0, 0), (0, -1, 0)):
        with pytest.raises(InputError, match="outside the volume"):
            labels.at(wrong)
    for odd in ((0, 0), (0, float("nan"), 0), (float("inf"), 0, 0)):
        with pytest.raises(InputError, match="one number per axis"):
            labels.at(odd)


def test_object_has_its_measurements_and_no_other(labels: Labels) -> None:
    for identity in (1, LARGEST, COUNT):
        row = labels.object(identity)
        where = np.argwhere(identity == LABELS)
        assert (row["id"], row["voxels"]) == (identity, len(where))
        assert [row[f"{a}{s}"] for s in "01" for a in "zyx"] == [*where.min(0), *(where.max(0) + 1)]
        assert row["class"] == OF_CLASS[tuple(where[0])]
        assert row["mean_1"] == pytest.approx(IMAGE[1][identity == LABELS].mean())
    several = labels.objects_of([5, 2, 9, 2])
    assert several["id"].to_pylist() == [5, 2, 9, 2]
    for unknown in (0, COUNT + 1, 2**70, -1):
        with pytest.raises(InputError, match="no such object") as refused:
            labels.object(unknown)
        assert refused.value.found == str(unknown)


def test_mask_is_the_objects_and_it_notices_labels_that_changed(
    labels: Labels, url: str, tmp_path: Path
) -> None:
    for identity in (1, LARGEST, COUNT):
        box, mask = labels.mask(identity)
        assert box == box_of(identity)
        np.testing.assert_array_equal(mask, LABELS[box.slices] == identity)
    copy = shutil.copytree(url, tmp_path / "labels.zarr")
    array = zarr.open_array(copy / "0")
    array[tuple(np.argwhere(LABELS == LARGEST)[0])] = 0
    with pytest.raises(DataError, match="do not hold what the object table says"):
        Labels.open(str(copy)).mask(LARGEST)


def test_a_mask_in_zarr_is_checked_like_any_other(
    labels: Labels, url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In shards that do not lie on the labels' chunks; what is wrong or was stopped does not open."""
    monkeypatch.setattr("unet_core.query.files._SHARD", 1)
    for identity in range(1, COUNT + 1):
        to = str(tmp_path / f"{identity}.zarr")
        box = save_mask(labels, identity, to)
        volume = Volume.open(to)
        np.testing.assert_array_equal(volume.read(volume.box)[0], LABELS[box.slices] == identity)
    copy = shutil.copytree(url, tmp_path / "labels.zarr")
    zarr.open_array(copy / "0")[tuple(np.argwhere(LABELS == LARGEST)[0])] = 0
    with pytest.raises(DataError, match="do not hold what the object table says"):
        save_mask(Labels.open(str(copy)), LARGEST, str(tmp_path / "wrong.zarr"))

    def stopped(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("unet_core.query.files.write_box", stopped)
    with pytest.raises(KeyboardInterrupt):
        save_mask(labels, LARGEST, str(tmp_path / "half.zarr"))
    with pytest.raises(KeyboardInterrupt):
        save_crop(labels, Box((0, 0, 0), (4, 4, 4)), str(tmp_path / "crop.zarr"))
    for name in ("wrong", "half", "crop"):
        with pytest.raises(InputError, match="no multiscales"):
            Volume.open(str(tmp_path / f"{name}.zarr"))


def test_of_a_far_reaching_object_only_the_shards_that_hold_it_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    array = np.zeros((4, 64, 64), "u4")
    array[0, 0, 0] = array[3, 63, 63] = 1
    of_class = array.astype("u1")
    sparse = Labels.open(write_labels(str(tmp_path), array, array[np.newaxis].astype("u2"), of_class))
    monkeypatch.setattr("unet_core.query.files._SHARD", 1)
    read: list[Box] = []
    whole = Volume.read
    monkeypatch.setattr(Volume, "read", lambda self, box: read.append(box) or whole(self, box))
    box = save_mask(sparse, 1, str(tmp_path / "m.zarr"))
    assert (box.shape, len(read)) == ((4, 64, 64), 2)


def test_an_exact_box_takes_bounds_from_one_pass_over_the_table(
    labels: Labels, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(type(labels.table), "rows", lambda *_: pytest.fail("row by row"))
    box = Box((2, 5, 7), (7, 16, 15))
    found = labels.box(box, exact=True)
    assert found["id"].to_pylist() == [i for i in np.unique(LABELS[box.slices]).tolist() if i]
    assert found.column_names == labels.box(box).column_names == ["id", "whole"]


@settings(max_examples=25)
@given(st.data())
def test_box_finds_what_lies_in_it(labels: Labels, data: st.DataObject) -> None:
    edges = [sorted(data.draw(st.tuples(st.integers(0, n - 1), st.integers(1, n)))) for n in SHAPE]
    box = Box(tuple(a for a, _ in edges), tuple(max(b, a + 1) for a, b in edges))
    meets = [i for i in range(1, COUNT + 1) if box.intersect(box_of(i))]
    found = labels.box(box)
    assert found["id"].to_pylist() == meets
    assert found["whole"].to_pylist() == [box.contains(box_of(i)) for i in meets]
    exact = labels.box(box, exact=True)
    assert exact["id"].to_pylist() == [i for i in np.unique(LABELS[box.slices]).tolist() if i]


def test_neighbours_share_the_faces_that_one_counts(labels: Labels) -> None:
    for identity in range(1, COUNT + 1):
        expected: dict[int, list[int]] = {}
        for axis in range(3):
            pairs = (
                np.take(LABELS, range(SHAPE[axis] - 1), axis),
                np.take(LABELS, range(1, SHAPE[axis]), axis),
            )
            for one, other in (pairs, pairs[::-1]):
                for i in other[one == identity].tolist():
                    if i not in (0, identity):
                        expected.setdefault(i, [0, 0, 0])[axis] += 1
        found = {row["id"]: row for row in labels.neighbours(identity).to_pylist()}
        assert {i: row["faces"] for i, row in found.items()} == {i: sum(n) for i, n in expected.items()}
        area = SIZE.prod() / SIZE
        for i, row in found.items():
            assert row["area"] == pytest.approx(float(area @ expected[i]))
        assert [row["area"] for row in found.values()] == sorted(
            (r["area"] for r in found.values()), reverse=True
        )
    assert labels.neighbours(LARGEST).num_rows > 2


def test_objects_are_filtered_sorted_and_limited(labels: Labels, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("unet_core.query.objects._FETCHED", 4)
    everything = labels.objects()
    assert everything["id"].to_pylist() == list(range(1, COUNT + 1))
    volume, border = (
        everything["volume"].to_numpy(),
        everything["touches_border"].to_numpy(zero_copy_only=False),
    )
    chosen = np.flatnonzero((volume > 0.3) & ~border)
    ids = chosen[np.lexsort((chosen, -volume[chosen]))] + 1
    where = "volume > 0.3 and touches_border == false"
    assert len(ids) > 6
    for limit in (None, 3, 6, 10**6):
        found = labels.objects(where, sort="-volume", limit=limit)
        assert found["id"].to_pylist() == ids[:limit].tolist()
        assert found.column_names == list(labels.table.columns)
    assert labels.objects(sort="-id", limit=2)["id"].to_pylist() == [COUNT, COUNT - 1]
    assert labels.objects(limit=0).num_rows == 0
    names = labels.objects("class == 'nucleus'")["class"].to_pylist()
    assert set(names) == {2}
    with pytest.raises(InputError, match="did you mean volume"):
        labels.objects(sort="-volum")
    with pytest.raises(InputError, match="0 or more"):
        labels.objects(limit=-1)


def test_crop_has_image_and_labels(labels: Labels) -> None:
    box = Box((2, 5, 7), (9, 22, 20))
    crop = labels.crop(box)
    np.testing.assert_array_equal(crop.labels, LABELS[box.slices])
    np.testing.assert_array_equal(crop.image, IMAGE[(slice(None), *box.slices)])
    for wrong in (Box((0, 0, 0), (10, 4, 4)), Box((-1, 0, 0), (3, 3, 3)), Box((0, 0), (3, 3))):
        with pytest.raises(InputError, match="not inside the volume"):
            labels.crop(wrong)


def test_files_hold_what_was_asked_for(
    labels: Labels, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("unet_core.query.files._SHARD", 1)  # several pieces
    box, mask = labels.mask(LARGEST)
    place = np.array([10.0, 0.0, -5.0]) + SIZE * box.lower
    for name in ("m.npz", "m.tif", "m.zarr"):
        assert save_mask(labels, LARGEST, str(tmp_path / name)) == box
        with pytest.raises(InputError, match="there already"):
            save_mask(labels, LARGEST, str(tmp_path / name))
    stored = np.load(tmp_path / "m.npz")
    np.testing.assert_array_equal(stored["mask"], mask)
    np.testing.assert_allclose(stored["origin"], place)
    np.testing.assert_array_equal(tifffile.imread(tmp_path / "m.tif"), mask)
    volume = Volume.open(str(tmp_path / "m.zarr"))
    np.testing.assert_array_equal(volume.read(volume.box)[0], mask)
    assert volume.origin == tuple(place)
    region = Box((1, 3, 2), (9, 23, 21))
    for name in ("c.npz", "c.tif", "c.zarr"):
        assert len(save_crop(labels, region, str(tmp_path / name))) == 1 + (name == "c.tif")
    expected = LABELS[region.slices], IMAGE[(slice(None), *region.slices)]
    stored = np.load(tmp_path / "c.npz")
    image, ids = Volume.open(str(tmp_path / "c.zarr")), Volume.open(str(tmp_path / "c.zarr/labels/objects"))
    for found in (
        (stored["labels"], stored["image"]),
        (tifffile.imread(tmp_path / "c_labels.tif"), tifffile.imread(tmp_path / "c.tif")),
        (ids.read(ids.box)[0], image.read(image.box)),
    ):
        np.testing.assert_array_equal(found[0], expected[0])
        np.testing.assert_array_equal(found[1], expected[1])
    with tifffile.TiffFile(tmp_path / "c.tif") as file:
        assert 'PhysicalSizeY="0.5"' in (file.ome_metadata or "")
    table = labels.objects("voxels > 9", limit=4)
    for name in ("t.csv", "t.json", "t.parquet"):
        save_table(table, str(tmp_path / name))
    assert json.loads((tmp_path / "t.json").read_text())[0]["id"] == table["id"][0].as_py()
    assert pa.parquet.read_table(tmp_path / "t.parquet").equals(table)
    assert (tmp_path / "t.csv").read_text().splitlines()[0].startswith('"id","class"')
    with pytest.raises(InputError, match="not known"):
        save_table(table, str(tmp_path / "t.xls"))


def test_everything_works_on_s3_and_reads_ranges(bucket: str, labels: Labels) -> None:
    remote = Labels.open(write_labels(bucket, LABELS, IMAGE, OF_CLASS))
    assert remote.at((0, 0, 0)) == LABELS[0, 0, 0]
    assert remote.object(LARGEST) == labels.object(LARGEST)
    assert remote.objects("volume > 2", sort="-mean_0", limit=3).equals(
        labels.objects("volume > 2", sort="-mean_0", limit=3)
    )
    box = Box((2, 5, 7), (9, 22, 20))
    assert remote.box(box, exact=True).equals(labels.box(box, exact=True))
    np.testing.assert_array_equal(remote.mask(LARGEST)[1], labels.mask(LARGEST)[1])
    assert remote.neighbours(LARGEST).equals(labels.neighbours(LARGEST))
    np.testing.assert_array_equal(remote.crop(box).image, labels.crop(box).image)
    save_table(remote.objects(limit=2), f"{bucket}/t.csv")
    save_mask(remote, LARGEST, f"{bucket}/m.zarr")
    assert (Store(bucket).read("t.csv") or b"").count(b"\n") == 3
    key = remote.table._parts["objects"][0]["key"]
    with remote.store.ranges(key) as file:
        data = remote.store.read(key) or b""
        file.seek(-8, 2)
        assert file.read(100) == data[-8:]
        file.seek(4)
        assert file.read(9) == data[4:13]
        assert file.read(0) == b""
    with pytest.raises(FileNotFoundError):
        remote.store.ranges("tables/absent")


def test_a_plane_is_asked_in_two_coordinates(tmp_path: Path) -> None:
    plane = np.zeros((1, 20, 24), "u4")
    plane[0, 2:5, 3:20], plane[0, 5:9, 3:6] = 1, 2
    classes = plane.astype("u1")
    url = write_labels(str(tmp_path), plane, plane[np.newaxis], classes, chunk=(1, 8, 8), block=(1, 16, 16))
    labels = Labels.open(url)
    assert labels.at((4, 10)) == labels.at((0, 4, 10)) == labels.at((2.0, -2.5), physical=True) == 1
    assert labels.box(Box((5, 0), (9, 24)))["id"].to_pylist() == [2]
    assert labels.crop(Box((5, 0), (9, 24))).labels.shape == (1, 4, 24)
    row = labels.object(1)
    assert (row["volume"], row["touches_border"], "axis_middle" in row) == (51 * 0.5 * 0.25, False, False)
    assert labels.neighbours(1).to_pylist() == [{"id": 2, "faces": 3, "area": 3 * 0.25}]
    assert labels.mask(2)[1].all()


class TestRefuses:
    """What cannot be answered is refused by name."""

    @pytest.fixture
    def copy(self, url: str, tmp_path: Path) -> Path:
        return shutil.copytree(url, tmp_path / "labels.zarr")

    def test_no_labels(self, tmp_path: Path) -> None:
        with pytest.raises(InputError, match="no labels of unet-flows"):
            Labels.open(str(tmp_path / "absent.zarr"))
        with pytest.raises(InputError, match="no labels of unet-flows"):
            Labels.open(str(tmp_path))

    def test_a_table_of_another_run(self, copy: Path) -> None:
        summary = copy / "tables/summary.json"
        before = summary.read_text()
        summary.write_text(before.replace(json.loads(before)["run"], "0123456789abcdef"))
        with pytest.raises(InputError, match="another run") as caught:
            Labels.open(str(copy))
        assert "0123456789abcdef" in str(caught.value)

    def test_a_file_of_another_run(self, copy: Path) -> None:
        record = json.loads((copy / ".unet-flows/run.json").read_text())
        record["identity"]["labels"] = "others"
        other = RunRecord(record["kind"], record["identity"], record["plan"]).fingerprint
        (copy / ".unet-flows/run.json").write_text(json.dumps(record))
        summary = json.loads((copy / "tables/summary.json").read_text())
        (copy / "tables/summary.json").write_text(json.dumps({**summary, "run": other}))
        with pytest.raises(InputError, match="another run"):
            Labels.open(str(copy)).object(1)

    def test_no_table(self, copy: Path) -> None:
        shutil.rmtree(copy / "tables")
        opened = Labels.open(str(copy))
        assert opened.at((0, 0, 0)) == LABELS[0, 0, 0]
        with pytest.raises(InputError, match="no object table"):
            opened.objects()

    def test_a_damaged_table(self, copy: Path) -> None:
        (copy / "tables/summary.json").write_text("{}")
        with pytest.raises(InputError, match="cannot be read"):
            Labels.open(str(copy))
        shutil.rmtree(copy)

    def test_damaged_files(self, copy: Path) -> None:
        path = next((copy / "tables/objects").iterdir())
        data = bytearray(path.read_bytes())
        data[len(data) // 3] ^= 0xFF
        path.write_bytes(data)
        opened = Labels.open(str(copy))
        for ask in (opened.objects, lambda: opened.object(1)):
            with pytest.raises(InputError, match="damaged or gone") as refused:
                ask()
            assert refused.value.where == str(path)
        shutil.rmtree(copy / "tables/lookup")
        with pytest.raises(InputError, match="damaged or gone"):
            Labels.open(str(copy)).object(1)

    def test_an_image_that_is_gone(self, url: str, copy: Path) -> None:
        record = (copy / ".unet-flows/run.json").read_text()
        (copy / ".unet-flows/run.json").write_text(record.replace("image.zarr", "gone.zarr"))
        opened = Labels.open(str(copy))
        box = Box((0, 0, 0), (2, 2, 2))
        assert opened.crop(box, image=False).image is None
        with pytest.raises(InputError, match="--no-image"):
            opened.crop(box)

    def test_a_box_too_large_for_one_array(self, labels: Labels, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("unet_core.query.labels.MOST_VOXELS", 10)
        with pytest.raises(InputError, match=r"write it to a \.zarr"):
            labels.mask(LARGEST)


TABLE = pa.table(
    {
        "id": pa.array([1, 2, 3], pa.uint64()),
        "class": pa.array([0, 1, 2], pa.uint8()),
        "volume": [1.0, 2.0, 3.0],
        "voxels": pa.array([3, 5, 9], pa.uint64()),
        "z0": pa.array([5, 1, 2], pa.int32()),
        "z1": pa.array([7, 2, 9], pa.int32()),
        "touches_border": [True, False, True],
    }
)


@pytest.mark.parametrize(
    ("text", "ids"),
    [
        ("volume > 1.5", [2, 3]),
        ("touches_border", [1, 3]),
        ("NOT touches_border OR id == 3", [2, 3]),
        ("touches_border == false and volume<9", [2]),
        ("1 < volume <= 3", [2, 3]),
        ("class in ('cell', 2)", [2, 3]),
        ('class != "cell"', [1, 3]),
        ("class not in (0, 1)", [3]),
        ("z1-z0>1 and voxels - 5 < 0", [1]),
        ("-volume < -2 * (1 + .25)", [3]),
        ("volume / 0 > 1e300", [1, 2, 3]),
        ("volume < " + "9" * 5000, [1, 2, 3]),
        ("(volume>1)==touches_border", [3]),
        ("id > 9223372036854775807", []),
        ("not (volume > 1 and not touches_border)", [1, 3]),
        ("true", [1, 2, 3]),
    ],
)
def test_expressions_say_what_they_seem_to(text: str, ids: list[int]) -> None:
    assert TABLE.filter(parse(text, TABLE.schema, CLASSES))["id"].to_pylist() == ids


@pytest.mark.parametrize(
    ("text", "character", "facts"),
    [
        ("", 1, "a column, a number"),
        ("volume >", 9, "a column, a number"),
        ("volum > 3", 1, "did you mean volume?"),
        ("volume = 3", 8, "write == instead of ="),
        ("volume > 3 & id > 1", 12, "write and instead of &"),
        ("volume", 1, "a condition"),
        ("(volume > 3", 12, "expected: )"),
        ("volume > 3)", 11, "or the end"),
        ("touches_border > 3", 18, "a condition, as on the other side"),
        ("touches_border + 1 > 3", 1, "a number"),
        ("volume > 3 and id", 16, "a condition"),
        ("class == 'nix'", 10, "background, cell, nucleus"),
        ("volume == 'cell'", 11, "compared with the column class"),
        ("volume in 3", 11, "expected: ("),
        ("__import__('os').system('ls')", 1, "no such column"),
        ("volume > 3 # x", 12, "or the end"),
        ("(" * 60 + "true" + ")" * 60, 52, "at most 50"),
    ],
)
def test_a_bad_expression_is_pointed_at(text: str, character: int, facts: str) -> None:
    with pytest.raises(InputError) as caught:
        parse(text, TABLE.schema, CLASSES)
    message = str(caught.value)
    assert f"character {character}" in message
    assert facts in message
    quoted, arrow = next(
        (a, b) for a, b in zip(message.splitlines(), message.splitlines()[1:]) if b.strip() == "^"
    )
    assert arrow.index("^") - (len(quoted) - len(text)) == character - 1


@given(st.text(alphabet="volumeid()<>=!andornt 0123.+-*/'\"&,\n", max_size=40))
def test_any_text_is_read_or_refused(text: str) -> None:
    try:
        condition = parse(text, TABLE.schema)
    except InputError:
        return
    assert isinstance(condition, pc.Expression)
    TABLE.filter(condition)


def test_too_long_an_expression_is_refused() -> None:
    with pytest.raises(InputError, match="too long"):
        parse("volume > 1 and " * 1000 + "true", TABLE.schema)


def test_incomplete_labels_are_refused_with_what_is_missing(tmp_path: Path) -> None:
    from pipeline import complete, save_random_model

    from unet_core.architecture import UNetSpec
    from unet_core.ledger import Ledger, hold

    zarr.create_array(tmp_path / "volume.zarr", data=np.zeros((8, 40, 40), "u1"), dimension_names=list("zyx"))
    save_random_model(tmp_path / "model", UNetSpec.build(ndim=3, depth=1, base=2))
    to = str(tmp_path / "labels.zarr")
    complete(tmp_path, to, tile=(8, 16, 16))
    assert Labels.open(to).at((0, 0, 0)) in (0, 1)
    with hold(Store(to)) as lease:
        Ledger(Store(to), "predict", 2 * 2, lease.epoch).read()
        set_status(Store(to), "partial")
        count = len(list((tmp_path / "labels.zarr/.unet-flows/ledger/predict/blocks").rglob("*-*")))
        Ledger(Store(to), "predict", count, lease.epoch).seal(without=[0])
    with pytest.raises(InputError, match=rf"predict 1 of {count}"):
        Labels.open(to)
    assert Labels.open(to, partial=True).info()["status"] == "partial"
