"""Truth on disk: the same run goes on, another one is refused, and done means written."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import zarr
from hypothesis import given
from hypothesis import strategies as st
from strategies import SEEDS, random_voxels

from unet_core.errors import InputError
from unet_core.ledger import (
    FOLDER,
    Ledger,
    RunRecord,
    begin,
    begun,
    digest_of,
    read_record,
    read_status,
    require_complete,
    set_status,
)
from unet_core.volumes import Store

IDENTITY = {
    "volume": {"url": "/data/raw.zarr", "shape": [10, 20, 30]},
    "model": "ab12",
    "roi": "0:10,0:20,0:30",
    "tile": [16, 16, 16],
    "dtype": "float32",
    "probabilities": False,
}


@pytest.fixture
def store(tmp_path) -> Store:
    return Store(tmp_path / "out.zarr")


@pytest.fixture
def running(store) -> Store:
    begin(store, RunRecord("segment", IDENTITY, {"blocks": 7}))
    return store


# --- one run, and which ------------------------------------------------------------------------------------


def test_a_new_output_has_no_run(store, tmp_path):
    assert begun(store, "segment", IDENTITY) is None
    assert read_record(store) is None
    assert read_status(store) is None
    require_complete(store)
    assert not (tmp_path / "out.zarr").exists(), "asking must not create"
    (tmp_path / "out.zarr").mkdir()
    assert begun(store, "segment", IDENTITY) is None, "an empty folder is a new output"


def test_the_same_request_finds_its_run(running):
    record = begun(running, "segment", IDENTITY)
    assert record is not None
    assert (record.kind, record.identity, record.plan) == ("segment", IDENTITY, {"blocks": 7})


@pytest.mark.parametrize("name", ["tile", "dtype"])
@pytest.mark.parametrize("left_open", [None, "auto"])
def test_what_a_request_leaves_open_agrees_with_what_was_resolved(name, left_open, running):
    assert begun(running, "segment", {**IDENTITY, name: left_open}) is not None


@pytest.mark.parametrize(
    ("change", "expected", "found"),
    [
        ({"model": "cd34"}, "model ab12", "model cd34"),
        ({"tile": [16, 16, 32]}, "tile [16, 16, 16]", "tile [16, 16, 32]"),
        ({"probabilities": True}, "probabilities false", "probabilities true"),
        (
            {"roi": "0:1,0:1,0:1", "dtype": "bfloat16"},
            "roi 0:10,0:20,0:30; dtype float32",
            "roi 0:1,0:1,0:1; dtype bfloat16",
        ),
        ({"new_option": 3}, "new_option null", "new_option 3"),
    ],
)
def test_another_request_is_refused_with_every_difference(change, expected, found, running):
    with pytest.raises(InputError, match="begun with other parameters") as refused:
        begun(running, "segment", {**IDENTITY, **change})
    assert (refused.value.expected, refused.value.found) == (expected, found)
    assert refused.value.where == running.url
    assert "--to" in refused.value.fix


def test_long_differences_are_cut(running):
    with pytest.raises(InputError) as refused:
        begun(running, "segment", {**IDENTITY, "volume": {"url": "x" * 500}})
    assert len(refused.value.found) < 100


def test_an_output_of_another_kind_is_refused(running):
    with pytest.raises(InputError, match="something else") as refused:
        begun(running, "ingest", IDENTITY)
    assert (refused.value.expected, refused.value.found) == ("a ingest output", "a segment output")


def test_an_output_of_another_program_is_refused(store):
    store.write("notes.txt", b"mine")
    with pytest.raises(InputError, match="not made by unet-flows"):
        begun(store, "segment", IDENTITY)
    assert store.read("notes.txt") == b"mine"


@pytest.mark.parametrize("text", ["", "{", "\x00", "[]", "null"])
def test_a_damaged_record_is_refused(text, running):
    running.write(f"{FOLDER}/run.json", text.encode())
    with pytest.raises(InputError, match="cannot be read") as refused:
        begun(running, "segment", IDENTITY)
    assert refused.value.where == f"{running.url}/{FOLDER}/run.json"


@pytest.mark.parametrize("change", [{"format": 2}, {"results_version": 0}])
def test_a_record_of_another_version_is_refused(change, running):
    path = running.path / FOLDER / "run.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(InputError, match="another version"):
        begun(running, "segment", IDENTITY)


def test_beginning_again_keeps_the_record(running):
    before = running.read(f"{FOLDER}/run.json")
    Ledger(running, "predict", 7).commit(3, "ab")
    set_status(running, "partial")
    begin(running, RunRecord("segment", IDENTITY, {"blocks": 8}))
    assert running.read(f"{FOLDER}/run.json") == before
    assert Ledger(running, "predict", 7).done().sum() == 1
    assert read_status(running) == {"status": "running"}


def test_of_two_runs_that_begin_at_once_the_second_is_refused(running):
    """Both looked before either had written."""
    before = running.read(f"{FOLDER}/run.json")
    with pytest.raises(InputError, match="another run has just begun"):
        begin(running, RunRecord("segment", {**IDENTITY, "model": "cd34"}, {}))
    assert running.read(f"{FOLDER}/run.json") == before


def test_the_record_says_who_wrote_it(running):
    document = json.loads(running.read(f"{FOLDER}/run.json"))
    assert document["fingerprint"] == RunRecord("segment", IDENTITY, {}).fingerprint
    assert set(document["software"]) == {"unet-flows", "torch", "zarr"}
    assert document["format"] == 1


@given(st.permutations(list(IDENTITY.items())), st.sampled_from(sorted(IDENTITY)))
def test_the_fingerprint_is_of_the_identity_alone(items, name):
    one = RunRecord("segment", IDENTITY, {}).fingerprint
    assert RunRecord("segment", dict(items), {"anything": 1}).fingerprint == one
    assert RunRecord("segment", {**IDENTITY, name: "changed"}, {}).fingerprint != one
    assert RunRecord("ingest", IDENTITY, {}).fingerprint != one


def test_records_do_not_disturb_zarr(running):
    """Warnings are errors here: an unknown folder in a group would make zarr-python warn."""
    zarr.open_group(running.url, mode="a")
    Ledger(running, "predict", 7).commit(0, "ab")
    assert [name for name, _ in zarr.open_group(running.url, mode="r").members(max_depth=None)] == [FOLDER]


# --- status ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", ["running", "partial", "failed"])
def test_what_is_not_complete_is_no_input(status, running):
    set_status(running, status, failed=2)
    assert read_status(running) == {"status": status, "failed": 2}
    with pytest.raises(InputError, match="not complete") as refused:
        require_complete(running)
    assert refused.value.found == f"status {status}"


def test_what_is_complete_is_an_input(running):
    set_status(running, "complete", stages={"predict": {"done": 7}})
    require_complete(running)
    assert read_status(running) == {"status": "complete", "stages": {"predict": {"done": 7}}}


# --- blocks ------------------------------------------------------------------------------------------------


@given(count=st.integers(1, 300), data=st.data())
def test_done_is_what_was_committed(count, data, tmp_path_factory):
    store = Store(tmp_path_factory.mktemp("ledger") / "o")
    blocks = data.draw(st.lists(st.integers(0, count - 1), max_size=12))
    ledger, other = Ledger(store, "predict", count), Ledger(store, "predict-2", count)
    assert not ledger.done().any()
    for index in blocks:
        ledger.commit(index, digest_of(np.array([index])))
    done = ledger.done()
    assert done.shape == (count,)
    assert set(np.flatnonzero(done)) == set(blocks)
    assert not other.done().any(), "a stage whose name begins alike is another stage"


def test_a_block_may_be_done_twice(running):
    ledger = Ledger(running, "predict", 7)
    for digest in ("aa", "aa", "bb"):
        ledger.commit(4, digest)
    assert np.flatnonzero(ledger.done()).tolist() == [4]


def test_a_ledger_of_more_blocks_belongs_to_another_plan(running):
    Ledger(running, "predict", 7).commit(6, "ab")
    with pytest.raises(InputError, match="does not belong") as refused:
        Ledger(running, "predict", 6).done()
    assert refused.value.found == "6"
    assert refused.value.where.endswith(f"{FOLDER}/ledger/predict/6-ab")


def test_a_half_written_entry_is_no_entry(running):
    """A write that was killed leaves a temporary file beside the entry, as obstore names it."""
    ledger = Ledger(running, "predict", 7)
    ledger.commit(1, "ab")
    for stray in ("2-ab#1", ".nfs0003", "4", "5-ab.partial"):
        (running.path / FOLDER / "ledger" / "predict" / stray).write_bytes(b"")
    assert np.flatnonzero(ledger.done()).tolist() == [1]


KILLED = """
import sys
from unet_core.ledger import Ledger
from unet_core.volumes import Store
ledger = Ledger(Store(sys.argv[1]), "predict", 10**6)
for index in range(10**6):
    ledger.commit(index, "00")
    print(index, flush=True)
"""


def test_a_killed_process_loses_nothing_that_it_had_committed(running):
    process = subprocess.Popen([sys.executable, "-c", KILLED, running.url], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    seen = [int(process.stdout.readline()) for _ in range(50)]
    os.kill(process.pid, signal.SIGKILL)
    seen += [int(line) for line in process.communicate()[0].split()]
    done = np.flatnonzero(Ledger(running, "predict", 10**6).done())
    assert done[: len(seen)].tolist() == seen
    assert len(done) <= len(seen) + 1


@given(shape=st.tuples(*[st.integers(1, 5)] * 3), seed=SEEDS)
def test_the_digest_is_of_the_bytes(shape, seed):
    voxels = random_voxels(shape, "uint8", seed)
    digest = digest_of(voxels)
    assert len(digest) == 16
    assert digest_of(np.asfortranarray(voxels)) == digest == digest_of(voxels[::-1][::-1])
    changed = voxels.copy()
    changed.flat[seed % changed.size] ^= 1
    assert digest_of(changed) != digest
    assert digest_of(voxels, changed) != digest


def test_a_second_run_that_begins_meanwhile_is_refused(tmp_path: Path) -> None:
    store = Store(tmp_path / "out")
    begin(store, RunRecord("segment", {"tile": [8, 8, 8]}, {}))
    begin(store, RunRecord("segment", {"tile": [8, 8, 8]}, {}))
    with pytest.raises(InputError, match="another run has just begun"):
        begin(store, RunRecord("segment", {"tile": [16, 16, 16]}, {}))


def test_stray_files_in_a_ledger_are_no_entries(tmp_path: Path) -> None:
    store = Store(tmp_path / "out")
    ledger = Ledger(store, "predict", 3)
    ledger.commit(1, "ab12")
    for name in (".nfs0001", ".DS_Store", "2-ab12.partial"):
        store.write(f".unet-flows/ledger/predict/{name}", b"")
    assert ledger.done().tolist() == [False, True, False]
