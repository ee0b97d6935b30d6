"""Where Dask workers come from: the `[cluster]` table, in a file of its own or beside other parameters.

kind        workers
local       processes on this machine: one per GPU, or one with all cores
address     those of a scheduler that runs already
slurm       jobs of one worker each
kubernetes  pods, through Dask's operator
class       whatever a cluster class of Dask's starts
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from flows.config.base import Config, Positive, read_toml, validate
from flows.suggestions import did_you_mean
from unet_core.errors import InputError

Minutes = Annotated[float, Field(gt=0, allow_inf_nan=False)]


def seconds_of(walltime: str) -> float:
    """Seconds of [days-]hours:minutes:seconds, as SLURM takes it; ValueError for anything else."""
    parts = re.fullmatch(r"(?:(\d+)-)?(\d{1,3}):(\d{2}):(\d{2})", walltime)
    if parts is None:
        raise ValueError("not [days-]hours:minutes:seconds, such as 08:00:00")
    days, hours, minutes, seconds = (int(part or 0) for part in parts.groups())
    return ((days * 24 + hours) * 60 + minutes) * 60 + seconds


def _clock(text: str) -> str:
    seconds_of(text)
    return text


Walltime = Annotated[str, AfterValidator(_clock)]


class Cluster(Config):
    """What the tables of all kinds have in common."""

    workers: Positive = Field(1, description="Workers to ask for; one block at a time each")
    patience: Minutes = Field(10.0, description="Minutes to wait for a worker before the run gives up")
    cpu: Any = Field(
        None, description="Workers for the stages after the network, which need no GPU; a table like this one"
    )


class _Ours(Cluster):
    """Of kinds whose worker processes this project starts."""

    threads: int | None = Field(
        None, ge=1, description="Threads of one worker's arithmetic; the default is the cores that it has"
    )
    environment: dict[str, str] = Field({}, description="Environment variables of the workers")


class Local(_Ours):
    kind: Literal["local"] = "local"


class Address(Cluster):
    kind: Literal["address"]
    address: str = Field(
        pattern=r"^(tcp|tls|ucx|ws|wss|inproc)://", description="Of the scheduler, such as tls://host:8786"
    )
    tls: str | None = Field(
        None, description="Folder with ca.pem, cert.pem and key.pem, as unet-flows certificates makes it"
    )
    insecure: bool = Field(
        False, description="Whoever reaches the scheduler may run code there: take it without TLS, too"
    )


class _Elastic(Cluster):
    """Of kinds whose workers are started for a run."""

    minimum: int | None = Field(
        None,
        ge=0,
        description="Adapt: ask for as many workers as there are blocks left, at least for so many (and "
        "one) and at most for `workers`; without it for `workers` all the time",
    )
    insecure: bool = Field(
        False, description="Without TLS: whoever reaches the scheduler or a worker may run code there"
    )

    @model_validator(mode="after")
    def _at_most(self) -> Self:
        if self.minimum is not None and self.minimum > self.workers:
            raise ValueError(f"minimum ({self.minimum}) is more than workers ({self.workers})")
        return self


class Slurm(_Ours, _Elastic):
    kind: Literal["slurm"]
    cores: Positive = Field(description="Cores of one worker's job")
    memory: str = Field(description="Memory of one worker's job, such as 64GB")
    walltime: Walltime = Field(
        description="Of one worker's job; blocks that would not end in it go to others"
    )
    queue: str | None = Field(None, description="Partition")
    account: str | None = Field(None, description="Account that the jobs are charged to")
    gpu: bool | str = Field(False, description="One GPU for each worker; or its type, such as a100")
    directives: list[str] = Field([], description="More lines for #SBATCH, such as --qos=long")
    prologue: list[str] = Field([], description="Shell lines before the worker, such as module load cuda")
    interface: str | None = Field(None, description="Network interface to talk over, such as ib0")
    shared: str = Field(
        "~/.unet-flows", description="Folder that this machine and the nodes see: certificates, jobs' logs"
    )
    patience: Minutes = Field(1440.0, description="Minutes to wait in the queue before the run gives up")


class Kubernetes(_Ours, _Elastic):
    kind: Literal["kubernetes"]
    name: str = Field("unet-flows", pattern=r"^[a-z]([a-z0-9-]{0,38}[a-z0-9])?$")
    namespace: str = "default"
    image: str = Field(description="Container image of scheduler and workers, with this version in it")
    cores: Positive = Field(description="Cores of one worker")
    memory: str = Field(description="Memory of one worker, such as 64Gi")
    gpu: bool | str = Field(False, description="One GPU for each worker; or its resource's name")
    claim: str | None = Field(None, description="PersistentVolumeClaim to mount at `mount`")
    mount: str = Field("/data", pattern="^/")


class OfClass(_Elastic):
    kind: Literal["class"]
    cluster_class: str = Field(description="Import path, such as dask_jobqueue.PBSCluster")
    arguments: dict[str, Any] = Field({}, description="Keyword arguments of that class")


ClusterConfig = Local | Address | Slurm | Kubernetes | OfClass

_KINDS: dict[str, type[ClusterConfig]] = {
    "local": Local,
    "address": Address,
    "slurm": Slurm,
    "kubernetes": Kubernetes,
    "class": OfClass,
}


def read_cluster(given: str | dict[str, Any] | None, *, workers: int | None) -> ClusterConfig:
    """The cluster to use, with `workers` over what is given: a TOML file, a table, or None for this machine.

    Raises
    ------
    InputError
        Every unknown, missing or ill-typed key, in one message.
    """
    where = given if isinstance(given, str) else None
    values = read_toml(given) if isinstance(given, str) else given or {}
    # The file is the table, or holds one of that name alone: what stands beside it would not count.
    table = values["cluster"] if values.keys() == {"cluster"} else values
    if not isinstance(table, dict):
        raise InputError("`cluster` is not a table", where=where, expected="[cluster]", found=repr(table))
    return _table({**table, **({"workers": workers} if workers else {})}, where=where)


def _table(values: Any, *, where: str | None) -> ClusterConfig:
    kind = values.get("kind", "local") if isinstance(values, dict) else values
    if not isinstance(kind, str) or kind not in _KINDS:
        raise InputError(
            "there is no such kind of cluster",
            where=where,
            expected=", ".join(_KINDS),
            found=f"{kind!r}{did_you_mean(kind, _KINDS)}",
        )
    cpu = values.get("cpu")
    if isinstance(cpu, dict) and "cpu" in cpu:
        raise InputError("[cluster.cpu] has a [cluster.cpu] of its own", where=where)
    inner = None if cpu is None else _table(cpu, where=where and f"[cluster.cpu] in {where}")
    return validate(_KINDS[kind], {**values, "cpu": inner}, where=where)
