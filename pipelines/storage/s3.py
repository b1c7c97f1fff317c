"""The S3 client: s3fs that cannot hang, configured by the environment. Imported only for ``s3://`` locations."""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Any

import aiohttp
import s3fs
from botocore.exceptions import BotoCoreError, ClientError

from icre.errors import StorageError

ERRORS = (BotoCoreError, ClientError, aiohttp.ClientError)
"""Exceptions that a request may raise besides OSError."""


class _S3(s3fs.S3FileSystem):  # type: ignore[misc]  # s3fs has no types
    """s3fs that cannot hang, even in a worker that it is pickled to."""

    retries = 3  # rounds of botocore's own retries after a broken transfer

    async def set_session(self, refresh: bool = False, kwargs: Any = None) -> Any:
        """The client, configured to upload without ``Expect: 100-continue``."""
        client = await super().set_session(refresh=refresh, kwargs=kwargs or {})
        client.meta.events.register_last("before-call.s3", _send_at_once, unique_id="icre-send-at-once")
        return client


def _send_at_once(params: dict[str, Any], **_: Any) -> None:
    # No timeout of aiohttp covers the wait for the answer to botocore's `Expect: 100-continue`: with the header, an
    # upload to a store that accepts connections but does not answer never ends.
    params["headers"].pop("Expect", None)


@lru_cache(maxsize=8)
def connect(settings: tuple[tuple[str, str], ...], pid: int, *, patient: bool) -> Any:
    """One client per process and set of AWS variables: creating one takes 0.1 s, and it does not survive a fork.

    ``patient`` rides out an outage with 12 retries at growing intervals, 75 s on average if none succeeds;
    ``AWS_MAX_ATTEMPTS`` overrides this, as botocore documents it. Otherwise a dead endpoint fails within seconds.
    """
    attempts = int(dict(settings).get("AWS_MAX_ATTEMPTS", 13)) if patient else 2
    for name in ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3"):
        _check_endpoint(name, dict(settings).get(name))
    region = dict(settings).get("AWS_REGION")  # botocore itself reads only AWS_DEFAULT_REGION
    fs = _S3(
        client_kwargs={"region_name": region} if region else {},
        config_kwargs={
            "retries": {"total_max_attempts": attempts, "mode": "standard"},
            "connect_timeout": 5 if patient else 3,
            "read_timeout": 30 if patient else 4,
        },
        use_listings_cache=False,  # other processes write, too
        skip_instance_cache=True,
    )
    if not patient:
        fs.retries = 1
    return fs


def _check_endpoint(name: str, value: str | None) -> None:
    """Reject values that botocore would report as a ValueError, or that would put a password into messages."""
    if value and not re.fullmatch(r"https?://[^@/?]+/?[^@?]*", value):
        shown = "(not shown)" if "@" in value or "?" in value else repr(value)
        raise StorageError(f"{name} {shown} is not an endpoint", hint="http://host:port or https://host")
