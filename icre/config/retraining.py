"""When a model in service is trained again, and what a new one must reach to replace it: ``icre retrain``."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from icre.config.sections import Count, NonNegative, Positive, PositiveFloat, Section, Share


class Retrain(Section):
    """The model's name in the registry is the recipe's ``name``. What the rules mean exactly: docs/retraining.md."""

    start: Literal["champion", "scratch"] = "champion"
    """What a challenger starts from: the weights of the model in service, or a network as `icre train` starts it."""
    min_new_images: Count = 1
    """New training images since the last judged challenger without which nothing is trained."""
    min_new_identities: Count = 0
    """New training identities without which nothing is trained."""
    metric: Literal["mAP", "rank1", "mINP"] = "mAP"
    """What decides: the mean of this metric over the protocol's directions."""
    margin: NonNegative = 0.005
    """By how much a challenger must be better on the frozen test list; 0.005 is half a percentage point."""
    resamples: Annotated[int, Field(ge=100)] = 1000
    """Bootstrap resamples of the queries."""
    confidence: Annotated[float, Field(ge=0.5, lt=1.0)] = 0.95
    """One-sided: the difference must be above 0 in this share of the resamples."""
    floor: Share = 0.05
    """How much worse a challenger may be in any one direction or camera pair, and on the newest test images."""
    min_queries: Positive = 50
    """Queries under which a camera pair, or a direction of the newest test images, is shown and not judged."""
    min_metric: Share | None = None
    """What the metric must reach in any case, the first model included. None: no such rule."""
    max_latency_ms: PositiveFloat | None = None
    """Milliseconds for ``evaluation.batch_size`` images on the machine of the command. None: not measured."""
    max_size_mib: PositiveFloat | None = None
    """Size of the weights file. None: no limit."""
    lease_s: PositiveFloat = 300.0
    """Seconds after its last sign of life at which a tick counts as dead, and another may go on with it."""
    max_attempts: Positive = 3
    """Times that the same step of a tick is begun before the tick is given up."""
    keep_runs: Positive = 7
    """Newest challengers whose run folders keep their checkpoints; promoted weights are in the registry for good."""
