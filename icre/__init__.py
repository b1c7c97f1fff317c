"""ICRE, the method: a PyTorch library for visible-infrared person re-identification. It knows no cluster."""
