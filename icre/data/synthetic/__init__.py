"""Procedural people in two modalities: a data set without download, licence agreement or consent.

For tests, demonstrations and benchmarks of the pipeline. Shape, gait, pattern and carried objects are shared across
modalities. Colour and infrared reflectance are independent, so a network can only match by the former.
"""

from icre.data.synthetic.folder import generate
from icre.data.synthetic.render import render_image
from icre.data.synthetic.spec import MODALITIES, Modality, SyntheticSpec

__all__ = ["MODALITIES", "Modality", "SyntheticSpec", "generate", "render_image"]
