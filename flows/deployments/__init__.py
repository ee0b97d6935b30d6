"""Prefect deployments: what deploy/prefect.yaml asks for, made so on a server, as often as one likes.

definitions   the files, read strictly
parameters    what `--set` gives them
server        a connection that is known to work
pools | applied | automations      one kind of thing on the server each: made, updated or left
installing    all of it, in order
"""

from __future__ import annotations

from flows.deployments.definitions import KINDS, PoolKind
from flows.deployments.installing import Request, install

__all__ = ["KINDS", "PoolKind", "Request", "install"]
