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
# Where tests run in parallel, each has one.
os.environ.setdefault("OMP_NUM_THREADS", "1" if "PYTEST_XDIST_WORKER" in os.environ else "2")
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


_SLOWEST = (
    "test_faults.py",
    "test_train_flow.py",
    "test_segment_flow.py",
    "test_ranks.py",
    "test_deployments.py",
    "test_slurm.py",
    "test_watch_flow.py",
    "test_cluster.py",
    "test_exactness.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The slowest files first: run side by side, nobody waits for one that began last."""
    items.sort(key=lambda item: _SLOWEST.index(item.path.name) if item.path.name in _SLOWEST else 99)


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What is remembered of this machine's speed stays out of the user's folder."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real microscopy beside the checkout; not all of it may be shipped."""
    if not SHARED_DATA.is_dir():
        pytest.skip(f"needs the real data sets in {SHARED_DATA}")
    return SHARED_DATA


@pytest.fixture(scope="session")
def prefect_api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """The environment for commands whose flows are told to one Prefect server: each would start its own."""
    from killing import prefect_server

    with prefect_server(tmp_path_factory.mktemp("prefect")) as environment:
        yield environment


@pytest.fixture(scope="module")
def in_prefect(prefect_api: dict[str, str]) -> Iterator[None]:
    """Flows in this process are told to that server, too."""
    from prefect.settings import PREFECT_API_URL, temporary_settings

    with temporary_settings({PREFECT_API_URL: prefect_api["PREFECT_API_URL"]}):
        yield


@pytest.fixture(scope="session")
def s3_endpoint() -> Iterator[str]:
    """An S3 server on loopback."""
    from s3_server import moto_server

    with moto_server() as endpoint:
        yield endpoint


@pytest.fixture(scope="module")
def bucket(s3_endpoint: str, request: pytest.FixtureRequest) -> Iterator[str]:
    """The URL of an empty bucket of this module's own; AWS_* point to its server."""
    from s3_server import environment, make_bucket

    name = request.module.__name__.replace("_", "-")
    make_bucket(s3_endpoint, name)
    with pytest.MonkeyPatch.context() as patch:
        for variable, value in environment(s3_endpoint).items():
            patch.setenv(variable, value)
        yield f"s3://{name}"


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
    from pipeline import save_random_model

    from unet_core.architecture import UNetSpec

    def make(spec: UNetSpec | None = None, *, name: str = "model", seed: int = 0, **card) -> Path:
        folder = tmp_path / name
        save_random_model(folder, spec or UNetSpec.build(ndim=3, depth=1, base=2), seed=seed, **card)
        return folder

    return make
