"""Doing what a plan says: the output's record and arrays, then one function per block and stage."""

from __future__ import annotations

import os
from dataclasses import replace
from typing import Any

import numpy as np

from unet_core import inference, pyramid
from unet_core.checkpoint import load_model
from unet_core.errors import InputError
from unet_core.ledger import Ledger, RunRecord, begin, digest_of
from unet_core.metadata import PyramidLevel
from unet_core.normalisation import measure
from unet_core.pyramid import PyramidPlan
from unet_core.segmentation.plan import KIND, PREDICT, Planned, SegmentPlan, identity_of
from unet_core.volumes import Store, Volume, create_multiscale, open_for_writing, write_box


def start(planned: Planned) -> SegmentPlan:
    """Write the run record, then the output's empty arrays; a run begun before finds its own."""
    plan = planned.plan if planned.resumed else _resolve(planned)
    request, volume = planned.request, planned.volume
    tiling, output = plan.tiling, Store(request.to)
    begin(
        output, RunRecord(KIND, identity_of(request, volume, planned.model, tiling.roi, plan), plan.to_dict())
    )
    name = output.url.rsplit("/", 1)[-1].removesuffix(".zarr")
    common: dict[str, Any] = {
        "dtype": np.dtype(np.uint8),
        "chunk": tiling.chunk,
        "shard": tiling.shard,
        "voxel_size": volume.voxel_size,
        "origin": volume.origin,
        "unit": volume.unit,
    }
    create_multiscale(
        output,
        kind="labels",
        axes=volume.spatial_axes,
        leading=(),
        levels=plan.pyramid.levels,
        name=name,
        method="mode",
        source=_relative(volume.url, output),
        **common,
    )
    if plan.probabilities:
        create_multiscale(
            output.child("probabilities"),
            kind="image",
            axes=f"c{volume.spatial_axes}",
            leading=(len(plan.classes),),
            levels=[PyramidLevel(0, volume.shape, (1, 1, 1))],
            name=f"{name} probabilities",
            **common,
        )
    return plan


def _resolve(planned: Planned) -> SegmentPlan:
    """The choices that need voxels: the intensity scale, and the dtype where the plan left it open."""
    plan, volume, model = planned.plan, planned.volume, planned.model
    scale = model.card.scale
    if planned.request.normalisation == "volume":
        scale = measure(volume, model.card.normalisation)
    dtype = plan.dtype
    if dtype == "auto":
        tile = next(plan.tiling.tiles(len(plan.tiling.blocks) // 2))
        data = volume.read(tile.read)
        dtype = inference.choose_dtype(model.network(), data, tile, scale=scale, device=plan.device)
    return replace(plan, scale=scale, dtype=dtype)


class BlockWorker:
    """What a worker process keeps between blocks: the plan, the volume, the network on its device."""

    def __init__(self, url: str, plan: SegmentPlan, *, model_url: str | None = None) -> None:
        # A run may go on with the same model in another place.
        model = load_model(model_url or plan.model)
        if model.digest != plan.model_digest:
            raise InputError(
                "the model folder has changed since this run was begun",
                where=plan.model,
                expected=plan.model_digest[:16],
                found=model.digest[:16],
                fix="put the model back, or choose another --to",
            )
        if plan.scale is None:
            raise InputError("this plan was never started", where=url)
        self._plan = plan
        self._output = Store(url)
        self._volume = Volume.open(
            plan.volume, level=plan.level, channels=plan.channels, timepoint=plan.timepoint
        )
        self._predictor = inference.Predictor(
            model.network(), scale=plan.scale, device=plan.device, dtype=plan.dtype
        )
        self._labels = open_for_writing(self._output, "0")
        self._probabilities = (
            open_for_writing(self._output, "probabilities/0") if plan.probabilities else None
        )

    def predict(self, index: int) -> int:
        """Compute and write one block, then record it; returns its voxels. Doing it twice is harmless."""
        plan = self._plan
        result = inference.predict_block(
            self._volume, plan.tiling, index, self._predictor, probabilities=plan.probabilities
        )
        write_box(self._labels, result.box, result.classes)
        written = [result.classes]
        if self._probabilities is not None and result.probabilities is not None:
            write_box(self._probabilities, result.box, result.probabilities)
            written.append(result.probabilities)
        Ledger(self._output, PREDICT, plan.stages[PREDICT]).commit(index, digest_of(*written))
        return result.box.size


def pyramid_block(url: str, plan: PyramidPlan, level: int, index: int) -> int:
    """Compute, write and record one block of a pyramid level; returns its voxels."""
    store = Store(url)
    box = pyramid.write_block(store, plan, level, index)
    Ledger(store, f"pyramid-{level}", plan.count(level)).commit(index, "0")
    return box.size


def _relative(source: str, output: Store) -> str:
    """The source image as the spec wants it: relative to the label image where both are local."""
    return source if output.remote or "://" in source else os.path.relpath(source, output.url)
