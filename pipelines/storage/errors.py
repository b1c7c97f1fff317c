"""Errors of storage locations, explained to the user. Messages never contain secrets."""

from __future__ import annotations

import errno
import os

from icre.errors import StorageError

_LOCAL_HINTS = {
    errno.EACCES: "allow this user to write there, or use another directory",
    errno.EPERM: "allow this user to write there, or use another directory",
    errno.EROFS: "the disk is read-only; use another directory",
    errno.ENOENT: "create the directory first, or use another one",
    errno.ENOTDIR: "a part of the path is a file; use another directory",
    errno.EEXIST: "a part of the path is a file; use another directory",
    errno.EISDIR: "this is a directory; name a file in it",
    errno.ENOSPC: "free some space, or use another disk",
}


class StorageNotFoundError(StorageError):
    """There is no object at a location."""


def error_code(error: BaseException) -> str:
    """The S3 error code (``NoSuchBucket``, ...) behind an exception of s3fs or botocore; empty if there is none."""
    cause: BaseException | None = error
    while cause is not None:
        response = getattr(cause, "response", None)
        if isinstance(response, dict):
            return str(response.get("Error", {}).get("Code", ""))
        cause = cause.__cause__
    return ""


def explain(error: Exception, *, action: str, url: str) -> StorageError:
    """The error to show for a failed ``action`` (``read``, ``write``, ...) on the location ``url``."""
    code = error_code(error)
    if isinstance(error, FileNotFoundError) and action == "read" and code != "NoSuchBucket":
        return StorageNotFoundError(f"cannot read {url}: nothing is stored there", hint="check the location's spelling")
    if not url.startswith("s3://") or (isinstance(error, OSError) and error.filename):
        return _explain_local(error, f"cannot {action} {url}")
    return _explain_remote(error, f"cannot {action} {url}", code=code, bucket=url[5:].partition("/")[0])


def _explain_local(error: Exception, what: str) -> StorageError:
    number = error.errno if isinstance(error, OSError) else None
    reason = os.strerror(number) if number else str(error)
    place = getattr(error, "filename", None)
    where = f" ({place})" if place and not what.endswith(str(place)) else ""
    return StorageError(f"{what}: {reason}{where}", hint=_LOCAL_HINTS.get(number or 0, "use another directory"))


def _explain_remote(error: Exception, what: str, *, code: str, bucket: str) -> StorageError:
    from botocore.exceptions import ConnectionError as EndpointError  # not needed for local locations
    from botocore.exceptions import HTTPClientError, NoCredentialsError, PartialCredentialsError

    settings = (os.environ.get(name) for name in ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"))
    endpoint = next(filter(None, settings), "the AWS endpoint")
    if code == "NoSuchBucket":
        return StorageError(
            f"{what}: {endpoint} has no bucket {bucket!r}", hint="create the bucket, or correct its name"
        )
    if isinstance(error, NoCredentialsError | PartialCredentialsError):
        return StorageError(
            f"{what}: no complete S3 credentials", hint="set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
        )
    if isinstance(error, PermissionError):
        return StorageError(
            f"{what}: {endpoint} refuses the keys ({code or error})",
            hint="check AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and their rights: list, read, write, delete",
        )
    if isinstance(error, EndpointError | HTTPClientError | ConnectionError | TimeoutError):
        return StorageError(
            f"{what}: no answer from {endpoint} ({type(error).__name__})",
            hint="check AWS_ENDPOINT_URL, that the store runs, and the network between",
        )
    return StorageError(
        f"{what}: {type(error).__name__} {code} from {endpoint}: {error}",
        hint="see the store's own log; if it passes, try again",
    )
