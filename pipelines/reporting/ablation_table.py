"""The table of an ablation: a row a variant, mean ± standard deviation over its seeds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from icre.ablation import Spread, paired_differences
from pipelines.reporting.metric_table import SYNTHETIC, describe_protocol, markdown_line, percent, summary_of, words

METRICS = {"rank1": "Rank-1", "mAP": "mAP"}


@dataclass(frozen=True)
class Entry:
    """One training of the table: what ``icre evaluate`` wrote, or why there is nothing."""

    variant: str
    seed: int
    run: str
    result: Mapping[str, Any] | None = None
    failure: str | None = None

    def metric(self, direction: str, name: str) -> float | None:
        """Mean over the gallery draws, in [0, 1]."""
        return None if self.result is None else float(self.result["directions"][direction]["mean"][name])

    def mean_metric(self, name: str) -> float | None:
        """The same, mean over the directions."""
        directions = self.result["directions"] if self.result is not None else {}
        found = [m for direction in directions if (m := self.metric(direction, name)) is not None]
        return sum(found) / len(found) if found else None

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types, without the ranked lists and histograms of the evaluation."""
        return asdict(self) | {"result": None if self.result is None else summary_of(self.result)}


def ablation_table_markdown(entries: Sequence[Entry]) -> str:
    """Markdown: for each variant the metrics, and the mean difference to the first variant, seed by seed."""
    evaluated = [entry.result for entry in entries if entry.result is not None]
    if not evaluated:
        return "\n".join(["No run has a result.", *_failures(entries)])
    directions = list(evaluated[0]["directions"])
    variants = list(dict.fromkeys(entry.variant for entry in entries))
    head = ["Variant", "Seeds", *(f"{words(d)}: {label}" for d in directions for label in METRICS.values())]
    head.append(f"mAP against {variants[0]}")
    lines = [markdown_line(head), markdown_line(["---", *["---:"] * (len(head) - 1)])]
    lines += [markdown_line(_row(entries, variant, variants[0], directions)) for variant in variants]
    notes = [
        "Percent; ± is the sample standard deviation over the seeds. Each value is the mean over the gallery draws. "
        "The last column is the mean of both directions' mAP minus that of the first row with the same seed.",
        describe_protocol(evaluated[0], leave_out=["seed"]),
    ]
    notes += [SYNTHETIC] if evaluated[0]["synthetic"] else []
    return "\n".join(lines) + "\n\n" + "\n\n".join([*notes, *_failures(entries)])


def _row(entries: Sequence[Entry], variant: str, reference: str, directions: Sequence[str]) -> list[str]:
    own = [entry for entry in entries if entry.variant == variant]
    done = [entry for entry in own if entry.result is not None]
    cells = [variant, str(len(done)) if len(done) == len(own) else f"{len(done)} of {len(own)}"]
    for direction in directions:
        for name in METRICS:
            cells.append(_cell([m for entry in done if (m := entry.metric(direction, name)) is not None]))
    differences = paired_differences(_mean_ap(entries, variant), _mean_ap(entries, reference))
    return [*cells, "" if variant == reference else _cell(differences, sign=True)]


def _mean_ap(entries: Sequence[Entry], variant: str) -> dict[int, float]:
    own = (entry for entry in entries if entry.variant == variant)
    return {entry.seed: mean for entry in own if (mean := entry.mean_metric("mAP")) is not None}


def _cell(values: Sequence[float], *, sign: bool = False) -> str:
    if not values:
        return "-"
    spread = Spread.of(values)
    text = percent(spread.mean, spread.std)
    return f"+{text}" if sign and spread.mean >= 0 else text


def _failures(entries: Sequence[Entry]) -> list[str]:
    return [f"{entry.run} failed: {entry.failure}" for entry in entries if entry.failure is not None]
