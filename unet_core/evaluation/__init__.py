"""How good predicted classes and instances are, and what the trivial answers would have scored."""

from unet_core.evaluation.comparison import Comparison, Truth, blocks_of, evaluate
from unet_core.evaluation.contingency import Contingency
from unet_core.evaluation.instances import InstanceComparison, InstanceScores, evaluate_instances
from unet_core.evaluation.matching import Matching, Overlaps
from unet_core.evaluation.scores import Scores, confusion_of
from unet_core.evaluation.thresholds import CRITERIA, Threshold, Thresholds, evaluate_thresholds
from unet_core.evaluation.trivial import ThresholdRule, TrivialScores, trivial_scores

__all__ = [
    "CRITERIA",
    "Comparison",
    "Contingency",
    "InstanceComparison",
    "InstanceScores",
    "Matching",
    "Overlaps",
    "Scores",
    "Threshold",
    "ThresholdRule",
    "Thresholds",
    "TrivialScores",
    "Truth",
    "blocks_of",
    "confusion_of",
    "evaluate",
    "evaluate_instances",
    "evaluate_thresholds",
    "trivial_scores",
]
