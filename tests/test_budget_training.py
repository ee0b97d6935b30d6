"""What a training step is said to need, against what processes really take."""

from __future__ import annotations

import json
import subprocess
import sys
import tracemalloc
from concurrent.futures import wait
from contextlib import closing
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from strategies import network_specs
from test_training import blobs, split

from flows.environment import thread_environment
from flows.rank_host import rank_environment
from unet_core import budget
from unet_core.architecture import UNetSpec
from unet_core.model import UNet
from unet_core.training import Ranks, TrainSettings, bytes_per_rank, prepare
from unet_core.training.batches import batches
from unet_core.weight_map import BorderWeight

WITHIN = 0.25  # of the measured peak, either way

# As in test_budget.py: a fork for each case, of one process that has computed nothing.
PROBE = """
import json, os, resource, sys
import psutil, torch
import torch.nn.functional as F
from unet_core.architecture import UNetSpec
from unet_core.model import UNet, channels_last

def peak_of(spec, patch, batch, dtype):
    spec = UNetSpec(**spec)
    layout = channels_last(spec.ndim)
    network = UNet(spec).to(memory_format=layout).train()
    optimiser = torch.optim.AdamW(network.parameters())
    def step(patch):
        shape = (batch, spec.in_channels, *spec.read_shape(patch))
        image = torch.full(shape, 0.5).contiguous(memory_format=layout)
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == "bfloat16"):
            logits = network(image)
        logits = logits[(..., *(slice(n) for n in patch))].float()
        F.cross_entropy(logits, torch.zeros((batch, *patch), dtype=torch.long)).backward()
        optimiser.step()
        optimiser.zero_grad()
    step(spec.stride)  # loads the kernels, makes the optimiser's numbers
    baseline = psutil.Process().memory_info().rss
    step(patch)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - baseline

for case in json.loads(sys.argv[1]):
    ours, theirs = os.pipe()
    if os.fork() == 0:
        os.write(theirs, str(peak_of(*case)).encode())
        os._exit(0)
    os.close(theirs)
    print(os.read(ours, 64).decode(), flush=True)
    os.wait()
"""

CASES = [
    (UNetSpec.build(ndim=3, depth=2, base=16, norm="batch", dropout=0.0), (48, 48, 48), 1, "float32"),
    (UNetSpec.build(ndim=3, depth=2, base=16, anisotropic_levels=1), (16, 64, 64), 1, "float32"),
    (UNetSpec.build(ndim=2, depth=3, base=16, in_channels=3, classes=4), (320, 320), 2, "float32"),
    (UNetSpec.build(ndim=2, depth=2, base=16, norm="batch", upsampling="nearest"), (256, 256), 4, "float32"),
    (UNetSpec.build(ndim=3, depth=1, base=16, norm="batch"), (56, 56, 56), 1, "bfloat16"),
]


def test_predicted_memory_of_a_step_is_what_it_takes() -> None:
    cases = [(spec.to_dict(), patch, batch, dtype) for spec, patch, batch, dtype in CASES]
    command = [sys.executable, "-W", "ignore", "-c", PROBE, json.dumps(cases)]
    environment = {**thread_environment(1), **rank_environment()}
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=280, env=environment)
    measured = [int(line) for line in done.stdout.split()]
    assert len(measured) == len(CASES)
    for (spec, patch, batch, dtype), found in zip(CASES, measured):
        assert found > 100e6, "large enough for activations to dominate"
        # The weights and the optimiser's numbers were there before.
        kept = 16 * budget.training_weights(spec)
        predicted = budget.training_bytes(spec, patch, batch, dtype) - kept
        assert predicted == pytest.approx(found, rel=WITHIN), (spec, patch, measured)


@settings(max_examples=30)
@given(spec=network_specs(cost=float("inf")))
def test_trained_weights_are_counted(spec: UNetSpec) -> None:
    with torch.device("meta"):
        network = UNet(spec)
    assert budget.training_weights(spec) == sum(p.numel() for p in network.parameters() if p.ndim > 1)


@pytest.mark.parametrize("border", [None, BorderWeight()])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_patches_that_wait_are_counted(tmp_path, border, accumulate) -> None:
    """Against what they take while the network works on the first step's."""
    spec = UNetSpec.build(ndim=3, depth=1, base=4)
    source, _ = split(tmp_path, *blobs((24, 24, 36), seed=0))
    recipe = TrainSettings(
        target="foreground", patch=(24, 24, 24), batch=5, steps=9, accumulate=accumulate, border=border
    )
    plan = prepare([source], [], spec, recipe)
    items = Ranks(0, 2).share(recipe.batch)
    list(batches(replace(plan, settings=replace(recipe, steps=1)), items, first=1, threads=1))  # fills caches
    tracemalloc.start()
    try:
        with closing(batches(plan, items, first=1, threads=1)) as every:
            first = next(every)
            for futures in every.gi_frame.f_locals["waiting"]:
                wait(futures)
            held, _ = tracemalloc.get_traced_memory()
            assert sum(len(batch.image) for batch in first) == len(items)
    finally:
        tracemalloc.stop()
    beside = budget.beside_training_bytes(spec, recipe.patch, len(items), border=border is not None)
    assert beside - 4 * budget.training_weights(spec) == pytest.approx(held, rel=0.05)
    # The step's own bytes, and all these.
    average = recipe.optimisation.ema > 0
    step = budget.training_bytes(spec, recipe.patch, 3 if accumulate == 1 else 2, "float32", average=average)
    full = budget.beside_training_bytes(spec, recipe.patch, 3, border=border is not None)
    volumes = (source.image, source.labels)
    kept = sum(v.array.nbytes for v in volumes) + (4 * source.region.size if border else 0)
    assert bytes_per_rank(plan, 2, dtype="float32") == budget.WORKER_BASE + step + full + kept


@settings(max_examples=30)
@given(spec=network_specs(cost=float("inf")))
def test_more_of_anything_needs_more(spec: UNetSpec) -> None:
    small = budget.training_bytes(spec, spec.stride, 1, "float32")
    larger = tuple(2 * n for n in spec.stride)
    assert budget.training_bytes(spec, spec.stride, 2, "float32") > small
    assert budget.training_bytes(spec, larger, 1, "float32") > small
    assert budget.training_bytes(spec, spec.stride, 1, "float32", average=True) > small
    assert budget.training_bytes(spec, spec.stride, 1, "float32", optimiser_states=1) < small
