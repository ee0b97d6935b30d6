"""What a TIFF says of its axes and its voxels, where it is reliable: OME-XML and ImageJ's description.

Plain resolution tags are not used: scanners and libraries fill them with constants.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import isfinite
from typing import Any

import tifffile

from unet_core.sources.units import METERS, known_unit

Size = tuple[tuple[float, ...], str] | tuple[None, None]  # z, y, x and their unit, or neither
_UNKNOWN: Size = (None, None)

_LETTERS = {"T": "t", "C": "c", "Z": "z", "Y": "y", "X": "x", "S": "c"}


def tiff_axes(axes: str) -> str | None:
    """Our letters for tifffile's: samples are channels, and a lone axis without meaning is z.

    None where that is not clear: several unknown axes, or both channels and samples.
    """
    names = [_LETTERS.get(a) for a in axes]
    if names.count(None) == 1 and "z" not in names:
        names[names.index(None)] = "z"
    known = "".join(name or "?" for name in names)
    if "?" in known or len(set(known)) != len(known) or not {"y", "x"} <= set(known):
        return None
    return known


def physical_size(file: tifffile.TiffFile, series: Any) -> Size:
    """Voxel size z, y, x of a series, and its unit; unknown unless the file gives all that it needs."""
    planes = dict(zip(series.axes, series.shape))
    stacked = any(planes.get(a, 1) > 1 for a in "ZIQ")
    if file.is_ome and file.ome_metadata:
        position = next((i for i, one in enumerate(file.series) if one is series), 0)
        return _ome_size(file.ome_metadata, position, len(file.series), stacked)
    if file.is_imagej and file.imagej_metadata:
        return _imagej_size(file.imagej_metadata, file.pages.first, stacked)
    return _UNKNOWN


def _ome_size(xml: str, position: int, count: int, stacked: bool) -> Size:
    """`PhysicalSizeX/Y/Z` of the series' image; OME's default unit is the micrometer."""
    try:
        found = tifffile.xml2dict(xml)["OME"]["Image"]
        images = found if isinstance(found, list) else [found]
        pixels = images[position]["Pixels"]
    except (KeyError, IndexError, TypeError, ValueError, SyntaxError):
        return _UNKNOWN
    if len(images) != count:  # tifffile left an image out: which series is which is not sure any more
        return _UNKNOWN
    sizes: list[float] = []
    for axis in "ZYX":
        value = pixels.get(f"PhysicalSize{axis}")
        unit = known_unit(str(pixels.get(f"PhysicalSize{axis}Unit", "\u00b5m")))
        if value is None and axis == "Z" and not stacked:
            value, unit = 1.0, "micrometer"
        if not _positive(value) or unit not in METERS:
            return _UNKNOWN
        # The axes may differ in unit; one unit for all of them is the multiscale's rule here.
        sizes.append(float(value) * METERS[unit] / METERS["micrometer"])
    return tuple(float(f"{s:.12g}") for s in sizes), "micrometer"


def _imagej_size(metadata: Mapping[str, Any], page: Any, stacked: bool) -> Size:
    """`spacing` and `unit` of the description; the resolution tags are then pixels per that unit."""
    unit = known_unit(str(metadata.get("unit", "")))
    spacing = metadata.get("spacing", None if stacked else 1.0)
    across, down = page.resolution
    if unit is None or not all(_positive(v) for v in (spacing, across, down)):
        return _UNKNOWN
    return tuple(float(f"{s:.12g}") for s in (spacing, 1 / down, 1 / across)), unit


def _positive(value: Any) -> bool:
    return isinstance(value, int | float) and isfinite(value) and value > 0
