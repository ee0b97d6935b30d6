"""What a training tells of itself: losses, rates and scores by step. Part of every checkpoint."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from time import time
from typing import Any

from unet_core.geometry import ceil_div
from unet_core.training.validation import Validation

MOST_ROWS = 2000


@dataclass(kw_only=True)
class History:
    """JSON-ready.

    Parameters
    ----------
    rows
        step, loss (mean since the row before), learning_rate, patches_per_second, seconds of training, time
        (Unix), and scores where a validation followed that step (`Validation.to_dict`). A long training has
        one row for several steps: at most about `MOST_ROWS`, besides those of validations.
    best_step, best_score
        The step whose weights are kept: that with the best foreground IoU since training computes as
        inference does (`Plan.settled_from`), without validation the last one that was looked at; 0 before
        there is one.
    since_best
        Validations since then.
    """

    rows: list[dict[str, Any]] = field(default_factory=list)
    best_step: int = 0
    best_score: float = -1.0
    since_best: int = 0
    seconds: float = 0.0
    losses: list[float] = field(default_factory=list)

    def add_loss(self, step: int, loss: float, *, steps: int, **facts: float) -> None:
        """The loss of one step; every so many make a row."""
        self.losses.append(loss)
        if step % ceil_div(steps, MOST_ROWS) == 0:
            self._close_row(step, facts)

    def add_validation(
        self, step: int, validation: Validation | None, *, settled_from: int, **facts: float
    ) -> bool:
        """What a validation found, None where there is nothing to validate on; whether it is the best."""
        if self.losses or not self.rows or self.rows[-1]["step"] != step:
            self._close_row(step, facts)
        if validation is None:
            self.best_step = step
            return True
        self.rows[-1]["scores"] = validation.to_dict()
        # What scored well before was luck with the intensities of the validation regions.
        outdated = self.best_step < settled_from <= step
        better = outdated or validation.foreground_iou > self.best_score
        if better:
            self.best_step, self.best_score, self.since_best = step, validation.foreground_iou, 0
        else:
            self.since_best += 1
        return better

    @property
    def best(self) -> dict[str, Any]:
        """The row of the best step; empty before there is one."""
        return next((row for row in reversed(self.rows) if row["step"] == self.best_step), {})

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def _close_row(self, step: int, facts: dict[str, float]) -> None:
        mean = sum(self.losses) / len(self.losses) if self.losses else None
        self.rows.append({"step": step, "loss": mean, "seconds": self.seconds, "time": time(), **facts})
        self.losses.clear()
