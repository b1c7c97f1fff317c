"""From features to CMC, mAP and mINP, under the conventions of each data set."""

from icre.evaluation.inputs import CameraRule, CmcUnit
from icre.evaluation.protocols import (
    DirectionResult,
    FolderProtocol,
    draw_gallery,
    run_protocol,
)
from icre.evaluation.ranking import (
    RankingResult,
    cosine_distance,
    evaluate_llcm,
    evaluate_ranking,
    evaluate_regdb,
    evaluate_sysu,
)

__all__ = [
    "CameraRule",
    "CmcUnit",
    "DirectionResult",
    "FolderProtocol",
    "RankingResult",
    "cosine_distance",
    "draw_gallery",
    "evaluate_llcm",
    "evaluate_ranking",
    "evaluate_regdb",
    "evaluate_sysu",
    "run_protocol",
]
