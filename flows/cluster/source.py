"""What all kinds of clusters can do: give a client, be asked for so many workers, say what keeps them."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from distributed import Client, SpecCluster

_AGAIN = 5.0  # seconds between two looks whether workers are missing


class Source:
    """Workers that somebody else has started; others ask for them, see `Started`.

    Parameters
    ----------
    where
        How people call it, in errors.
    """

    def __init__(self, client: Client, where: str) -> None:
        self.client = client
        self.where = where

    def need(self, count: int) -> None:
        """Ask for so many workers; may be called as often as one likes, and returns at once."""

    def says(self) -> str | None:
        """What those who give out workers say of missing ones; None where there is nothing to say."""
        return None

    def hopeless(self) -> str | None:
        """Why no worker will come; None while one may."""
        return None

    def stop_now(self) -> None:
        """End the workers without waiting for the blocks they are in: the ledger knows what is done."""


class Started(Source):
    """Workers of a Dask cluster that this process started; those that are lost are asked for anew."""

    def __init__(self, client: Client, where: str, cluster: Any) -> None:
        super().__init__(client, where)
        self._cluster = cluster
        self._wanted = 0
        self._changed = threading.Event()
        self._stopping = False
        self._thread = threading.Thread(target=self._keep, name="workers wanted", daemon=True)

    @contextmanager
    def keeping(self) -> Iterator[Started]:
        """While this is open, as many workers are asked for as are needed."""
        self._thread.start()
        try:
            yield self
        finally:
            self._stopping = True
            self._changed.set()
            self._thread.join()

    def need(self, count: int) -> None:
        if count != self._wanted:
            self._wanted = count
            self._changed.set()

    def _keep(self) -> None:
        while not self._stopping:
            # Whatever a cluster raises here: it is asked again, and the wait for workers tells of it.
            with suppress(Exception):
                self._ask_for(self._wanted)
            self._changed.wait(_AGAIN)
            self._changed.clear()

    def _ask_for(self, count: int) -> None:
        cluster = self._cluster
        if not isinstance(cluster, SpecCluster):
            cluster.scale(count)  # whoever runs it picks those that leave
        elif len(cluster.worker_spec) <= count:
            cluster.scale(count)  # starts those anew that ended, too
        else:
            surplus = len(cluster.worker_spec) - count
            cluster.sync(cluster.scale_down, self._idle()[:surplus])

    def _idle(self) -> list[Any]:
        """Names of workers that are not at work: first those that are still to come."""
        there = self.client.scheduler_info(n_workers=-1)["workers"]
        at_work = {address for address, tasks in self.client.processing().items() if tasks}
        busy = {there[address]["name"] for address in at_work if address in there}
        arrived = {worker["name"] for worker in there.values()}
        return sorted((n for n in self._cluster.worker_spec if n not in busy), key=lambda n: n in arrived)
