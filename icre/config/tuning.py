"""Section ``tune``: search space and method of a sweep."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag, model_validator

from icre.config.sections import Positive, PositiveFloat, Section

Method = Literal["each", "grid", "random", "asha", "tpe"]
LISTED: tuple[Method, ...] = ("each", "grid")
"""Methods that train every value of a list; the others draw from lists and intervals."""


class Interval(Section):
    """Interval from which values are drawn uniformly, between ``low`` and ``high``."""

    low: float
    """Smallest value."""
    high: float
    """Largest value."""
    log: bool = False
    """Draw uniformly in the logarithm, as for learning rates."""
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
"""Candidate values of one key of the recipe."""


class Tune(Section):
    """``icre tune``: a sweep of trainings, compared by the validation metric ``checkpoints.best``."""

    space: dict[str, Choice] = Field(default_factory=dict)
    """Recipe key (e.g. loss.icg.weight) to a list of values or to {low, high, log, integer}."""
    method: Method = "grid"
    """each: the recipe, and every value of every key with the others as in the recipe (the paper's Figure 3). grid:
    every combination. random: ``trials`` draws. asha: random with early stopping of the worse trainings. tpe:
    Optuna's TPE, which chooses each draw by the previous results."""
    trials: Positive = 16
    """Number of draws. Unused by each and grid."""
    seeds: Positive = 1
    """Trainings of each combination, with the recipe's seed and the following ones; 1 for asha and tpe."""
    grace_epochs: Positive = 1
    """asha: epochs before a training may be stopped."""
    reduction: Annotated[int, Field(ge=2)] = 3
    """asha: ratio of epochs between rungs; one in ``reduction`` trainings continues from each rung."""
    concurrent: Positive | None = None
    """Concurrent trainings; None: as many as fit the CPUs and GPUs available when the sweep starts."""
    hours: PositiveFloat | None = None
    """Hours after which the sweep stops; None: no limit. The same command resumes it."""
    cpu_hour_price: PositiveFloat | None = None
    """Price of an hour of one logical CPU, in any currency; the plan then includes the cost."""
    gpu_hour_price: PositiveFloat | None = None
    """Price of an hour of one GPU."""

    def problems(self) -> list[str]:
        """Violated rules between the fields of this section."""
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
