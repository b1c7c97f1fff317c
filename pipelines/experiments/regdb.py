"""RegDB's fixed splits: one training per split, and the mean that RegDB tables report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from icre import config
from icre.data.sources.regdb import TRIALS
from icre.errors import ConfigError, TrainingError
from icre.statistics import Spread
from pipelines.data import prepare
from pipelines.data.catalog import survey
from pipelines.data.prepared import open_data
from pipelines.experiments import runner
from pipelines.reporting.metric_table import SYNTHETIC, describe_protocol, percent, summary_of, words
from pipelines.runs.run import Run
from pipelines.runtime.console import say
from pipelines.runtime.markdown import markdown_table
from pipelines.storage import Storage

METRICS = {"rank1": "Rank-1", "rank10": "Rank-10", "rank20": "Rank-20", "mAP": "mAP", "mINP": "mINP"}


@dataclass(frozen=True)
class Split:
    """One of RegDB's splits, with its prepared data set and one training."""

    trial: int
    recipe: config.Recipe
    run: Run


@dataclass(frozen=True)
class Entry:
    """A split's row: the output of ``icre evaluate``, or the error."""

    trial: int
    run: str
    result: Mapping[str, Any] | None = None
    failure: str | None = None


def plan(recipe: config.Recipe, trials: Sequence[int]) -> list[Split]:
    """The trainings of ``trials``, without duplicates, in order. ConfigError for a recipe that is not for RegDB."""
    source, asked = recipe.data.source, recipe.data.trial
    if source != "regdb":
        raise ConfigError(
            f"data.source={source}: only regdb has numbered splits",
            hint="set data.source=regdb, or train one split of this data set with `icre train`",
        )
    if asked != TRIALS[0]:
        raise ConfigError(
            f"data.trial={asked} with `icre regdb`, which trains several splits",
            hint=f"leave it out, and choose splits with --trials {asked}",
        )
    if unknown := sorted(set(trials) - set(TRIALS)):
        raise ConfigError(f"--trials {unknown}: RegDB has no such split", hint=f"its splits are {list(TRIALS)}")
    return [_split(recipe, trial) for trial in sorted(set(trials))]


def run(splits: Sequence[Split], folder: Storage) -> str:
    """Prepare and run ``splits`` inside an open Ray session; returns the table, rewritten after each split."""
    for split in splits:  # all before the first training, to find errors early
        data = prepare.run(split.recipe) if split.recipe.data.root is not None else open_data(split.recipe)
        runner.check_reusable(split.run, split.recipe, data)
    entries: list[Entry] = []
    markdown = ""
    for number, split in enumerate(splits, start=1):
        say(f"regdb: {number} of {len(splits)}: split {split.trial}")
        entries.append(_entry(split))
        markdown = table_markdown(entries)
        (folder / "results.json").write_json(_results(entries))
        (folder / "table.md").write_text(markdown + "\n")
    return markdown


def table_markdown(entries: Sequence[Entry]) -> str:
    """Markdown table: one row per split, then the mean over those with a result."""
    failures = [f"{entry.run} failed: {entry.failure}" for entry in entries if entry.failure is not None]
    evaluated = [entry for entry in entries if entry.result is not None]
    spreads = _spreads(entries)
    if not evaluated:
        return "\n".join(["No run has a result.", *failures])
    head = ["Split", *(f"{words(direction)}: {METRICS[metric]}" for direction, metric in spreads)]
    rows = []
    for entry in entries:
        cells = [percent(_mean(entry.result, *key)) if entry.result is not None else "-" for key in spreads]
        rows.append([str(entry.trial) + (" (failed)" if entry.result is None else ""), *cells])
    means = [percent(spread.mean, spread.std) for spread in spreads.values()]
    rows.append([f"mean of {len(evaluated)}", *means])
    first = evaluated[0].result or {}
    notes = [
        "Percent; ± in the last row is the sample standard deviation over the splits. Published numbers are means over "
        f"all {len(TRIALS)}.",
        f"Split {evaluated[0].trial}, and the others like it: {describe_protocol(first)}",
    ]
    notes += [SYNTHETIC] if first["synthetic"] else []
    return "\n\n".join([markdown_table(head, rows, numbers=range(1, len(head))), *notes, *failures])


def _split(recipe: config.Recipe, trial: int) -> Split:
    name = f"{recipe.name}-trial{trial}"
    own = config.override(recipe, [f"data.name={recipe.data.name}-{trial}", f"data.trial={trial}"], where=name)
    return Split(trial, own, Run.named(recipe.storage, name))


def _entry(split: Split) -> Entry:
    """Result of one split; a failed training gives an entry with the reason and does not stop the others."""
    name = split.run.name
    try:
        return Entry(split.trial, name, result=runner.result_of(split.run, split.recipe))
    except TrainingError as error:
        say(f"regdb: {name} failed: {error.message}")
        return Entry(split.trial, name, failure=error.message)


def _spreads(entries: Sequence[Entry]) -> dict[tuple[str, str], Spread]:
    """Mean and standard deviation over the splits, by direction and metric."""
    results = [entry.result for entry in entries if entry.result is not None]
    directions = results[0]["directions"] if results else []
    keys = [(direction, metric) for direction in directions for metric in METRICS]
    return {key: Spread.of([_mean(result, *key) for result in results]) for key in keys}


def _mean(result: Mapping[str, Any], direction: str, metric: str) -> float:
    """Mean over the gallery draws of one split, in [0, 1]."""
    return float(result["directions"][direction]["mean"][metric])


def _results(entries: Sequence[Entry]) -> dict[str, Any]:
    """Plain JSON types: all splits and their means."""
    over_splits: dict[str, dict[str, Any]] = {}
    for (direction, metric), spread in _spreads(entries).items():
        over_splits.setdefault(direction, {})[metric] = vars(spread)
    splits = [vars(entry) | {"result": None if entry.result is None else summary_of(entry.result)} for entry in entries]
    return {"splits": splits, "over_splits": over_splits}


def describe(split: Split) -> str:
    """One line for --dry-run: the run, its state, and the identities of its data set."""
    line = f"{split.run.name} ({split.run.state or 'new'}): data set {split.recipe.data.name}"
    if split.recipe.data.root is None:
        return line
    counts = survey(split.recipe).counts()
    return f"{line}, " + ", ".join(f"{row['identities']} {name}" for name, row in counts.items()) + " identities"
