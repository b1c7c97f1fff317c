"""Experiments with many trainings: ablation tables, search spaces, Ray Tune and result tables."""
