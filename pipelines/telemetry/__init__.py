"""What people watch while a run trains."""
