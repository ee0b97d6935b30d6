"""Whether two workers compute the same bits: the digest of one forward pass over numbers made by arithmetic.

Libraries round differently on other processors, and devices of another kind always do. Nobody can list
which combinations agree, so each worker computes one small tile with the run's own network and dtype, and
only workers with the digest that the run was begun with take part.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from math import prod
from typing import Any

import numpy as np
import torch

from unet_core.errors import UnfitWorkerError
from unet_core.geometry import Box
from unet_core.inference import Predictor
from unet_core.tiling import Tile, Tiling, halved

_MACS = 2.5e10  # about half a second of two cores


@dataclass(frozen=True)
class Probe:
    """What a worker computes with. Only `device` and `digest` are compared; the rest explains them."""

    device: str
    hardware: str
    libraries: str
    digest: str

    def to_dict(self) -> dict[str, str]:
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Probe:
        return cls(**data)

    def require(self, other: Probe) -> None:
        """Refuse a worker that would compute other bits than this probe's.

        Raises
        ------
        UnfitWorkerError
            Naming both.
        """
        if (other.device, other.digest) != (self.device, self.digest):
            raise UnfitWorkerError(
                "this worker would compute other results than the run was begun with",
                expected=f"{self.hardware}, {self.libraries} (probe {self.digest})",
                found=f"{other.hardware}, {other.libraries} (probe {other.digest})",
                fix="go on with workers like the first ones, or begin another run with --restart or --to",
            )


def probe(predictor: Predictor, tiling: Tiling) -> Probe:
    """Compute the probe tile on this process's device. Deterministic for one worker kind and one run."""
    spec = predictor.spec
    write = tiling.tile
    while spec.padded().macs(_read(tiling, write)[3 - spec.ndim :]) > _MACS:
        smaller = halved(write, tiling.footprint.stride)
        if smaller is None:
            break
        write = smaller
    read = (spec.in_channels, *_read(tiling, write))
    # A linear congruence, not a random generator: their streams change between versions.
    numbers = np.arange(prod(read), dtype=np.uint64) * np.uint64(2654435761) >> np.uint64(16)
    scaled = (numbers % np.uint64(256)).astype(np.float32) / np.float32(255)
    box = Box.of_shape(write)
    logits = predictor.logits(scaled.reshape(read), Tile(read=box, write=box, keep=box), scaled=True)
    return Probe(
        device=predictor.device,
        hardware=_hardware(predictor.device),
        libraries=_libraries(predictor.device),
        digest=hashlib.sha256(logits.float().cpu().contiguous().numpy().tobytes()).hexdigest()[:16],
    )


def _read(tiling: Tiling, write: tuple[int, ...]) -> tuple[int, ...]:
    return Box.of_shape(write).grow(tiling.footprint.lower, tiling.footprint.upper).shape


def _hardware(device: str) -> str:
    if device == "cuda":
        return f"GPU {torch.cuda.get_device_name()}"
    return f"CPU {torch.backends.cpu.get_cpu_capability()}"


def _libraries(device: str) -> str:
    if device == "cuda":
        return f"torch {torch.__version__}, cuda {torch.version.cuda}, cudnn {torch.backends.cudnn.version()}"  # type: ignore[no-untyped-call]
    return f"torch {torch.__version__}"
