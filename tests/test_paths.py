"""One place has one name: `../x` and the path from the root are one input to a run."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from strategies import write_array

from unet_core.paths import absolute
from unet_core.sources import open_source
from unet_core.volumes import Store, Volume


@pytest.fixture
def below(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with data, seen from a folder inside it."""
    (tmp_path / "below").mkdir()
    monkeypatch.chdir(tmp_path / "below")
    return tmp_path


def test_the_same_input_has_the_same_identity(below: Path) -> None:
    write_array(below / "volume.zarr", np.ones((4, 4, 4), np.uint8))
    names = (
        "../volume.zarr",
        f"{below}/volume.zarr",
        f"{below}/below/.././volume.zarr",
        "../below/../volume.zarr",
    )
    identities = [Volume.open(name).identity() for name in names]
    assert identities == [identities[0]] * len(names)
    assert {Store(name).url for name in names} == {str(below / "volume.zarr")}


def test_the_same_source_has_the_same_digest(below: Path) -> None:
    np.save(below / "a.npy", np.ones((4, 4, 4), np.uint8))
    digests = set()
    for name in ("../a.npy", f"{below}/a.npy", "../*.npy"):
        with open_source([name]) as source:
            digests.add(source.digest())
    assert len(digests) == 1


def test_above_a_link_lies_what_its_target_lies_in(below: Path, tmp_path: Path) -> None:
    (tmp_path / "deep/target").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "deep/target")
    assert absolute(tmp_path / "link/../x") == tmp_path / "deep/x"
    assert absolute(tmp_path / "link") == tmp_path / "link"
    assert absolute("../link/x") == tmp_path / "link/x"
