"""Which of our networks a state dict belongs to: every size of a `UNetSpec` stands in its tensors' shapes.

Only dropout leaves no trace; it means nothing to inference.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor

from unet_core.architecture import UNetSpec
from unet_core.checkpoint import check_tensors
from unet_core.errors import InputError

_OURS = "down.L.0, down.L.2 (L.3 with batch norm), up.L, merge.L.0, ... and head, of unet_core.model.UNet"
# What wrappers put before every name: torch's DistributedDataParallel, torch.compile.
_WRAPPERS = ("module.", "_orig_mod.")


def unwrapped(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors under the network's own names."""
    names = list(tensors)
    found = dict(tensors)
    while wrapper := next((w for w in _WRAPPERS if names and all(n.startswith(w) for n in names)), None):
        found = {name.removeprefix(wrapper): tensor for name, tensor in found.items()}
        names = list(found)
    return found


def infer_spec(tensors: Mapping[str, Tensor], *, where: str) -> UNetSpec:
    """The network that these tensors are all the weights of.

    Raises
    ------
    InputError
        They are another architecture's; names the first tensor that is missing, too much or of another shape.
    """
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    levels = 1 + max((int(m[1]) for m in (re.match(r"down\.(\d{1,3})\.", n) for n in shapes) if m), default=0)
    nearest = "up.0.1.weight" in shapes
    ups = [f"up.{level}.1.weight" if nearest else f"up.{level}.weight" for level in range(levels - 1)]
    downs = [f"down.{level}.0.weight" for level in range(levels)]
    for name in (*downs, *ups, "head.weight"):
        if len(shapes.get(name, ())) not in (4, 5):
            raise InputError(
                "these are not the weights of our U-Net",
                where=f"{where}, tensor {name}",
                expected=f"(outputs, inputs, kernel sizes along 2 or 3 axes); tensors {_OURS}",
                found=f"shape {shapes[name]}" if name in shapes else f"none; there are {_some(shapes)}",
            )
    try:
        spec = UNetSpec(
            in_channels=shapes["down.0.0.weight"][1],
            classes=shapes["head.weight"][0],
            widths=tuple(shapes[name][0] for name in downs),
            kernels=tuple(shapes[name][2:] for name in downs),
            pools=tuple(shapes[name][2:] for name in ups),  # up-sampling has a kernel of the pooling's size
            upsampling="nearest" if nearest else "transpose",
            norm="batch" if "down.0.1.running_mean" in shapes else "none",
        )
    except InputError as error:
        raise InputError(
            "these are not the weights of our U-Net",
            where=f"{where}, {error.where}",
            expected=error.expected,
            found=error.found,
        ) from None
    check_tensors(spec, tensors, where=where)
    return spec


def _some(shapes: Mapping[str, object]) -> str:
    names = sorted(shapes)
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "") or "no tensors"
