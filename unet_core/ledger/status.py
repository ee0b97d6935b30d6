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
from unet_core.volumes import Store, set_attributes

Status = Literal["complete", "partial", "failed"]
ATTRIBUTE = "unet-flows"


def set_status(store: Store, status: Status, **facts: Any) -> None:
    """Record how the run stands; `facts` (counts, failures) go into status.json with it."""
    store.write(f"{FOLDER}/status.json", json.dumps({"status": status, **facts}, indent=1).encode())
    set_attributes(store, {ATTRIBUTE: {"status": status, "records": FOLDER}})


def read_status(store: Store) -> dict[str, Any] | None:
    """How the run on this output stands; None where no run of ours made it."""
    return read_json(store, "status.json")


def require_complete(store: Store) -> None:
    """Refuse what a run of ours began and did not finish. Volumes of other programs pass.

    Raises
    ------
    InputError
        The status is partial or failed, or the run was killed before it could say.
    """
    status = read_status(store)
    if status is None and store.read(f"{FOLDER}/run.json") is None:
        return
    found = "none" if status is None else status.get("status")
    if found != "complete":
        raise InputError(
            "this volume is not complete",
            where=store.url,
            expected="status complete",
            found=f"status {found}",
            fix="run the command that makes it once more: it does only what is missing; or allow it with "
            "--partial",
        )
