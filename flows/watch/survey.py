"""Which volumes there are under the prefix, and how each stands. Writes nothing."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

from flows.config import SegmentConfig, WatchConfig, read_cluster
from flows.segment import request_of
from flows.watch.places import Outputs, Place, reason_of
from unet_core.acquisition import Found, Patience, find_volumes, stamp, why_growing
from unet_core.checkpoint import load_model
from unet_core.errors import InputError, UnetFlowsError
from unet_core.volumes import Store, before_work

# failed     in this call                            set aside  in an earlier one, and has not changed since
# growing    still written, as far as one can tell   claimed    another watch is at it
# waiting    finished, and not begun yet             segmented  in this call
# done       there were labels
# Those that want somebody's eyes come first.
State = Literal["failed", "set aside", "growing", "claimed", "waiting", "segmented", "done"]


@dataclass
class Seen:
    """A volume under the prefix, and how it stands; `problem`: what the first look at it met."""

    found: Found
    place: Place
    stamp: str
    state: State
    reason: str | None = None
    problem: UnetFlowsError | None = None
    seconds: float | None = None

    @property
    def name(self) -> str:
        """For people: its path below the prefix."""
        return self.found.path or self.found.store.url.rsplit("/", 1)[-1]


def segment_config(config: WatchConfig, volume: Store, labels: Store) -> SegmentConfig:
    """What is asked of `segment` for one volume."""
    shared = {name: getattr(config, name) for name in SegmentConfig.model_fields if hasattr(config, name)}
    return SegmentConfig(**{**shared, "volume": volume.url, "to": labels.url, "retry_failed": False})


def require_common(config: WatchConfig) -> Outputs:
    """What every volume needs: the model, a place for labels, options that can be read.

    Raises
    ------
    InputError
        The first that is not there, or labels there that are made with other parameters.
    """
    model = load_model(config.model)
    outputs = Outputs.of(config, model)
    request_of(segment_config(config, Store(config.prefix), outputs.root))
    read_cluster(config.cluster, workers=config.workers)
    if not Store(config.prefix).exists():
        raise InputError("no such prefix", where=Store(config.prefix).url, fix="check the path")
    with before_work():
        outputs.require_same_settings()
    outputs.root.check_writable(0)
    return outputs


def require_watchable(config: WatchConfig) -> None:
    """All that can be known to fail before a look at every volume.

    Raises
    ------
    InputError
        What `require_common` finds, or a prefix without volumes.
    """
    outputs = require_common(config)
    with before_work():
        if next(find_volumes(Store(config.prefix), apart=outputs.root, notes=[]), None) is None:
            raise _no_volumes(config)


def survey(config: WatchConfig, outputs: Outputs, notes: list[str]) -> list[Seen]:
    """How every volume stands, by path; `notes` tells of folders that could not be looked into.

    Raises
    ------
    InputError
        A prefix without volumes, or one that cannot be looked into.
    """
    prefix = Store(config.prefix)
    ahead = _clock(prefix, outputs.root) - time.time()
    patience = Patience(config.marker, 60 * config.quiet, lambda: time.time() + ahead)
    with before_work():
        found = find_volumes(prefix, apart=outputs.root, notes=notes)
        seen = [_look(config, outputs, patience, volume) for volume in found]
    if not seen:
        raise _no_volumes(config)
    return sorted(seen, key=lambda volume: volume.name)


def _look(config: WatchConfig, outputs: Outputs, patience: Patience, found: Found) -> Seen:
    place = outputs.place(found.path)
    seen = Seen(found, place, stamp="", state="waiting")
    try:
        seen.stamp = stamp(
            found,
            marker=config.marker,
            level=config.level,
            also=json.dumps(outputs.settings, sort_keys=True),
        )
        if outputs.is_done(place, seen.stamp):
            seen.state = "done"
        elif not config.retry_failed and (why := outputs.why_set_aside(place, seen.stamp)) is not None:
            seen.state, seen.reason = "set aside", why
        elif (why := why_growing(found, patience, level=config.level)) is not None:
            seen.state, seen.reason = "growing", why
    except UnetFlowsError as error:
        seen.problem, seen.reason = error, reason_of(error)
    return seen


def _clock(prefix: Store, root: Store) -> float:
    """Seconds since 1970 by the clock that dates the volumes, where labels are dated by the same one."""
    return root.clock() if _device(prefix) == _device(root) else time.time()


def _device(store: Store) -> object:
    if store.remote:
        return urlsplit(store.url).scheme
    return next(p for p in (store.path, *store.path.parents) if Path(p).exists()).stat().st_dev


def _no_volumes(config: WatchConfig) -> InputError:
    return InputError(
        "there are no volumes under this prefix",
        where=Store(config.prefix).url,
        expected="OME-Zarr images, in folders at any depth",
        found="none",
        fix="check the path; unet-flows ingest makes OME-Zarr of other files",
    )
