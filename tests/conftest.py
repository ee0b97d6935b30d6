"""What all tests share: Hypothesis' settings, small model folders and volumes on disk, the real data."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, settings

# Before torch is loaded, here and in every subprocess: machines differ in cores, tests should not. Threads
# that wait must not spin: on two cores with other work, spinning made these tests three times slower.
os.environ.setdefault("OMP_NUM_THREADS", "2")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

# CI draws the same examples each time, so that a red run can be repeated; elsewhere they vary.
settings.register_profile(
    "unet-flows",
    deadline=None,
    derandomize="CI" in os.environ,
    print_blob=True,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("unet-flows")

SHARED_DATA = Path(__file__).parents[2] / "shared" / "data"


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real microscopy beside the checkout; not all of it may be shipped."""
    if not SHARED_DATA.is_dir():
        pytest.skip(f"needs the real data sets in {SHARED_DATA}")
    return SHARED_DATA


@pytest.fixture
def one_thread() -> Iterator[None]:
    """One torch thread: networks of a few channels gain nothing from more, and wait for them."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def make_volume(tmp_path: Path) -> Callable[..., Path]:
    """Write an array (axes z, y, x or as `axes` says) as a plain Zarr array; returns its folder."""
    from strategies import write_array

    def make(data: np.ndarray, name: str = "volume.zarr", **options) -> Path:
        return write_array(tmp_path / name, data, **options)

    return make


@pytest.fixture
def make_model(tmp_path: Path) -> Callable[..., Path]:
    """Save a random network as a model folder; returns it."""
    from strategies import random_network

    from unet_core.architecture import UNetSpec
    from unet_core.checkpoint import ModelCard, save_model
    from unet_core.normalisation import NormalisationRule, Scale
    from unet_core.volumes import Store

    def make(spec: UNetSpec | None = None, *, name: str = "model", seed: int = 0, **card) -> Path:
        spec = spec or UNetSpec.build(ndim=3, depth=1, base=2)
        described = {
            "class_names": tuple(f"class {i}" for i in range(spec.classes)),
            "target": "semantic",
            "normalisation": NormalisationRule(),
            "scale": Scale((0.0,) * spec.in_channels, (255.0,) * spec.in_channels),
            **card,
        }
        folder = tmp_path / name
        save_model(Store(folder), ModelCard(spec=spec, **described), random_network(spec, seed))
        return folder

    return make
