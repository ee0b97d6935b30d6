"""The arrays and folders of an output with instances; see `blocks` for who writes what.

LABELS.zarr/0, 1, ...    final ids, a multiscale label image
            classes/     the network's answer           local/      labels 1 to n of each block
            evidence/    what blocks leave for the merge, kept
"""

from __future__ import annotations

from typing import Any

import numpy as np

from unet_core.geometry import Shape
from unet_core.instances import evidence
from unet_core.instances.kinds import largest_id
from unet_core.instances.ranking import id_type
from unet_core.metadata import PyramidLevel
from unet_core.pyramid import PyramidPlan
from unet_core.volumes import Store, Volume, create_group, create_multiscale, create_records_node

_EVIDENCE = "what blocks leave for the merge; no image data"


def begin_instances(output: Store, **common: Any) -> None:
    """Make the group and what is written before the ids are known; what is there already is kept.

    `common`: chunk, shard, axes and so on, as `create_multiscale` takes them.
    """
    begin_merge(output)
    for name, dtype in (("classes", np.uint8), ("local", np.uint32)):
        create_multiscale(
            output.child(name), kind="labels", leading=(), dtype=np.dtype(dtype), name=name, **common
        )


def begin_merge(output: Store) -> None:
    """Make the group and the folder of evidence alone."""
    create_group(output)
    create_records_node(output, evidence.FOLDER, holds=_EVIDENCE)


def create_final(
    output: Store, *, template: str, pyramid: PyramidPlan, chunk: Shape, shard: Shape, source: str | None
) -> None:
    """Make the arrays of the final ids, in 32 bits where these suffice: once the merge has counted them.

    `template`: URL of a label volume of the same shape, voxel size and origin. `source`: the image, as
    metadata names it.
    """
    like = Volume.open(template)
    create_multiscale(
        output,
        kind="labels",
        axes=like.spatial_axes,
        leading=(),
        levels=pyramid.levels,
        dtype=id_type(largest_id(evidence.InStore(output))),
        chunk=chunk,
        shard=shard,
        voxel_size=like.voxel_size,
        origin=like.origin,
        unit=like.unit,
        name=output.url.rsplit("/", 1)[-1].removesuffix(".zarr"),
        method=pyramid.method,
        source=source,
    )


def only_level(shape: Shape) -> list[PyramidLevel]:
    """The levels of an array without a pyramid."""
    return [PyramidLevel(0, shape, (1, 1, 1))]
