"""When the machine under a worker is taken away: a job's walltime, known to what runs inside."""

from __future__ import annotations

import os
import time

import psutil

# Seconds since the epoch; `flows.start_worker` sets it in a job.
VARIABLE = "UNET_FLOWS_DEADLINE"
MARGIN = 15.0  # seconds before the end that nothing is to be begun in: to write, to say so, to leave


def deadline() -> float | None:
    """Seconds since the epoch; None where nobody takes the machine away."""
    value = os.environ.get(VARIABLE)
    return None if value is None else float(value)


def enough(seconds: float) -> bool:
    """Whether work of so many seconds would end in time."""
    end = deadline()
    return end is None or time.time() + seconds + MARGIN < end


def ever_enough(seconds: float) -> bool:
    """Whether it would have, begun when this process began: on another worker of this kind, that is."""
    end = deadline()
    return end is None or psutil.Process().create_time() + seconds + MARGIN < end
