"""Explanations of a network: Grad-CAM, attention, masks, and t-SNE of its features."""
