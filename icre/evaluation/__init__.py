"""CMC, mAP and mINP from features, under the conventions of each data set."""

from icre.evaluation.gallery_sampling import draw_gallery
from icre.evaluation.labels import CameraRule, CmcUnit
from icre.evaluation.large import evaluate_features
from icre.evaluation.protocol_runner import DirectionResult, run_protocol
from icre.evaluation.protocols import Protocol, protocol_of
from icre.evaluation.ranking import (
    cosine_distance,
    evaluate_llcm,
    evaluate_ranking,
    evaluate_regdb,
    evaluate_sysu,
)
from icre.evaluation.scores import RankingResult

__all__ = [
    "CameraRule",
    "CmcUnit",
    "DirectionResult",
    "Protocol",
    "RankingResult",
    "cosine_distance",
    "draw_gallery",
    "evaluate_features",
    "evaluate_llcm",
    "evaluate_ranking",
    "evaluate_regdb",
    "evaluate_sysu",
    "protocol_of",
    "run_protocol",
]
