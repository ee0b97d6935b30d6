"""What a plan needs, in bytes, predicted before anything runs.

forward    one tile on its way through the network
worker     all that a segmenting worker holds; disk
training   one training step, and what lies beside it
"""

from unet_core.budget.forward import ITEM_SIZE, REUSED, forward_bytes, slab_planes, weight_bytes
from unet_core.budget.training import (
    CHUNKS_KEPT,
    STEPS_AHEAD,
    TRAINING_KEPT,
    beside_training_bytes,
    training_bytes,
    training_weights,
)
from unet_core.budget.worker import (
    GIB,
    INPUT_KEPT,
    TILE_MEMORY,
    WORKER_BASE,
    WorkerMemory,
    disk_bytes,
    kept_chunks,
    require_gpu_memory,
    require_memory,
    tile_memory,
    worker_memory,
)

__all__ = [
    "CHUNKS_KEPT",
    "GIB",
    "INPUT_KEPT",
    "ITEM_SIZE",
    "REUSED",
    "STEPS_AHEAD",
    "TILE_MEMORY",
    "TRAINING_KEPT",
    "WORKER_BASE",
    "WorkerMemory",
    "beside_training_bytes",
    "disk_bytes",
    "forward_bytes",
    "kept_chunks",
    "require_gpu_memory",
    "require_memory",
    "slab_planes",
    "tile_memory",
    "training_bytes",
    "training_weights",
    "weight_bytes",
    "worker_memory",
]
