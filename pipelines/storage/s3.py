"""The S3 client: s3fs that cannot hang, set up by the environment. Imported only where a location is ``s3://``."""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Any

import aiohttp
import s3fs
from botocore.exceptions import BotoCoreError, ClientError

from icre.errors import StorageError

ERRORS = (BotoCoreError, ClientError, aiohttp.ClientError)
"""What a request may raise beside an OSError."""


class _S3(s3fs.S3FileSystem):  # type: ignore[misc]  # s3fs has no types
    """s3fs that cannot hang, also in the worker that it is pickled to."""

    retries = 3  # rounds of botocore's own after a broken transfer

    async def set_session(self, refresh: bool = False, kwargs: Any = None) -> Any:
        """The client, set up so that uploads do not ask first whether they may begin."""
        client = await super().set_session(refresh=refresh, kwargs=kwargs or {})
        client.meta.events.register_last("before-call.s3", _send_at_once, unique_id="icre-send-at-once")
        return client


def _send_at_once(params: dict[str, Any], **_: Any) -> None:
    # botocore asks with `Expect: 100-continue`, and no timeout of aiohttp covers the wait for the answer:
    # with the header, an upload to a store that accepts connections and stays silent never ends.
    params["headers"].pop("Expect", None)


@lru_cache(maxsize=8)
def connect(settings: tuple[tuple[str, str], ...], pid: int, *, patient: bool) -> Any:
    """One client a process and set of AWS variables: making one takes 0.1 s, and it does not survive a fork.

    ``patient`` rides out an outage: 12 repeats with growing pauses, 75 s on average if none succeeds;
    ``AWS_MAX_ATTEMPTS`` says otherwise, as botocore documents it. Without, a dead endpoint shows within seconds.
    """
    attempts = int(dict(settings).get("AWS_MAX_ATTEMPTS", 13)) if patient else 2
    for name in ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3"):
        _check_endpoint(name, dict(settings).get(name))
    region = dict(settings).get("AWS_REGION")  # botocore itself reads AWS_DEFAULT_REGION alone
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
    """Refuse what botocore would report as a ValueError, or what would put a password into messages."""
    if value and not re.fullmatch(r"https?://[^@/?]+/?[^@?]*", value):
        shown = "(not shown)" if "@" in value or "?" in value else repr(value)
        raise StorageError(f"{name} {shown} is not an endpoint", hint="http://host:port or https://host")
