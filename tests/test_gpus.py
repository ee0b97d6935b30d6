"""One GPU for each rank: who gets which, what a rank's process sees of it, and when there are too few."""

from __future__ import annotations

import sys
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from flows import gpus, rank_host, train
from flows.config import TrainConfig
from flows.gpus import Seat, assign
from flows.ranks import RankedTraining
from unet_core.errors import InputError
from unet_core.training import ranks as rank_meeting

NAMES = st.lists(st.sampled_from("0123"), unique=True, max_size=4).map(tuple)
SEATS = st.builds(Seat, st.sampled_from(["a", "b"]), NAMES, st.booleans()).map(
    lambda s: Seat(s.host, s.visible, s.own and len(s.visible) == 1)
)


def possible(seats: list[Seat], chosen: tuple[str, ...] | list[str]) -> bool:
    """Own GPUs are taken as they are; all others are apart from these and from each other."""
    own = {(s.host, s.visible[0]) for s in seats if s.own}
    shared = [(s.host, name) for s, name in zip(seats, chosen) if not s.own]
    return len(set(shared)) == len(shared) and not own & set(shared)


@given(seats=st.lists(SEATS, max_size=5))
def test_every_rank_gets_a_gpu_of_its_own_where_that_can_be(seats: list[Seat]) -> None:
    can_be = any(possible(seats, chosen) for chosen in product(*(s.visible for s in seats)))
    if not can_be:
        with pytest.raises(InputError, match="GPU"):
            assign(seats)
        return
    chosen = assign(seats)
    assert all(name in seat.visible for name, seat in zip(chosen, seats, strict=True))
    assert possible(seats, chosen)


def test_workers_of_one_machine_share_its_list_in_their_order() -> None:
    assert assign([Seat("a", ("4", "5"))] * 2 + [Seat("b", ("4", "5"))]) == ["4", "5", "4"]


def test_too_few_gpus_are_told_with_both_numbers() -> None:
    with pytest.raises(InputError) as refused:
        assign([Seat("b", ("0",)), *[Seat("a", ("0", "1"))] * 3])
    error = refused.value
    assert (error.where, error.found) == ("a", "2 GPUs")
    assert "3 ranks" in error.expected
    assert "fewer workers" in error.fix


@pytest.mark.parametrize(
    ("variable", "count", "expected"),
    [
        (None, 2, (("0", "1"), False)),
        (None, 1, (("0",), False)),
        ("3", 1, (("3",), True)),
        ("GPU-ab, GPU-cd", 2, (("GPU-ab", "GPU-cd"), False)),
        ("0,9", 1, (("0",), False)),
        ("", 0, ((), True)),
    ],
)
def test_a_worker_says_what_its_environment_shows(variable, count, expected, monkeypatch) -> None:
    monkeypatch.delenv(gpus.VARIABLE, raising=False)
    if variable is not None:
        monkeypatch.setenv(gpus.VARIABLE, variable)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    assert gpus.seen() == expected


@pytest.mark.parametrize(("gpu", "sees"), [("GPU-cd", "GPU-cd"), (None, "0,1")])
def test_a_rank_sees_its_gpu_alone(gpu, sees, tmp_path: Path, monkeypatch) -> None:
    fake = tmp_path / "python"
    fake.write_text('#!/bin/sh\nread job\necho "sees $CUDA_VISIBLE_DEVICES"\nexit 3\n')
    fake.chmod(0o700)
    monkeypatch.setattr(sys, "executable", str(fake))
    monkeypatch.setenv(gpus.VARIABLE, "0,1")
    told = rank_host.run({"rank": 0, "gpu": gpu}, lambda event: None, lambda: True)
    assert (told["code"], told["log"]) == (3, f"sees {sees}\n")


class Cluster:
    """A client whose workers see what they are told to."""

    def __init__(self, seen: dict[str, tuple[tuple[str, ...], bool]]) -> None:
        self.seen = seen

    def scheduler_info(self, n_workers: int) -> dict[str, Any]:
        return {"workers": self.seen}

    def run(self, function: Any, *, workers: list[str]) -> dict[str, Any]:
        assert function is gpus.seen
        return {worker: self.seen[worker] for worker in workers}


def on_gpus(seen: dict[str, tuple[tuple[str, ...], bool]], **options: Any) -> RankedTraining:
    return RankedTraining(
        client=Cluster(seen),  # type: ignore[arg-type]
        job={},
        max_restarts=0,
        on_progress=print,
        on_restart=print,
        **{"most": 9, "asked": len(seen), "on_gpus": True, **options},
    )


def test_ranks_are_shared_out_by_what_their_workers_say() -> None:
    both = (("0", "1"), False)
    workers = {"tcp://10.0.0.1:1": both, "tcp://10.0.0.1:2": both, "tcp://10.0.0.2:1": (("7",), True)}
    assert on_gpus(workers)._devices(list(workers)) == ["0", "1", "7"]
    assert on_gpus(workers, on_gpus=False)._devices(list(workers)) == [None, None, None]


def test_no_rank_starts_where_gpus_are_too_few() -> None:
    workers = {f"tcp://10.0.0.1:{k}": (("0",), False) for k in range(2)}
    with pytest.raises(InputError, match="more ranks than GPUs") as refused:
        on_gpus(workers).run()  # this client could not even submit
    assert refused.value.where == "10.0.0.1"


def config(**options: Any) -> TrainConfig:
    return TrainConfig(to="m", **{"image": "i", "labels": "l", "target": "foreground", **options})


@pytest.mark.parametrize(
    ("options", "count", "workers"),
    [
        ({}, 0, 1),
        ({}, 3, 3),
        ({}, 99, 4),
        ({"device": "cpu"}, 3, 1),
        ({"device": "cuda"}, 3, 3),
        ({"workers": 2}, 3, 2),
    ],
)
def test_a_training_here_has_a_worker_per_gpu(options, count, workers, monkeypatch) -> None:
    monkeypatch.setattr(gpus, "seen", lambda: (tuple(map(str, range(count))), False))
    assert train._cluster(config(batch=4, **options)).workers == workers


def test_two_ranks_that_meet_on_one_gpu_part() -> None:
    """Environments can show one GPU twice: each names one GPU, and both mean the same."""

    class Meeting(dict[str, int]):
        def add(self, key: str, amount: int) -> int:
            self[key] = self.get(key, 0) + amount
            return self[key]

    meeting: Any = Meeting()
    rank_meeting._require_own_gpu(meeting, "ab")
    rank_meeting._require_own_gpu(meeting, "cd")
    with pytest.raises(InputError, match="same GPU"):
        rank_meeting._require_own_gpu(meeting, "ab")
