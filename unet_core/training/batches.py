"""The patches of all steps, read and augmented by other threads, a few steps ahead.

A patch is a function of (seed, step, item): how many threads draw it, and when, changes nothing.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from unet_core.budget import STEPS_AHEAD
from unet_core.sampling import Patch, generator
from unet_core.training.plan import Plan


@dataclass(frozen=True)
class Batch:
    """Some patches of one step.

    image float32 (item, channel, *spatial) with the network's context; classes uint8 and border float32
    (item, *spatial), border None without a weight map.
    """

    image: Tensor
    classes: Tensor
    border: Tensor | None


def places_of(plan: Plan, step: int) -> tuple[str, ...]:
    """Where all ranks' patches of a step come from, for people; nothing is read."""
    seed = plan.settings.seed
    return tuple(plan.sampler.where(generator(seed, step, k)) for k in range(plan.settings.batch))


def batches(plan: Plan, items: range, *, first: int, threads: int) -> Generator[list[Batch]]:
    """This rank's patches of steps `first` to the last, in order: at most `accumulate` batches a step."""
    waiting: deque[list[Future[Patch]]] = deque()
    with ThreadPoolExecutor(threads, thread_name_prefix="batches") as readers:

        def submit(step: int) -> list[Future[Patch]]:
            seed = plan.settings.seed
            return [readers.submit(plan.sampler.draw, generator(seed, step, item)) for item in items]

        try:
            for step in range(first, plan.settings.steps + 1):
                waiting.append(submit(step))
                if len(waiting) > STEPS_AHEAD:
                    yield _collect(plan, waiting.popleft())
            while waiting:
                yield _collect(plan, waiting.popleft())
        finally:
            for futures in waiting:
                for future in futures:
                    future.cancel()


def _collect(plan: Plan, futures: Sequence[Future[Patch]]) -> list[Batch]:
    patches = [future.result() for future in futures]
    parts = min(plan.settings.accumulate, len(patches))
    cuts = [len(patches) * k // parts for k in range(parts + 1)]
    return [collate(plan, patches[a:b]) for a, b in pairwise(cuts)]


def collate(plan: Plan, patches: Sequence[Patch]) -> Batch:
    """Patches as tensors; a 2D network's have no z."""
    flat = plan.spec.ndim == 2
    images = np.stack([p.image[:, 0] if flat else p.image for p in patches])
    classes = np.stack([p.classes[0] if flat else p.classes for p in patches])
    borders = [p.border[0] if flat else p.border for p in patches if p.border is not None]
    return Batch(
        torch.from_numpy(images),
        torch.from_numpy(classes),
        torch.from_numpy(np.stack(borders)) if borders else None,
    )
