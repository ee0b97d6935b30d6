"""Which GPU a rank gets: one for each rank, none for two.

    worker -> what its environment shows it -> one entry of it for its rank, as CUDA_VISIBLE_DEVICES

A worker whose environment names one GPU keeps that: whoever started it, SLURM or a nanny per GPU, has chosen.
All others of a machine share what they see.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from unet_core.errors import InputError

VARIABLE = "CUDA_VISIBLE_DEVICES"


@dataclass(frozen=True)
class Seat:
    """A place for a rank: its machine, and the GPUs there that it may take, as `VARIABLE` names them.

    `own` where the environment shows it one GPU, for itself alone.
    """

    host: str
    visible: tuple[str, ...]
    own: bool = False


def seen() -> tuple[tuple[str, ...], bool]:
    """The GPUs that this process may take, and whether its environment names one for itself alone."""
    import torch  # its libraries take a second, and whoever only assigns does not need them

    count = torch.cuda.device_count()
    named = os.environ.get(VARIABLE)
    if named is None:
        return tuple(map(str, range(count))), False
    names = [name.strip() for name in named.split(",")]
    return tuple(names[:count]), len(names) == 1


def assign(seats: Sequence[Seat]) -> list[str]:
    """A GPU for each seat, in their order.

    Raises
    ------
    InputError
        A seat that sees no GPU, or a machine with more ranks than GPUs; says how many there are of both.
    """
    given: dict[int, str] = {}
    hosts: dict[str, list[int]] = defaultdict(list)
    for index, seat in enumerate(seats):
        hosts[seat.host].append(index)
    for host, indices in hosts.items():
        own = {k: seats[k].visible[0] for k in indices if seats[k].own and seats[k].visible}
        rest = [index for index in indices if index not in own]
        taken = set(own.values())
        free = [[name for name in seats[index].visible if name not in taken] for index in rest]
        shared = _matched(free)
        if shared is None:
            require(len(rest), len({name for names in free for name in names}), where=host)
            raise InputError(
                "the GPUs that the workers of a machine see cannot be shared out, one for each rank",
                where=host,
                found="; ".join(",".join(names) or "none" for names in free),
                fix=f"start each worker with one GPU in {VARIABLE}",
            )
        given |= own | dict(zip(rest, shared))
    return [given[index] for index in range(len(seats))]


def require(ranks: int, gpus: int, *, where: str) -> None:
    """Refuse more ranks than GPUs: InputError."""
    if ranks > gpus:
        raise InputError(
            "there are more ranks than GPUs on a machine",
            where=where,
            expected=f"a GPU for each of {ranks} ranks",
            found=f"{gpus} GPU{'' if gpus == 1 else 's'}",
            fix='start fewer workers there, one per GPU, or train on device "cpu"',
        )


def _matched(options: Sequence[Sequence[str]]) -> list[str] | None:
    """One of each entry's options, no two alike; None where that cannot be. Augmenting paths (Kuhn 1955)."""
    owner: dict[str, int] = {}

    def place(index: int, tried: set[str]) -> bool:
        for name in sorted(options[index], key=owner.__contains__):  # the free ones first, in their order
            if name not in tried:
                tried.add(name)
                if name not in owner or place(owner[name], tried):
                    owner[name] = index
                    return True
        return False

    if not all(place(index, set()) for index in range(len(options))):
        return None
    found = {index: name for name, index in owner.items()}
    return [found[index] for index in range(len(options))]
