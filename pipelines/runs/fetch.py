"""Fetch a weights file from the recipe's location to this machine."""

from __future__ import annotations

import shutil
import urllib.error
import urllib.request
from pathlib import Path

from icre.errors import WeightsError
from pipelines.storage import Storage

TIMEOUT_S = 60


def fetch(location: str, folder: Path) -> Path:
    """A local file with the content of ``location``: a path (used in place), https:// or s3:// (into ``folder``).

    Raises WeightsError or StorageError if it cannot be fetched.
    """
    local = folder / (location.rstrip("/").rpartition("/")[2] or "weights")
    if location.startswith(("https://", "http://")):
        try:
            with urllib.request.urlopen(location, timeout=TIMEOUT_S) as response, local.open("wb") as file:
                shutil.copyfileobj(response, file)
        except (OSError, urllib.error.URLError) as error:
            raise WeightsError(
                f"model.weights={location}: cannot be fetched: {error}",
                hint="check the address, or download the file and name its path",
            ) from error
        return local
    if location.startswith("s3://"):
        Storage(location).download(local)
        return local
    return Path(location).expanduser().absolute()
