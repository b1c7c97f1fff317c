"""ICRE, the method: a PyTorch library for visible-infrared person re-identification, independent of any cluster."""
