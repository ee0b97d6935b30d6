"""Commands for a cron."""

from __future__ import annotations

from typing import Any

from flows.cli.app import AsJson, app, options_of, report, require_there
from flows.config import WatchConfig


@app.command()
@options_of(WatchConfig)
def watch(as_json: AsJson = False, **parameters: Any) -> None:
    """Segment every finished volume under a prefix once; for a cron, and as many at a time as one likes."""
    from flows.config import read_cluster, validate

    config = validate(WatchConfig, parameters, options=parameters)
    require_there("no such prefix", config.prefix)
    require_there("no such mask", config.mask)
    require_there("no such model", config.model, fix="train one: unet-flows train --help")
    read_cluster(config.cluster, workers=config.workers)
    from unet_core.model_folder import require_model

    require_model(config.model)
    from flows.outcome import told
    from flows.summary.watching import print_watch
    from flows.watch import require_watchable
    from flows.watch import watch as flow

    require_watchable(config)
    report(told(flow, "watch", parameters), as_json, print_watch)
