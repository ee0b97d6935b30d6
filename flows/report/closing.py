"""What Prefect shows of a run that has ended: a report with pictures, and a table of the blocks that failed.

Neither can fail a run: a server that is gone, or an image that cannot be read any more, costs the report.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

import numpy as np
from PIL import Image

from flows.report.artifacts import ClosingArtifacts, data_uri
from flows.report.objects import object_picture
from flows.report.picture import Plane, boxes_of_planes, picture_of
from flows.report.words import duration, sides, size
from unet_core.errors import UnetFlowsError
from unet_core.geometry import Box
from unet_core.segmentation import Planned, SegmentPlan
from unet_core.volumes import Volume

_SLICES = 3
_FAILURES = 100  # rows


def report_segmentation(document: Mapping[str, Any], planned: Planned, plan: SegmentPlan) -> None:
    """Publish how a segmentation ended, in the flow run that this is called in.

    Parameters
    ----------
    document
        What the run returns, or would have: status, output, stages, seconds.
    """
    tiling = plan.tiling
    facts = {
        "volume": f"{plan.volume}, {tiling.roi}",
        "model": f"{plan.model} ({plan.model_digest[:8]}): {', '.join(plan.classes)}",
        "arithmetic": f"{plan.dtype} on {plan.device}",
        "tiles": f"{tiling.tile_count:,} of {sides(tiling.tile)}",
        "blocks": f"{len(tiling.blocks):,} of {sides(tiling.block)}",
        "memory": f"{size(planned.memory.total)} in each worker",
    }
    objects = plan.instances is not None
    picture = slices(
        planned.volume, document["output"], tiling.roi, class_names=plan.classes, objects=objects
    )
    text = markdown(document, facts, picture)
    with ClosingArtifacts("") as artifacts:
        artifacts.show_report(text, f"{document['command']}: how it ended")
        if failures := failures_of(document):
            artifacts.show_failures(failures, "blocks that failed, and why")


def markdown(document: Mapping[str, Any], plan: Mapping[str, str], picture: Image.Image | None) -> str:
    """The report: plan, stages, sizes, pictures, and what to do next."""
    stages = document["stages"]
    lines = [f"# {document['command']}: {document['status']}", ""]
    if document.get("found"):
        lines += [f"> {document['found']}", ""]
    lines += ["| plan | |", "|---|---|", *(f"| {name} | {_cell(text)} |" for name, text in plan.items()), ""]
    lines += [
        "| stage | blocks | done | skipped | failed | empty | seconds | Mvoxel/s |",
        "|---|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for name, stage in stages.items():
        rate = f"{stage['voxels'] / stage['seconds'] / 1e6:.2f}" if stage["seconds"] else ""
        counts = (stage[key] for key in ("total", "done", "skipped", "quarantined", "empty_blocks"))
        cells = " | ".join(f"{count:,}" for count in counts)
        lines.append(f"| {name} | {cells} | {stage['seconds']:.1f} | {rate} |")
    decoded = sum(stage["bytes_decoded"] for stage in stages.values())
    lines += ["", f"{duration(document['seconds'])} in all; {size(decoded)} of input decoded.", ""]
    if picture is not None:
        data = io.BytesIO()
        picture.save(data, format="PNG")
        lines += [f"![slices]({data_uri(data.getvalue())})", ""]
    output = document["output"]
    lines += [
        f"Labels: `{output}`, OME-Zarr 0.5. Look at them where they lie:",
        "",
        "```",
        f"unet-flows status {output}",
        f"unet-flows query {output} info",
        "```",
    ]
    return "\n".join(lines)


def failures_of(document: Mapping[str, Any]) -> list[dict[str, Any]]:
    """A row for each block that failed, of all stages, the first hundred."""
    return [
        {"stage": name, "block": failure["block"], "error": failure["error"]}
        for name, stage in document["stages"].items()
        for failure in stage["failed"]
    ][:_FAILURES]


def slices(
    image: Volume, labels: str, roi: Box, *, class_names: Sequence[str], objects: bool
) -> Image.Image | None:
    """Three slices of what was segmented, raw beside labels; only these are read. None: there are none yet.

    Parameters
    ----------
    class_names
        Of a volume of classes.
    objects
        Whether the labels are ids of objects.
    """
    depth = roi.upper[0] - roi.lower[0]
    places = {roi.lower[0] + (2 * k + 1) * depth // (2 * _SLICES) for k in range(_SLICES)}
    with suppress(UnetFlowsError, OSError):
        found = Volume.open(labels)
        if objects:
            return object_picture(image=image, labels=found, planes=sorted(places), roi=roi)
        rows = [
            Plane(f"raw, z = {box.lower[0]}", image.read(box)[:, 0], found.read(box)[0, 0].astype(np.uint8))
            for box in boxes_of_planes(image, roi, sorted(places))
        ]
        return picture_of(rows, class_names, notes=["full resolution, around the centre"])
    return None


def _cell(text: str) -> str:
    """Without what would end a cell of a Markdown table."""
    return text.replace("|", "\\|").replace("\n", "<br>")
