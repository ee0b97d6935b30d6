"""What a segmentation refuses before it starts: model and volume that do not fit, another run's output.

All raise InputError.
"""

from __future__ import annotations

from contextlib import suppress

from unet_core.checkpoint import StoredModel
from unet_core.errors import DataError, InputError
from unet_core.geometry import Box
from unet_core.keeping import Keeper, KeepPlan
from unet_core.ledger import RunRecord, agree
from unet_core.normalisation import require_finite
from unet_core.volumes import Store, Volume

KEEP = "keep"  # in a record's identity and plan, where something is left out


def require_same_kind(instances: object, record: RunRecord | None, output: Store) -> None:
    """Refuse to go on with a run that makes instances where classes are asked for.

    The other way round, and other instances, differ in the identity.
    """
    if record is not None and instances is None and "instances" in record.plan:
        raise InputError(
            "this output was begun with instances",
            where=output.url,
            expected=f"--instances {record.plan['instances']['method']}",
            found="none",
            fix="give the same parameters to go on with it, choose another --to, or --restart",
        )


def require_same_keep(keeper: Keeper | None, record: RunRecord | None, output: Store) -> None:
    """Refuse to go on with a run that leaves out other voxels than what is asked for."""
    if record is None:
        return
    begun, asked = record.identity.get(KEEP), None if keeper is None else keeper.identity
    if agree(begun, asked):
        return
    was = str(KeepPlan.from_dict(record.plan[KEEP])) if KEEP in record.plan else "no mask and no --skip-below"
    wanted = "no mask and no --skip-below" if keeper is None else str(keeper.plan)
    raise InputError(
        "this output was begun with another mask or --skip-below",
        where=output.url,
        expected=was,
        found=f"the same, but what it holds has changed: {wanted}" if was == wanted else wanted,
        fix="give the same parameters to go on with it, choose another --to, or --restart",
    )


def require_fit(model: StoredModel, volume: Volume) -> None:
    """Refuse a volume that the model was not made for."""
    spec = model.card.spec
    if len(volume.channels) != spec.in_channels:
        raise InputError(
            "the model was made for another number of channels",
            where=volume.url,
            expected=f"{spec.in_channels} channel{'s' if spec.in_channels > 1 else ''} ({model.url})",
            found=f"{len(volume.channels)}: {', '.join(map(str, volume.channels))}",
            fix=f"choose {spec.in_channels} with --channels, such as --channels "
            + ",".join(str(c) for c in range(spec.in_channels)),
        )
    if spec.ndim == 3 and "z" not in volume.axes:
        raise InputError(
            "a 3D model cannot segment a plane",
            where=volume.url,
            expected="a volume with axes z, y, x",
            found=f"axes {', '.join(volume.axes)}",
            fix="use a 2D model",
        )


def probe_finite(volume: Volume, roi: Box) -> None:
    """Look at the ROI's first, middle and last chunk of a float volume before anything starts."""
    if volume.dtype.kind != "f":
        return
    chunk = volume.chunk_shape
    last = tuple(b - 1 for b in roi.upper)
    middle = tuple((a + b) // 2 for a, b in zip(roi.lower, roi.upper))
    for corner in (roi.lower, middle, last):
        start = tuple(c // n * n for c, n in zip(corner, chunk))
        box = Box(start, tuple(s + n for s, n in zip(start, chunk))).intersect(roi)
        with suppress(DataError):  # a damaged chunk fails its block, not the run
            require_finite(volume.read(box), box, volume, error=InputError)
