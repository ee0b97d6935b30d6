"""Taking a run away, for another to begin in its place."""

from __future__ import annotations

from unet_core.ledger.record import FOLDER, contents, require_ours
from unet_core.ledger.status import set_status
from unet_core.volumes import Store


def clear(store: Store) -> None:
    """Take away a run with all it wrote, so that another can begin. The caller holds the lease.

    "Partial" comes first, then the ledger goes, and the record last: killed half-way, what is left is the
    old run with blocks to do, never a ledger without its data.
    """
    require_ours(store)
    if store.read(f"{FOLDER}/status.json") is not None:
        set_status(store, "partial")
    store.delete(store.keys(f"{FOLDER}/ledger"))
    store.delete(contents(store))
    kept = (f"{FOLDER}/lease/", f"{FOLDER}/run.json")
    store.delete(key for key in store.keys(FOLDER) if not key.startswith(kept))
    store.delete([f"{FOLDER}/run.json"])
