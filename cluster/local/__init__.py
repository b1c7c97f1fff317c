"""What a cluster needs, on one machine."""
