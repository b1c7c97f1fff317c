"""Section ``tune``: which keys of the recipe a sweep changes, and how it searches."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag, model_validator

from icre.config.sections import Positive, PositiveFloat, Section

Method = Literal["each", "grid", "random", "asha", "tpe"]
LISTED: tuple[Method, ...] = ("each", "grid")
"""Methods that train every value of a list; the others draw from lists and intervals alike."""


class Interval(Section):
    """Values that are drawn: uniform between ``low`` and ``high``."""

    low: float
    """Smallest value."""
    high: float
    """Largest value."""
    log: bool = False
    """Uniform in the logarithm, as for learning rates."""
    integer: bool = False
    """Whole numbers only; both ends included."""

    @model_validator(mode="after")
    def _ordered(self) -> Interval:
        if not self.low < self.high:
            raise ValueError(f"tune.space: low={self.low:g} must be less than high={self.high:g}")
        if self.log and self.low <= 0:
            raise ValueError(f"tune.space: low={self.low:g} with log=true: a logarithm needs low above 0")
        if self.integer and not (self.low.is_integer() and self.high.is_integer()):
            raise ValueError(f"tune.space: low={self.low:g}, high={self.high:g} with integer=true: give whole numbers")
        return self


Values = Annotated[list[Any], Field(min_length=1)]


def _kind(values: Any) -> str:
    return "interval" if isinstance(values, dict | Interval) else "list"


Choice = Annotated[Annotated[Values, Tag("list")] | Annotated[Interval, Tag("interval")], Discriminator(_kind)]
"""What one key of the recipe may be."""


class Tune(Section):
    """``icre tune``: a sweep of trainings. The validation metric ``checkpoints.best`` compares them."""

    space: dict[str, Choice] = Field(default_factory=dict)
    """Key of the recipe, such as loss.icg.weight, to a list of its values or to {low, high, log, integer}."""
    method: Method = "grid"
    """each: the recipe, and every value of every key with the others as in the recipe (the paper's Figure 3). grid:
    every combination. random: ``trials`` draws. asha: the same, and those that lag behind are stopped early. tpe:
    Optuna's TPE chooses the next from what the last ones reached."""
    trials: Positive = 16
    """How many values are drawn. Not for each and grid."""
    seeds: Positive = 1
    """Trainings of each combination, with the recipe's seed and those after it; 1 for asha and tpe."""
    grace_epochs: Positive = 1
    """asha: epochs before a training may be stopped."""
    reduction: Annotated[int, Field(ge=2)] = 3
    """asha: one in so many goes on from each rung, and a rung is so many times as far as the one before."""
    concurrent: Positive | None = None
    """Trainings at the same time; None: as many as there are CPUs and GPUs for when the sweep starts."""
    hours: PositiveFloat | None = None
    """Stop after so many hours; None: no limit. The same command goes on."""
    cpu_hour_price: PositiveFloat | None = None
    """What an hour of one logical CPU costs, in any currency; the plan then names the cost."""
    gpu_hour_price: PositiveFloat | None = None
    """What an hour of one GPU costs."""

    def problems(self) -> list[str]:
        """Rules between the fields that this section breaks."""
        found = []
        intervals = [key for key, values in self.space.items() if isinstance(values, Interval)]
        if self.method in LISTED and intervals:
            found.append(
                f"tune.method={self.method} with an interval for {', '.join(intervals)}: list the values, or draw them "
                "with random, asha or tpe"
            )
        if self.method not in ("each", "grid", "random") and self.seeds > 1:
            found.append(
                f"tune.seeds={self.seeds} with tune.method={self.method}: 1, as each training is another point"
            )
        return found
