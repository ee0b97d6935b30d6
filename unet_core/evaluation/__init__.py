"""How good predicted classes are, and what the trivial answers would have scored."""

from unet_core.evaluation.comparison import Comparison, Truth, blocks_of, evaluate
from unet_core.evaluation.scores import Scores, confusion_of
from unet_core.evaluation.trivial import ThresholdRule, TrivialScores, trivial_scores

__all__ = [
    "Comparison",
    "Scores",
    "ThresholdRule",
    "TrivialScores",
    "Truth",
    "blocks_of",
    "confusion_of",
    "evaluate",
    "trivial_scores",
]
