"""One rank of a training, as a process of its own: `python -m flows.rank`, started by `flows.rank_host`.

A job comes in as one line of JSON on standard input; events go out as lines of JSON on the descriptor that
the job names. The first rank opens the place where ranks meet and says where it is.

    {"rendezvous": {"host": ..., "port": ...}}    {"progress": {...}}    {"done": {...}}    {"error": {...}}
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from typing import Any

from flows.supervise import end_with_parent

_EVERY = 0.5  # seconds between two progress events


def main() -> int:
    """Run the job of this process."""
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal's Ctrl-C is the flow's to answer
    job = json.loads(sys.stdin.readline())  # an empty line where the parent died before it wrote
    end_with_parent(signal.SIGKILL, parent=job["parent"])
    with os.fdopen(job["events"], "w", buffering=1) as pipe:

        def tell(event: dict[str, Any]) -> None:
            pipe.write(json.dumps(event) + "\n")

        return train(job, tell, stop.is_set)


def train(job: dict[str, Any], tell: Callable[[dict[str, Any]], None], stopped: Callable[[], bool]) -> int:
    """Train as the rank that the job describes; errors that would come again are told, others raised."""
    import torch

    from flows.report.training import show_batch, show_validation
    from unet_core import training
    from unet_core.errors import LostLeaseError, UnetFlowsError
    from unet_core.ledger import read_record
    from unet_core.machine import cores
    from unet_core.volumes import Store

    end = job.get("deadline")  # of the worker that is the first to go

    def should_stop() -> bool:
        return stopped() or (end is not None and time.time() > end)

    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", cores())))
    store = Store(job["output"])
    last = 0.0

    def progress(now: training.Progress) -> None:
        nonlocal last
        if now.looked or now.step == now.steps or time.monotonic() - last >= _EVERY:
            last = time.monotonic()
            tell({"progress": asdict(now)})

    try:
        record = read_record(store)
        if record is None or record.fingerprint != job["fingerprint"]:
            raise LostLeaseError("the output was replaced while this training was going on", where=store.url)
        plan = training.Plan.from_dict(dict(record.plan))
        meeting = _meeting(job, tell) if job["world"] > 1 else None
        with training.joined(job["rank"], job["world"], meeting, device=plan.settings.device) as ranks:
            if ranks.is_first:
                show_batch(store, plan)
            trained = training.run(
                plan,
                ranks=ranks,
                checkpoints=training.Checkpoints(store, job["epoch"]),
                on_progress=progress if ranks.is_first else None,
                on_validation=partial(show_validation, store, plan),
                should_stop=should_stop,
                loaders=job["loaders"],
            )
    except UnetFlowsError as error:
        tell({"error": error.as_dict()})
        return 1
    except torch.OutOfMemoryError as error:
        tell({"error": _too_little_memory(error)})
        return 1
    in_time = trained.stopped and not stopped()  # nobody asked: the worker has to go
    tell({"done": {"stopped": trained.stopped, "in_time": in_time, "step": trained.step}})
    return 0


def _meeting(job: dict[str, Any], tell: Callable[[dict[str, Any]], None]) -> Any:
    """The key-value store through which ranks find each other; the first one serves it."""
    from torch._C._distributed_c10d import TCPStore  # where torch.distributed has it from, with types

    host = job["host"]
    # Of several interfaces the one that the workers already talk over.
    if name := _interface(host):
        os.environ["GLOO_SOCKET_IFNAME"] = os.environ["NCCL_SOCKET_IFNAME"] = name
    if job["rank"] > 0:
        place = job["rendezvous"]
        return TCPStore(place["host"], place["port"], job["world"], is_master=False)
    # Bound here: torch's own server would listen on every interface, and two trainings never want one port.
    listener = socket.create_server((host, 0), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    port = listener.getsockname()[1]
    store = TCPStore(
        host, port, job["world"], is_master=True, wait_for_workers=False, master_listen_fd=listener.detach()
    )
    tell({"rendezvous": {"host": host, "port": port}})
    return store


def _interface(host: str) -> str | None:
    """The network interface that has this address."""
    import psutil

    for name, addresses in psutil.net_if_addrs().items():
        if any(address.address == host for address in addresses):
            return str(name)
    return None


def _too_little_memory(error: Exception) -> dict[str, Any]:
    from unet_core.errors import RunError

    return RunError(
        "the device has too little memory for a training step",
        found=str(error).splitlines()[0],
        fix="choose a smaller patch or batch, or a larger accumulate; the same command then begins with "
        "--restart",
    ).as_dict()


if __name__ == "__main__":
    sys.exit(main())
