"""Procedural people in two modalities: a data set that needs no download, no agreement and no consent.

Made for tests, demonstrations and benchmarks of the pipeline. What a person keeps across modalities is shape,
gait, pattern and what is carried; colour and infrared reflectance are independent, so that a network can only
match by the former.
"""

from icre.data.synthetic.folder import generate
from icre.data.synthetic.render import render_image
from icre.data.synthetic.spec import MODALITIES, Modality, SyntheticSpec

__all__ = ["MODALITIES", "Modality", "SyntheticSpec", "generate", "render_image"]
