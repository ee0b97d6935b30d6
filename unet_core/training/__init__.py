"""Training a U-Net: settings, a checked plan, its steps, and the model folder that comes out.

TrainSettings --prepare--> Plan --run--> Trained --save--> model folder
  (settings)              (plan)        (loop)    (saving)
"""

from unet_core.training.loop import Progress, Record, Trained, run, train, validate
from unet_core.training.plan import Plan, prepare
from unet_core.training.saving import save
from unet_core.training.settings import TrainSettings, learning_rate

__all__ = [
    "Plan",
    "Progress",
    "Record",
    "TrainSettings",
    "Trained",
    "learning_rate",
    "prepare",
    "run",
    "save",
    "train",
    "validate",
]
