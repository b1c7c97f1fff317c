"""Ablation tables in Markdown and LaTeX: one row per variant, mean ± standard deviation over its seeds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from icre.statistics import Spread, paired_differences, paired_p_value
from pipelines.reporting.metric_table import SYNTHETIC, describe_protocol, percent, summary_of, words
from pipelines.runtime.markdown import markdown_table

METRICS = {"rank1": "Rank-1", "mAP": "mAP"}


@dataclass(frozen=True)
class Entry:
    """One training in the table: the output of ``icre evaluate``, or the error."""

    variant: str
    seed: int
    run: str
    result: Mapping[str, Any] | None = None
    failure: str | None = None

    def metric(self, direction: str, name: str) -> float | None:
        """Mean over the gallery draws, in [0, 1]."""
        return None if self.result is None else float(self.result["directions"][direction]["mean"][name])

    def mean_metric(self, name: str) -> float | None:
        """Mean of :meth:`metric` over the directions."""
        directions = self.result["directions"] if self.result is not None else {}
        found = [m for direction in directions if (m := self.metric(direction, name)) is not None]
        return sum(found) / len(found) if found else None

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types, without the ranked lists and histograms of the evaluation."""
        return asdict(self) | {"result": None if self.result is None else summary_of(self.result)}


def ablation_table_markdown(entries: Sequence[Entry]) -> str:
    """Markdown table: metrics per variant, and the mean difference to the first variant, paired by seed."""
    rows = _rows(entries)
    if not rows:
        return "\n".join(["No run has a result.", *_failures(entries)])
    table = markdown_table(rows[0], rows[1:], numbers=range(1, len(rows[0])))
    return "\n\n".join([table, *_notes(entries), *_failures(entries)])


def ablation_table_latex(entries: Sequence[Entry]) -> str:
    """The same rows as a LaTeX booktabs tabular, with the notes as comments. Empty without results."""
    rows = _rows(entries)
    if not rows:
        return ""
    columns = "l" + "r" * (len(rows[0]) - 1)
    lines = [" & ".join(map(_latex, row)) + r" \\" for row in rows]
    body = [rf"\begin{{tabular}}{{{columns}}}", r"\toprule", lines[0], r"\midrule", *lines[1:], r"\bottomrule"]
    return "\n".join([*(f"% {note}" for note in _notes(entries)), *body, r"\end{tabular}"]) + "\n"


def _rows(entries: Sequence[Entry]) -> list[list[str]]:
    """Table cells with the header row first; empty without results."""
    evaluated = [entry.result for entry in entries if entry.result is not None]
    if not evaluated:
        return []
    directions = list(evaluated[0]["directions"])
    variants = list(dict.fromkeys(entry.variant for entry in entries))
    head = ["Variant", "Seeds", *(f"{words(d)}: {label}" for d in directions for label in METRICS.values())]
    head += [f"mAP against {variants[0]}", "p"]
    return [head, *(_row(entries, variant, variants[0], directions) for variant in variants)]


def _notes(entries: Sequence[Entry]) -> list[str]:
    first = next(entry.result for entry in entries if entry.result is not None)
    return [
        "Percent; ± is the sample standard deviation over the seeds. Each value is the mean over the gallery draws. "
        "The last columns: the mean of the directions' mAP minus that of the first row with the same seed, and p of "
        "the two-sided paired t-test that it is 0, not corrected for the number of rows.",
        describe_protocol(first),
        *([SYNTHETIC] if first["synthetic"] else []),
    ]


def _row(entries: Sequence[Entry], variant: str, reference: str, directions: Sequence[str]) -> list[str]:
    own = [entry for entry in entries if entry.variant == variant]
    done = [entry for entry in own if entry.result is not None]
    cells = [variant, str(len(done)) if len(done) == len(own) else f"{len(done)} of {len(own)}"]
    for direction in directions:
        for name in METRICS:
            cells.append(_cell([m for entry in done if (m := entry.metric(direction, name)) is not None]))
    if variant == reference:
        return [*cells, "", ""]
    differences = paired_differences(_mean_ap(entries, variant), _mean_ap(entries, reference))
    p_value = paired_p_value(differences)
    return [*cells, _cell(differences, sign=True), "-" if p_value is None else f"{p_value:.2g}"]


_LATEX = {"\\": r"\textbackslash{}", "±": r"$\pm$", "λ": r"$\lambda$", "ρ": r"$\rho$", "–": "--"}
_LATEX |= {character: "\\" + character for character in "&%$#_{}"}


def _latex(text: str) -> str:
    return "".join(_LATEX.get(character, character) for character in text)


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
