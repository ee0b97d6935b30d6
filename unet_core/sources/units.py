"""Units of length: OME-Zarr's names, and the abbreviations that people and ImageJ write."""

from __future__ import annotations

from unet_core.errors import InputError

# https://ngff.openmicroscopy.org/0.5/#axes-md: "SHOULD be one of", for axes of type space.
SPACE_UNITS = frozenset(
    (
        "angstrom",
        "attometer",
        "centimeter",
        "decimeter",
        "exameter",
        "femtometer",
        "foot",
        "gigameter",
        "hectometer",
        "inch",
        "kilometer",
        "megameter",
        "meter",
        "micrometer",
        "mile",
        "millimeter",
        "nanometer",
        "parsec",
        "petameter",
        "picometer",
        "terameter",
        "yard",
        "yoctometer",
        "yottameter",
        "zeptometer",
        "zettameter",
    )
)
_ABBREVIATED = {
    "nm": "nanometer",
    "um": "micrometer",
    "\u00b5m": "micrometer",  # micro sign
    "\u03bcm": "micrometer",  # Greek mu
    "micron": "micrometer",
    "microns": "micrometer",
    "mm": "millimeter",
    "cm": "centimeter",
    "m": "meter",
    "pm": "picometer",
    "\u00c5": "angstrom",
}
METERS = {
    "picometer": 1e-12,
    "angstrom": 1e-10,
    "nanometer": 1e-9,
    "micrometer": 1e-6,
    "millimeter": 1e-3,
    "centimeter": 1e-2,
    "meter": 1.0,
}


def known_unit(text: str | None) -> str | None:
    """OME-Zarr's name of a unit of length, or None where it is not one (such as ImageJ's "pixel")."""
    name = (text or "").strip().replace("\\u00B5", "\u00b5")  # ImageJ writes the micro sign escaped
    name = _ABBREVIATED.get(name, name)
    return name if name in SPACE_UNITS else None


def space_unit(text: str) -> str:
    """OME-Zarr's name of a unit that a person wrote.

    Raises
    ------
    InputError
        OME-Zarr does not know this unit of length.
    """
    name = known_unit(text)
    if name is None:
        raise InputError(
            "this unit of length is not known",
            expected="one that OME-Zarr names, such as nanometer or micrometer",
            found=repr(text),
            fix="use --unit nanometer or --unit micrometer",
        )
    return name
