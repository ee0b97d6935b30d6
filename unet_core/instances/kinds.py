"""Names of what blocks leave for one another (`evidence`), and who reads and writes it.

kind             written by    holds                                                       read by
HOLE_ENCLOSURES  enclose       of each label of the background: face reached, values around  fill
HOLE_FACES       enclose       faces of the background's labels and of the values            hole-seams
HOLE_SEAMS       hole-seams    pairs of its labels that touch, values across seams           fill
HOLE_FILLS       fill          what each label of the background is filled with              label
OBJECTS          label         size, first voxel, value of each label                        merge, relabel
FACES            label         faces of labels and values                                    seams
SEAMS            seams         pairs of labels that touch, labels on faces                   merge
IDS              merge         id of each label that lies on no face, else 0                 relabel
JOINED           merge         labels on faces, and their ids                                relabel
MERGED           merge         how many objects there are; of block 0 alone
"""

from __future__ import annotations

from typing import Any

from numpy.typing import NDArray

from unet_core.instances.evidence import Evidence

HOLE_ENCLOSURES, HOLE_FACES = "hole-enclosures", "hole-faces"
HOLE_SEAMS, HOLE_FILLS = "hole-seams", "hole-fills"
OBJECTS, FACES, SEAMS = "objects", "faces", "seams"
IDS, JOINED, MERGED = "ids", "joined", "merged"


def table_of(evidence: Evidence, index: int) -> NDArray[Any]:
    """Local label to id, for all labels of a block; 0 for the background."""
    table = evidence.read(IDS, index)["ids"].copy()
    joined = evidence.read(JOINED, index)
    table[joined["labels"]] = joined["ids"]
    return table


def largest_id(evidence: Evidence) -> int:
    """The number of objects that the merge found."""
    return int(evidence.read(MERGED, 0)["largest"][0])
