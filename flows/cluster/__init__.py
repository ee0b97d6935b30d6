"""Where Dask comes from: one way to workers on this machine, of a job queue, in pods, or elsewhere."""

from __future__ import annotations

from flows.cluster.asking import ask
from flows.cluster.local import workers_of
from flows.cluster.opening import Workers, cluster_patience, open_client, open_workers

__all__ = ["Workers", "ask", "cluster_patience", "open_client", "open_workers", "workers_of"]
