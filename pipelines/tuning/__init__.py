"""Many trainings as one piece of work: planned, run side by side on Ray Tune, resumed, summed up."""
