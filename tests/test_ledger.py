"""Truth on disk: the same run goes on, another one is refused, and done means written."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from strategies import SEEDS, random_voxels

from unet_core.errors import InputError, LostLeaseError
from unet_core.ledger import (
    FOLDER,
    Failure,
    Ledger,
    Quarantine,
    RunRecord,
    begin,
    begun,
    clear,
    digest_of,
    hold,
    read_record,
    read_status,
    require_apart,
    require_complete,
    require_ours,
    require_replaceable,
    seals,
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
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "out.zarr")


@pytest.fixture
def running(store: Store) -> Iterator[Store]:
    """A run that has begun and is owned with epoch 1."""
    with hold(store):
        begin(store, RunRecord("segment", IDENTITY, {"blocks": 7}))
        yield store


# --- one run, and which ------------------------------------------------------------------------------------


def test_a_new_output_has_no_run(store: Store, tmp_path: Path) -> None:
    assert begun(store, "segment", IDENTITY) is None
    assert read_record(store) is None
    assert read_status(store) is None
    require_complete(store)
    assert not (tmp_path / "out.zarr").exists(), "asking must not create"
    (tmp_path / "out.zarr").mkdir()
    assert begun(store, "segment", IDENTITY) is None, "an empty folder is a new output"


def test_an_output_that_was_only_owned_is_a_new_one(store: Store) -> None:
    with hold(store):
        pass
    assert begun(store, "segment", IDENTITY) is None


def test_the_same_request_finds_its_run(running: Store) -> None:
    record = begun(running, "segment", IDENTITY)
    assert record is not None
    assert (record.kind, record.identity, record.plan) == ("segment", IDENTITY, {"blocks": 7})


@pytest.mark.parametrize("name", ["tile", "dtype"])
@pytest.mark.parametrize("left_open", [None, "auto"])
def test_what_a_request_leaves_open_agrees_with_what_was_resolved(
    name: str, left_open: str | None, running: Store
) -> None:
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
def test_another_request_is_refused_with_every_difference(
    change: dict, expected: str, found: str, running: Store
) -> None:
    with pytest.raises(InputError, match="begun with other parameters") as refused:
        begun(running, "segment", {**IDENTITY, **change})
    assert (refused.value.expected, refused.value.found) == (expected, found)
    assert refused.value.where == running.url
    assert "--restart" in refused.value.fix


def test_long_differences_are_cut(running: Store) -> None:
    with pytest.raises(InputError) as refused:
        begun(running, "segment", {**IDENTITY, "volume": {"url": "x" * 500}})
    assert len(refused.value.found) < 100


def test_an_output_of_another_kind_is_refused(running: Store) -> None:
    with pytest.raises(InputError, match="something else") as refused:
        begun(running, "ingest", IDENTITY)
    assert (refused.value.expected, refused.value.found) == ("a ingest output", "a segment output")


def test_an_output_of_another_program_is_refused(store: Store) -> None:
    store.write("notes.txt", b"mine")
    looks = (partial(begun, store, "segment", IDENTITY), partial(require_ours, store), partial(clear, store))
    for look in looks:
        with pytest.raises(InputError, match="not made by unet-flows"):
            look()
    assert store.read("notes.txt") == b"mine"


@pytest.mark.parametrize(
    "text",
    ["", "{", "\x00", "[]", "null", '{"format": 2, "results_version": 1, "kind": "segment", "plan": {}}'],
)
def test_a_damaged_record_is_refused(text: str, running: Store) -> None:
    running.write(f"{FOLDER}/run.json", text.encode())
    with pytest.raises(InputError, match="cannot be read") as refused:
        begun(running, "segment", IDENTITY)
    assert refused.value.where == f"{running.url}/{FOLDER}/run.json"


@pytest.mark.parametrize("change", [{"format": 3}, {"results_version": 0}])
def test_a_record_of_another_version_is_refused(change: dict, running: Store) -> None:
    path = running.path / FOLDER / "run.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(InputError, match="another version"):
        begun(running, "segment", IDENTITY)


def test_beginning_again_keeps_the_record(running: Store) -> None:
    before = running.read(f"{FOLDER}/run.json")
    Ledger(running, "predict", 7, 1).commit(3, f"{0xAB:016x}")
    begin(running, RunRecord("segment", IDENTITY, {"blocks": 8}))
    assert running.read(f"{FOLDER}/run.json") == before
    assert Ledger(running, "predict", 7).read().done.sum() == 1


def test_of_two_runs_that_begin_at_once_the_second_is_refused(running: Store) -> None:
    """Both looked before either had written."""
    before = running.read(f"{FOLDER}/run.json")
    with pytest.raises(InputError, match="another run has just begun"):
        begin(running, RunRecord("segment", {**IDENTITY, "model": "cd34"}, {}))
    assert running.read(f"{FOLDER}/run.json") == before


def test_the_record_says_who_wrote_it(running: Store) -> None:
    document = json.loads(running.read(f"{FOLDER}/run.json"))
    assert document["fingerprint"] == RunRecord("segment", IDENTITY, {}).fingerprint
    assert set(document["software"]) == {"unet-flows", "torch", "zarr"}
    assert document["format"] == 2


@given(st.permutations(list(IDENTITY.items())), st.sampled_from(sorted(IDENTITY)))
def test_the_fingerprint_is_of_the_identity_alone(items: list, name: str) -> None:
    one = RunRecord("segment", IDENTITY, {}).fingerprint
    assert RunRecord("segment", dict(items), {"anything": 1}).fingerprint == one
    assert RunRecord("segment", {**IDENTITY, name: "changed"}, {}).fingerprint != one
    assert RunRecord("ingest", IDENTITY, {}).fingerprint != one


def test_records_do_not_disturb_zarr(running: Store) -> None:
    """Warnings are errors here: an unknown folder in a group would make zarr-python warn."""
    zarr.open_group(running.url, mode="a")
    Ledger(running, "predict", 7, 1).commit(0, f"{0xAB:016x}")
    assert [name for name, _ in zarr.open_group(running.url, mode="r").members(max_depth=None)] == [FOLDER]


def test_clearing_leaves_nothing_but_the_lease(running: Store) -> None:
    zarr.create_array(running.url + "/0", shape=(4,), dtype="u1")[:] = 1
    Ledger(running, "predict", 7, 1).commit(0, f"{0xAB:016x}")
    set_status(running, "partial")
    clear(running)
    assert list(running.keys()) == [f"{FOLDER}/lease/00000001"]
    assert begun(running, "ingest", IDENTITY) is None


# --- status ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", ["partial", "failed"])
def test_what_is_not_complete_is_no_input(status: str, running: Store) -> None:
    set_status(running, status, failed=2)
    assert read_status(running) == {"status": status, "failed": 2}
    with pytest.raises(InputError, match="not complete") as refused:
        require_complete(running)
    assert refused.value.found == f"status {status}"


def test_a_run_that_was_killed_before_it_could_say_is_no_input(running: Store) -> None:
    with pytest.raises(InputError, match="not complete"):
        require_complete(running)


def test_what_is_complete_is_an_input(running: Store) -> None:
    set_status(running, "complete", stages={"predict": {"done": 7}})
    require_complete(running)
    assert read_status(running) == {"status": "complete", "stages": {"predict": {"done": 7}}}


def test_the_group_says_how_its_run_stands(running: Store) -> None:
    zarr.open_group(running.url, mode="a").attrs["ome"] = {"version": "0.5"}
    for status in ("partial", "complete", "failed"):
        set_status(running, status)
        attributes = zarr.open_group(running.url, mode="r").attrs.asdict()
        assert attributes["unet-flows"]["status"] == status
        assert attributes["ome"] == {"version": "0.5"}


# --- blocks ------------------------------------------------------------------------------------------------


class LedgerMachine(RuleBasedStateMachine):
    """A ledger against a dict, while owners come and go and late ones go on writing."""

    @initialize(count=st.integers(1, 1200))
    def begin(self, count: int) -> None:
        import tempfile

        # Segments of a few blocks: several of each ledger, and most of them cut at the end.
        self.segment, seals.SEGMENT = seals.SEGMENT, 256
        self.folder = tempfile.TemporaryDirectory()
        self.store = Store(self.folder.name)
        self.count = count
        self.epoch = 0
        self.late: set[str] = set()
        self.own: set[str] = set()
        self.expected: dict[int, tuple[int, int]] = {}
        self.take_over()

    def ledger(self, epoch: int) -> Ledger:
        return Ledger(self.store, "predict", self.count, epoch)

    @rule()
    def take_over(self) -> None:
        with hold(self.store) as lease:
            self.epoch = lease.epoch
            if self.epoch > 1:
                self.ledger(self.epoch).seal()
                self.look()

    def look(self) -> None:
        self.own |= set(self.store.keys(f"{FOLDER}/ledger/predict/sealed")) - self.late

    @rule(data=st.data())
    def commit(self, data: st.DataObject) -> None:
        index = data.draw(st.integers(0, self.count - 1))
        digest, absent = data.draw(st.integers(0, 2**64 - 1)), data.draw(st.integers(0, 3))
        if index not in self.expected:  # a block is done twice with the same bytes
            self.expected[index] = (digest, absent)
        digest, absent = self.expected[index]
        self.ledger(self.epoch).commit(index, f"{digest:016x}", absent=absent)

    @rule(data=st.data())
    def commit_late(self, data: st.DataObject) -> None:
        """An owner that lost its lease is refused; and if its write was under way, it does not count."""
        if self.epoch == 1:
            return
        index = data.draw(st.integers(0, self.count - 1))
        late = data.draw(st.integers(1, self.epoch - 1))
        with pytest.raises(LostLeaseError):
            self.ledger(late).commit(index, "0" * 16)
        self.store.write(f"{FOLDER}/ledger/predict/blocks/{late:08d}/000000/{index}-{'0' * 16}", b"")

    @rule(data=st.data())
    def seal_late(self, data: st.DataObject) -> None:
        """An owner that lost its lease between asking for it and writing its seal."""
        if self.epoch == 1:
            return
        late = data.draw(st.integers(1, self.epoch - 1))
        segment = data.draw(st.integers(0, (self.count - 1) // seals.SEGMENT)) * seals.SEGMENT
        part = seals.Part.empty(segment, min(seals.SEGMENT, self.count - segment))
        part.done[:] = True
        name = seals.Name(late, data.draw(st.integers(50, 99)))
        key = f"{FOLDER}/ledger/predict/sealed/{segment // seals.SEGMENT:06d}/{name}"
        if key in self.own:
            return  # an owner counts on from its own seals, also when it is late
        self.store.write(key, seals.encode(part, count=self.count))
        self.late.add(key)

    @rule()
    def seal(self) -> None:
        self.ledger(self.epoch).seal()
        self.look()
        assert not list(self.store.keys(f"{FOLDER}/ledger/predict/blocks"))
        kept = set(self.store.keys(f"{FOLDER}/ledger/predict/sealed")) - self.late
        folders = [key.split("/")[-2] for key in kept]
        assert all(folders.count(folder) <= 2 for folder in folders)

    @rule(data=st.data())
    def reopen(self, data: st.DataObject) -> None:
        done = sorted(self.expected)
        without = data.draw(st.lists(st.sampled_from(done), unique=True)) if done else []
        self.ledger(self.epoch).seal(without=without)
        self.look()
        for index in without:
            del self.expected[index]

    @invariant()
    def agrees(self) -> None:
        if not hasattr(self, "store"):
            return
        entries = self.ledger(0).read()
        assert list(entries.done.indices()) == sorted(self.expected)
        assert entries.absent == sum(absent for _, absent in self.expected.values())
        for start in range(0, self.count, seals.SEGMENT):
            part = self.ledger(0).part(start)
            assert all(start + i in self.expected for i in np.flatnonzero(part.done))
            for i in np.flatnonzero(part.done):
                assert (int(part.digest[i]), int(part.absent[i])) == self.expected[start + int(i)]
        if self.expected:
            some = [*self.expected][:3]
            assert self.ledger(0).committed([0, *some]) == {*some, *({0} & self.expected.keys())}

    def teardown(self) -> None:
        if hasattr(self, "folder"):
            seals.SEGMENT = self.segment
            self.folder.cleanup()


TestLedgerMachine = LedgerMachine.TestCase
TestLedgerMachine.settings = settings(max_examples=20, deadline=None)  # each goes many steps


def test_stages_whose_names_begin_alike_are_two(running: Store) -> None:
    Ledger(running, "predict", 7, 1).commit(4, "0" * 16)
    assert not Ledger(running, "predict-2", 7).read().done.any()


def test_a_ledger_of_more_blocks_belongs_to_another_plan(running: Store) -> None:
    ledger = Ledger(running, "predict", 7, 1)
    ledger.commit(6, f"{0xAB:016x}")
    with pytest.raises(InputError, match="does not belong") as refused:
        Ledger(running, "predict", 6).read()
    assert refused.value.found == "block 6"
    ledger.seal()
    with pytest.raises(InputError, match="does not belong") as refused:
        Ledger(running, "predict", 6).read()
    assert refused.value.found == "7 blocks"


@pytest.mark.parametrize("damage", [b"", b"x", None, -1, -13, 20, 30, 56])
def test_a_damaged_seal_is_refused(damage: bytes | int | None, running: Store) -> None:
    """Emptied, cut short, or one byte changed; in what was done, or in the digests, which not all read."""
    ledger = Ledger(running, "predict", 7, 1)
    ledger.commit(6, f"{0xAB:016x}")
    ledger.seal()
    key = f"{FOLDER}/ledger/predict/sealed/000000/00000001-00000001"
    data = bytearray(running.read(key) or b"")
    if isinstance(damage, int):
        data[damage] ^= 1
    running.write(key, damage if isinstance(damage, bytes) else bytes(data[:-1] if damage is None else data))
    with pytest.raises(InputError, match="damaged") as refused:
        ledger.part(6)
    assert refused.value.where == f"{running.url}/{key}"
    if damage not in (None, -1, -13):
        with pytest.raises(InputError, match="damaged"):
            ledger.read()


@pytest.mark.parametrize("damage", [b"", b"x" * 40])
def test_a_damaged_fence_is_refused(damage: bytes, running: Store) -> None:
    ledger = Ledger(running, "predict", 7, 1)
    ledger.commit(6, f"{0xAB:016x}")
    ledger.seal()
    key = f"{FOLDER}/ledger/predict/fence/00000001"
    running.write(key, damage)
    with pytest.raises(InputError, match="damaged") as refused:
        ledger.read()
    assert refused.value.where == f"{running.url}/{key}"
    running.delete([key])
    assert list(ledger.read().done.indices()) == [6]


def test_stray_files_in_a_ledger_are_no_entries(running: Store) -> None:
    """A write that was killed leaves a temporary file beside the entry, as obstore names it."""
    ledger = Ledger(running, "predict", 7, 1)
    ledger.commit(1, f"{0xAB:016x}")
    folder = running.path / FOLDER / "ledger" / "predict" / "blocks"
    strays = (f"2-{0:016x}#1", ".nfs0003", "4", f"5-{0:016x}.partial", "6-xyz")
    for stray in strays:
        (folder / "00000001" / "000000" / stray).write_bytes(b"")
        (folder / stray).write_bytes(b"")
    for other in ("sealed", "sealed/000000", "fence"):
        (folder.parent / other).mkdir()
        (folder.parent / other / ".DS_Store").write_bytes(b"")
    (folder.parent / "sealed" / "000000" / "00000001-00000001#1").write_bytes(b"")
    assert np.flatnonzero(ledger.read().done).tolist() == [1]


KILLED = """
import sys
from unet_core.ledger import Ledger
from unet_core.volumes import Store
ledger = Ledger(Store(sys.argv[1]), "predict", 10**6, 1)
for index in range(10**6):
    ledger.commit(index, f"{index:016x}")
    print(index, flush=True)
    if index % 20 == 19:
        ledger.seal()
"""


def test_a_killed_process_loses_nothing_that_it_had_committed(running: Store) -> None:
    process = subprocess.Popen([sys.executable, "-c", KILLED, running.url], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    seen = [int(process.stdout.readline()) for _ in range(50)]
    os.kill(process.pid, signal.SIGKILL)
    seen += [int(line) for line in process.communicate()[0].split()]
    entries = Ledger(running, "predict", 10**6).read()
    done = np.flatnonzero(entries.done)
    assert done[: len(seen)].tolist() == seen
    assert len(done) <= len(seen) + 1
    assert Ledger(running, "predict", 10**6).part(0).digest[done].tolist() == done.tolist()


@given(shape=st.tuples(*[st.integers(1, 5)] * 3), seed=SEEDS)
def test_the_digest_is_of_the_voxels(shape: tuple[int, ...], seed: int) -> None:
    voxels = random_voxels(shape, "uint8", seed)
    digest = digest_of(voxels)
    assert len(digest) == 16
    assert digest_of(np.asfortranarray(voxels)) == digest == digest_of(voxels[::-1][::-1])
    changed = voxels.copy()
    changed.flat[seed % changed.size] ^= 1
    assert digest_of(changed) != digest
    assert digest_of(voxels, changed) != digest
    zeros = np.zeros(shape, np.float32)
    assert digest_of(zeros) == digest_of(-zeros), "a chunk of -0.0 is not stored"


# --- failures ----------------------------------------------------------------------------------------------


def failure(index: int) -> Failure:
    return Failure(stage="predict", index=index, error="e", traceback="t", worker="w", attempts=3)


def test_quarantine_keeps_what_is_known(store: Store) -> None:
    quarantine = Quarantine(store, "predict")
    for index in (5, 30, 4):
        quarantine.add(failure(index))
    Quarantine(store, "pyramid-1").add(failure(1))
    assert quarantine.indices() == [4, 5, 30]
    assert list(quarantine.failures(limit=2)) == [failure(4), failure(5)]
    quarantine.release(5)
    quarantine.release(6)
    assert quarantine.indices() == [4, 30]


def test_a_damaged_failure_record_still_says_that_the_block_failed(store: Store) -> None:
    quarantine = Quarantine(store, "predict")
    quarantine.add(failure(4))
    store.write(f"{FOLDER}/failed/predict/4.json", b"{}")
    (there,) = quarantine.failures()
    assert there.index == 4
    assert "failed/predict/4.json" in there.error


# --- review: ways in which work was lost -------------------------------------------------------------------


def test_a_seal_that_a_power_cut_emptied_costs_what_it_alone_held(running: Store) -> None:
    ledger = Ledger(running, "predict", 7, 1)
    ledger.commit(2, "0" * 16)
    ledger.seal()
    running.write(f"{FOLDER}/lease/00000002", b"{}")
    later = Ledger(running, "predict", 7, 2)
    later.commit(3, "0" * 16)
    later.seal()
    key = f"{FOLDER}/ledger/predict/sealed/000000/00000002-00000002"
    running.write(key, b"")
    with pytest.raises(InputError, match="damaged") as refused:
        later.read()
    assert "delete this file" in refused.value.fix
    running.delete([key])
    assert np.flatnonzero(later.read().done).tolist() == [2]


def test_an_owner_that_wakes_up_while_sealing_deletes_nothing_of_the_next(
    running: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    late = Ledger(running, "predict", 7, 1)
    late.commit(2, "0" * 16)
    write = Store.write

    def taken_over_meanwhile(store: Store, key: str, *rest: Any, **options: Any) -> None:
        write(store, key, *rest, **options)
        monkeypatch.setattr(Store, "write", write)
        running.write(f"{FOLDER}/lease/00000002", b"{}")
        Ledger(running, "predict", 7, 2).commit(2, "1" * 16)

    monkeypatch.setattr(Store, "write", taken_over_meanwhile)
    with pytest.raises(LostLeaseError):
        late.seal()
    entries = Ledger(running, "predict", 7, 2).read()
    assert np.flatnonzero(entries.done).tolist() == [2]
    assert f"{Ledger(running, 'predict', 7, 2).part(2).digest[2]:016x}" == "1" * 16


def test_clearing_that_is_killed_half_way_leaves_no_complete_output(
    running: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    zarr.create_array(running.url + "/0", shape=(4,), dtype="u1")[:] = 1
    set_status(running, "complete")
    delete, calls = Store.delete, []

    def killed(store: Store, keys: Any) -> None:
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        delete(store, keys)

    monkeypatch.setattr(Store, "delete", killed)
    with pytest.raises(KeyboardInterrupt):
        clear(running)
    with pytest.raises(InputError, match="not complete"):
        require_complete(running)


def test_a_part_of_an_incomplete_output_is_no_input_either(running: Store) -> None:
    set_status(running, "partial")
    for part in ("0", "probabilities/0"):
        with pytest.raises(InputError, match="not complete"):
            require_complete(running.child(part))
    set_status(running, "complete")
    require_complete(running.child("0"))


@pytest.mark.parametrize("where", ["", "0", "..", "link"])
def test_an_output_in_or_around_an_input_is_refused(where: str, running: Store, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(running.path)
    place = Store(tmp_path / "link") if where == "link" else Store(running.path / where)
    with pytest.raises(InputError, match="lie in one another"):
        require_apart(place, [running])
    require_apart(Store(tmp_path / "other"), [running])


def test_restart_replaces_its_own_kind_and_what_cannot_be_read(running: Store) -> None:
    require_replaceable(running, "segment")
    with pytest.raises(InputError, match="something else"):
        require_replaceable(running, "ingest")
    running.write(f"{FOLDER}/run.json", b"{")
    require_replaceable(running, "ingest")
