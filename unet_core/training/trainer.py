"""One step of a training, and all that it changes: weights, optimiser, loss scale, average of weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from unet_core.devices import DTYPES, exact_arithmetic
from unet_core.loss import denominators, loss_of
from unet_core.model import UNet, channels_last
from unet_core.training.batches import Batch
from unet_core.training.optimisation import WeightAverage, learning_rate
from unet_core.training.plan import Plan
from unet_core.training.ranks import Ranks


class Trainer:
    """A network being trained by one rank.

    Source of the recipe: Ronneberger 2015, section 3. Autocast computes convolutions in the plan's dtype;
    weights, their updates and the loss stay float32.
    """

    def __init__(self, plan: Plan, network: UNet, ranks: Ranks) -> None:
        settings = plan.settings
        exact_arithmetic()  # now, not at the first validation: it would change the steps after it
        self._settings, self._ranks = settings, ranks
        self._settled_from = plan.settled_from
        self._device = torch.device(settings.device)
        self._format = channels_last(plan.spec.ndim)
        modules = network.modules() if plan.settled_from > 1 else ()
        self._norms = [m for m in modules if isinstance(m, nn.modules.batchnorm._BatchNorm)]
        self.network = network.to(device=self._device, memory_format=self._format)  # type: ignore[call-overload]
        self._optimiser = settings.optimisation.build(self.network.parameters())
        self._scaler = torch.amp.GradScaler(settings.device, enabled=settings.dtype == "float16")
        ema = settings.optimisation.ema
        self._average = WeightAverage(self.network, ema) if ema else None
        self._parallel = ranks.wrap(self.network, self._device)
        self._forward = torch.compile(self._parallel) if settings.compile else self._parallel
        weights = plan.class_weights
        self._class_weights = None if weights is None else torch.tensor(weights, device=self._device)

    def step(self, number: int, batches: Sequence[Batch]) -> Tensor:
        """One update of the weights with this rank's patches of a step.

        Returns
        -------
        The loss of the whole step's patches before the update, a scalar on the device.
        """
        settings = self._settings
        for group in self._optimiser.param_groups:
            group["lr"] = learning_rate(number, settings.steps, settings.optimisation)
        torch.manual_seed(_seed(settings.seed, number, self._ranks.rank))  # for dropout
        self.network.train()
        self._freeze_norm(number)
        self._optimiser.zero_grad(set_to_none=True)
        parts = [self._moved(batch) for batch in batches]
        common: dict[str, Any] = {"settings": settings.loss, "class_weights": self._class_weights}
        each = [denominators(part.classes, part.border, **common) for part in parts]
        whole = self._ranks.add_up(torch.stack(each).sum(0))
        total = torch.zeros((), device=self._device)
        for part in parts:
            # Gradients of earlier parts wait here; the last one adds all of them up over the ranks.
            with nullcontext() if part is parts[-1] else self._without_exchange():
                logits = self._logits(part)
                loss = loss_of(logits, part.classes, part.border, denominators=whole, **common)
                self._scaler.scale(self._ranks.scale(loss)).backward()  # type: ignore[no-untyped-call]
            total += loss.detach()
        self._scaler.unscale_(self._optimiser)
        if settings.optimisation.gradient_clip:
            nn.utils.clip_grad_norm_(self.network.parameters(), settings.optimisation.gradient_clip)
        self._scaler.step(self._optimiser)
        self._scaler.update()
        if self._average is not None:
            self._average.update(self.network, number)
        return self._ranks.add_up(total)

    def _freeze_norm(self, number: int) -> None:
        """From the plan's step on, let batch norm do as it will in inference."""
        if not self._norms or number < self._settled_from:
            return
        if number == self._settled_from:
            if self._average is not None:  # the network's own statistics are those of the last few patches
                self.network.load_state_dict(self._average.state_of(self.network))
            # Gradients become many times larger. Measured by moments of the small ones before, AdamW's next
            # hundred steps would be 3 to 6 times as long as the learning rate says.
            self._optimiser.state.clear()
        for norm in self._norms:
            norm.eval()

    def _logits(self, part: Batch) -> Tensor:
        dtype = DTYPES[self._settings.dtype]
        with torch.autocast(self._device.type, dtype, enabled=dtype != torch.float32):
            logits: Tensor = self._forward(part.image)
        # The surplus above the last whole stride has no label: 388 -> 384.
        inside: tuple[Any, ...] = (..., *(slice(n) for n in part.classes.shape[1:]))
        return logits[inside]

    def _moved(self, batch: Batch) -> Batch:
        if self._device.type != "cuda":
            return Batch(batch.image.contiguous(memory_format=self._format), batch.classes, batch.border)

        def sent(tensor: Tensor) -> Tensor:
            return tensor.pin_memory().to(self._device, non_blocking=True)

        return Batch(
            sent(batch.image).contiguous(memory_format=self._format),
            sent(batch.classes),
            None if batch.border is None else sent(batch.border),
        )

    def _without_exchange(self) -> Any:
        if isinstance(self._parallel, nn.parallel.DistributedDataParallel):
            return self._parallel.no_sync()
        return nullcontext()

    def weights(self) -> dict[str, Tensor]:
        """The network's state dict, of the average of weights where there is one; shared, not copied."""
        return self.network.state_dict() if self._average is None else self._average.state_of(self.network)

    def follow_first(self) -> None:
        """Take over the first rank's batch norm statistics: each rank has measured its own patches."""
        weights = self.weights()
        self._ranks.follow_first(weights[name] for name, _ in self.network.named_buffers())

    def is_finite(self) -> bool:
        """Whether all weights and batch norm statistics are numbers, the averages of them too."""
        both = (*self.network.state_dict().values(), *self.weights().values())
        return bool(torch.stack([tensor.isfinite().all() for tensor in both]).all())

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """All that `step` changes: tensors by name, and numbers that JSON holds."""
        tensors = {f"network.{name}": t for name, t in self.network.state_dict().items()}
        if self._average is not None:
            tensors |= {f"average.{name}": t for name, t in self._average.weights.items()}
        for index, entries in self._optimiser.state_dict()["state"].items():
            tensors |= {f"optimiser.{index}.{name}": t for name, t in entries.items() if t is not None}
        return tensors, {"scaler": self._scaler.state_dict()}

    def load(self, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
        """Go on from a `state`."""
        groups: dict[str, dict[str, Tensor]] = {"network": {}, "average": {}, "optimiser": {}}
        for name, tensor in tensors.items():
            kind, _, rest = name.partition(".")
            groups[kind][rest] = tensor
        self.network.load_state_dict(groups["network"])
        if self._average is not None:
            for name, tensor in groups["average"].items():
                self._average.weights[name].copy_(tensor)
        state: dict[int, dict[str, Tensor]] = {}
        parameters = list(self.network.parameters())
        for name, tensor in groups["optimiser"].items():
            index, _, entry = name.partition(".")
            weight = parameters[int(index)]
            # In the weight's memory format, as it was: on GPUs another one means other kernels.
            alike = tensor.shape == weight.shape
            state.setdefault(int(index), {})[entry] = _laid_out_as(weight, tensor) if alike else tensor
        self._optimiser.load_state_dict({**self._optimiser.state_dict(), "state": state})
        self._scaler.load_state_dict(facts["scaler"])


def weights_in(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """`Trainer.weights` when it had this `Trainer.state`."""
    kinds = ("network.", "average.")  # the average of a tensor, where there is one, over the tensor
    return {name.removeprefix(kind): state[name] for kind in kinds for name in state if name.startswith(kind)}


def _laid_out_as(weight: Tensor, tensor: Tensor) -> Tensor:
    return torch.empty_like(weight, requires_grad=False, dtype=tensor.dtype).copy_(tensor)


def _seed(*numbers: int) -> int:
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0]) >> 1
