"""What a trained network looks at, and how it arranges people: the computations behind the paper's pictures."""
