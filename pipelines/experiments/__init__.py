"""Many trainings of one recipe: ablation tables, search spaces, Ray Tune, and tables of results."""
