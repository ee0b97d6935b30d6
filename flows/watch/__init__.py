"""The `watch` flow: for a cron, every finished volume under a prefix segmented once.

flow      what Prefect runs
survey    which volumes there are, and how each stands
places    the folder of one model's labels, and what is remembered there of single volumes
doing     one volume after the other; whose fault an error is
"""

from flows.watch.flow import watch
from flows.watch.survey import require_watchable

__all__ = ["require_watchable", "watch"]
