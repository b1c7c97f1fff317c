"""Section ``retrain``: when ``icre retrain`` trains a challenger, and the criteria for its promotion."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from icre.config.sections import Count, NonNegative, Positive, PositiveFloat, Section, Share


class Retrain(Section):
    """The model's name in the registry is the recipe's ``name``. The exact rules are in docs/retraining.md."""

    start: Literal["champion", "scratch"] = "champion"
    """Initial weights of a challenger: those of the model in service, or those of a new `icre train`."""
    min_new_images: Count = 1
    """Minimum number of new training images since the last judged challenger to start a training."""
    min_new_identities: Count = 0
    """Minimum number of new training identities to start a training."""
    metric: Literal["mAP", "rank1", "mINP"] = "mAP"
    """Deciding metric, averaged over the protocol's directions."""
    margin: NonNegative = 0.005
    """Minimum improvement of a challenger on the frozen test list; 0.005 is half a percentage point."""
    resamples: Annotated[int, Field(ge=100)] = 1000
    """Bootstrap resamples of the queries."""
    confidence: Annotated[float, Field(ge=0.5, lt=1.0)] = 0.95
    """One-sided confidence: the difference must be above 0 in this share of the resamples."""
    floor: Share = 0.05
    """Maximum loss of a challenger in any direction or camera pair, and on the newest test images."""
    min_queries: Positive = 50
    """Minimum queries to judge a camera pair, or a direction of the newest test images; below, it is only shown."""
    min_metric: Share | None = None
    """Minimum value of the metric, also for the first model. None: no minimum."""
    max_latency_ms: PositiveFloat | None = None
    """Maximum milliseconds for ``evaluation.batch_size`` images on the command's machine. None: not measured."""
    max_size_mib: PositiveFloat | None = None
    """Maximum size of the weights file. None: no limit."""
    lease_s: PositiveFloat = 300.0
    """Seconds after its last renewal at which a tick counts as dead and another process may resume it."""
    max_attempts: Positive = 3
    """Attempts at one step of a tick before the tick is abandoned."""
    keep_runs: Positive = 7
    """Newest challengers whose run folders keep checkpoints; promoted weights stay in the registry permanently."""
