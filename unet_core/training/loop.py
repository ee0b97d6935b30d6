"""The steps of a training: resumable, the same for any number of ranks, validated by exact tiling.

A step is defined by its number: patches, augmentation, learning rate and dropout follow from (seed, step),
whoever computes them and whenever. So a training that goes on from a checkpoint is the uninterrupted one.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from math import isfinite
from time import perf_counter
from typing import Any

import torch
from torch import Tensor

from unet_core.checkpoint import adopt, load_model
from unet_core.errors import RunError
from unet_core.model import UNet
from unet_core.training.batches import batches, places_of
from unet_core.training.checkpoints import Checkpoint, Checkpoints
from unet_core.training.history import History
from unet_core.training.optimisation import learning_rate
from unet_core.training.plan import Plan
from unet_core.training.ranks import Ranks
from unet_core.training.trainer import Trainer, weights_in
from unet_core.training.validation import network_of, validate

LOADERS = 2  # threads that read and augment patches


@dataclass(frozen=True, kw_only=True)
class Progress:
    """One step, as plain data.

    `looked` where its network was looked at, and `on_validation` told; then `scores` are those of the
    validation (`Validation.to_dict`), None where nothing is held out.
    """

    step: int
    steps: int
    loss: float
    learning_rate: float
    patches_per_second: float
    scores: dict[str, Any] | None = None
    looked: bool = False


@dataclass(frozen=True, kw_only=True)
class Trained:
    """The network with its best weights (eval mode, on the CPU), and how it got them.

    Where no step has been looked at yet, the weights are those of now. `step` is the last one that was done;
    `stopped` where the training was asked to stop before its last step; it can go on from its checkpoint.
    """

    plan: Plan
    network: UNet
    history: History
    step: int
    stopped: bool = False


def run(
    plan: Plan,
    *,
    ranks: Ranks | None = None,
    checkpoints: Checkpoints | None = None,
    on_progress: Callable[[Progress], None] | None = None,
    on_validation: Callable[[History, UNet], None] | None = None,
    should_stop: Callable[[], bool] = lambda: False,
    loaders: int = LOADERS,
) -> Trained:
    """Train, from the last checkpoint on where there is one; keep the weights that validate best.

    On a CPU the same plan, ranks and number of threads give the same weights to the bit, however often
    the training was interrupted. `on_progress` is called in this thread after every step, `on_validation` on
    the first rank with the network that was validated; `should_stop` is asked by the first rank alone, which
    then writes a checkpoint and returns.

    Raises
    ------
    RunError
        The loss is not finite, with the step and its patches, those of the other ranks too, or the weights
        are not, which are not kept then; `DataError`: unusable data in a patch.
    StoreError, LostLeaseError
        A checkpoint cannot be written, or is no longer this process's to write.
    """
    ranks = ranks or Ranks()
    device = torch.device(plan.settings.device)
    # Initial weights and dropout draw from torch's global generators: seeded here, given back after.
    used = [torch.cuda.current_device()] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=used):
        trainer = Trainer(plan, _initial(plan), ranks)
        loop = _Loop(plan, ranks, trainer, checkpoints, on_progress, on_validation)
        stopped = loop.run(should_stop, loaders)
    return Trained(
        plan=plan,
        network=network_of(plan, loop.weights()),
        history=loop.history,
        step=loop.done,
        stopped=stopped,
    )


def trained_by_others(plan: Plan, checkpoints: Checkpoints, *, stopped: bool) -> Trained:
    """What `run` returned in other processes, from the checkpoints that they left.

    Raises
    ------
    RunError
        There is none.
    """
    found = checkpoints.latest()
    if found is None:
        raise RunError("the training left no checkpoint", where=checkpoints.store.url)
    weights = checkpoints.best(found.best_step) if found.best_step else weights_in(found.tensors)
    if weights is None:
        raise RunError("the best weights are not to be found", where=checkpoints.store.url)
    history = History(**found.facts["history"])
    network = network_of(plan, weights)
    return Trained(plan=plan, network=network, history=history, step=found.step, stopped=stopped)


def _initial(plan: Plan) -> UNet:
    torch.manual_seed(plan.settings.seed)
    network = UNet(plan.spec)
    if plan.fine_tunes is not None:
        adopt(network, load_model(plan.fine_tunes))
    return network


class _Loop:
    def __init__(
        self,
        plan: Plan,
        ranks: Ranks,
        trainer: Trainer,
        checkpoints: Checkpoints | None,
        on_progress: Callable[[Progress], None] | None,
        on_validation: Callable[[History, UNet], None] | None,
    ) -> None:
        self._plan, self._ranks, self._trainer = plan, ranks, trainer
        self._checkpoints, self._tell, self._show = checkpoints, on_progress, on_validation
        self.history = History()
        self._best: dict[str, Tensor] | None = None
        self.done = 0
        self._speed = 0.0
        # Read a step late, so that a GPU need not wait for the host: (step, loss).
        self._unread: tuple[int, Tensor] | None = None
        if checkpoints is not None and (found := checkpoints.latest()) is not None:
            trainer.load(found.tensors, found.facts["trainer"])
            self.history = History(**found.facts["history"])
            self._best = checkpoints.best(found.best_step) if found.best_step else None
            self.done = found.step
        # A file system may show the others an older state for a while.
        steps = torch.tensor(float(self.done), device=plan.settings.device)
        if float(ranks.add_up(steps)) != self.done * ranks.world:
            raise RunError(
                "the ranks see different checkpoints",
                where=None if checkpoints is None else checkpoints.store.url,
                expected="one state to go on from",
                found=f"rank {ranks.rank} that of step {self.done}, others another",
                fix="give the same command again in a minute",
            )

    def weights(self) -> dict[str, Tensor]:
        """The best weights, or those of now where no step has been validated."""
        return self._trainer.weights() if self._best is None else self._best

    def run(self, should_stop: Callable[[], bool], loaders: int) -> bool:
        """All steps that are left; whether it was asked to stop before the last."""
        settings = self._plan.settings
        if self._ended():
            return False
        items = self._ranks.share(settings.batch)
        with closing(batches(self._plan, items, first=self.done + 1, threads=loaders)) as every:
            began = perf_counter()
            first, before = self.done, self.history.seconds
            for step, parts in enumerate(every, self.done + 1):
                loss = self._trainer.step(step, parts)
                self._settle()
                self._unread = step, loss
                self.done = step
                self.history.seconds = before + perf_counter() - began
                self._speed = (step - first) * settings.batch / max(perf_counter() - began, 1e-9)
                stop = self._ranks.is_first and should_stop()
                # Also when asked to stop: a validation that was left out would be missing for ever.
                due = step % settings.validate_every == 0 or step == settings.steps
                if stop or due or step % settings.checkpoint_every == 0:
                    self._settle(validate_too=due)
                    self._save()
                if self._ended():
                    return False
                if stop:
                    return True
        return False

    def _ended(self) -> bool:
        settings = self._plan.settings
        settled = self.history.best_step >= self._plan.settled_from
        tired = settled and 0 < settings.early_stop <= self.history.since_best
        return self.done >= settings.steps or tired

    def _settle(self, *, validate_too: bool = False) -> None:
        """Read the loss that is still unread; validate the weights as they are."""
        if self._unread is None:
            return
        (step, loss), self._unread = self._unread, None
        settings = self._plan.settings
        value = float(loss)
        if not isfinite(value):
            raise RunError(
                f"the loss is not finite at step {step} of {settings.steps}",
                where="; ".join(places_of(self._plan, step)),
                expected="a number",
                found=value,
                fix="lower the learning rate; the same command goes on from the last checkpoint",
            )
        rate = learning_rate(step, settings.steps, settings.optimisation)
        facts: dict[str, Any] = {"learning_rate": rate, "patches_per_second": self._speed}
        self.history.add_loss(step, value, steps=settings.steps, **facts)
        scores = None
        if validate_too:
            self._trainer.follow_first()  # else the ranks would score networks that nobody keeps
            self._require_finite_weights(step)
            network = network_of(self._plan, self._trainer.weights())
            found = validate(self._plan, network, self._ranks) if self._plan.validation else None
            scores = None if found is None else found.to_dict()
            if self.history.add_validation(step, found, settled_from=self._plan.settled_from, **facts):
                self._best = network.state_dict()
                if self._checkpoints is not None and self._ranks.is_first:
                    self._checkpoints.save_best(step, self._best)
            if self._show is not None and self._ranks.is_first:
                self._show(self.history, network)
        if self._tell is not None:
            facts |= {"scores": scores, "looked": validate_too}
            self._tell(Progress(step=step, steps=settings.steps, loss=value, **facts))

    def _require_finite_weights(self, step: int) -> None:
        """Before they are kept: a training that goes on from such weights can only fail again."""
        if not self._trainer.is_finite():
            raise RunError(
                f"the weights are not finite after step {step} of {self._plan.settings.steps}",
                expected="numbers",
                found="NaN or infinity, of a gradient that overflowed",
                fix="lower the learning rate; the same command goes on from the last checkpoint",
            )

    def _save(self) -> None:
        if self._checkpoints is None or not self._ranks.is_first:
            return
        self._require_finite_weights(self.done)
        tensors, facts = self._trainer.state()
        self._checkpoints.save(
            Checkpoint(
                self.done,
                tensors,
                {"trainer": facts, "history": self.history.to_dict()},
                self.history.best_step,
            )
        )
