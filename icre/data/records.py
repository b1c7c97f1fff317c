"""Metadata of an image before and after preparation.

A source (``icre.data.sources``) turns a data set's own layout into records; ``prepare`` turns records into
Parquet rows of ``PARQUET_SCHEMA``; all later steps read rows.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Literal

import pyarrow as pa

Modality = Literal["visible", "infrared"]
MODALITIES: tuple[Modality, Modality] = ("visible", "infrared")

SplitName = Literal["train", "val", "test"]
SPLITS: tuple[SplitName, SplitName, SplitName] = ("train", "val", "test")


@dataclass(frozen=True, slots=True, order=True)
class Record:
    """One image file of a data set. Records sort by identity, modality, camera, then path."""

    pid: str
    """Identity."""
    modality: Modality
    camid: str
    """Camera."""
    path: str
    """Path relative to the data set's root, with forward slashes."""


def _huggingface_features() -> bytes:
    """Schema metadata with which Hugging Face ``datasets`` decodes the ``image`` struct as an Image."""
    strings = ("identity", "modality", "camera", "split", "source", "sha256")
    features: dict[str, dict[str, str]] = {"image": {"_type": "Image"}}
    features |= {name: {"dtype": "string", "_type": "Value"} for name in strings}
    return json.dumps({"info": {"features": features}}).encode()


PARQUET_SCHEMA = pa.schema(
    [
        pa.field("image", pa.struct([("bytes", pa.binary()), ("path", pa.string())])),
        pa.field("identity", pa.string()),
        pa.field("modality", pa.string()),
        pa.field("camera", pa.string()),
        pa.field("split", pa.string()),
        pa.field("source", pa.string()),
        pa.field("sha256", pa.string()),
    ],
    metadata={b"huggingface": _huggingface_features()},
)
"""One row per image: encoded bytes and original path, labels, and the SHA-256 of the original file."""

LABEL_COLUMNS = ("identity", "modality", "camera", "split")
"""Columns needed to plan batches, without reading pixels."""
