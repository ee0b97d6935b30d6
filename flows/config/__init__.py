"""What people may ask for: one strict schema behind flow parameters, command-line options and TOML files.

Fields are flat and of plain types, because Prefect's deployments replace whole top-level parameters.
Imports nothing heavy: `unet-flows --help` reads this package.
"""

from __future__ import annotations

from flows.config.base import Config, Dtype, read_toml, validate
from flows.config.cluster import ClusterConfig, Local, read_cluster
from flows.config.ingest import IngestConfig
from flows.config.segment import HowToSegment, SegmentConfig, StitchConfig
from flows.config.train import AugmentConfig, Pair, TargetName, TrainConfig, read_training
from flows.config.watch import WatchConfig

__all__ = [
    "AugmentConfig",
    "ClusterConfig",
    "Config",
    "Dtype",
    "HowToSegment",
    "IngestConfig",
    "Local",
    "Pair",
    "SegmentConfig",
    "StitchConfig",
    "TargetName",
    "TrainConfig",
    "WatchConfig",
    "read_cluster",
    "read_toml",
    "read_training",
    "validate",
]
