"""`status`, `verify` and `clean`: an output looked at, checked and tidied from what lies on disk."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any

from distributed import Client

from flows import worker
from flows.attempt import Failed, Work
from flows.batching import Batches
from flows.blocks import FAILURES_LISTED
from flows.engines import Engine, engine_for
from flows.progress import stage_progress
from unet_core import training
from unet_core.checkpoint import load_model
from unet_core.errors import InputError, RunError, StoreError
from unet_core.ledger import ATTRIBUTE, Flags, Lease, Quarantine, hold, holder, read_status, set_status
from unet_core.verification import RunOnDisk, missing_arrays, reopen
from unet_core.volumes import Store, group_metadata


def status(output: str) -> dict[str, Any]:
    """How the run on an output stands, from its records alone: while it runs, after it ended, or was killed.

    Raises
    ------
    InputError
        No run of ours is there, or its records cannot be read.
    """
    run = RunOnDisk.open(Store(output))
    owner = holder(run.store)
    stages = {}
    failures = []
    for stage in run.stages:
        entries = run.ledger(stage.name).read()
        quarantine = Quarantine(run.store, stage.name)
        failed = quarantine.standing(entries.done)
        stages[stage.name] = {
            "total": stage.count,
            "done": entries.done.sum(),
            "failed": len(failed),
            "absent_chunks": entries.absent,
            "empty_blocks": entries.empty,
        }
        failures += [asdict(f) for f in quarantine.failures(limit=FAILURES_LISTED) if f.index in failed]
    if run.record.kind == training.KIND:
        done = max(training.Checkpoints(run.store).steps(), default=0)
        stages["train"] = {
            "total": _steps(run),
            "done": done,
            "failed": 0,
            "absent_chunks": 0,
            "empty_blocks": 0,
        }
    # A run says that it is held until it ends; one that was killed cannot take it back.
    held = owner is not None and not owner.released and not owner.process_is_gone
    return {
        "command": "status",
        "output": run.store.url,
        "kind": run.record.kind,
        "run": run.record.fingerprint,
        "status": _recorded(run.store),
        "held_by": str(owner) if held else None,
        "progress": owner.document.get("report") or None if owner is not None and held else None,
        "stages": stages,
        "failed": failures,
    }


@dataclass
class Verification:
    """What `verify` found. Counts are blocks by stage; `problems` describes the first of the damaged ones."""

    output: str
    checked: dict[str, int] = field(default_factory=dict)
    missing: dict[str, int] = field(default_factory=dict)
    damaged: dict[str, int] = field(default_factory=dict)
    problems: list[dict[str, Any]] = field(default_factory=list)
    leftovers: list[str] = field(default_factory=list)
    reopened: dict[str, int] = field(default_factory=dict)
    status: str = "partial"

    @property
    def sound(self) -> bool:
        """Whether everything is there and as it was committed."""
        return not any(self.damaged.values()) and not any(self.missing.values()) and not self.problems

    def to_dict(self) -> dict[str, Any]:
        return {"command": "verify", **asdict(self), "sound": self.sound}


def verify(output: str, *, repair: bool = False, client: Client | None = None) -> Verification:
    """Read every block that a ledger says is done, and compare it with what was committed.

    With `repair`, damaged blocks and what was made from them are open again: the command that made the
    output does them anew.

    Raises
    ------
    InputError
        No run of ours is there, or another run is at work on it.
    """
    run = RunOnDisk.open(Store(output))
    found = Verification(run.store.url)
    with _at_rest(run.store, must_write=repair) as lease:
        bad: dict[str, Flags] = {}
        for stage in run.stages:
            done = run.ledger(stage.name).read().done
            found.checked[stage.name] = done.sum()
            found.missing[stage.name] = stage.count - found.checked[stage.name]
            gone = missing_arrays(run.store, stage) if done.any() else []
            if gone:
                found.problems.append({"stage": stage.name, "error": f"no array at {', '.join(gone)}"})
                bad[stage.name] = done
            else:
                # Without a lease nobody can write: any epoch tells this look from others.
                epoch = lease.epoch if lease is not None else -time.time_ns()
                arguments = (run.store.url, run.record.fingerprint, epoch, stage.name)
                work = Work(function=worker.verify, arguments=arguments)
                bad[stage.name] = Flags(stage.count)
                for index, failed in _failures(
                    engine_for(client, work, "verify"), done, f"verify {stage.name}"
                ):
                    bad[stage.name][index] = True
                    if len(found.problems) < FAILURES_LISTED:
                        found.problems.append({"stage": stage.name, "block": index, "error": failed.error})
            found.damaged[stage.name] = bad[stage.name].sum()
        if run.record.kind == training.KIND:
            _verify_training(run, found, repair=repair)
        found.leftovers = list(run.store.leftovers())
        recorded = _recorded(run.store)
        if recorded == "complete" and any(found.missing.values()):
            found.problems.append({"error": "the status is complete and blocks are missing"})
        attributes = (group_metadata(run.store) or {}).get("attributes", {})
        if run.stages and attributes.get(ATTRIBUTE, {}).get("status") != recorded:
            found.problems.append({"error": f"zarr.json is damaged, or does not say {recorded}"})
        found.status = recorded
        if lease is not None and repair and not found.sound:
            found.status = "partial"
            set_status(run.store, "partial")
            found.reopened |= reopen(run, bad, epoch=lease.epoch)
    return found


def _steps(run: RunOnDisk) -> int:
    return int(run.record.plan["settings"]["steps"])


def _verify_training(run: RunOnDisk, found: Verification, *, repair: bool) -> None:
    """A training's checkpoints, which its next run goes on from, and its model once it is complete.

    With `repair` a damaged checkpoint is dropped: the one before it serves.
    """
    checkpoints = training.Checkpoints(run.store)
    damaged = checkpoints.damaged()
    steps = checkpoints.steps()
    found.checked["train"], found.damaged["train"] = len(steps), len(damaged)
    found.problems += [{"stage": "train", "error": f"{key} is not what was written"} for key in damaged]
    if _recorded(run.store) == "complete":
        try:
            load_model(run.store.url)
        except InputError as error:
            found.problems.append({"stage": "train", "error": str(error)})
    else:
        found.missing["train"] = _steps(run) - max(steps, default=0)
    if repair and damaged:
        run.store.delete(damaged)
        found.reopened["train"] = len(damaged)


def _recorded(store: Store) -> str:
    """The status on disk; what cannot be read vouches for nothing."""
    try:
        return str((read_status(store) or {}).get("status", "partial"))
    except InputError:
        return "unknown: status.json is damaged"


@contextmanager
def _at_rest(store: Store, *, must_write: bool) -> Iterator[Lease | None]:
    """Keep other runs away; where nobody can write, nobody has to be kept away."""
    with ExitStack() as stack:
        lease: Lease | None = None
        try:
            lease = stack.enter_context(hold(store))
        except StoreError:
            if must_write:
                raise
        yield lease


def _failures(engine: Engine, done: Flags, name: str) -> Iterator[tuple[int, Failed]]:
    """The blocks among those done that cannot be read as they were written."""
    total = done.sum()
    waiting = Batches(done.indices(), total, streamed=False)
    with stage_progress(name, total, prefect=False) as progress:
        checked = 0
        while True:
            while engine.has_room and (batch := waiting.take(engine.workers)):
                engine.submit(batch, limit=waiting.limit)
            if not engine.busy:
                break
            answer = engine.next()
            if answer.died:
                raise RunError("workers died while they read this output", where=f"block {answer.died[0]}")
            waiting.learn(len(answer.outcomes), answer.seconds)
            waiting.put_back(answer.untried)
            for index, outcome in answer.outcomes:
                if isinstance(outcome, Failed):
                    if outcome.verdict != "block":
                        raise RunError("the output cannot be read", found=outcome.error)
                    yield index, outcome
            checked += len(answer.outcomes)
            progress.update(checked)
        progress.close(checked)


def clean(output: str) -> dict[str, Any]:
    """Take away what killed runs left behind and nobody needs; never data, never what is done.

    Staging files of writes that were killed, records of failed blocks that have been done since, and
    ledger entries that can be sealed into one file.

    Raises
    ------
    InputError
        No run of ours is there, or another run is at work on it.
    """
    run = RunOnDisk.open(Store(output))
    with hold(run.store) as lease:
        leftovers = list(run.store.leftovers())
        run.store.delete(leftovers)
        failures = 0
        for stage in run.stages:
            ledger = run.ledger(stage.name, epoch=lease.epoch)
            ledger.seal()
            failures += Quarantine(run.store, stage.name).release_done(ledger.read().done)
    return {
        "command": "clean",
        "output": run.store.url,
        "leftovers_removed": len(leftovers),
        "failure_records_removed": failures,
    }
