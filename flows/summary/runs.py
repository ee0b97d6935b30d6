"""How runs went and stand, and what was found in what they wrote."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from flows.report.words import duration
from flows.summary.rows import print_rows

if TYPE_CHECKING:
    from flows.doctor import Finding


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
    print_rows("clean: removed", rows)


def print_findings(findings: Sequence[Finding]) -> None:
    """What `doctor` found."""
    from flows.doctor import findings_table

    Console().print(findings_table(findings))
