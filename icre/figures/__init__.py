"""Figures of the paper and of a run's report: plain data in, a matplotlib Figure out."""

from icre.figures.cmc import cmc_curves
from icre.figures.contact_sheet import ContactRow, Tile, contact_sheet
from icre.figures.distances import Distances, distance_histograms
from icre.figures.ranking import RankedList, Shown, ranked_list
from icre.figures.style import encode
from icre.figures.training import training_curves

__all__ = [
    "ContactRow",
    "Distances",
    "RankedList",
    "Shown",
    "Tile",
    "cmc_curves",
    "contact_sheet",
    "distance_histograms",
    "encode",
    "ranked_list",
    "training_curves",
]
