"""The ranks of one training: who computes which patches of a step, and how their sums become one.

A step is defined by its number: N ranks share its patches out and add up, so they train as one does.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

import torch
from torch import Tensor, distributed, nn
from torch._C._distributed_c10d import TCPStore

from unet_core.errors import InputError
from unet_core.model import UNet

# A rank waits so long for another: validation and checkpoints lie between two meetings.
_PATIENCE = timedelta(minutes=30)


@dataclass(frozen=True)
class Ranks:
    """This process among the ranks of a training; alone, it is the only one."""

    rank: int = 0
    world: int = 1

    @property
    def is_first(self) -> bool:
        """Whether this rank writes and reports."""
        return self.rank == 0

    def share(self, count: int) -> range:
        """The items of 0 to `count` - 1 that are this rank's: a contiguous part."""
        return range(count * self.rank // self.world, count * (self.rank + 1) // self.world)

    def add_up(self, tensor: Tensor) -> Tensor:
        """The sum over all ranks, in place."""
        if self.world > 1:
            distributed.all_reduce(tensor)
        return tensor

    def follow_first(self, tensors: Iterable[Tensor]) -> None:
        """Give every rank the first one's values, in place."""
        if self.world > 1:
            for tensor in tensors:
                distributed.broadcast(tensor, 0)

    def wrap(self, network: UNet, device: torch.device) -> nn.Module:
        """The network, such that backward adds the gradients of all ranks up."""
        if self.world == 1:
            return network
        ids = [device.index or 0] if device.type == "cuda" else None
        return nn.parallel.DistributedDataParallel(network, device_ids=ids, gradient_as_bucket_view=True)

    def scale(self, loss: Tensor) -> Tensor:
        """DistributedDataParallel takes the mean over ranks; our losses are parts of a sum."""
        return loss * self.world if self.world > 1 else loss


@contextmanager
def joined(rank: int, world: int, rendezvous: TCPStore | None, *, device: str) -> Iterator[Ranks]:
    """Meet the other ranks at `rendezvous`; they part when the context ends.

    Raises
    ------
    InputError
        Several ranks without a place to meet, or on one GPU.
    """
    if world == 1:
        yield Ranks()
        return
    if rendezvous is None:
        raise InputError("several ranks need a place to meet", expected="a store of torch.distributed")
    if device == "cuda":
        _require_own_gpu(rendezvous, str(torch.cuda.get_device_properties(0).uuid))
    backend = "nccl" if device == "cuda" else "gloo"
    distributed.init_process_group(backend, store=rendezvous, rank=rank, world_size=world, timeout=_PATIENCE)
    try:
        yield Ranks(rank, world)
    finally:
        distributed.destroy_process_group()


def _require_own_gpu(meeting: TCPStore, gpu: str) -> None:
    """NCCL would refuse as well, in words that name neither; and environments can show one GPU twice."""
    if meeting.add(f"ranks on {gpu}", 1) > 1:
        raise InputError(
            "two ranks have the same GPU",
            where=f"GPU {gpu}",
            expected="a GPU for each rank",
            fix="start one worker per GPU, each with its own in CUDA_VISIBLE_DEVICES",
        )
