"""Statistics of a metric over trainings that differ only in their seed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Spread:
    """Mean and sample standard deviation (ddof = 1) over seeds; ``std`` is None for a single seed."""

    mean: float
    std: float | None

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Spread of ``values``; raises ValueError when there are none."""
        if not values:
            raise ValueError("no values")
        return cls(float(np.mean(values)), float(np.std(values, ddof=1)) if len(values) > 1 else None)


def paired_p_value(differences: Sequence[float]) -> float | None:
    """Two-sided p of Student's t-test for mean 0; None for fewer than two differences or for equal ones."""
    if len(differences) < 2 or float(np.ptp(differences)) < 1e-12:
        return None
    from scipy import stats  # takes a second to import and is rarely needed

    return float(stats.ttest_1samp(differences, 0.0).pvalue)


def paired_differences(values: Mapping[int, float], reference: Mapping[int, float]) -> list[float]:
    """``values`` minus ``reference`` for each seed that both have, in the order of the seeds.

    The same seed gives shared layers the same initial weights and the same batches, so differences spread less than
    the values.
    """
    return [values[seed] - reference[seed] for seed in sorted(values.keys() & reference.keys())]
