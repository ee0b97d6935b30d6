"""What may change in a training patch, and how much: plain data that checks itself."""

from __future__ import annotations

from dataclasses import dataclass

from unet_core.errors import InputError

# Most that is asked for, and whether that itself is allowed.
_LIMITS: dict[str, tuple[float, bool]] = {
    "deformed": (1, True),
    "rotation": (180, True),
    "scaling": (1, True),
    "elastic": (100, True),
    "brightness": (1, False),
    "contrast": (1, False),
    "gamma": (1, True),
    "noise": (1, False),
    "blur": (10, True),
    "saturation": (1, True),
    "hue": (180, True),
    "missing_slices": (1, False),
    "shifted_slices": (1, False),
}


@dataclass(frozen=True, kw_only=True)
class AugmentSettings:
    """What may change. Intensities are normalised: about 0 to 1. A strength of 0 is never.

    Parameters
    ----------
    flips, rotations
        Mirror images, and rotations by right angles between axes of equal voxel size. Exact: no voxel is
        interpolated.
    deformed
        Share of the patches that are also rotated freely, scaled and warped: they are interpolated.
    rotation
        Largest angle, in degrees, in a plane of equal voxel size. With `rotations`, 45 reaches every angle.
    scaling
        Largest relative change of size, larger or smaller alike.
    elastic
        Standard deviation of the coarse grid's random displacements, in units of the finest voxel edge
        (paper, section 3.1: 10). Less where nodes lie nearer than 8 times that (`elastic.draw`).
    elastic_grid
        Nodes of that grid along the longest edge of what the network reads (paper: 3).
    brightness, contrast, gamma
        Largest shift, largest relative change around 0.5, and largest relative change of the exponent.
    noise
        Largest standard deviation of Gaussian noise.
    blur
        Largest standard deviation of a Gaussian blur, in units of the finest voxel edge; one patch in five.
    saturation, hue
        Largest relative change of colourfulness, and largest turn of the colour circle in degrees: only
        where an image has three channels, which are then taken for red, green and blue.
    missing_slices, shifted_slices
        Share of the planes of a 3D patch that are replaced, by their neighbours' mean or by one grey value,
        or displaced in y and x while their labels stay: defects of serial sections. Never in 2D.

    Raises
    ------
    InputError
        A strength out of its range, named.
    """

    flips: bool = True
    rotations: bool = True
    deformed: float = 0.7
    rotation: float = 180.0
    scaling: float = 0.2
    elastic: float = 10.0
    elastic_grid: int = 3
    brightness: float = 0.2
    contrast: float = 0.3
    gamma: float = 0.3
    noise: float = 0.1
    blur: float = 1.0
    saturation: float = 0.0
    hue: float = 0.0
    missing_slices: float = 0.0
    shifted_slices: float = 0.0

    def __post_init__(self) -> None:
        for name, (most, allowed) in _LIMITS.items():
            value = getattr(self, name)
            if not 0 <= value <= most or (value == most and not allowed):
                raise InputError(
                    "this strength of an augmentation is not possible",
                    where=name,
                    expected=f"0 to {most}" if allowed else f"from 0 to below {most}",
                    found=value,
                )
        if not 2 <= self.elastic_grid <= 32:
            raise InputError(
                "this grid is not possible", where="elastic_grid", expected="2 to 32", found=self.elastic_grid
            )

    @classmethod
    def none(cls) -> AugmentSettings:
        """Nothing changes."""
        return cls(flips=False, rotations=False, **dict.fromkeys(_LIMITS, 0.0))  # type: ignore[arg-type]

    @property
    def deforms(self) -> bool:
        """Whether any patch is interpolated."""
        return self.deformed > 0 and (self.rotation > 0 or self.scaling > 0 or self.elastic > 0)
