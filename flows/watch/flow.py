"""What Prefect runs."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, get_args

from prefect import flow

from flows.config import WatchConfig, validate
from flows.outcome import IncompleteRunError
from flows.report.artifacts import WatchArtifacts
from flows.report.words import counted
from flows.segment import segment
from flows.signatures import takes
from flows.supervise import InterruptionError
from flows.watch.doing import Segment, Watch
from flows.watch.survey import State, require_common, survey
from unet_core.errors import UnetFlowsError
from unet_core.volumes import Store

_STATES = get_args(State)
_NAMED = 10  # failed volumes in an error


@takes(WatchConfig)
def _watch(**parameters: Any) -> dict[str, Any]:
    """Segment every finished volume under a prefix once, those that come later in later calls: for a cron."""
    config = validate(WatchConfig, parameters)
    with WatchArtifacts(config.prefix.rstrip("/").rsplit("/", 1)[-1]) as artifacts:

        def show(document: dict[str, Any]) -> None:
            first = sorted(document["volumes"], key=lambda volume: _STATES.index(volume["state"]))
            artifacts.show_volumes(first, document["prefix"])

        return watch_with(config, segment, show)


def watch_with(
    config: WatchConfig, segment: Segment, show: Callable[[dict[str, Any]], None]
) -> dict[str, Any]:
    """One call: a look at every volume, then those that wait; its document, which also lies on disk.

    Parameters
    ----------
    segment
        Does one volume, as the flow of this name.
    show
        Given the document as it stands, at the beginning and after each volume.

    Raises
    ------
    InputError
        Nothing was begun: no volumes, no model, no place for labels.
    IncompleteRunError
        Some volumes failed and the others are done; or it stopped, because what all need is not there.
    InterruptionError
        Ctrl-C; with how far it came.
    """
    began, notes = time.monotonic(), list[str]()
    outputs = require_common(config)
    run = Watch(config, outputs, survey(config, outputs, notes), segment)

    def document(status: str) -> dict[str, Any]:
        return {**_document(config, run, status, notes), "seconds": round(time.monotonic() - began, 3)}

    show(document("partial"))
    try:
        run.do(lambda: show(document("partial")))
    except KeyboardInterrupt:
        raise InterruptionError(
            f"interrupted after {counted(run.count('segmented'), 'volume')}; the same command goes on there"
        ) from None
    except UnetFlowsError as error:
        raise IncompleteRunError(
            document("partial"),
            f"the watch stopped: {error.problem}",
            where=error.where,
            expected=error.expected,
            found=error.found,
            fix=error.fix,
        ) from error
    ended = document("failed" if run.errors else "complete")
    outputs.note_standing(ended)
    if not run.errors:
        return ended
    raise IncompleteRunError(
        ended,
        f"{len(run.errors)} of {counted(len(run.seen), 'volume')} failed",
        where=outputs.root.url,
        found=_named([f"{seen.name}: {seen.reason}" for seen in run.seen if seen.state == "failed"]),
        fix="mend the cause; a volume that was set aside (NAME.failed.json) is tried again when it changes, "
        "or with --retry-failed",
    )


def _named(failed: list[str]) -> str:
    more = f"\nand {len(failed) - _NAMED} more" if len(failed) > _NAMED else ""
    return "\n".join(failed[:_NAMED]) + more


def _document(config: WatchConfig, run: Watch, status: str, notes: list[str]) -> dict[str, Any]:
    return {
        "command": "watch",
        "status": status,
        "prefix": Store(config.prefix).url,
        "output": run.outputs.root.url,
        "counts": {state: run.count(state) for state in _STATES},
        "volumes": [
            {
                "volume": seen.name,
                "state": seen.state,
                "reason": seen.reason,
                "labels": seen.place.labels.url,
                "seconds": seen.seconds,
                "error": run.errors.get(seen.name),
            }
            for seen in run.seen
        ],
        "notes": notes,
    }


watch = flow(name="watch", flow_run_name="watch {prefix}", validate_parameters=True)(_watch)
