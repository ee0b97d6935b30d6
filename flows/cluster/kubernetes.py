"""Workers as pods, through the Dask operator that runs in the Kubernetes cluster.

The objects are dask-kubernetes' own, with what it cannot say: certificates as a Secret, so that scheduler and
workers talk TLS, and GPUs for the workers alone.
"""

from __future__ import annotations

import base64
import tempfile
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any

from distributed import Client

from flows.cluster.certificates import CA, CERTIFICATE, KEY, of_this_run, options_of, security_of
from flows.cluster.missing import library
from flows.cluster.source import Started
from flows.config.cluster import Kubernetes
from flows.environment import worker_environment
from unet_core.errors import InputError, RunError

_TLS = "/etc/unet-flows/tls"  # in the pods
_IDLE = 900  # seconds after which the operator takes away what a killed run has left
_LOOK = 2.0


@contextmanager
def start(config: Kubernetes) -> Iterator[Started]:
    """A DaskCluster of this run's own, deleted when this ends.

    Raises
    ------
    InputError
        dask-kubernetes is not installed, Kubernetes is not to be reached, or the operator is not there.
    RunError
        The scheduler's pod did not come up in time.
    """
    library("dask_kubernetes", extra="kubernetes")
    name = f"{config.name}-{uuid.uuid4().hex[:6]}"
    with (
        tempfile.TemporaryDirectory() as folder,
        nullcontext(None) if config.insecure else of_this_run(Path(folder)) as certificates,
    ):
        cluster = _Deployed(name, config)
        try:
            cluster.create(objects(name, config, certificates))
            address = cluster.scheduler(tls=certificates is not None)
            security = None if certificates is None else security_of(certificates)
            with (
                Client(address, security=security, timeout="60s") as client,
                _Pods(client, f"kubernetes, {config.namespace}/{name}", cluster).keeping() as source,
            ):
                yield source
        finally:
            cluster.delete()


def objects(name: str, config: Kubernetes, certificates: Path | None) -> list[dict[str, Any]]:
    """What is created in Kubernetes: the certificates' Secret, where there are such, and the DaskCluster."""
    from dask_kubernetes.operator import make_cluster_spec

    environment = worker_environment(config.threads or config.cores, config.environment)
    scheduler = f"{name}-scheduler.{config.namespace}:8786"
    dask: dict[str, Any] = make_cluster_spec(
        name=name,
        image=config.image,
        n_workers=0,  # those that are needed are asked for
        env=environment,
        idle_timeout=_IDLE,
    )
    dask["metadata"]["namespace"] = config.namespace
    worker, head = (dask["spec"][part]["spec"] for part in ("worker", "scheduler"))
    tls = [] if certificates is None else options_of(_TLS)
    protocol = "tcp" if certificates is None else "tls"
    container = worker["containers"][0]
    container["args"] = [
        *("python", "-m", "flows.start_worker", f"{protocol}://{scheduler}"),
        *("--name", "$(DASK_WORKER_NAME)", f"--nthreads={config.threads or config.cores}", *tls),
    ]
    container["resources"] = _resources(config)
    del container["ports"]  # of a dashboard, which is on loopback alone
    head["containers"][0]["args"] += ["--protocol", protocol, *tls]
    head["containers"][0]["resources"] = {"requests": {"cpu": "500m", "memory": "1Gi"}}
    for pod in (worker, head):
        pod["securityContext"] = {"runAsNonRoot": True}
        pod["containers"][0]["securityContext"] = {"allowPrivilegeEscalation": False}
    if config.claim is not None:
        _mount(worker, "data", {"persistentVolumeClaim": {"claimName": config.claim}}, config.mount)
    if certificates is None:
        return [dask]
    for pod in (worker, head):
        # Read by the group that the pod's user is in, and by nobody else.
        pod["securityContext"]["fsGroup"] = 1000
        _mount(pod, "tls", {"secret": {"secretName": f"{name}-tls", "defaultMode": 0o440}}, _TLS)
    return [_secret(f"{name}-tls", config.namespace, certificates), dask]


def _resources(config: Kubernetes) -> dict[str, Any]:
    limits: dict[str, str] = {"memory": config.memory}
    if config.gpu:
        limits["nvidia.com/gpu" if config.gpu is True else config.gpu] = "1"
    return {"limits": limits, "requests": {**limits, "cpu": str(config.cores)}}


def _mount(pod: dict[str, Any], name: str, source: dict[str, Any], path: str) -> None:
    pod.setdefault("volumes", []).append({"name": name, **source})
    mounts = pod["containers"][0].setdefault("volumeMounts", [])
    mounts.append({"name": name, "mountPath": path, "readOnly": name == "tls"})


def _secret(name: str, namespace: str, certificates: Path) -> dict[str, Any]:
    content = {file: (certificates / file).read_bytes() for file in (CA, CERTIFICATE, KEY)}
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": name, "namespace": namespace},
        "type": "Opaque",
        "data": {file: base64.b64encode(data).decode() for file, data in content.items()},
    }


class _Deployed:
    """The objects of one run in Kubernetes."""

    def __init__(self, name: str, config: Kubernetes) -> None:
        self._name, self._config = name, config
        self._created: list[Any] = []
        self._asked = 0

    def create(self, objects: list[dict[str, Any]]) -> None:
        import httpx
        import kr8s

        try:
            for content in objects:
                thing = kr8s.objects.object_from_spec(content, allow_unknown_type=True)
                thing.create()
                self._created.append(thing)
        except (kr8s.ServerError, httpx.HTTPError, ValueError, OSError) as error:
            raise InputError(
                "Kubernetes does not take this cluster",
                where=f"{self._config.namespace}/{self._name}",
                found=error,
                fix="check kubectl's context, your rights in the namespace, and that Dask's operator is "
                "installed (deploy/README.md)",
            ) from None

    def scheduler(self, *, tls: bool) -> str:
        """The scheduler's address once its pod is ready; forwarded where this is outside the cluster."""
        import asyncio

        from dask_kubernetes.operator.networking import get_scheduler_address

        service = f"{self._name}-scheduler"
        until = time.monotonic() + 60 * self._config.patience
        while not self._ready(service):
            if time.monotonic() > until:
                raise RunError(
                    f"no Dask scheduler came up within {self._config.patience:g} minutes",
                    where=f"{self._config.namespace}/{self._name}",
                    found=self.says() or "no pod: is Dask's operator running?",
                    fix="kubectl describe pods says more",
                )
            time.sleep(_LOOK)
        address: str = asyncio.run(get_scheduler_address(service, self._config.namespace))
        return address.replace("tcp://", "tls://") if tls else address

    def scale(self, count: int) -> None:
        if count != self._asked:
            self._get("daskworkergroups.kubernetes.dask.org", f"{self._name}-default").patch(
                {"spec": {"worker": {"replicas": count}}}
            )
            self._asked = count

    def says(self) -> str | None:
        """The pods that do not run, and why."""
        import kr8s

        label = f"dask.org/cluster-name={self._name}"
        waiting = []
        for pod in kr8s.get("pods", namespace=self._config.namespace, label_selector=label):
            status = pod.raw.get("status", {})
            if (phase := status.get("phase")) != "Running":
                states = (c.get("state", {}).get("waiting", {}) for c in status.get("containerStatuses", ()))
                conditions = (c.get("message") for c in status.get("conditions", ()))
                why = [*(s.get("reason") for s in states), *conditions]
                waiting.append(f"{pod.name} {phase}: {'; '.join(filter(None, why))}")
        return "\n".join(waiting) or None

    def delete(self) -> None:
        for thing in reversed(self._created):
            with suppress(Exception):  # the idle timeout takes away what cannot be reached now
                thing.delete()

    def _ready(self, service: str) -> bool:
        import kr8s

        with suppress(kr8s.NotFoundError):
            return bool(self._get("services", service).ready()) and self.says() is None
        return False

    def _get(self, kind: str, name: str) -> Any:
        import kr8s

        found = next(iter(kr8s.get(kind, name, namespace=self._config.namespace)), None)
        if found is None:
            raise kr8s.NotFoundError(f"no {kind} {name}")
        return found


class _Pods(Started):
    def says(self) -> str | None:
        told: str | None = self._cluster.says()
        return told
