"""How to train on a given volume: every setting that follows from the data and the machine, with its reason.

    measure_labels -> LabelFacts --+
    ImageFacts, Machine -----------+--> propose -> Choice(key, value, why), ...

The measuring reads at most some boxes of the labels; what follows from it is plain data in, plain data out.
"""

from unet_core.proposal.facts import ImageFacts, LabelFacts, Machine, measure_labels
from unet_core.proposal.proposing import Choice, propose

__all__ = ["Choice", "ImageFacts", "LabelFacts", "Machine", "measure_labels", "propose"]
