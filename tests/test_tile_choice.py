"""The tile with the least arithmetic that fits, whatever the network's shape, in what a worker may take."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from flows.parsing import parse_bytes
from unet_core import budget, speed
from unet_core.architecture import UNetSpec
from unet_core.errors import InputError
from unet_core.geometry import Box, Grid
from unet_core.segmentation import SegmentRequest, plan_segmentation
from unet_core.tile_choice import Rates, choose_tile, spread, tile_options

HUGE = (20_000, 50_000, 100_000)
ISOTROPIC = UNetSpec.build(ndim=3, depth=3, base=16)
FLAT = UNetSpec.build(ndim=3, depth=3, base=16, anisotropic_levels=2)


@pytest.mark.parametrize("spec", [ISOTROPIC, FLAT, UNetSpec.build(ndim=2, depth=4, base=64)])
def test_options_are_ordered_by_arithmetic_and_fit(spec: UNetSpec) -> None:
    memory = 2 * 2**30
    options = tile_options(spec, HUGE, Box.of_shape(HUGE), dtype="bfloat16", device="cpu", memory=memory)
    assert len({option.tile for option in options}) == len(options) > 50
    for option in options:
        read = spec.read_shape(option.tile[3 - spec.ndim :])
        assert option.memory == budget.forward_bytes(spec, read, "bfloat16", "cpu") <= memory
        assert option.macs == spec.padded().macs(read) * len(Grid(Box.of_shape(HUGE), option.tile))
    assert all(a.macs <= b.macs for a, b in pairwise(options))
    shown = spread(options, 5)
    assert shown[0] == options[0]
    assert all(a.memory > b.memory for a, b in pairwise(shown))


def test_an_anisotropic_network_gets_an_anisotropic_tile() -> None:
    tiles = {
        spec: choose_tile(spec, HUGE, Box.of_shape(HUGE), dtype="bfloat16", device="cpu", memory=3 * 2**30)
        for spec in (ISOTROPIC, FLAT)
    }
    assert len(set(tiles[ISOTROPIC])) == 1
    assert 2 * tiles[FLAT][0] <= tiles[FLAT][1] == tiles[FLAT][2]


@pytest.fixture
def request_of(
    make_model: Callable[..., Path], make_volume: Callable[..., Path], tmp_path: Path
) -> SegmentRequest:
    model = make_model(ISOTROPIC)
    volume = make_volume(np.zeros((1, 8, 8, 8), np.uint8), chunks=(1, 8, 8, 8))
    return SegmentRequest(volume=str(volume), model=str(model), to=str(tmp_path / "out.zarr"))


@pytest.mark.parametrize("gib", [0.9, 1, 1.5, 2])
def test_a_worker_takes_no_more_than_it_may(gib: float, request_of: SegmentRequest, tmp_path: Path) -> None:
    import zarr

    zarr.create_array(tmp_path / "large.zarr", shape=(2000,) * 3, chunks=(64,) * 3, dtype="u1")
    limit = int(gib * 2**30)
    large = {**vars(request_of), "volume": str(tmp_path / "large.zarr"), "memory": limit}
    planned = plan_segmentation(SegmentRequest(**large), workers=None)
    assert 0.4 * limit < planned.memory.total <= limit


def test_what_cannot_fit_is_refused(request_of: SegmentRequest) -> None:
    with pytest.raises(InputError, match="not even the smallest tile") as refused:
        plan_segmentation(SegmentRequest(**{**vars(request_of), "memory": 200 * 2**20}))
    said = int(refused.value.expected.split()[0].replace(",", ""))
    assert said > budget.WORKER_BASE, "the process, blocks and chunks are counted, too"
    plan_segmentation(SegmentRequest(**{**vars(request_of), "memory": said}))
    assert "all that a worker holds" in refused.value.expected
    asked = SegmentRequest(**{**vars(request_of), "memory": 340 * 2**20, "tile": (256, 256, 256)})
    with pytest.raises(InputError, match="does not fit"):
        plan_segmentation(asked)


def test_where_float32_is_taken_after_all_the_tile_is_chosen_for_it(
    request_of: SegmentRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import zarr

    from unet_core.segmentation import fitting

    monkeypatch.setattr(fitting, "fast_dtype", lambda device: "bfloat16")
    zarr.create_array(tmp_path / "large.zarr", shape=(2000,) * 3, chunks=(64,) * 3, dtype="u1")
    planned = plan_segmentation(
        SegmentRequest(**{**vars(request_of), "volume": str(tmp_path / "large.zarr")}), workers=None
    )
    assert planned.plan.dtype == "auto"
    other = planned.in_float32()
    assert other.plan.dtype == "float32"
    for each, dtype in ((planned, "bfloat16"), (other, "float32")):
        needed = budget.forward_bytes(ISOTROPIC, each.plan.tiling.read_shape, dtype, "cpu")
        assert needed <= budget.tile_memory("cpu")


@pytest.mark.parametrize(
    ("text", "size"),
    [("8GiB", 8 * 2**30), ("500 MB", 5 * 10**8), ("1.5g", 15 * 10**8), ("4096", 4096), ("2TiB", 2 * 2**40)],
)
def test_bytes_as_people_type_them(text: str, size: int) -> None:
    assert parse_bytes("--memory", text) == size


@pytest.mark.parametrize("text", ["", "GiB", "-1", "0", "8 GiB per worker", "1e9"])
def test_what_is_no_number_of_bytes_is_refused(text: str) -> None:
    with pytest.raises(InputError, match="--memory is not a number of bytes"):
        parse_bytes("--memory", text)


def test_a_tile_at_which_the_device_is_faster_is_taken() -> None:
    region, memory = Box.of_shape(HUGE), 2**29
    alike = choose_tile(ISOTROPIC, HUGE, region, dtype="bfloat16", device="cpu", memory=memory)
    slow_when_large = Rates(((2**26, 1e11), (2**27, 1e11), (2**29, 0.4e11)))
    chosen = tile_options(
        ISOTROPIC, HUGE, region, dtype="bfloat16", device="cpu", memory=memory, rates=slow_when_large
    )[0]
    assert np.prod(chosen.tile) < np.prod(alike)
    assert chosen.memory < 2**28.5
    assert slow_when_large.at(2**20) == slow_when_large.at(2**27) == 1e11
    assert slow_when_large.at(2**40) == 0.4e11
    assert slow_when_large.at(2**28) == pytest.approx(0.7e11)
    assert Rates(((2**26, 0.95e11), (2**31, 1e11))).ranked(2**26) == pytest.approx(0.9e11), "timings vary"


def test_speed_is_measured_once_and_remembered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    spec = UNetSpec.build(ndim=2, depth=1, base=4)
    passes: list[tuple[int, ...]] = []

    def timed(predictor: object, tile: tuple[int, ...]) -> float:
        passes.append(tile)
        return 1e9 * len(set(passes))

    monkeypatch.setattr(speed, "rate_of", timed)
    of = {"device": "cpu", "dtype": "float32"}
    assert not speed.is_known(spec, memory=2**30, **of)
    rates = speed.rates_of(spec, memory=2**30, **of)
    assert len(rates.points) == len(set(passes)) > 2
    before = len(passes)
    assert speed.rates_of(spec, memory=2**30, **of) == rates
    assert speed.is_known(spec, memory=2**30 + 5, **of), "free memory differs a little each time"
    assert speed.macs_per_second(spec, memory=2**26, **of) == rates.at(2**26)
    assert len(passes) == before
    for damaged in ("", "{", "[]", '{"a": 1}'):
        (tmp_path / "unet-flows" / "speed.json").write_text(damaged)
        assert not speed.is_known(spec, memory=2**30, **of)
    (tmp_path / "unet-flows" / "speed.json").unlink()
    (tmp_path / "unet-flows").chmod(0o500)  # as root it can be written: then it is remembered, else not
    assert speed.rates_of(spec, memory=2**30, **of).points


def test_a_real_pass_is_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    spec = UNetSpec.build(ndim=3, depth=1, base=2)
    rates = speed.rates_of(spec, device="cpu", dtype="float32", memory=2**26)
    ((size, rate),) = rates.points
    assert 2**24 < size <= 2**26
    assert rate > 0
