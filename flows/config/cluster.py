"""Where Dask workers come from: the `[cluster]` table, in a file of its own or beside other parameters."""

from __future__ import annotations

from typing import Any, Literal, Self

from pydantic import Field, model_validator

from flows.config.base import Config, Positive, read_toml, validate
from unet_core.errors import InputError


class ClusterConfig(Config):
    """Where Dask workers come from; the TOML file behind `--cluster`."""

    kind: Literal["local", "address", "class"] = "local"
    workers: Positive = 1
    threads: int | None = Field(
        None, ge=1, description="Threads of one worker's arithmetic; all cores shared evenly"
    )
    address: str | None = Field(None, description="Address of a running scheduler, for kind = address")
    cluster_class: str | None = Field(None, description="Import path of a cluster class, for kind = class")
    arguments: dict[str, Any] = Field({}, description="Keyword arguments of that class")

    @model_validator(mode="after")
    def _whole(self) -> Self:
        # An address without its kind would start workers here, on the wrong machine.
        for kind, key in (("address", self.address), ("class", self.cluster_class)):
            name = "address" if kind == "address" else "cluster_class"
            if (self.kind == kind) != (key is not None):
                raise ValueError(f'kind = "{kind}" and {name} go together')
        return self


def read_cluster(path: str | None, *, workers: int | None) -> ClusterConfig:
    """The cluster to use: that of a TOML file, with `workers` over what it says, or the local default."""
    values = read_toml(path) if path else {}
    # The file is the table, or holds one of that name alone: what stands beside it would not count.
    table = values["cluster"] if values.keys() == {"cluster"} else values
    if not isinstance(table, dict):
        raise InputError("`cluster` is not a table", where=path, expected="[cluster]", found=repr(table))
    return validate(ClusterConfig, {**table, **({"workers": workers} if workers else {})}, where=path)
