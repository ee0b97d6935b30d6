"""Truth on disk: what a run is, who owns it, which of its blocks are done, which failed, how it stands.

    OUTPUT/.unet-flows/run.json       record       what the run is; written once
                       lease/         lease        who owns the output
                       ledger/STAGE/  entries      which blocks are done; seals: of many in one file
                       failed/STAGE/  quarantine   which blocks failed, and why
                       status.json    status       complete, partial or failed

The mechanism is one for all stages: a stage is a plan of blocks (`Stage`), a function that does one and
commits it, and a ledger.
"""

from unet_core.ledger.clearing import clear
from unet_core.ledger.digests import digest_of, digest_of_objects, object_digest, quick_digest
from unet_core.ledger.entries import Entries, Ledger
from unet_core.ledger.flags import Flags
from unet_core.ledger.lease import Holder, Lease, hold, holder, require_epoch, require_free
from unet_core.ledger.quarantine import Failure, Quarantine
from unet_core.ledger.record import (
    FOLDER,
    RunRecord,
    agree,
    begin,
    begun,
    read_record,
    require_apart,
    require_ours,
    require_replaceable,
)
from unet_core.ledger.seals import SEGMENT, Part
from unet_core.ledger.stage import Done, Stage
from unet_core.ledger.status import ATTRIBUTE, Status, read_status, require_complete, set_status

__all__ = [
    "ATTRIBUTE",
    "FOLDER",
    "SEGMENT",
    "Done",
    "Entries",
    "Failure",
    "Flags",
    "Holder",
    "Lease",
    "Ledger",
    "Part",
    "Quarantine",
    "RunRecord",
    "Stage",
    "Status",
    "agree",
    "begin",
    "begun",
    "clear",
    "digest_of",
    "digest_of_objects",
    "hold",
    "holder",
    "object_digest",
    "quick_digest",
    "read_record",
    "read_status",
    "require_apart",
    "require_complete",
    "require_epoch",
    "require_free",
    "require_ours",
    "require_replaceable",
    "set_status",
]
