"""`watch` as people run it: several at once, one that is killed, and through Prefect and Dask."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys

import numpy as np
import pytest
from killing import wait_until
from pipeline import save_random_model
from test_acquisition import write_image
from test_watch import call, config, same_labels, states, work  # noqa: F401

from flows.outcome import IncompleteRunError
from unet_core.architecture import UNetSpec

# A watcher as a process of its own, without Prefect: it begins when it is told to, and may die by itself in
# the middle of a volume, as of `kill -9`.
WATCHER = """
import json, os, signal, sys, time
from pathlib import Path
from flows.config import SegmentConfig
from flows.segment import request_of
from pipeline import complete
from test_watch import call, segment_here

def dies(**parameters):
    request = request_of(SegmentConfig(**parameters))
    complete("", request.to, tile=request.tile, volume=request.volume, model=request.model, most=3)
    os.kill(os.getpid(), signal.SIGKILL)

work, dying = sys.argv[1:]
Path(work, f"ready-{os.getpid()}").touch()
while not Path(work, "go").exists():
    time.sleep(0.01)
print(json.dumps(call(work, dies if dying == "dies" else segment_here, tile="1,64,64")))
"""


def test_a_watch_that_is_killed_and_two_that_go_on_together(work):  # noqa: F811
    """Each volume's labels are written by one of them, and are those of a plain `segment`."""
    names = [f"{number}.zarr" for number in range(3)]
    shutil.rmtree(work / "in")
    # Of a 2D model a plane is a block.
    save_random_model(work / "model", UNetSpec.build(ndim=2, depth=1, base=2, classes=3), seed=6)
    for number, name in enumerate(names):
        sizes = {"z": 8, "y": 64, "x": 64}
        image = np.random.default_rng(number).integers(1, 255, tuple(sizes.values()), dtype="u1")
        write_image(work / "in" / name, sizes=sizes, data=image)

    def start(dying: str = "lives") -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-c", WATCHER, str(work), dying],
            env={
                **os.environ,
                "PYTHONPATH": os.pathsep.join(sys.path),
                "UNET_FLOWS_HEARTBEAT_SECONDS": "0.2",
            },
            stdout=subprocess.PIPE,
            text=True,
        )

    watchers = [start("dies"), start(), start()]
    (killed, *both) = watchers
    try:
        wait_until(lambda: len(list(work.glob("ready-*"))) == 3, "three watchers")
        (work / "go").touch()
        answers = [watcher.communicate(timeout=120)[0] for watcher in watchers]
    finally:
        for watcher in watchers:
            watcher.kill()
    assert killed.returncode == -signal.SIGKILL
    assert [watcher.returncode for watcher in both] == [0, 0]
    documents = [json.loads(answer) for answer in answers[1:]]
    # What the dead one held stays claimed until it counts as dead: then the next call goes on with it.
    documents.append(call(work, tile="1,64,64"))
    for name in names:
        stood = [states(document)[name] for document in documents]
        assert stood.count("segmented") == 1, documents
        assert set(stood) <= {"segmented", "claimed", "done"}
        same_labels(work, name, work, tile=(1, 64, 64))


@pytest.mark.usefixtures("in_prefect")
def test_through_prefect_and_dask(work):  # noqa: F811
    """The flow as it is deployed: each volume a run of `segment` below it, their states in a table."""
    from prefect.client.orchestration import get_client

    from flows.watch import watch

    shutil.rmtree(work / "in/day")
    shutil.rmtree(work / "in/b.zarr")
    write_image(work / "in/b.zarr", "czyx")
    with pytest.raises(IncompleteRunError, match="1 of 2 volumes failed") as end:
        watch(**config(work, workers=1).model_dump())
    with get_client(sync_client=True) as client:
        runs = {flow_run.name: flow_run for flow_run in client.read_flow_runs()}
        (table,) = [artifact for artifact in client.read_artifacts() if artifact.key == "volumes-in"]
    assert states(end.value.document) == {"a.zarr": "segmented", "b.zarr": "failed"}
    assert runs[f"watch {work}/in"].state_name == "Failed"
    below = runs[f"segment {work}/in/a.zarr"]
    assert below.state_name == "Completed"
    assert below.parent_task_run_id is not None
    rows = [(row["volume"], row["state"]) for row in json.loads(table.data)]
    assert rows == [("b.zarr", "failed"), ("a.zarr", "segmented")]
    same_labels(work, "a.zarr", work)
