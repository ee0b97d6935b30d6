"""Sources: whatever file and box, a read equals the array that was stored; bad files are refused."""

from __future__ import annotations

import io
import tracemalloc
import zipfile
from pathlib import Path
from typing import Any

import h5py
import imagecodecs
import numpy as np
import pytest
import tifffile
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from unet_core.errors import DataError, InputError
from unet_core.geometry import Box
from unet_core.sources import Source, open_source, space_unit

DATA = Path(__file__).parents[2] / "shared" / "data"
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason=f"no real data at {DATA}")
CANONICAL = "tczyx"


def coded(shape: tuple[int, ...], dtype: str = "u2") -> np.ndarray:
    """Every voxel holds its own position: any misplaced plane shows."""
    return np.arange(np.prod(shape)).reshape(shape).astype(dtype)


def canonical(array: np.ndarray, axes: str) -> np.ndarray:
    """The array as t, c, z, y, x, by numpy alone."""
    array = array.transpose([axes.index(a) for a in CANONICAL if a in axes])
    return np.expand_dims(array, tuple(i for i, a in enumerate(CANONICAL) if a not in axes))


def read_all(source: Source) -> np.ndarray:
    """t, c, z, y, x."""
    return np.stack([source.read(Box.of_shape(source.shape), timepoint=t) for t in range(source.timepoints)])


# One way of writing an array to a file each; returns (path, dataset).
def write_npz(folder: Path, array: np.ndarray) -> tuple[Path, str | None]:
    np.savez_compressed(folder / "a.npz", volume=array, note=np.arange(3))
    return folder / "a.npz", "volume"


def write_fortran(folder: Path, array: np.ndarray) -> tuple[Path, str | None]:
    np.savez_compressed(folder / "f.npz", volume=np.asfortranarray(array))
    return folder / "f.npz", None


def write_npy(folder: Path, array: np.ndarray) -> tuple[Path, str | None]:
    np.save(folder / "a.npy", array.astype(array.dtype.newbyteorder(">")))
    return folder / "a.npy", None


def write_hdf5(folder: Path, array: np.ndarray) -> tuple[Path, str | None]:
    with h5py.File(folder / "a.h5", "w") as file:
        chunks = tuple(max(1, n // 2) for n in array.shape)
        file.create_dataset("group/volume", data=array, chunks=chunks, compression="gzip")
    return folder / "a.h5", None


def write_tiff(folder: Path, array: np.ndarray) -> tuple[Path, str | None]:
    tifffile.imwrite(folder / "a.tif", array, photometric="minisblack")
    return folder / "a.tif", None


def write_strips(folder: Path, array: np.ndarray) -> tuple[Path, str | None]:
    tifffile.imwrite(
        folder / "s.tif",
        array,
        photometric="minisblack",
        byteorder=">",
        compression="lzw",
        predictor=True,
        rowsperstrip=3,
    )
    return folder / "s.tif", None


def write_tiles(folder: Path, array: np.ndarray) -> tuple[Path, str | None]:
    tifffile.imwrite(
        folder / "t.tif", array, photometric="minisblack", bigtiff=True, compression="zlib", tile=(16, 16)
    )
    return folder / "t.tif", None


WRITERS = [write_npz, write_fortran, write_npy, write_hdf5, write_tiff, write_strips, write_tiles]


@st.composite
def arrays_with_axes(draw: st.DrawFn) -> tuple[np.ndarray, str]:
    axes = "".join(draw(st.permutations("tczyx")))
    axes = "".join(a for a in axes if a in "yx" or draw(st.booleans()))
    shape = tuple(draw(st.integers(2, 9 if a in "zyx" else 3)) for a in axes)
    return coded(shape, draw(st.sampled_from(["u1", "i2", "u4", "f4"]))), axes


def boxes_of(source: Source, thickness: int, rows: int) -> list[Box]:
    depth, height, width = source.shape
    return [
        Box((z, y, 0), (min(z + thickness, depth), min(y + rows, height), width))
        for z in range(0, depth, thickness)
        for y in range(0, height, rows)
    ]


@pytest.mark.parametrize("write", WRITERS, ids=lambda w: w.__name__)
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(stored=arrays_with_axes(), thickness=st.integers(1, 9), rows=st.integers(1, 9), order=st.randoms())
def test_boxes_equal_the_array_read_whole(
    tmp_path: Path, write: Any, stored: tuple[np.ndarray, str], thickness: int, rows: int, order: Any
) -> None:
    array, axes = stored
    path, dataset = write(tmp_path, array)
    expected = canonical(array, axes)
    with open_source([str(path)], dataset=dataset, axes=axes) as source:
        assert source.axes == "".join(a for a in CANONICAL if a in axes)
        assert (source.shape, source.dtype) == (expected.shape[2:], array.dtype)
        boxes = [(t, box) for t in range(source.timepoints) for box in boxes_of(source, thickness, rows)]
        order.shuffle(boxes)
        for t, box in boxes:
            read = source.read(box, timepoint=t)
            assert read.dtype == array.dtype
            np.testing.assert_array_equal(read, expected[t][(slice(None), *box.slices)])


@pytest.mark.parametrize("write", [write_strips, write_tiles, write_tiff], ids=lambda w: w.__name__)
def test_rows_of_large_colour_pages(tmp_path: Path, write: Any) -> None:
    array = coded((2, 50, 70, 3), "u1")
    tifffile.imwrite(tmp_path / "grey.tif", array[..., 0], photometric="minisblack")
    options = {"compression": "lzw", "rowsperstrip": 7} if write is write_strips else {"tile": (16, 32)}
    for planar, axes, pages in (("contig", "zyxc", array), ("separate", "zcyx", np.moveaxis(array, -1, 1))):
        path = tmp_path / f"{planar}.tif"
        tifffile.imwrite(path, pages, photometric="rgb", planarconfig=planar, **options)
        with open_source([str(path)]) as source:
            assert (source.axes, source.channels, source.shape) == ("czyx", 3, (2, 50, 70))
            assert source.splits_rows
            for box in boxes_of(source, 1, 13):
                np.testing.assert_array_equal(
                    source.read(box), canonical(pages, axes)[0][(slice(None), *box.slices)]
                )


@pytest.mark.parametrize(
    ("name", "options", "axes"),
    [
        ("imagej", {"imagej": True, "metadata": {"axes": "ZCYX", "spacing": 2.5, "unit": "um"}}, "zcyx"),
        (
            "ome",
            {
                "metadata": {
                    "axes": "ZCYX",
                    "PhysicalSizeX": 0.25,
                    "PhysicalSizeY": 0.25,
                    "PhysicalSizeZ": 2500.0,
                    "PhysicalSizeZUnit": "nm",
                }
            },
            "zcyx",
        ),
    ],
)
def test_axes_and_voxel_size_of_tiff_metadata(tmp_path: Path, name: str, options: Any, axes: str) -> None:
    array = coded((4, 3, 20, 30))
    path = tmp_path / ("a.ome.tif" if name == "ome" else "a.tif")
    tifffile.imwrite(path, array, resolution=(4.0, 4.0), **options)
    with open_source([str(path)]) as source:
        assert (source.axes, source.voxel_size, source.unit) == ("czyx", (2.5, 0.25, 0.25), "micrometer")
        np.testing.assert_array_equal(read_all(source), canonical(array, axes))


@pytest.mark.parametrize(
    "metadata", [{"axes": "ZYX", "unit": "pixel", "spacing": 1.0}, {"axes": "ZYX", "unit": "um"}]
)
def test_unreliable_imagej_sizes_are_not_taken(tmp_path: Path, metadata: dict[str, Any]) -> None:
    tifffile.imwrite(tmp_path / "a.tif", coded((4, 20, 30)), imagej=True, metadata=metadata)
    with open_source([str(tmp_path / "a.tif")]) as source:
        assert (source.voxel_size, source.unit) == (None, None)


def test_one_directory_hyperstack(tmp_path: Path) -> None:
    """ImageJ writes stacks beyond 4 GB with one directory; tifffile's `truncate` does the same."""
    array = coded((5, 20, 30))
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, array, imagej=True, metadata={"axes": "ZYX", "truncate": True})
    tifffile.imwrite(path, array, metadata={"axes": "ZYX", "truncate": True}, photometric="minisblack")
    with open_source([str(path)]) as source:
        np.testing.assert_array_equal(read_all(source)[0, 0], array)
    path.write_bytes(path.read_bytes()[:-3000])
    with pytest.raises(InputError, match="cut short"):
        open_source([str(path)])


def test_bool_becomes_uint8(tmp_path: Path) -> None:
    mask = coded((3, 8, 9)) % 3 == 0
    np.savez(tmp_path / "a.npz", mask=mask)
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["mask"] = mask
    tifffile.imwrite(tmp_path / "a.tif", mask, photometric="minisblack")
    for path in tmp_path.iterdir():
        with open_source([str(path)]) as source:
            assert source.dtype == np.uint8
            np.testing.assert_array_equal(read_all(source)[0, 0], mask.astype(np.uint8))


def write_png(path: Path, array: np.ndarray) -> None:
    path.write_bytes(imagecodecs.png_encode(array))


@pytest.mark.parametrize(
    ("tail", "dtype"), [((), "u1"), ((), "u2"), ((3,), "u1"), ((3,), "u2"), ((4,), "u1")]
)
def test_png_series_keeps_values_in_natural_order(tmp_path: Path, tail: tuple[int, ...], dtype: str) -> None:
    planes = coded((12, 10, 14, *tail), dtype) * np.array(17, dtype)
    for i, plane in enumerate(planes):
        write_png(tmp_path / f"img{i}.png", plane)
    (tmp_path / ".hidden.png").write_bytes(b"")
    (tmp_path / "notes.txt").write_text("not an image")
    expected = canonical(planes, "zyx" + "c" * len(tail))
    files = sorted((str(p) for p in tmp_path.glob("img*.png")), reverse=True)
    for paths in (files, [str(tmp_path)], [str(tmp_path / "img*.png")]):
        with open_source(paths) as source:
            assert source.dtype == planes.dtype
            np.testing.assert_array_equal(read_all(source), expected)
            np.testing.assert_array_equal(source.read(Box((9, 2, 0), (11, 5, 14))), expected[0][:, 9:11, 2:5])


def test_palette_and_one_bit_png_keep_their_indices(tmp_path: Path) -> None:
    ids = coded((8, 8), "u1")
    palette = Image.fromarray(ids)
    palette.putpalette([255 - i // 3 for i in range(768)])
    palette.save(tmp_path / "p.png")
    Image.fromarray(ids % 2 == 1).save(tmp_path / "b.png")
    assert imagecodecs.png_decode((tmp_path / "p.png").read_bytes()).ndim == 3  # what we must not get
    for name, expected in (("p", ids), ("b", ids % 2)):
        with open_source([str(tmp_path / f"{name}.png")]) as source:
            assert source.axes == "yx"
            np.testing.assert_array_equal(read_all(source)[0, 0, 0], expected)


def test_tiff_series_stacks_planes_and_named_axes(tmp_path: Path) -> None:
    array = coded((3, 4, 10, 12))
    for i, volume in enumerate(array):
        tifffile.imwrite(tmp_path / f"t{i}.tif", volume, photometric="minisblack")
    files = [str(p) for p in tmp_path.iterdir()]
    with open_source(files, axes="tzyx") as source:
        np.testing.assert_array_equal(read_all(source), canonical(array, "tzyx"))
    with pytest.raises(InputError, match="cannot be guessed") as caught:
        open_source(files)
    assert caught.value.found == "shape (3, 4, 10, 12)"
    planes = tmp_path / "planes"
    planes.mkdir()
    for i in range(11):
        tifffile.imwrite(planes / f"z{i}.tif", array[0, 0] + i)
    with open_source([str(planes)]) as source:
        np.testing.assert_array_equal(read_all(source)[0, 0], [array[0, 0] + i for i in range(11)])


def test_specs_open_the_same_source_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_npz(tmp_path, coded((4, 5, 6)))
    monkeypatch.chdir(tmp_path)
    with open_source(["a.npz"], dataset="volume", axes="xyz") as source:
        before = source.digest()
        spec = type(source.spec).from_dict(source.spec.to_dict())
        monkeypatch.chdir("/")
        with open_source(spec.paths, dataset=spec.dataset, axes=spec.axes) as again:
            assert (again.shape, again.digest()) == ((6, 5, 4), before)
            np.testing.assert_array_equal(read_all(again), read_all(source))
    write_npz(tmp_path, coded((4, 5, 7)))
    with open_source(spec.paths, dataset="volume", axes="xyz") as changed:
        assert changed.digest() != before


# ---------------------------------------------------------------- bounded memory


@pytest.mark.parametrize(
    "write", [write_npz, write_npy, write_hdf5, write_tiff, write_tiles], ids=lambda w: w.__name__
)
def test_a_slab_never_loads_the_volume(tmp_path: Path, write: Any) -> None:
    array = coded((24, 512, 512), "u2")  # 12.6 MB in slabs of 1 MB
    path, dataset = write(tmp_path, array)
    with open_source([str(path)], dataset=dataset) as source:
        tracemalloc.start()
        right = []
        for z in (0, 2, 22):
            box = Box((z, 0, 0), (z + 2, 512, 512))
            right.append(bool((source.read(box)[0] == array[box.slices]).all()))
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert right == [True] * 3
    assert peak < 5e6, f"{peak:,} bytes for slabs of 1 MB"


@pytest.mark.parametrize("axes", ["czyx", "zyx", "tzyx"])
def test_npz_members_are_decompressed_once(
    tmp_path: Path, axes: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ascending slabs go on where the last one stopped; channels keep a stream each."""
    array = coded((3, 32, 128, 160)[4 - len(axes) :], "u1")
    np.savez_compressed(tmp_path / "a.npz", array)
    opened = []
    original = zipfile.ZipFile.open
    monkeypatch.setattr(zipfile.ZipFile, "open", lambda *a, **k: opened.append(1) or original(*a, **k))
    with open_source([str(tmp_path / "a.npz")], axes=axes) as source:
        opened.clear()
        for t in range(source.timepoints):
            for box in boxes_of(source, 4, 128):
                source.read(box, timepoint=t)
    assert len(opened) == source.channels


# ---------------------------------------------------------------- real data


@needs_data
@pytest.mark.parametrize(
    ("path", "dataset", "axes", "shape", "dtype", "voxel_size"),
    [
        ("fib25/fib25.h5", "raw", "zyx", (170, 250, 250), "u1", (0.01, 0.01, 0.01)),
        ("fib25/fib25.h5", "/label", "zyx", (170, 250, 250), "u2", (0.01, 0.01, 0.01)),
        ("plantseg_ovules/sample_ovule.h5", "raw", "zyx", (32, 128, 128), "u1", (0.235, 0.15, 0.15)),
        ("fibsem_gala_mini/train.npz", "label", "zyx", (50, 100, 200), "u2", None),
        ("isbi2012/volume.tif", None, "zyx", (24, 512, 512), "u1", None),
        ("sstem_vnc/raw.tif", None, "zyx", (15, 1024, 1024), "u1", None),
        ("stardist_demo/img3d.tif", None, "zyx", (31, 61, 57), "u2", None),
        ("stardist_demo/mask2d.tif", None, "yx", (1, 512, 512), "u2", None),
        ("dsb2018/dsb2018.npz", "00071198d059/label", "yx", (1, 256, 256), "u2", None),
    ],
)
def test_real_files(
    path: str, dataset: str | None, axes: str, shape: tuple[int, ...], dtype: str, voxel_size: Any
) -> None:
    file = DATA / path
    if file.suffix == ".h5":
        with h5py.File(file) as opened:
            expected = opened[str(dataset)][()]
    else:
        expected = np.load(file)[dataset] if file.suffix == ".npz" else tifffile.imread(file)
    with open_source([str(file)], dataset=dataset) as source:
        assert (source.axes, source.shape, source.dtype) == (axes, shape, np.dtype(dtype))
        assert source.voxel_size == (None if voxel_size is None else pytest.approx(voxel_size))
        assert source.unit == (None if voxel_size is None else "micrometer")
        for box in boxes_of(source, 7, 100):
            np.testing.assert_array_equal(source.read(box)[0], expected.reshape(shape)[box.slices])


@needs_data
def test_real_colour_images_ask_for_axes_or_stack_as_png(tmp_path: Path) -> None:
    file, name = DATA / "dsb2018" / "dsb2018.npz", "0d3640c1f1b8/image"
    image = np.load(file)[name]
    with pytest.raises(InputError, match="cannot be guessed") as caught:
        open_source([str(file)], dataset=name)
    assert "--axes yxc" in str(caught.value)
    with open_source([str(file)], dataset=name, axes="yxc") as source:
        np.testing.assert_array_equal(read_all(source), canonical(image, "yxc"))
    for i in range(3):
        write_png(tmp_path / f"{i}.png", image + np.uint8(i))
    with open_source([str(tmp_path)]) as source:
        assert (source.axes, source.channels) == ("czyx", image.shape[-1])
        np.testing.assert_array_equal(
            read_all(source), canonical(np.stack([image + np.uint8(i) for i in range(3)]), "zyxc")
        )


# ---------------------------------------------------------------- bad input


def refused(*paths: Path | str, match: str, **options: Any) -> InputError:
    with pytest.raises(InputError, match=match) as caught:
        open_source([str(p) for p in paths], **options)
    return caught.value


def test_every_cut_of_a_tiff_is_refused(tmp_path: Path) -> None:
    """Whatever the layout, a file that lost bytes that its directories name does not open."""
    array = np.random.default_rng(0).integers(0, 255, (6, 40, 50), dtype=np.uint8)
    cut = tmp_path / "cut.tif"
    for write in (write_tiff, write_strips, write_tiles):
        path, _ = write(tmp_path, array)
        whole = path.read_bytes()
        for keep in (0, 3, 9, 100, len(whole) // 3, len(whole) // 2, len(whole) - 1100, len(whole) - 500):
            cut.write_bytes(whole[:keep])
            error = refused(cut, match="cut short|not a TIFF")
            assert str(cut) in str(error.where)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(keep=st.integers(0, 14_000))
def test_a_tiff_cut_anywhere_is_refused_or_complete(tmp_path: Path, keep: int) -> None:
    array = np.random.default_rng(0).integers(0, 255, (6, 40, 50), dtype=np.uint8)
    path, _ = write_strips(tmp_path, array)
    path.write_bytes(path.read_bytes()[:keep])
    try:
        source = open_source([str(path)])
    except InputError:
        return
    with source:  # only bytes that nothing refers to may be missing
        np.testing.assert_array_equal(read_all(source)[0, 0], array)


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(share=st.floats(0, 1, exclude_max=True), value=st.integers(0, 255), in_data=st.booleans())
def test_a_damaged_tiff_raises_only_our_errors(
    tmp_path: Path, share: float, value: int, in_data: bool
) -> None:
    """One wrong byte, in the tiles or anywhere.

    Deflate, and only tiles are decoded: imagecodecs 2026.3 dies of a segmentation fault at one in some
    thousand damaged LZW bytes, which no Python code can catch.
    """
    path, _ = write_tiles(tmp_path, coded((6, 40, 50), "u1"))
    data = bytearray(path.read_bytes())
    with tifffile.TiffFile(path) as file:
        tiles = [
            at
            for page in file.pages
            for first, count in zip(page.dataoffsets, page.databytecounts)
            for at in range(first, first + count)
        ]
    data[tiles[int(share * len(tiles))] if in_data else int(share * len(data))] = value
    path.write_bytes(data)
    try:
        with open_source([str(path)]) as source:
            if in_data:
                read_all(source)
    except (InputError, DataError):
        pass


def test_tiff_pages_in_a_loop(tmp_path: Path) -> None:
    path = tmp_path / "loop.tif"
    path.write_bytes(b"II*\0" + (8).to_bytes(4, "little") + b"\0\0" + (8).to_bytes(4, "little"))
    refused(path, match="loop")


def test_tiff_of_several_series(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    with tifffile.TiffWriter(path) as writer:
        writer.write(coded((3, 20, 30)), photometric="minisblack")
        writer.write(coded((7, 8)), photometric="minisblack")
    error = refused(path, match="several series")
    assert "(3, 20, 30)" in str(error)
    assert "(7, 8)" in str(error)
    refused(path, match="no such series", dataset="2")
    with open_source([str(path)], dataset="1") as source:
        np.testing.assert_array_equal(read_all(source)[0, 0, 0], coded((7, 8)))


def test_ome_tiff_whose_planes_are_elsewhere(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "a.ome.tif", coded((4, 20, 30)), metadata={"axes": "ZYX"})
    whole = tifffile.TiffFile(tmp_path / "a.ome.tif")
    with whole:
        xml = whole.ome_metadata.replace('SizeZ="4"', 'SizeZ="6"').replace('PlaneCount="4"', 'PlaneCount="6"')
    with tifffile.TiffWriter(tmp_path / "b.ome.tif", ome=False) as writer:
        for i, plane in enumerate(coded((4, 20, 30))):
            description = {"description": xml.encode()} if i == 0 else {}
            writer.write(plane, contiguous=False, metadata=None, compression="zlib", **description)
    refused(tmp_path / "b.ome.tif", match="missing")


def test_hdf5(tmp_path: Path) -> None:
    path = tmp_path / "a.h5"
    with h5py.File(path, "w") as file:
        file["raw"], file["sub/label"], file["list"] = coded((4, 5, 6)), coded((4, 5, 6)), [1, 2]
    error = refused(path, match="several datasets")
    assert "raw (4, 5, 6)" in str(error)
    assert "sub/label (4, 5, 6)" in str(error)
    assert "raw (4, 5, 6)" in str(refused(path, match="no such dataset", dataset="row"))
    refused(path, match="--axes does not fit", dataset="raw", axes="czyx")
    refused(path, match="axes that we know", dataset="raw", axes="qyx")
    refused(path, match="cannot be guessed|no dataset|several", dataset=None)
    path.write_bytes(path.read_bytes()[:-1000])
    refused(path, match="cut short", dataset="raw")
    path.write_bytes(b"no such thing" * 100)
    refused(path, match="not an HDF5 file", dataset="raw")


@pytest.mark.parametrize("size", [[0.1, 0.2], [0.1, 0.0, 0.2], [0.1, np.nan, 0.2], "big"])
def test_hdf5_with_a_wrong_element_size(tmp_path: Path, size: Any) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["raw"] = coded((4, 5, 6))
        file["raw"].attrs["element_size_um"] = size
    refused(tmp_path / "a.h5", match="element_size_um")


def test_hdf5_with_a_filter_that_is_not_installed(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        properties = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        properties.set_chunk((4, 5, 6))
        properties.set_filter(32001, h5py.h5z.FLAG_OPTIONAL)  # blosc
        space = h5py.h5s.create_simple((4, 5, 6))
        h5py.h5d.create(file.id, b"raw", h5py.h5t.NATIVE_UINT8, space, properties)
    assert "32001" in str(refused(tmp_path / "a.h5", match="filter"))


def test_npz(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    np.savez_compressed(path, image=coded((9, 50, 60)), label=coded((9, 50, 60)), name=np.arange(3))
    assert "label (9, 50, 60)" in str(refused(path, match="several arrays"))
    assert "image (9, 50, 60)" in str(refused(path, match="no such array", dataset="imago"))
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    refused(path, match="cut short", dataset="image")
    damaged = bytearray(whole)
    damaged[len(whole) // 4] ^= 255
    path.write_bytes(damaged)
    with open_source([str(path)], dataset="image") as source, pytest.raises(DataError, match="box 0:9"):
        read_all(source)
    np.savez(path, only=np.arange(3))
    refused(path, match="no array that is a volume")


def test_members_shorter_than_their_header_says(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    np.save(buffer, coded((9, 50, 60)))
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("volume.npy", buffer.getvalue()[:-10])
    refused(tmp_path / "a.npz", match="cut short")
    (tmp_path / "a.npy").write_bytes(buffer.getvalue()[:-10])
    refused(tmp_path / "a.npy", match="cut short")
    (tmp_path / "a.npy").write_bytes(b"no numpy")
    refused(tmp_path / "a.npy", match="header")
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("volume.npy", b"no numpy")
    refused(tmp_path / "a.npz", match="header")


@pytest.mark.parametrize(
    "array",
    [
        np.zeros((4, 5, 6), "c8"),
        np.full((4, 5), None),
        np.full((4, 5), "text"),
        np.zeros((4, 5), [("a", "u1")]),
        np.zeros((4, 5, 6), "M8[s]"),
    ],
    ids=lambda a: str(a.dtype),
)
def test_arrays_without_usable_numbers(tmp_path: Path, array: np.ndarray) -> None:
    np.savez(tmp_path / "a.npz", volume=array)
    refused(tmp_path / "a.npz", match="does not hold numbers")
    np.save(tmp_path / "a.npy", array)
    refused(tmp_path / "a.npy", match="does not hold numbers")


def test_other_arrays_without_usable_numbers(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["volume"] = np.zeros((4, 5, 6), "c8")
    tifffile.imwrite(tmp_path / "a.tif", np.zeros((4, 5, 6), "c8"), photometric="minisblack")
    for path in tmp_path.iterdir():
        refused(path, match="does not hold numbers")


def test_empty_arrays(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.zeros((0, 5, 6)))
    refused(tmp_path / "a.npy", match="empty")


def test_png(tmp_path: Path) -> None:
    write_png(tmp_path / "a.png", coded((20, 20), "u1"))
    whole = (tmp_path / "a.png").read_bytes()
    (tmp_path / "cut.png").write_bytes(whole[:-30])
    refused(tmp_path / "cut.png", match="cut short")
    (tmp_path / "cut.png").write_bytes(b"P5 20 20 255")
    refused(tmp_path / "cut.png", match="not a PNG")
    (tmp_path / "bad.jpg").write_bytes(b"P9 20 20 255")
    refused(tmp_path / "bad.jpg", match="cannot be read")
    refused(tmp_path / "a.png", match="no datasets", dataset="raw")
    damaged = bytearray(whole)
    damaged[45] ^= 255
    (tmp_path / "a.png").write_bytes(damaged)
    with open_source([str(tmp_path / "a.png")]) as source, pytest.raises(DataError, match=r"a\.png"):
        read_all(source)


def test_an_odd_file_in_a_series_is_named(tmp_path: Path) -> None:
    for i in range(12):
        write_png(tmp_path / f"s{i}.png", coded((10, 12 if i != 10 else 13), "u1"))
    error = refused(tmp_path, match="not alike")
    assert error.where == str(tmp_path / "s10.png")
    write_png(tmp_path / "s10.png", coded((10, 12), "u2"))
    assert "uint16" in str(refused(tmp_path, match="not alike"))


def test_paths(tmp_path: Path) -> None:
    refused(tmp_path / "nothing.tif", match="no such file")
    (tmp_path / "folder").mkdir()
    assert "1 of other names" in str(refused(tmp_path / "*.tif", match="no file matches"))
    assert "no folder" in str(refused(tmp_path / "absent" / "*" / "a.tif", match="no file matches"))
    refused(tmp_path, match="no file that can be read")
    refused(match="no source")
    (tmp_path / "a.docx").write_bytes(b"")
    assert ".tif" in str(refused(tmp_path / "a.docx", match="kind of file is not read"))
    write_png(tmp_path / "a.png", coded((10, 12), "u1"))
    tifffile.imwrite(tmp_path / "a.tif", coded((10, 12), "u1"))
    refused(tmp_path / "a.png", tmp_path / "a.tif", match="different kinds")
    refused(tmp_path, match="different kinds")
    a, b = tmp_path / "a.npy", tmp_path / "b.npy"
    np.save(a, coded((3, 4)))
    np.save(b, coded((3, 4)))
    refused(a, b, match="only one")
    with open_source([str(a)]) as source, pytest.raises(InputError, match="outside the source"):
        source.read(Box((0, 0, 0), (2, 3, 4)))


def test_units() -> None:
    assert [space_unit(u) for u in ("nm", "um", "µm", "micron", "nanometer")] == [
        "nanometer",
        "micrometer",
        "micrometer",
        "micrometer",
        "nanometer",
    ]
    with pytest.raises(InputError, match="nanometer"):
        space_unit("lightyears")
