"""The picture of a batch shows what the network gets."""

from __future__ import annotations

import numpy as np
import pytest

from flows.report.batch import batch_picture
from unet_core.errors import InputError
from unet_core.geometry import Box
from unet_core.sampling import Patch
from unet_core.targets import IGNORE
from unet_core.tiling import Footprint

SPACE = Footprint(stride=(1, 1, 1), lower=(1, 10, 20), upper=(1, 5, 6))
NAMES = ("background", "cell")


def patch(classes: np.ndarray, *, channels: int = 1) -> Patch:
    shape = tuple(n + a + b for n, a, b in zip(classes.shape, SPACE.lower, SPACE.upper))
    image = np.full((channels, *shape), 0.2, np.float32)
    image[(slice(None), *(slice(a, a + n) for a, n in zip(SPACE.lower, classes.shape)))] = 0.8
    return Patch(0, Box.of_shape(classes.shape), image, classes, None)


@pytest.mark.parametrize("channels", [1, 3])
def test_classes_are_coloured_where_they_are(channels):
    """Of a volume the middle plane; colours are in the frame alone, on their own voxels."""
    classes = np.zeros((3, 40, 50), np.uint8)
    classes[1, :20], classes[1, 30:] = 1, IGNORE
    before, after = [patch(classes, channels=channels)], [patch(classes)]
    page = np.asarray(batch_picture(before, after, footprint=SPACE, class_names=NAMES))
    height, width = 55, 76
    factor = 4  # 256 pixels at least
    left, top = 8 + 2 * (width * factor + 8), 8 + 23
    panel = page[top : top + height * factor : factor, left : left + width * factor : factor]
    assert panel.shape == (height, width, 3)
    inside = panel[11:49, 21:69]
    orange = inside[..., 0] > inside[..., 2].astype(int) + 60
    assert orange[:18].all()
    assert not orange[20:].any()
    assert (inside[22:28] == 204).all()  # background as it is
    assert (inside[32:] < 110).all()  # not labelled: darkened
    assert (panel[:9] == 51).all()  # context as it is


def test_large_patches_are_made_smaller_and_nonsense_is_refused():
    large = [patch(np.zeros((1, 100, 1000), np.uint8))] * 2
    assert batch_picture(large, large, footprint=SPACE, class_names=NAMES).width < 4 * 512
    with pytest.raises(InputError, match="do not make a picture"):
        batch_picture(large, large[:1], footprint=SPACE, class_names=NAMES)
