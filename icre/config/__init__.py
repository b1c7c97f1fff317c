"""The recipe: one typed, validated description of a data set, a network, its training and its evaluation.

A recipe comes from a YAML file and dotted overrides (``train.epochs=20``). Unknown keys are rejected with the
closest known key, and all errors are reported at once.
"""

from icre.config.reading import (
    differences,
    json_schema,
    load_recipe,
    located,
    override,
    parse_recipe,
    problems_of_value,
)
from icre.config.recipe import Recipe
from icre.config.retraining import Retrain
from icre.config.sections import (
    FOLDER_CHOICES,
    Augmentation,
    Batch,
    Checkpoints,
    Component,
    Compute,
    Evaluation,
    Icg,
    Loss,
    Model,
    Optimizer,
    OptimizerName,
    Precision,
    ProtocolName,
    Schedule,
    Section,
    Train,
)
from icre.config.tuning import Interval, Tune

__all__ = [
    "FOLDER_CHOICES",
    "Augmentation",
    "Batch",
    "Checkpoints",
    "Component",
    "Compute",
    "Evaluation",
    "Icg",
    "Interval",
    "Loss",
    "Model",
    "Optimizer",
    "OptimizerName",
    "Precision",
    "ProtocolName",
    "Recipe",
    "Retrain",
    "Schedule",
    "Section",
    "Train",
    "Tune",
    "differences",
    "json_schema",
    "load_recipe",
    "located",
    "override",
    "parse_recipe",
    "problems_of_value",
]
