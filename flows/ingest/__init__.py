"""The `ingest` flow: files that are not Zarr into sharded, multiscale OME-Zarr volumes.

flow      what Prefect runs
volume    one volume of one or several files: planned, then done
each      a set: every file a volume of its own, in one folder
"""

from flows.ingest.each import plan_each
from flows.ingest.flow import ingest
from flows.ingest.volume import PlannedIngest, plan

__all__ = ["PlannedIngest", "ingest", "plan", "plan_each"]
