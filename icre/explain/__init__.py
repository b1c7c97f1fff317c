"""What a network looks at: Grad-CAM, attention, masks, and features in the plane."""
