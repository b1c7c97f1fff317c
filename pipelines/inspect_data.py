"""``icre data inspect``: verify a prepared data set, and list what it contains and what was left out."""

from __future__ import annotations

import io
import math
import re
import statistics
from collections import Counter, defaultdict
from collections.abc import Collection, Mapping, Sequence
from typing import Annotated, Any

import numpy as np
import pyarrow.parquet as pq
import typer
from PIL import Image

from icre import config
from icre.data import images
from icre.data.records import MODALITIES, SPLITS, Record
from icre.errors import UserError
from icre.figures import ContactRow, Tile, contact_sheet
from pipelines.data.catalog import count
from pipelines.data.prepare import describe_counts
from pipelines.data.prepared import PreparedData, open_data
from pipelines.reporting.metric_table import SYNTHETIC
from pipelines.runtime.command import ConfigFile, Overrides, new_app, read_recipe, run_command
from pipelines.runtime.console import say
from pipelines.runtime.markdown import markdown_table
from pipelines.storage import Storage

EXAMPLES = 3
"""Names shown per reason."""
SHEET_IDENTITIES, SHEET_IMAGES = 8, 4
"""Identities on a contact sheet, and the maximum of images per identity and modality."""

app = new_app(summary="Inspect a prepared data set.")


@app.callback()
def group() -> None:
    """Keep ``inspect`` a subcommand: without a callback, Typer makes a lone command the whole application."""


@app.command("inspect")
def command(
    config_file: ConfigFile = None,
    overrides: Overrides = None,
    out: Annotated[
        str | None, typer.Option(metavar="PNG", help="Also write a contact sheet of some identities to this file.")
    ] = None,
) -> None:
    """Verify a prepared data set and print its contents as Markdown."""
    recipe = read_recipe(config_file, overrides)
    if out is not None and not out.lower().endswith(".png"):
        raise UserError(f"--out {out}: a contact sheet is a PNG", hint="give it a name that ends in .png")
    data = open_data(recipe)
    data.verify()
    print(describe(data))
    if out is not None:
        target = Storage(out)
        target.write_bytes(draw_sheet(data, recipe))
        say(f"data: wrote {target.url}")


def describe(data: PreparedData) -> str:
    """Markdown: origin, counts, images per identity, identities not trained on, and files set aside with reasons."""
    manifest = data.manifest
    rows = data.labels_and_paths.to_pylist()
    records = [Record(pid=r["identity"], modality=r["modality"], camid=r["camera"], path=r["path"]) for r in rows]
    parts = [
        f"# {manifest['name']}",
        *([SYNTHETIC] if manifest["synthetic"] else []),
        markdown_table(["property", "value"], _properties(data)),
        "## Identities and images",
        describe_counts(count(records, {row["identity"]: row["split"] for row in rows})),
        "Images of an identity, over the identities that have any in that modality:",
        markdown_table(["split", "modality", "identities", "min", "median", "max"], _spread(rows), numbers=range(2, 6)),
        *[f"Not the published count: {difference}" for difference in manifest.get("differences", [])],
        *_reasons("Training identities not trained on", "identities", manifest["not_trained"]),
        *_reasons("Files set aside", "files", manifest["set_aside"]),
    ]
    return "\n\n".join(parts)


def group_reasons(reasons: Mapping[str, str]) -> list[tuple[str, list[str]]]:
    """Reasons with the names that they apply to, most names first.

    Reasons that differ only in numbers and paths are merged; N then stands for a number and … for a path.
    """
    groups: dict[str, list[str]] = defaultdict(list)
    for name, reason in reasons.items():
        groups[re.sub(r"0x[0-9a-f]+|\d+", "N", re.sub(r"\S+/\S+", "…", reason))].append(name)
    found = []
    for pattern, names in groups.items():
        wordings = {reasons[name] for name in names}
        found.append((wordings.pop() if len(wordings) == 1 else pattern, sorted(names)))
    return sorted(found, key=lambda group: (-len(group[1]), group[0]))


def draw_sheet(data: PreparedData, recipe: config.Recipe) -> bytes:
    """PNG of a contact sheet; identities that have both modalities are sampled with the recipe's seed.

    Images stored at their original sizes are shown at the recipe's size.
    """
    size = {key: data.manifest[key] or getattr(recipe.data, key) for key in ("height", "width")}
    rows_of: dict[tuple[str, str], list[int]] = defaultdict(list)
    labels = data.labels.to_pylist()
    for number, row in enumerate(labels):
        rows_of[row["identity"], row["modality"]].append(number)
    rng = np.random.default_rng(recipe.seed)
    shown = []
    for identity in _sample(sorted({pid for pid, _ in rows_of if all((pid, m) in rows_of for m in MODALITIES)}), rng):
        chosen = {m: _one_a_camera(rows_of[identity, m], labels, rng) for m in MODALITIES}
        tiles = {
            m: [Tile(images.decode(data.image(row), **size), labels[row]["camera"]) for row in rows]
            for m, rows in chosen.items()
        }
        shown.append(ContactRow(identity, labels[chosen["visible"][0]]["split"], tiles["visible"], tiles["infrared"]))
    shown.sort(key=lambda row: (SPLITS.index(row.split), row.identity))
    kind = ", synthetic" if data.manifest["synthetic"] else ""
    figure = contact_sheet(shown, title=f"{data.manifest['name']}{kind}, data hash {data.hash[:12]}")
    sink = io.BytesIO()
    figure.savefig(sink, format="png", dpi="figure", metadata={"Software": None})
    return sink.getvalue()


def _properties(data: PreparedData) -> list[list[str]]:
    manifest = data.manifest
    shards = manifest["shards"]
    rows = [int(shard["rows"]) for shard in shards]
    size = sum(shard["bytes"] for shard in shards)
    return [
        ["place", data.location.url],
        ["hash", data.hash],
        ["prepared", f"{manifest['created']} by {_code(manifest['code'])}"],
        ["source", str(manifest["source"])],
        ["stored images", _stored(data)],
        ["shards", f"{len(shards)} with {sum(rows)} rows ({min(rows)} to {max(rows)}), {size / 2**20:.1f} MiB"],
        ["verified", "size and SHA-256 of every shard are the manifest's"],
    ]


def _code(code: Mapping[str, Any]) -> str:
    commit = f", commit {code['commit'][:12]}" if "commit" in code else ""
    return f"icre {code['version']}{commit}{' with local changes' if code.get('modified') else ''}"


def _stored(data: PreparedData) -> str:
    """Format, mode and size of all images, from their headers."""
    sizes: dict[str, Counter[tuple[int, int]]] = defaultdict(Counter)
    filesystem, _ = data.location.arrow()
    for path in data.shard_paths:
        with pq.ParquetFile(path, filesystem=filesystem) as file:
            for batch in file.iter_batches(batch_size=256, columns=["image.bytes"]):
                for struct in batch.column(0):
                    kind, size = _kind(struct["bytes"].as_buffer())
                    sizes[kind][size] += 1
    kinds = sorted(sizes.items(), key=lambda item: -item[1].total())
    return "; ".join(f"{of.total()} {kind} of {_span(of)}" for kind, of in kinds)


def _kind(content: Any) -> tuple[str, tuple[int, int]]:
    with Image.open(io.BytesIO(content)) as image:
        colour = {"RGB": "colour", "L": "gray"}[image.mode]
        return f"{image.format} {colour}", (image.height, image.width)


def _span(sizes: Collection[tuple[int, int]]) -> str:
    """The only size, or the sizes with the fewest and the most pixels."""
    ordered = sorted(sizes, key=lambda size: (math.prod(size), size))
    first, last = (f"{height}x{width}" for height, width in (ordered[0], ordered[-1]))
    return first if first == last else f"{first} to {last}"


def _spread(rows: Sequence[Mapping[str, str]]) -> list[list[str]]:
    images_of = Counter((row["split"], row["modality"], row["identity"]) for row in rows)
    found = []
    for split in SPLITS:
        for modality in MODALITIES:
            sizes = [size for (s, m, _), size in images_of.items() if (s, m) == (split, modality)]
            numbers = [min(sizes), statistics.median(sizes), max(sizes)] if sizes else []
            shown = [f"{number:g}" for number in numbers] or ["-"] * 3
            found.append([split, modality, str(len(sizes)), *shown])
    return found


def _reasons(title: str, what: str, reasons: Mapping[str, str]) -> list[str]:
    head = f"## {title}: {len(reasons)}"
    if not reasons:
        return [head]
    lines = []
    for reason, names in group_reasons(reasons):
        more = ", …" if len(names) > EXAMPLES else ""
        lines.append([str(len(names)), reason, ", ".join(names[:EXAMPLES]) + more])
    return [head, markdown_table([what, "reason", "for example"], lines)]


def _sample(identities: Sequence[str], rng: np.random.Generator) -> list[str]:
    return [str(pid) for pid in rng.permutation(identities)[:SHEET_IDENTITIES]]


def _one_a_camera(rows: Sequence[int], labels: Sequence[Mapping[str, str]], rng: np.random.Generator) -> list[int]:
    """Some of one identity's rows, from as many cameras as possible, in camera order."""
    seen: Counter[str] = Counter()
    turns: list[tuple[int, int, int]] = []
    for row in rng.permutation(rows).tolist():
        turns.append((seen[labels[row]["camera"]], len(turns), row))
        seen[labels[row]["camera"]] += 1
    return sorted((row for _, _, row in sorted(turns)[:SHEET_IMAGES]), key=lambda row: (labels[row]["camera"], row))


if __name__ == "__main__":
    run_command(command)
