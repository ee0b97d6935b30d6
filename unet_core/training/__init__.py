"""Training a U-Net: settings, a checked plan, its steps on one or several ranks, and the model folder.

TrainSettings --prepare--> Plan --run--> Trained --save--> model folder
  (settings)              (plan)        (loop)    (saving)

One step is `trainer`'s, its patches come from `batches`, its sums over processes from `ranks`; `checkpoints`
and `history` are what a killed training goes on from.
"""

from unet_core.training.checkpoints import Checkpoint, Checkpoints
from unet_core.training.history import History
from unet_core.training.loop import Progress, Trained, run, trained_by_others
from unet_core.training.optimisation import Optimisation, learning_rate
from unet_core.training.plan import Plan, on_device, prepare, require_device
from unet_core.training.ranks import Ranks, joined
from unet_core.training.requirements import bytes_per_rank, notes, require_memory
from unet_core.training.saving import identity, save
from unet_core.training.settings import TrainSettings
from unet_core.training.speed import seconds_per_step
from unet_core.training.validation import Preview, Validation, network_of, preview, validate

KIND = "train"

__all__ = [
    "KIND",
    "Checkpoint",
    "Checkpoints",
    "History",
    "Optimisation",
    "Plan",
    "Preview",
    "Progress",
    "Ranks",
    "TrainSettings",
    "Trained",
    "Validation",
    "bytes_per_rank",
    "identity",
    "joined",
    "learning_rate",
    "network_of",
    "notes",
    "on_device",
    "prepare",
    "preview",
    "require_device",
    "require_memory",
    "run",
    "save",
    "seconds_per_step",
    "trained_by_others",
    "validate",
]
