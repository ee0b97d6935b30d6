"""What a plan or a finished run looks like, as a JSON-ready document and as a table in the terminal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from flows.evaluate import Evaluation
from flows.report import comparison_table, instance_tables, scores_table, thresholds_table
from flows.report.words import counted, duration
from unet_core.devices import device_kind, fast_dtype
from unet_core.evaluation import CRITERIA, InstanceScores
from unet_core.geometry import Box, Shape
from unet_core.instances import InstancePlan, basins_at_most, disk_bytes, merge_bytes, scratch_bytes
from unet_core.keeping import estimate
from unet_core.segmentation import Planned
from unet_core.speed import macs_per_second
from unet_core.tile_choice import spread
from unet_core.volumes import Store

if TYPE_CHECKING:
    from flows.doctor import Finding


def plan_document(planned: Planned, *, workers: int) -> dict[str, Any]:
    """The plan of a segmentation with what it will cost; bytes, voxels and seconds."""
    plan, tiling = planned.plan, planned.plan.tiling
    here = plan.device == device_kind()  # a run on GPUs may be planned where there is none
    dtype = (fast_dtype(plan.device) or "float32") if plan.dtype == "auto" else plan.dtype
    spec = planned.model.card.spec
    memory = planned.memory.forward
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
    if planned.keeper is None:
        return None
    share = estimate(planned.keeper, planned.plan.tiling)
    return {
        **planned.keeper.plan.to_dict(),
        "text": str(planned.keeper.plan),
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
    size = " × ".join(f"{v:g}" for v in volume["voxel_size"]) + f" {volume['unit'] or ''}"
    rows = [
        (
            "volume",
            f"{volume['url']}  {_shape(volume['shape'])} {volume['dtype']}, voxel {size}",
        ),
        ("region", f"{document['roi']}  ({_voxels(document['roi'])})"),
        (
            "output",
            f"{document['output']}{'  (goes on with a run begun before)' if document['resumes'] else ''}",
        ),
        ("model", f"{document['model']['url']}  classes {', '.join(document['model']['classes'])}"),
        (
            "arithmetic",
            f"{_dtype(document)} on {document['device']}, {_flop(2 * document['macs'])},"
            f" {document['useful_share_of_arithmetic']:.0%} of it useful",
        ),
        ("tiles", f"{tile['count']:,} of {_shape(tile['write'])}, each read as {_shape(tile['read'])}"),
        *_option_rows(tile),
        (
            "blocks",
            f"{block['count']:,} of {_shape(block['shape'])}; {counted(len(document['stages']), 'stage')}",
        ),
        ("reads", _bytes(document["bytes_read"])),
        ("writes", f"about {_bytes(document['bytes_written_at_most'])}"),
        (
            "memory",
            f"{_bytes(document['memory_per_worker'])} in each of {counted(document['workers'], 'worker')},"
            f" {_bytes(document['memory_of_one_forward_pass'])} of it for one forward pass",
        ),
    ]
    if (keep := document["keep"]) is not None:
        rows += _keep_rows(keep, block["count"])
    if (instances := document["instances"]) is not None:
        rows += _instance_rows(instances)
    if (seconds := document["seconds_predicted"]) is not None:
        rows.append(("time", f"about {duration(seconds)} of arithmetic on this machine's cores"))
    _print_rows("plan", rows)


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
            f"{_shape(option['write'])}: {option['useful_share_of_arithmetic']:.0%} useful,"
            f" {_bytes(option['memory_of_one_forward_pass'])} for one forward pass",
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
    merge = _bytes(document["merge_memory_per_million_labels_on_faces"])
    rows = [] if document["method"] != "watershed" else _watershed_rows(document)
    return [
        (
            "instances",
            f"{document['method']} of {', '.join(document['classes'])} by {of}; {', '.join(options)}",
        ),
        (
            "",
            f"{counted(block['count'], 'block')} of {_shape(block['shape'])}, about"
            f" {_bytes(document['bytes_written'])} of the writes;"
            f" {_bytes(document['memory_per_worker'])} in each worker,"
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
            f" {numbers['radius']}; the merge takes up to {_bytes(document['merge_memory_at_most'])}, and"
            f" {_bytes(document['merge_scratch_at_most'])} of local disk, if the network answers with noise",
        )
    ]


def print_run(document: dict[str, Any]) -> None:
    """How a run went, as a table on stdout."""
    table = Table(title=f"{document['command']}: {document['status']}", title_justify="left")
    for name, justify in (
        ("stage", "left"),
        ("done", "right"),
        ("skipped", "right"),
        ("failed", "right"),
        ("absent", "right"),
        ("seconds", "right"),
        ("Mvoxel/s", "right"),
    ):
        table.add_column(name, justify=justify)  # type: ignore[arg-type]
    for stage, s in document["stages"].items():
        speed = f"{s['voxels'] / s['seconds'] / 1e6:.2f}" if s["seconds"] else ""
        table.add_row(
            stage,
            f"{s['done']:,}",
            f"{s['skipped']:,}",
            f"{len(s['failed']):,}",
            f"{s['absent_chunks']:,}",
            f"{s['seconds']:.1f}",
            speed,
        )
    console = Console()
    console.print(table)
    for stage, s in document["stages"].items():
        if empty := s["empty_blocks"]:
            console.print(
                f"{stage}: {empty:,} of {s['total']:,} blocks ({empty / s['total']:.1%}) hold nothing to"
                " compute: neither read nor computed"
            )
    if document.get("dtype"):
        console.print(f"arithmetic: {document['dtype']} on {document['device']}")
    if document.get("input_decoded"):
        console.print(f"each chunk of the input was decoded {document['input_decoded']:g} times")
    if absent := sum(s["absent_chunks"] for s in document["stages"].values()):
        console.print(f"{absent:,} input chunks are absent and were read as the fill value")
    for note in document.get("notes", ()):
        console.print(f"note: {note}", soft_wrap=True, highlight=False, markup=False)
    console.print(
        f"{document['output']}  in {duration(document['seconds'])}", soft_wrap=True, highlight=False
    )


def print_status(document: dict[str, Any]) -> None:
    """How a run stands, as a table on stdout."""
    table = Table(title=f"{document['kind']}: {document['status']}", title_justify="left")
    for name in ("stage", "done", "of", "", "failed", "absent"):
        table.add_column(name, justify="left" if name == "stage" else "right")
    for stage, s in document["stages"].items():
        share = f"{100 * s['done'] / s['total']:.1f} %" if s["total"] else ""
        table.add_row(
            stage, f"{s['done']:,}", f"{s['total']:,}", share, f"{s['failed']:,}", f"{s['absent_chunks']:,}"
        )
    console = Console()
    console.print(table)
    for failure in document["failed"]:
        console.print(
            f"{failure['stage']} block {failure['index']}, {failure['attempts']} attempts, last on "
            f"{failure['worker']}:\n{failure['error']}\n{failure['traceback']}",
            soft_wrap=True,
            highlight=False,
            markup=False,
        )
    if document["held_by"] is not None:
        console.print(f"held by {document['held_by']}", highlight=False)
    if progress := document["progress"]:
        speed = progress["voxels_per_second"]
        console.print(
            f"at its last heartbeat: {progress['stage']} {progress['done']:,} of {progress['total']:,}, "
            f"{speed / 1e6:.2f} Mvoxel/s{_left(progress)}",
            highlight=False,
        )
    console.print(document["output"], soft_wrap=True, highlight=False)


def _left(progress: dict[str, Any]) -> str:
    seconds = progress["seconds_left"]
    return "" if seconds is None else f", about {duration(seconds)} left in this stage"


def print_verification(document: dict[str, Any]) -> None:
    """What `verify` found, as a table on stdout."""
    verdict = "sound" if document["sound"] else "NOT SOUND"
    table = Table(title=f"verify: {verdict} (status {document['status']})", title_justify="left")
    for name in ("stage", "read back", "missing", "damaged", "reopened"):
        table.add_column(name, justify="left" if name == "stage" else "right")
    for stage, checked in document["checked"].items():
        counts = (checked, *(document[key].get(stage, 0) for key in ("missing", "damaged", "reopened")))
        table.add_row(stage, *(f"{n:,}" for n in counts))
    console = Console()
    console.print(table)
    for problem in document["problems"]:
        place = " ".join(str(problem[key]) for key in ("stage", "block") if key in problem)
        console.print(f"{place}: {problem['error']}", soft_wrap=True, highlight=False, markup=False)
    if document["leftovers"]:
        console.print(
            f"{len(document['leftovers']):,} staging files of killed writes: unet-flows clean OUTPUT"
        )
    if document["reopened"]:
        console.print("the command that made this output does the reopened blocks again")
    elif any(document["damaged"].values()):
        console.print("--repair opens the damaged blocks again")


def print_cleaning(document: dict[str, Any]) -> None:
    """What `clean` took away."""
    rows = [
        ("staging files", f"{document['leftovers_removed']:,}"),
        ("records of failures since mended", f"{document['failure_records_removed']:,}"),
    ]
    _print_rows("clean: removed", rows)


def print_export(document: dict[str, Any]) -> None:
    """What `export` wrote."""
    sizes = (
        f"{axis} {n} + k·{document['input_step'][axis]}" for axis, n in document["smallest_input"].items()
    )
    rows = [
        ("output", f"{document['output']}  ({document['format']}, {_bytes(document['bytes'])})"),
        ("opset", str(document["opset"])),
        ("input sizes", ", ".join(sizes)),
        ("output smaller by", ", ".join(f"{axis} {n}" for axis, n in document["output_smaller_by"].items())),
        ("halo, each side", ", ".join(f"{axis} {n}" for axis, n in document["halo"].items())),
    ]
    if (validation := document["validation"]) is not None:
        rows.append(("bioimage.io", f"{validation['status']}, format {validation['format_version']}"))
        rows.extend(("", warning) for warning in validation["warnings"])
    _print_rows("export", rows)


def print_import(document: dict[str, Any]) -> None:
    """What `import` made of its source."""
    spec = document["spec"]
    rows = [
        ("model", document["model"]),
        ("network", f"{len(spec['kernels'][0])}D, widths {spec['widths']}, {spec['upsampling']}"),
        ("classes", ", ".join(document["classes"])),
        *(("assumed", text) for text in document["assumed"]),
    ]
    _print_rows("import", rows)


def print_proposal(document: dict[str, Any]) -> None:
    """Where a proposed configuration lies, and what to do with it."""
    rows = [
        ("written", document["written"]),
        ("time", f"roughly {duration(document['seconds_predicted'])} on this machine: one step was measured"),
        ("next", f"look at it, then: unet-flows train {document['written']}"),
    ]
    _print_rows("train --init: nothing was trained", rows)


def print_training(document: dict[str, Any]) -> None:
    """How a training went, as a table on stdout."""
    rows = [
        ("model", document["model"]),
        ("best step", f"{document['best_step']} of {document['steps']}, last loss {document['loss']:.4f}"),
        ("time", duration(document["seconds"])),
    ]
    scores = document["validation"]
    if scores is None:
        rows.append(("validation", "none: no region was held out"))
    else:
        for name, values in scores["classes"].items():
            rows.append((f"IoU {name}", "-" if values["iou"] is None else f"{values['iou']:.3f}"))
        rows.append(("voxel error", f"{scores['pixel_error']:.3f} on regions held out"))
    _print_rows("train: complete", rows)


def print_evaluation(result: Evaluation) -> None:
    """Scores per class, and the trivial answers beside them where they were asked for."""
    console = Console()
    console.print(scores_table(result.scores))
    if result.thresholds is not None:
        console.print(thresholds_table(map(result.thresholds.best, CRITERIA)))
    if result.trivial is not None:
        answers = {
            "prediction": result.scores,
            "best threshold": result.trivial.threshold,
            "majority class": result.trivial.majority,
        }
        console.print(comparison_table(answers, title="beside trivial answers"))
    if result.picture is not None:
        console.print(f"picture: {result.picture}", soft_wrap=True, highlight=False)


def print_instances(scores: InstanceScores) -> None:
    """Every measure of instances, and what was found at each IoU."""
    for table in instance_tables(scores):
        Console().print(table)


def print_findings(findings: Sequence[Finding]) -> None:
    """What `doctor` found."""
    from flows.doctor import findings_table

    Console().print(findings_table(findings))


def _print_rows(title: str, rows: list[tuple[str, str]]) -> None:
    table = Table(title=title, title_justify="left", show_header=False)
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    for name, value in rows:
        table.add_row(name, value)
    Console().print(table)


def _dtype(document: dict[str, Any]) -> str:
    """The arithmetic; "auto" is decided when the run begins."""
    if document["dtype"] != "auto":
        return str(document["dtype"])
    return "dtype auto (a 16-bit type or float32: decided by a probe when the run begins)"


def _flop(n: float) -> str:
    for unit in ("FLOP", "kFLOP", "MFLOP", "GFLOP", "TFLOP"):
        if n < 1000:
            return f"{n:.3g} {unit}"
        n /= 1000
    return f"{n:,.3g} PFLOP"


def _shape(shape: Shape | list[int]) -> str:
    return "×".join(map(str, shape))


def _voxels(box: str) -> str:
    return f"{Box.parse(box).size:,} voxels"


def _bytes(n: float) -> str:
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if n < 1000:
            return f"{n:.3g} {unit}"
        n /= 1000
    return f"{n:.3g} PB"
