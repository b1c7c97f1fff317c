"""Storage checks for the operations the pipeline uses: whole objects, listing, removal and exclusive creation."""

from __future__ import annotations

import os
import secrets
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from email.utils import parsedate_to_datetime

from icre.errors import StorageError
from pipelines.checks.result import CheckResult, judge
from pipelines.storage import Storage

RULE = "write, read, list and delete"
_SKEW_S = (5.0, 60.0)
_TIMEOUT_S = 10.0


def check_storage(storage: Storage) -> Iterator[CheckResult]:
    """Put, read, list and remove an object, and create a lock twice. Raises StorageError for a rejected operation."""
    storage.check_writable()  # no retries: an unavailable store fails within seconds
    folder = storage / f".icre-doctor-{secrets.token_hex(8)}"
    content = secrets.token_bytes(1024)
    try:
        (folder / "object").write_bytes(content)
        whole = (folder / "object").read_bytes() == content
        listed = folder.list() == ["object"]
        taken = [(folder / "lock").create(b"first"), (folder / "lock").create(b"second")]
        kept = (folder / "lock").read_bytes() == b"first"
    finally:
        folder.delete()
    left = folder.list()
    problems = [
        *([] if whole else ["an object came back changed"]),
        *([] if listed else ["what was written is not listed"]),
        *([f"removed, but still listed: {', '.join(left)}"] if left else []),
    ]
    yield judge(
        "storage",
        f"{storage.url}: {'; '.join(problems) or RULE}",
        rule=RULE,
        fix="use a store that shows at once what was written, as S3 does",
        failed=bool(problems),
    )
    yield judge(
        "storage: create once",
        "the second writer is refused" if taken == [True, False] and kept else f"both writers won: {taken}",
        rule="a PUT with If-None-Match: * is refused if the object exists",
        fix="leases and promotion would not hold: use a store with conditional writes, or one scheduler alone",
        failed=taken != [True, False] or not kept,
    )


def clock(storage: Storage) -> Iterator[CheckResult]:
    """Compare this machine's clock with the store's; no finding for a local folder."""
    if not storage.is_remote:
        return
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    yield clock_against(endpoint or f"https://s3.{os.environ.get('AWS_REGION') or 'us-east-1'}.amazonaws.com")


def clock_against(url: str) -> CheckResult:
    """Compare the clock with the Date header of the server at ``url``."""
    request, before = urllib.request.Request(url, method="HEAD"), time.time()
    try:
        with urllib.request.urlopen(request, timeout=_TIMEOUT_S) as answer:
            date = answer.headers.get("Date")
    except urllib.error.HTTPError as error:  # anonymous requests are rejected with a Date header
        date = error.headers.get("Date")
        error.close()
    except (OSError, ValueError) as error:
        raise StorageError(f"no answer from {url}: {error}", hint="check AWS_ENDPOINT_URL and the network") from error
    if not date:
        return CheckResult("clock", "warning", f"{url} tells no date", "within 5 s of the store's", "check it by hand")
    # The header has a resolution of one second.
    skew = parsedate_to_datetime(date).timestamp() + 0.5 - (before + time.time()) / 2
    return judge(
        "clock",
        f"{-skew:+.1f} s from the store's",
        rule=f"within {_SKEW_S[0]:g} s of the store's; leases go by it, and S3 refuses requests that are 15 min off",
        fix="synchronise the clock: timedatectl set-ntp true, chrony",
        failed=abs(skew) > _SKEW_S[1],
        warning=abs(skew) > _SKEW_S[0],
    )


def sees(storage: Storage, name: str, content: bytes) -> CheckResult:
    """Check that this machine reads what another one wrote as ``name``."""
    place = storage / name
    same = place.exists() and place.read_bytes() == content
    return judge(
        "storage: shared",
        "reads what the driver wrote" if same else f"does not see what the driver wrote to {storage.url}",
        rule="every node sees the same storage",
        fix="storage=s3://bucket/prefix, or mount the same disk on every node",
        failed=not same,
    )
