"""Figures of the paper and of a run's report: plain data in, a matplotlib Figure out."""

from icre.figures.attention import AttentionSample, attention_map
from icre.figures.cmc import cmc_curves
from icre.figures.comparison import training_comparison
from icre.figures.contact_sheet import ContactRow, Tile, contact_sheet
from icre.figures.distances import Distances, distance_histograms
from icre.figures.heat import GradCamSample, heat_rows
from icre.figures.masks import MaskSample, mask_overlays
from icre.figures.parallel import Line, parallel_coordinates
from icre.figures.ranking import RankedImage, RankedList, ranked_list
from icre.figures.scatter import Scatter, feature_scatter
from icre.figures.style import encode
from icre.figures.sweep import Sweep, sweep_curves
from icre.figures.training import training_curves

__all__ = [
    "AttentionSample",
    "ContactRow",
    "Distances",
    "GradCamSample",
    "Line",
    "MaskSample",
    "RankedImage",
    "RankedList",
    "Scatter",
    "Sweep",
    "Tile",
    "attention_map",
    "cmc_curves",
    "contact_sheet",
    "distance_histograms",
    "encode",
    "feature_scatter",
    "heat_rows",
    "mask_overlays",
    "parallel_coordinates",
    "ranked_list",
    "sweep_curves",
    "training_comparison",
    "training_curves",
]
