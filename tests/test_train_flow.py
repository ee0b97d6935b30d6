"""`unet-flows train` as people run it: killed, stopped and begun again, it ends as if nothing had been."""

from __future__ import annotations

import signal
from pathlib import Path

import numpy as np
import psutil
import pytest
import zarr
from killing import COMMAND, Running, wait_until
from test_training import blobs

from flows.inspection import status, verify
from unet_core.checkpoint import load_model
from unet_core.training import Checkpoints
from unet_core.volumes import Store

pytestmark = pytest.mark.timeout(600)
STEPS = 40


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("train")
    image, ids = blobs((16, 32, 48), seed=0)
    for name, data in (("image", image), ("labels", ids)):
        chunks = (16, 16, 16)
        zarr.create_array(folder / f"{name}.zarr", data=data, chunks=chunks, dimension_names=list("zyx"))
    # All augmentation that needs no numba: every rank would compile it anew, for longer than it trains.
    (folder / "calm.toml").write_text("[augment]\ndeformed = 0.0\n")
    return folder


@pytest.fixture(scope="module")
def server(prefect_api: dict[str, str]) -> dict[str, str]:
    return prefect_api


def command(root: Path, to: Path, *options: str) -> list[str]:
    data = ("--image", str(root / "image.zarr"), "--labels", str(root / "labels.zarr"))
    boxes = ("--region", "0:16,0:32,0:32", "--validation-region", "0:16,0:32,32:48")
    network = ("--target", "foreground", "--depth", "1", "--base", "16", "--dropout", "0.2")
    steps = ("--steps", str(STEPS), "--validate-every", "10", "--checkpoint-every", "2", "--workers", "2")
    return [
        *(*COMMAND, "train", str(root / "calm.toml"), "--to", str(to), *data, *boxes, *network, *steps),
        *("--patch", "16,16,16", "--batch", "2", "--json", *options),
    ]


def begin(root: Path, to: Path, server: dict[str, str], *options: str) -> Running:
    return Running.start(command(root, to, *options), **server)


def weights(to: Path) -> dict[str, np.ndarray]:
    return {name: t.numpy() for name, t in load_model(str(to)).network().state_dict().items()}


@pytest.fixture(scope="module")
def reference(root: Path, server: dict[str, str]) -> dict[str, np.ndarray]:
    """The weights of a training that nobody disturbed."""
    code, document, errors = begin(root, root / "reference", server).end(300)
    assert (code, document["status"]) == (0, "complete"), errors
    assert document["steps_done"] == STEPS
    assert document["validation"]["foreground_iou"] > 0.3
    assert status(str(root / "reference"))["stages"]["train"]["done"] == STEPS
    assert verify(str(root / "reference")).sound
    return weights(root / "reference")


def newest(to: Path) -> int:
    return max(Checkpoints(Store(to)).steps(), default=0)


def test_stopped_and_killed_it_ends_as_an_undisturbed_one(root, server, reference):
    """Ctrl-C, then everything killed at once; `test_faults` sends SIGTERM, which takes the same way."""
    to = root / "struck"
    for number, after in ((signal.SIGINT, 2), (signal.SIGKILL, 12)):
        running = begin(root, to, server)
        wait_until(lambda r=running, n=after: newest(to) >= n or r.process.poll() is not None, "steps", 200)
        family = running.supervisor.children(recursive=True)
        ranks = running.find("flows.rank")
        assert ranks
        if number == signal.SIGKILL:
            running.kill_all()
        else:
            running.process.send_signal(number)
            code, document, _ = running.end(30)
            assert code == (-number if number == signal.SIGINT else 130)
            assert document["status"] == "interrupted"
        _, alive = psutil.wait_procs(family, timeout=10)
        assert [p for p in alive if p.status() != psutil.STATUS_ZOMBIE] == []
        before = newest(to)
        assert after <= before < STEPS
        assert status(str(to))["status"] == "partial"
        found = verify(str(to))
        assert not found.sound
        assert found.missing == {"train": STEPS - before}
    damage_newest(to)
    code, document, errors = begin(root, to, server).end(300)
    assert (code, document["status"]) == (0, "complete"), errors
    found = weights(to)
    assert found.keys() == reference.keys()
    for name in found:
        np.testing.assert_array_equal(found[name], reference[name])


def test_a_rank_that_is_stopped_before_the_first_validation_leaves_a_partial_run(root, server, tmp_path):
    options = ("--steps", "9000", "--validate-every", "5000", "--workers", "1")
    running = begin(root, tmp_path / "model", server, *options)
    wait_until(lambda: newest(tmp_path / "model") or running.process.poll() is not None, "steps", 200)
    (rank,) = running.find("flows.rank")
    rank.terminate()
    code, document, errors = running.end(60)
    assert (code, document["status"]) == (1, "partial"), errors
    assert (document["best_step"], document["validation"]) == (0, None)
    assert document["steps_done"] == newest(tmp_path / "model")
    assert "goes on" in document["error"]["to_do"]
    assert status(str(tmp_path / "model"))["status"] == "partial"


def damage_newest(to: Path) -> None:
    """One byte of the newest checkpoint; `verify` finds it, and the one before serves."""
    folder = to / ".unet-flows" / "checkpoints"
    last = max(path for path in folder.iterdir() if not path.name.startswith("best"))
    data = bytearray(last.read_bytes())
    data[-1] ^= 1
    last.write_bytes(data)
    before = newest(to)
    found = verify(str(to), repair=True)
    assert found.damaged == {"train": 1}
    assert last.name in found.problems[0]["error"]
    assert 0 < newest(to) < before


def test_another_configuration_is_refused_by_name(root, server, reference):
    code, document, _ = begin(root, root / "reference", server, "--learning-rate", "0.02").end()
    assert code == 2
    assert "learning_rate" in document["error"]["expected"]
    assert "0.02" in document["error"]["found"]
    assert load_model(str(root / "reference"))
