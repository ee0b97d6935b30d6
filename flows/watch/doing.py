"""One volume after the other, and whose fault an error is.

An error is everybody's if what every volume needs is not there when it is looked for at once: the model,
the stores, the cluster. Then the watch stops with it. Any other error is its volume's, and the next one has
its turn. A volume that would fail again is set aside; one that may not (a full disk, a lost file) is not,
and the next call tries it.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import Any

import httpx

from flows.cluster import open_client
from flows.config import SegmentConfig, WatchConfig, read_cluster
from flows.outcome import IncompleteRunError, tell_of_wait
from flows.segment import plan
from flows.watch.places import Outputs, described, reason_of
from flows.watch.survey import Seen, require_common, segment_config
from unet_core.errors import (
    DataError,
    HeldError,
    InputError,
    LostLeaseError,
    NoRoomError,
    RunError,
    StoreError,
)
from unet_core.ledger import require_free

Segment = Callable[..., dict[str, Any]]


class Watch:
    """The volumes of one call. `segment`: does one, with the parameters of the flow of this name."""

    def __init__(self, config: WatchConfig, outputs: Outputs, seen: list[Seen], segment: Segment) -> None:
        self._config = config
        self.outputs = outputs
        self._segment = segment
        self.seen = seen
        self.errors: dict[str, dict[str, str | None]] = {}

    def count(self, state: str) -> int:
        """Volumes that stand so."""
        return sum(seen.state == state for seen in self.seen)

    def do(self, shown: Callable[[], None]) -> None:
        """Segment what waits, as many volumes as are wanted; `shown` is called after each.

        Raises
        ------
        UnetFlowsError
            What every volume needs is not there.
        """
        waiting = [seen for seen in self.seen if seen.state == "waiting"]
        for number, seen in enumerate(waiting, 1):
            # What failed does not count, or it could take the turn of the others at every call.
            if self._config.most is not None and self.count("segmented") >= self._config.most:
                return
            print(f"volume {number} of {len(waiting)}: {seen.name}", file=sys.stderr, flush=True)
            began = time.monotonic()
            self._do(seen)
            seen.seconds = round(time.monotonic() - began, 3)
            shown()

    def _do(self, seen: Seen) -> None:
        wanted = segment_config(self._config, seen.found.store, seen.place.labels)
        try:
            if seen.problem is not None:
                raise seen.problem
            # The other watch may have been here since the survey, which can be hours ago.
            if self.outputs.is_done(seen.place, seen.stamp):
                seen.state = "done"
                return
            planned = plan(wanted)
        except Exception as error:
            self._failed(seen, error)
            return
        if planned.model.digest != self.outputs.settings["model"]:
            raise RunError(
                "the model was changed under the watch", where=planned.model.url, fix="start it again"
            )
        self.outputs.begin()
        try:
            self._claimed(seen, wanted)
        except (HeldError, LostLeaseError) as error:
            seen.state, seen.reason = "claimed", reason_of(error)
        except httpx.HTTPError:
            raise  # Prefect's server is gone
        except Exception as error:
            self._failed(seen, error, cluster=not _blocks_failed(error))

    def _claimed(self, seen: Seen, wanted: SegmentConfig) -> None:
        """The claim is the lease of the labels: `segment` takes it, or is refused."""
        # Before a cluster is asked for.
        require_free(seen.place.labels, on_wait=tell_of_wait)
        document = self._segment(**wanted.model_dump())
        self.outputs.note_done(seen.place, seen.stamp)
        # Complete already where another call died between the last block and its note.
        new = any(stage["done"] for stage in document["stages"].values())
        seen.state = "segmented" if new else "done"

    def _failed(self, seen: Seen, error: Exception, *, cluster: bool = False) -> None:
        if isinstance(error, IncompleteRunError) and not _blocks_failed(error):
            # It stopped: perhaps because another run took over, which is for that one to tell of.
            try:
                require_free(seen.place.labels)
            except HeldError as held:
                seen.state, seen.reason = "claimed", reason_of(held)
                return
        require_common(self._config)
        if cluster:
            with open_client(read_cluster(self._config.cluster, workers=self._config.workers)):
                pass
        seen.state, seen.reason = "failed", reason_of(error)
        self.errors[seen.name] = described(error)
        print(f"{seen.name}: {error}", file=sys.stderr, flush=True)
        if _would_fail_again(error):
            self.outputs.set_aside(seen.place, seen.stamp, seen.found.store, error)


def _blocks_failed(error: Exception) -> bool:
    return isinstance(error, IncompleteRunError) and error.document["status"] == "failed"


def _would_fail_again(error: Exception) -> bool:
    if isinstance(error, IncompleteRunError):
        return _blocks_failed(error)
    if isinstance(error, InputError):
        return not isinstance(error, NoRoomError) and not isinstance(error.__cause__, StoreError)
    return isinstance(error, DataError) or not isinstance(error, RunError)
