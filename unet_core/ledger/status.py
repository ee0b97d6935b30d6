"""How a run stands: complete, partial or failed; in its records and in the attributes of what it writes.

    OUTPUT/.unet-flows/status.json      {"status": "partial", ...}
    OUTPUT/zarr.json                    attributes: {"unet-flows": {"status": "partial", ...}, ...}

A run is "partial" from its first moment, so that one that is killed has said the truth. Whether it is
being worked on is another question: the lease answers it.
"""

from __future__ import annotations

import json
from typing import Any, Literal

from unet_core.errors import InputError
from unet_core.ledger.record import FOLDER, read_json
from unet_core.volumes import Store, before_work, set_attributes

Status = Literal["complete", "partial", "failed"]
ATTRIBUTE = "unet-flows"


def set_status(store: Store, status: Status, **facts: Any) -> None:
    """Record how the run stands; `facts` (counts, failures) go into status.json with it."""
    store.write(f"{FOLDER}/status.json", json.dumps({"status": status, **facts}, indent=1).encode())
    set_attributes(store, {ATTRIBUTE: {"status": status, "records": FOLDER}})


def read_status(store: Store) -> dict[str, Any] | None:
    """How the run on this output stands; None where no run of ours made it."""
    return read_json(store, "status.json")


@before_work()
def require_complete(store: Store) -> None:
    """Refuse what a run of ours began and did not finish, whole or in part (`labels.zarr/0`).

    Volumes of other programs pass.

    Raises
    ------
    InputError
        The status is partial or failed, or the run was killed before it could say.
    """
    output = _output_around(store)
    if output is None:
        return
    status = read_status(output)
    found = "none" if status is None else status.get("status")
    if found != "complete":
        raise InputError(
            "this volume is not complete",
            where=output.url,
            expected="status complete",
            found=f"status {found}",
            fix="run the command that makes it once more: it does only what is missing; or allow it with "
            "--partial",
        )


def _output_around(store: Store) -> Store | None:
    """The output of ours that a volume is, or is a part of: an array at most three groups down."""
    for _ in range(4):
        if store.read(f"{FOLDER}/run.json") is not None:
            return store
        parent = store.url.rpartition("/")[0]
        if not parent or parent.endswith(("/", ":")):
            return None
        store = Store(parent)
    return None
