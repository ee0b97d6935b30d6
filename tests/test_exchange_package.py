"""bioimage.io packages: valid for bioimage.io's validator, run by its own library, imported to the bit."""

from __future__ import annotations

import io
import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from unet_core.architecture import UNetSpec
from unet_core.checkpoint import load_model
from unet_core.errors import InputError, RunError
from unet_core.exchange import About, TileShape, export_package, import_model, run_onnx
from unet_core.exchange.extras import require
from unet_core.normalisation import NormalisationRule, Scale
from unet_core.volumes import Volume

pytestmark = pytest.mark.usefixtures("one_thread")

ABOUT = About(name="Cells (test)", authors=("Ada Lovelace", "Emmy Noether"), licence="MIT")
# Offsets far above the spread: float32 would lose digits in x * gain + offset.
SCALE = {1: Scale((31000.0,), (12.5,)), 3: Scale((0.0, 120.0, -4.0), (1.0, 0.001, 255.0))}
MODELS = {
    "2D transpose": (
        UNetSpec.build(ndim=2, depth=2, base=4, in_channels=3, classes=3),
        {"unit": "micrometer"},
    ),
    "2D nearest": (
        UNetSpec.build(ndim=2, depth=2, base=4, upsampling="nearest", norm="batch"),
        {"normalisation": NormalisationRule(rule="mean_std")},
    ),
    "3D transpose": (UNetSpec.build(ndim=3, depth=1, base=4, norm="batch"), {"unit": "furlong"}),
    "3D nearest": (
        UNetSpec.build(ndim=3, depth=1, base=2, upsampling="nearest", anisotropic_levels=1, in_channels=3),
        {"unit": "nanometer", "target": "boundary", "class_names": ("interior", "boundary")},
    ),
    "2D without halo": (
        UNetSpec(in_channels=1, classes=2, widths=(4, 4), kernels=((1, 1),) * 2, pools=((1, 2),)),
        {},
    ),
}


@pytest.fixture(params=MODELS, scope="module")
def exported(request, tmp_path_factory):
    """A stored model and its package, once in this module for each kind of network."""
    from pipeline import save_random_model

    spec, card = MODELS[request.param]
    folder = tmp_path_factory.mktemp("exported")
    save_random_model(
        folder / "model", spec, **{"scale": SCALE[spec.in_channels], "voxel_size": (40.0, 8.0, 4.0), **card}
    )
    stored = load_model(str(folder / "model"))
    package = export_package(stored, ABOUT)
    (folder / "package.zip").write_bytes(package.data)
    with zipfile.ZipFile(folder / "package.zip") as archive:
        archive.extractall(folder / "unpacked")
    return stored, package, folder


@pytest.fixture(scope="module")
def description(exported):
    """The package as bioimage.io reads it; from memory, because of files it leaves some open."""
    with zipfile.ZipFile(io.BytesIO(exported[1].data)) as archive:
        yield require("bioimageio.spec").load_description(archive)


def rdf_of(folder: Path) -> dict[str, Any]:
    return yaml.safe_load((folder / "unpacked" / "rdf.yaml").read_text())


def test_it_is_valid(exported, description):
    _, package, _ = exported
    assert package.status == "valid-format"
    assert description.validation_summary.status == "valid-format"
    assert description.name == "Cells (test)"
    assert [author.name for author in description.authors] == ["Ada Lovelace", "Emmy Noether"]
    assert str(description.license) == "MIT"
    assert str(description.cite[0].doi) == "10.1007/978-3-319-24574-4_28"
    # Wished for in formats for people's eyes, such as PNG: they hold neither float32 nor 3D.
    assert [w.split(":")[0] for w in package.warnings] == [
        "inputs.0.sample_tensor",
        "outputs.0.sample_tensor",
    ]


@pytest.mark.parametrize("exported", ["2D transpose", "3D nearest"], indirect=True)
def test_bioimageio_reproduces_the_test_output(description):
    """Its own test: our preprocessing, the network, our postprocessing, and other sizes and batches."""
    core = require("bioimageio.core")
    summary = core.test_model(description, absolute_tolerance=1e-5)
    assert summary.status == "passed", [d.errors for d in summary.details]
    done = [detail.name for detail in summary.details]
    assert "Reproduce test outputs from test inputs (onnx)" in done
    assert sum("batch_size: 2" in name for name in done) == 3


def test_bioimageio_segments_an_image_as_we_do(exported, description):
    """Cut into its blocks, padded and cropped by it: one pass over the whole mirrored image."""
    core = require("bioimageio.core")
    stored, _, _ = exported
    spec, tile = stored.card.spec, TileShape.of(stored.card.spec)
    # Two or three blocks along each axis, not all of them whole. Whole steps: it shifts the last block back,
    # and a shift by less would move it off the network's grid (unet_core/DESIGN.md, "Rejected").
    more = [max(1, -(-2 * h // s)) for h, s in zip(tile.halo, tile.step)]
    shape = tuple((n // s + k + 2) * s for n, k, s in zip(tile.minimum, more, tile.step))
    column = (-1, *(1,) * spec.ndim)
    offset, spread = (np.reshape(v, column) for v in (stored.card.scale.offset, stored.card.scale.spread))
    raw = np.random.default_rng(1).uniform(0, 1, (spec.in_channels, *shape)) * spread + offset
    raw = raw.astype(np.float32)

    flat = (1,) * (3 - spec.ndim)
    normalised = stored.card.scale.apply(raw.reshape(-1, *flat, *shape)).reshape(raw.shape)
    lower, _ = spec.context
    upper = [r - n - a for r, n, a in zip(spec.read_shape(shape), shape, lower)]
    mirrored = np.pad(normalised, [(0, 0), *zip(lower, upper)], mode="reflect")
    with torch.inference_mode():
        found = torch.softmax(stored.network()(torch.from_numpy(mirrored)[None]), 1).numpy()
    expected = found[(..., *(slice(n) for n in shape))]

    with core.create_prediction_pipeline(description) as pipeline:
        image = core.Tensor.from_numpy(raw[None], dims=["batch", "channel", *"zyx"[-spec.ndim :]])
        sample = core.digest_spec.create_sample_for_model(description, inputs={"input": image})
        ns = {("input", axis): k for axis, k in zip("zyx"[-spec.ndim :], more)}
        result = pipeline.predict_sample_with_blocking(sample, ns=ns)
    (blocks,) = (member.data.to_numpy() for member in result.members.values())
    assert blocks.shape == expected.shape
    np.testing.assert_allclose(blocks, expected, rtol=0, atol=1e-5)


def test_sizes_and_halo(exported):
    stored, _, folder = exported
    spec, rdf = stored.card.spec, rdf_of(folder)
    axes_in, axes_out = (rdf[end][0]["axes"][2:] for end in ("inputs", "outputs"))
    assert [a["id"] for a in axes_in] == [a["id"] for a in axes_out] == list("zyx"[-spec.ndim :])
    assert rdf["inputs"][0]["pad"] == {"mode": "reflect"}
    for k, (axis_in, axis_out) in enumerate(zip(axes_in, axes_out)):
        halo = axis_out.get("halo", 0)
        assert halo == max(spec.context[0][k], spec.context[1][k])
        assert axis_out["size"] == {"tensor_id": "input", "axis_id": axis_in["id"]}
        assert axis_in["size"]["step"] == spec.stride[k]
        assert axis_in["size"]["min"] - 2 * halo == spec.stride[k]
        known = stored.card.unit in ("micrometer", "nanometer")
        assert axis_in.get("unit") == axis_out.get("unit") == (stored.card.unit if known else None)
        assert axis_in.get("scale", 1.0) == ((40.0, 8.0, 4.0)[3 - spec.ndim + k] if known else 1.0)


def test_files_for_people_and_machines(exported):
    stored, _, folder = exported
    unpacked = folder / "unpacked"
    tile = TileShape.of(stored.card.spec)
    given, expected = (np.load(unpacked / f"test_{end}.npy") for end in ("input", "output"))
    assert given.shape[2:] == expected.shape[2:]
    assert all((n - a) % s == 0 for n, a, s in zip(given.shape[2:], tile.minimum, tile.step))
    np.testing.assert_allclose(expected.sum(1), 1, rtol=1e-5)
    inside = expected[(..., *(slice(h, -h or None) for h in tile.halo))]
    assert np.ptp(inside) > 0.01, "an example in which nothing happens tells nothing"
    with Image.open(unpacked / "cover.png") as cover:
        assert cover.size == (512, 256)
        assert np.ptp(np.asarray(cover)) == 255
    text = (unpacked / "README.md").read_text()
    assert "# Cells (test)" in text
    assert "## Validation" in text
    assert all(name in text for name in stored.card.class_names)
    # The ONNX file takes normalised intensities and gives logits.
    scale, shape = stored.card.scale, (given.shape[1], *(1,) * (5 - given.ndim), *given.shape[2:])
    normalised = scale.apply(given.reshape(shape)).reshape(given.shape)
    logits = run_onnx((unpacked / "weights.onnx").read_bytes(), normalised)
    np.testing.assert_allclose(torch.softmax(torch.from_numpy(logits), 1), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("source", ["package.zip", "unpacked"])
def test_export_and_import_give_the_same_model(source, exported, tmp_path):
    stored, _, folder = exported
    imported = import_model(str(folder / source), str(tmp_path / "again"))
    again = load_model(imported.url)
    assert again.card == stored.card
    assert again.digest == stored.digest
    assert imported.assumed == ()
    before, after = stored.network().state_dict(), again.network().state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert json.loads((tmp_path / "again" / "training.json").read_text())["imported_from"].endswith(source)


def test_an_example_from_an_image(make_model, make_volume):
    spec = UNetSpec.build(ndim=3, depth=1, base=2)
    data = np.arange(60 * 20 * 40, dtype=np.uint16).reshape(60, 20, 40)
    image = Volume.open(str(make_volume(data)))
    package = export_package(load_model(str(make_model(spec))), About(authors=("A",)), image=image)
    with zipfile.ZipFile(io.BytesIO(package.data)) as archive:
        given = np.load(io.BytesIO(archive.read("test_input.npy")))[0, 0]
    # y is shorter than the tile, and mirrored; z and x are the middle.
    missing = given.shape[1] - 20
    padded = np.pad(data, [(0, 0), (-(-missing // 2), missing // 2), (0, 0)], mode="reflect")
    z, x = ((n - m) // 2 for n, m in zip((60, 40), (given.shape[0], given.shape[2])))
    np.testing.assert_array_equal(given, padded[z : z + given.shape[0], :, x : x + given.shape[2]])


def test_an_image_of_other_channels(make_model, make_volume):
    image = Volume.open(str(make_volume(np.zeros((2, 4, 8, 8), np.uint8), axes="czyx")))
    with pytest.raises(InputError, match="does not fit the model") as refused:
        export_package(load_model(str(make_model())), About(), image=image)
    assert (refused.value.expected, refused.value.found) == ("1 channels", "2")


@pytest.mark.parametrize(
    ("about", "option"),
    [
        (About(name="new"), "--name"),
        (About(name="cells / nuclei"), "--name"),
        (About(licence="mine alone"), "--licence"),
        (About(authors=("a/b",)), "--author"),
    ],
)
def test_what_bioimageio_does_not_allow(about, option, make_model):
    with pytest.raises(InputError, match="does not allow") as refused:
        export_package(load_model(str(make_model())), about)
    assert refused.value.where == option
    assert refused.value.found


def test_a_package_that_is_not_valid_is_not_written(make_model, monkeypatch):
    monkeypatch.setattr("unet_core.exchange.description.OPSET", 3)
    with pytest.raises(RunError, match="validator refuses") as failed:
        export_package(load_model(str(make_model())), About())
    assert "opset_version" in failed.value.found
