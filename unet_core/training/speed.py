"""How long a step of a training takes here, measured on one: for a rough word before there is a training."""

from __future__ import annotations

from time import perf_counter
from typing import Any

import torch
import torch.nn.functional as F

from unet_core.architecture import UNetSpec
from unet_core.devices import DTYPES, exact_arithmetic
from unet_core.geometry import Shape
from unet_core.model import UNet, channels_last
from unet_core.training.optimisation import Optimisation


def seconds_per_step(spec: UNetSpec, patch: Shape, batch: int, *, device: str, dtype: str) -> float:
    """Seconds of arithmetic of one step on this machine; reading and augmenting come on top where they wait.

    Measured on the second of two steps on zeros. A CPU does the patches of a batch one after the other, so
    that one is enough there.

    Parameters
    ----------
    patch
        Shape of the output of one patch, an entry per axis of the network.
    """
    exact_arithmetic()
    patches = batch if device == "cuda" else 1
    layout: Any = {"device": device, "memory_format": channels_last(spec.ndim)}
    network = UNet(spec).to(**layout).train()
    optimiser = Optimisation().build(network.parameters())
    image = torch.zeros(patches, spec.in_channels, *spec.read_shape(patch)).to(**layout)
    truth = torch.zeros(patches, *patch, dtype=torch.long, device=device)
    seconds = 0.0
    for _ in range(2):
        began = perf_counter()
        optimiser.zero_grad(set_to_none=True)
        with torch.autocast(device, DTYPES[dtype], enabled=dtype != "float32"):
            logits = network(image)
        inside = logits[(..., *(slice(n) for n in patch))].float()
        F.cross_entropy(inside, truth).backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        if device == "cuda":
            torch.cuda.synchronize()
        seconds = perf_counter() - began
    return seconds * batch / patches
