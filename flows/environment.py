"""What a worker process is started with: settings of its libraries, and what the user's table adds."""

from __future__ import annotations

from collections.abc import Mapping

from unet_core.budget import REUSED


def worker_environment(threads: int, more: Mapping[str, str]) -> dict[str, str]:
    """`thread_environment`, and over it what the cluster's table says."""
    return {**thread_environment(threads), **more}


def thread_environment(threads: int) -> dict[str, str]:
    """What keeps a worker process to `threads` cores, and to the memory that the plan counts."""
    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS")
    return {
        **{name: str(threads) for name in names},
        # Threads that wait must not spin: on cores that others use too, they take the time of those at work.
        "OMP_WAIT_POLICY": "PASSIVE",
        # What a slab's tensors took is kept for the next slab's, in one heap whatever the thread; larger ones
        # go back to the system at once. Else the C library decides by what came before.
        "MALLOC_ARENA_MAX": "1",
        "MALLOC_TRIM_THRESHOLD_": str(4 * REUSED),
        "MALLOC_MMAP_THRESHOLD_": str(REUSED),
    }
