"""The plan of a segmentation: what would be done, from what it was chosen, what it costs."""

from __future__ import annotations

from typing import Any

from flows.report.words import counted, duration, flop, sides, size
from flows.summary.rows import print_rows
from unet_core.devices import device_kind
from unet_core.geometry import Box
from unet_core.instances import InstancePlan, basins_at_most, disk_bytes, merge_bytes, scratch_bytes
from unet_core.keeping import estimate
from unet_core.segmentation import Planned
from unet_core.speed import macs_per_second
from unet_core.tile_choice import spread
from unet_core.volumes import Store


def plan_document(planned: Planned, *, workers: int) -> dict[str, Any]:
    """The plan of a segmentation with what it will cost; bytes, voxels and seconds."""
    plan, tiling = planned.plan, planned.plan.tiling
    here = plan.device == device_kind()  # a run on GPUs may be planned where there is none
    spec, dtype, memory = planned.model.card.spec, planned.fitting.dtype, planned.memory.forward
    speed = macs_per_second(spec, device=plan.device, dtype=dtype, memory=memory) if here else None
    keep = _keep_document(planned)
    computed = planned.macs * (1.0 if keep is None else keep["share_of_tiles"])
    return {
        "command": "segment --plan",
        "resumes": planned.resumed,
        "volume": {
            "url": plan.volume,
            "shape": list(planned.volume.shape),
            "dtype": str(planned.volume.dtype),
            "channels": list(plan.channels),
            "voxel_size": list(planned.volume.voxel_size),
            "unit": planned.volume.unit,
        },
        "roi": str(tiling.roi),
        "output": Store(planned.request.to).url,
        "model": {"url": plan.model, "digest": plan.model_digest, "classes": list(plan.classes)},
        "device": plan.device,
        "dtype": plan.dtype,
        "tile": {
            "write": list(tiling.tile),
            "read": list(tiling.read_shape),
            "context_lower": list(tiling.footprint.lower),
            "context_upper": list(tiling.footprint.upper),
            "stride": list(tiling.footprint.stride),
            "count": tiling.tile_count,
            "options": _options(planned),
        },
        "block": {"shape": list(tiling.block), "count": len(tiling.blocks)},
        "chunk": list(tiling.chunk),
        "shard": list(tiling.shard),
        "stages": {stage.name: stage.count for stage in plan.stages},
        "bytes_read": planned.bytes_read,
        "bytes_written_at_most": planned.disk,
        "memory_per_worker": planned.memory.total,
        "memory_of_one_forward_pass": planned.memory.forward,
        "workers": workers,
        "instances": None if plan.instances is None else _instances_document(planned, plan.instances),
        "keep": keep,
        "macs": planned.macs,
        "useful_share_of_arithmetic": round(planned.useful, 4),
        "seconds_predicted": None if speed is None else round(computed / speed, 1),
    }


def _keep_document(planned: Planned) -> dict[str, Any] | None:
    """What a mask or a threshold keeps, and how much that is: found from some of the blocks."""
    keeper = planned.fitting.keeper
    if keeper is None:
        return None
    share = estimate(keeper, planned.plan.tiling)
    return {
        **keeper.plan.to_dict(),
        "text": str(keeper.plan),
        "share_of_voxels": round(share.voxels, 4),
        "share_of_tiles": round(share.tiles, 4),
        "share_of_blocks": round(share.blocks, 4),
        "blocks_looked_at": share.looked_at,
        "estimate": not share.exact,
    }


def _options(planned: Planned) -> list[dict[str, Any]]:
    """What the tile was chosen from, the best first."""
    spec, roi = planned.model.card.spec, planned.plan.tiling.roi
    needed = spec.macs_per_voxel() * roi.size
    return [
        {
            "write": list(option.tile),
            "useful_share_of_arithmetic": round(needed / option.macs, 4),
            "memory_of_one_forward_pass": option.memory,
        }
        for option in spread(planned.options(), 5)
    ]


def _instances_document(planned: Planned, plan: InstancePlan) -> dict[str, Any]:
    """What the stages after the network do and need; bytes."""
    return {
        **plan.identity,
        "classes": [planned.plan.classes[c] for c in plan.foreground],
        "block": {"shape": list(plan.block), "count": len(plan.blocking)},
        "memory_per_worker": planned.instance_memory,
        "merge_memory_per_million_labels_on_faces": merge_bytes(plan, 10**6) - merge_bytes(plan, 0),
        "bytes_written": disk_bytes(plan),
        **({} if plan.watershed is None else _merge_document(plan)),
    }


def _merge_document(plan: InstancePlan) -> dict[str, Any]:
    """What a watershed's merge takes at most: of pure noise."""
    basins = basins_at_most(plan)
    return {
        "basins_at_most": basins,
        "merge_memory_at_most": merge_bytes(plan, basins),
        "merge_scratch_at_most": scratch_bytes(plan, basins),
    }


def print_plan(document: dict[str, Any]) -> None:
    """The plan as a table on stdout."""
    volume, tile, block = document["volume"], document["tile"], document["block"]
    voxel = " × ".join(f"{v:g}" for v in volume["voxel_size"]) + f" {volume['unit'] or ''}"
    rows = [
        (
            "volume",
            f"{volume['url']}  {sides(volume['shape'])} {volume['dtype']}, voxel {voxel}",
        ),
        ("region", f"{document['roi']}  ({_voxels(document['roi'])})"),
        (
            "output",
            f"{document['output']}{'  (goes on with a run begun before)' if document['resumes'] else ''}",
        ),
        ("model", f"{document['model']['url']}  classes {', '.join(document['model']['classes'])}"),
        (
            "arithmetic",
            f"{_dtype(document)} on {document['device']}, {flop(2 * document['macs'])},"
            f" {document['useful_share_of_arithmetic']:.0%} of it useful",
        ),
        (
            "tiles",
            f"{tile['count']:,} of {sides(tile['write'])}, each read as {sides(tile['read'])}",
        ),
        *_option_rows(tile),
        (
            "blocks",
            f"{block['count']:,} of {sides(block['shape'])}; {counted(len(document['stages']), 'stage')}",
        ),
        ("reads", size(document["bytes_read"])),
        ("writes", f"about {size(document['bytes_written_at_most'])}"),
        (
            "memory",
            f"{size(document['memory_per_worker'])} in each of {counted(document['workers'], 'worker')},"
            f" {size(document['memory_of_one_forward_pass'])} of it for one forward pass",
        ),
    ]
    if (keep := document["keep"]) is not None:
        rows += _keep_rows(keep, block["count"])
    if (instances := document["instances"]) is not None:
        rows += _instance_rows(instances)
    if (seconds := document["seconds_predicted"]) is not None:
        rows.append(("time", f"about {duration(seconds)} of arithmetic on this machine's cores"))
    print_rows("plan", rows)


def _keep_rows(keep: dict[str, Any], blocks: int) -> list[tuple[str, str]]:
    how = f"an estimate from {keep['blocks_looked_at']} of {blocks:,} blocks" if keep["estimate"] else "exact"
    return [
        ("keeps", keep["text"]),
        (
            "",
            f"{keep['share_of_voxels']:.1%} of the voxels; computes {keep['share_of_tiles']:.1%} of the"
            f" tiles, in {keep['share_of_blocks']:.1%} of the blocks ({how}); the rest is background, unread",
        ),
    ]


def _option_rows(tile: dict[str, Any]) -> list[tuple[str, str]]:
    others = [option for option in tile["options"] if option["write"] != tile["write"]]
    return [
        (
            "" if position else "other tiles",
            f"{sides(option['write'])}: {option['useful_share_of_arithmetic']:.0%} useful,"
            f" {size(option['memory_of_one_forward_pass'])} for one forward pass",
        )
        for position, option in enumerate(others)
    ]


def _instance_rows(document: dict[str, Any]) -> list[tuple[str, str]]:
    block = document["block"]
    of = "the likeliest class" if document["threshold"] is None else f"probability {document['threshold']:g}"
    options = [
        "touching by faces" if document["connectivity"] == "face" else "touching by faces, edges or corners",
        *(["every plane by itself"] if document["planar"] else []),
        *(["holes filled"] if document["fill_holes"] else []),
        *([f"{document['min_size']:,} voxels or more"] if document["min_size"] > 1 else []),
    ]
    merge = size(document["merge_memory_per_million_labels_on_faces"])
    rows = [] if document["method"] != "watershed" else _watershed_rows(document)
    return [
        (
            "instances",
            f"{document['method']} of {', '.join(document['classes'])} by {of}; {', '.join(options)}",
        ),
        (
            "",
            f"{counted(block['count'], 'block')} of {sides(block['shape'])}, about"
            f" {size(document['bytes_written'])} of the writes;"
            f" {size(document['memory_per_worker'])} in each worker,"
            f" and {merge} in one of them for every million labels on faces between blocks",
        ),
        *rows,
    ]


def _watershed_rows(document: dict[str, Any]) -> list[tuple[str, str]]:
    numbers = document["watershed"]
    return [
        (
            "",
            f"persistence {numbers['persistence']:g}, prominence {numbers['prominence']:g}, radius"
            f" {numbers['radius']}; the merge takes up to {size(document['merge_memory_at_most'])}, and"
            f" {size(document['merge_scratch_at_most'])} of local disk, if the network answers with noise",
        )
    ]


def _dtype(document: dict[str, Any]) -> str:
    """The arithmetic; "auto" is decided when the run begins."""
    if document["dtype"] != "auto":
        return str(document["dtype"])
    return "dtype auto (a 16-bit type or float32: decided by a probe when the run begins)"


def _voxels(box: str) -> str:
    return f"{Box.parse(box).size:,} voxels"
