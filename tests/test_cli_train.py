"""`train` with something wrong: one error that says what, exit code 2, nothing begun; and checked once."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from strategies import write_array
from test_cli import refused, run  # noqa: F401

import flows.init
import flows.outcome
import flows.train


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    write_array(tmp_path / "image.zarr", rng.integers(0, 255, (16, 24, 24), np.uint8))
    write_array(tmp_path / "labels.zarr", rng.integers(0, 9, (16, 24, 24), np.uint8))
    return tmp_path


DATA = ("--image", "image.zarr", "--labels", "labels.zarr", "--to", "model")


@pytest.mark.parametrize(
    ("options", "facts"),
    [
        (["--region", "0:10,0:10"], ["wrong number of axes", "z0:z1,y0:y1,x0:x1"]),
        (["--validation-region", "0:10"], ["wrong number of axes"]),
        (["--target", "foreground", "--class-weights", "1,nan"], ["class_weights", "finite"]),
        (["--target", "foreground", "--class-weights", "inf,1"], ["class_weights", "finite"]),
        (["--seed", str(2**64)], ["seed"]),
        ([], ["a class that the network does not have", "choose a target"]),
    ],
)
def test_options_that_cannot_be(run, here, options, facts):  # noqa: F811
    refused(run("train", *DATA, *options), *facts)
    assert not (here / "model").exists()


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("step = 10", "step: unknown key; did you mean steps?"),
        ('target = "boundry"', "or 'interior-boundary'; did you mean boundary?"),
        ("elastic = 3.0", "elastic: unknown key; it belongs into [augment]"),
        ("[augment]\nelastc = 3.0", "augment.elastc: unknown key; did you mean elastic?"),
        ("[augment]\nsteps = 10", "augment.steps: unknown key; it belongs above the first table"),
        ('[[pairs]]\nimge = "a"\nimage = "a"\nlabels = "b"', "0.imge: unknown key; did you mean image?"),
        ("weight = 2.0", "weight: unknown key; it belongs into [[pairs]]"),
    ],
)
def test_what_is_misspelt_is_told_with_what_was_meant(run, here, text, says):  # noqa: F811
    (here / "train.toml").write_text(f'to = "model"\n{text}')
    code, _, err = run("train", "train.toml")
    assert code == 2
    assert f"{says}\n" in err
    assert "expected" not in err, "no list of fifty names"


def test_a_key_that_is_like_none_is_told_with_all_of_its_table(run, here):  # noqa: F811
    (here / "train.toml").write_text('to = "model"\n[augment]\nxyzzy = 3')
    refused(run("train", "train.toml"), "augment.xyzzy: unknown key", "augment: flips, rotations")


def test_a_misspelt_option_value_is_told_with_what_was_meant(run, here):  # noqa: F811
    refused(run("train", *DATA, "--target", "boundry"), "'boundry' is not one of", "did you mean boundary?")
    refused(run("evaluate", "image.zarr", "labels.zarr", "--target", "seperated"), "did you mean separated?")


@pytest.mark.parametrize(
    ("cluster", "facts"),
    [
        ("cluster = 3", ["cluster", "not a table"]),
        ('workers = 2\n[cluster]\nkind = "local"', ["cluster: unknown key"]),
        ('address = "tcp://host:8786"', ["address: unknown key"]),
        ('kind = "address"', ["address: Field required"]),
        ('kind = "class"', ["cluster_class: Field required"]),
    ],
)
def test_cluster_files_that_would_not_count(run, here, cluster, facts):  # noqa: F811
    (here / "cluster.toml").write_text(cluster)
    refused(run("train", *DATA, "--target", "foreground", "--cluster", "cluster.toml"), *facts)


def test_a_proposal_takes_an_image_and_its_labels(run, here):  # noqa: F811
    refused(run("train", "--init", "t.toml", "--image", "image.zarr"), "--init takes", "image")
    refused(run("train", "--init", "t.toml", *DATA, "--steps", "5"), "--init takes", "steps")
    assert not (here / "t.toml").exists()


def test_a_proposal_is_good_from_any_folder_and_has_a_model_of_its_own(run, here, monkeypatch):  # noqa: F811
    monkeypatch.setattr(flows.init, "_seconds", lambda *_: 1.0)
    (here / "configs").mkdir()
    data = ("--image", "image.zarr", "--labels", "labels.zarr")
    for name, options, to in (
        ("train", (), "configs/model"),
        ("cells", (), "configs/cells-model"),
        ("other", ("--to", "mine"), "mine"),
    ):
        code, _, err = run("train", "--init", f"configs/{name}.toml", *data, *options)
        assert code == 0, err
        written = tomllib.loads((here / f"configs/{name}.toml").read_text())
        assert written["to"] == str(here / to)
        assert [written[key] for key in ("image", "labels")] == [str(here / path) for path in data[1::2]]


@pytest.mark.parametrize("key", ["region", "validation_region"])
def test_a_region_beside_pairs_would_not_count(run, here, key):  # noqa: F811
    pairs = '[[pairs]]\nimage = "image.zarr"\nlabels = "labels.zarr"\n'
    (here / "train.toml").write_text(f'to = "model"\n{key} = "0:8,0:24,0:24"\n{pairs}')
    refused(run("train", "train.toml"), f"{key} goes with one image")


def test_a_pair_cannot_weigh_infinitely_much(run, here):  # noqa: F811
    pairs = '[[pairs]]\nimage = "image.zarr"\nlabels = "labels.zarr"\nweight = inf\n'
    (here / "train.toml").write_text(f'to = "model"\n{pairs}')
    refused(run("train", "train.toml"), "pairs.0.weight")


def test_an_augmentation_that_does_nothing_is_told(run, here, monkeypatch):  # noqa: F811
    monkeypatch.setattr(flows.train, "_do", lambda *_: {})
    monkeypatch.setattr(flows.outcome, "told", lambda flow, _, parameters, **__: flow.fn(**parameters))
    (here / "train.toml").write_text("ndim = 2\n[augment]\nhue = 10.0\nmissing_slices = 0.1\n")
    code, _, err = run("train", "train.toml", *DATA, "--target", "foreground", "--json")
    assert code == 0, err
    assert "saturation and hue" in err
    assert "slices are for 3D" in err


def test_labels_are_looked_at_once(run, here, monkeypatch):  # noqa: F811
    """By the command; the flow takes what it found."""
    prepared: list[Any] = []
    prepare = flows.train.prepare

    def counted(config: Any, **options: Any) -> Any:
        prepared.append(prepare(config, **options))
        return prepared[-1]

    def do(config: Any, planned: Any) -> dict[str, Any]:
        assert planned is prepared[0]
        return {"done": config.to}

    monkeypatch.setattr(flows.train, "prepare", counted)
    monkeypatch.setattr(flows.train, "_do", do)
    monkeypatch.setattr(flows.outcome, "told", lambda flow, _, parameters, **__: flow.fn(**parameters))
    code, out, err = run("train", *DATA, "--target", "foreground", "--json")
    assert (code, "model" in out) == (0, True), err
    assert len(prepared) == 1


def test_labels_below_zero_are_refused_unless_they_are_to_be_ignored(run, here):  # noqa: F811
    labels = np.random.default_rng(0).integers(-1, 9, (16, 24, 24), np.int16)
    write_array(here / "marked.zarr", labels)
    marked = ("--image", "image.zarr", "--labels", "marked.zarr")
    refused(
        run("train", *marked, "--to", "model", "--target", "boundary"), "below 0", "ignore = -1", "marked"
    )
    assert run("train", "--init", "t.toml", *marked, "--target", "boundary")[0] == 0
    assert "\nignore = -1\n" in (here / "t.toml").read_text()
    write_array(here / "classes.zarr", np.zeros((16, 24, 24), np.uint8))
    refused(run("evaluate", "classes.zarr", "marked.zarr", "--target", "boundary"), "below 0", "--ignore=-1")
