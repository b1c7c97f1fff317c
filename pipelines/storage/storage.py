"""Storage of runs, data sets and checkpoints: one interface to a local directory or ``s3://bucket/prefix``.

Credentials and the endpoint of an S3 store come from the environment, as botocore documents them
(``AWS_ACCESS_KEY_ID``, ``AWS_SECRET_ACCESS_KEY``, ``AWS_ENDPOINT_URL``, ``AWS_REGION``), never from the URL.

Both kinds give two guarantees:

- A reader sees a whole object or none. Local files are written next to their target, synced and renamed; S3 objects
  are put in one request.
- Every failure of the location is a :class:`~icre.errors.StorageError` with a hint.

S3 requests are retried for about a minute, so a store's restart goes unnoticed; ``AWS_MAX_ATTEMPTS`` changes how often.
"""

from __future__ import annotations

import builtins
import json
import os
import re
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fsspec.implementations.local import LocalFileSystem

from icre.errors import StorageError
from pipelines.storage.errors import StorageNotFoundError, error_code, explain

if TYPE_CHECKING:
    import pyarrow.fs

_ERROR: Any = object()
_PARTIAL = ".partial"
_WRITER = "icre-writer"
_DELETE_LIMIT = 1000  # keys per DeleteObjects request


@dataclass(frozen=True)
class Storage:
    """A location; ``storage / "runs/a"`` is a location below it. Compared, hashed and pickled by URL.

    ``url`` is a local path (made absolute) or ``s3://bucket/prefix``. Raises :class:`StorageError` for
    another scheme, a malformed bucket name, or an S3 URL that contains credentials or options.
    """

    url: str

    def __init__(self, url: str | Path) -> None:
        object.__setattr__(self, "url", _normalised(str(url)))

    def __str__(self) -> str:
        return self.url

    def __truediv__(self, relative: str) -> Storage:
        if any(part in ("", ".", "..") for part in relative.split("/")):
            raise StorageError(
                f"{relative!r} is not a path below {self.url}",
                hint="join plain names with single slashes, without '.' or '..'",
            )
        return Storage(f"{self.url.rstrip('/')}/{relative}")

    @property
    def is_remote(self) -> bool:
        """Whether this is an S3 location."""
        return self.url.startswith("s3://")

    @property
    def name(self) -> str:
        """The last component of the path."""
        return self._path.rpartition("/")[2]

    # Whole objects

    def read_bytes(self) -> bytes:
        """The object's content. Raises :class:`StorageNotFoundError` if there is none."""
        with self._reported("read"):
            if self.is_remote:
                # One request: parallel ranges could mix two versions of an object that is being replaced.
                content: bytes = self._fs.cat_file(self._path, max_concurrency=1)
                return content
            return Path(self.url).read_bytes()

    def read_text(self) -> str:
        """The content as UTF-8."""
        try:
            return self.read_bytes().decode()
        except UnicodeDecodeError as error:
            raise StorageError(f"{self.url} is not UTF-8 text: {error}", hint="replace it by a text file") from error

    def read_json(self, *, default: Any = _ERROR) -> Any:
        """The content as a JSON value; ``default``, if given, when there is no such object."""
        try:
            return json.loads(self.read_text())
        except StorageNotFoundError:
            if default is _ERROR:
                raise
            return default
        except json.JSONDecodeError as error:
            raise StorageError(f"{self.url} is not JSON: {error}", hint="write it again, or remove it") from error

    def write_bytes(self, data: bytes) -> None:
        """Write or replace the object, whole or not at all; local parent directories are created."""
        with self._reported("write"):
            if self.is_remote:
                self._fs.pipe_file(self._path, data)
            else:
                with _replacing(Path(self.url)) as partial:
                    partial.write_bytes(data)

    def write_text(self, text: str) -> None:
        """Like :meth:`write_bytes`, as UTF-8."""
        self.write_bytes(text.encode())

    def write_json(self, value: Any) -> None:
        """Like :meth:`write_bytes`, as indented JSON with a final newline."""
        self.write_text(json.dumps(value, indent=2) + "\n")

    def create(self, data: bytes) -> bool:
        """Write the object unless it exists; of any number of writers, exactly one gets True."""
        with self._reported("create"):
            return self._create_remote(data) if self.is_remote else self._create_local(data)

    def upload(self, local: str | Path) -> None:
        """Copy a local file here, whole or not at all, without reading all of it into memory."""
        if not Path(local).is_file():
            raise StorageNotFoundError(f"cannot upload {local}: there is no such file", hint="check the path")
        with self._reported("write"):
            if self.is_remote:
                self._fs.put_file(str(local), self._path)
            else:
                with _replacing(Path(self.url)) as partial:
                    shutil.copyfile(local, partial)

    def download(self, local: str | Path) -> None:
        """Copy the object to a local file, whole or not at all; parent directories are created."""
        with self._reported("read"), _replacing(Path(local)) as partial:
            if self.is_remote:
                self._fs.get_file(self._path, str(partial), max_concurrency=1)  # as in read_bytes
            else:
                shutil.copyfile(self.url, partial)

    # Lookup and deletion

    def exists(self) -> bool:
        """Whether there is an object here or anything below."""
        with self._reported("look up"):
            return bool(self._fs.exists(self._path))

    def size(self) -> int:
        """Size in bytes. Raises :class:`StorageNotFoundError` for a directory, or if there is no object."""
        with self._reported("read"):
            found = self._fs.info(self._path)
            if found["type"] != "file":
                raise FileNotFoundError(self.url)
            return int(found["size"])

    def list(self) -> builtins.list[str]:
        """The names directly below, sorted; empty if there is nothing."""
        with self._reported("list"):
            try:
                paths = self._fs.ls(self._path, detail=False)
            except FileNotFoundError as error:
                if error_code(error) == "NoSuchBucket":
                    raise
                return []
        return sorted(path.rstrip("/").rpartition("/")[2] for path in paths if self._is_shown(path))

    def walk_files(self) -> builtins.list[str]:
        """The relative paths of all objects below, sorted; empty if there is nothing."""
        with self._reported("list"):
            paths = self._fs.find(self._path)
        return sorted(path[len(self._path) + 1 :] for path in paths if self._is_shown(path))

    def delete(self) -> None:
        """Remove the object and everything below it; a no-op if there is nothing."""
        if "/" not in self._path.strip("/"):
            raise StorageError(f"will not delete all of {self.url}", hint="name a directory inside it")
        with self._reported("delete"):
            if self.is_remote:
                self._delete_remote()
                return
            path = Path(self.url)
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)

    # Use by other libraries

    def arrow(self) -> tuple[pyarrow.fs.FileSystem, str]:
        """The pyarrow file system and the path in it, for Parquet and Ray's ``storage_filesystem``.

        Its streams commit what was written so far when their ``with`` block fails: for whole objects, write
        to a buffer or a local file first. Unlike pyarrow's own S3 file system, it keeps the retries of this
        module when pickled.
        """
        import pyarrow.fs  # commands that only look something up do not need it

        if self.is_remote:
            return pyarrow.fs.PyFileSystem(pyarrow.fs.FSSpecHandler(self._fs)), self._path
        return pyarrow.fs.LocalFileSystem(), self._path

    def check_writable(self) -> None:
        """Write, read and delete a small object, to fail within seconds rather than after hours of work.

        Raises :class:`StorageError` for a missing bucket, refused keys, an unreachable endpoint, a directory
        that is not writable, or a path that is a file.
        """
        fs = _filesystem(remote=self.is_remote, patient=False)
        probe, content = f"{self._path}/.icre-probe-{secrets.token_hex(8)}", b"icre"
        with self._reported("write to"):
            fs.pipe_file(probe, content)
        with self._reported("read from"):
            back = fs.cat_file(probe)
        with self._reported("delete from"):
            fs.rm_file(probe)
        if back != content:
            raise StorageError(
                f"{self.url} gave back {back!r} for {content!r}", hint="the store is damaged; use another"
            )

    # Internals

    @property
    def _path(self) -> str:
        """The location without the scheme, as fsspec and pyarrow write it."""
        return self.url.removeprefix("s3://")

    @property
    def _fs(self) -> Any:
        return _filesystem(remote=self.is_remote, patient=True)

    @contextmanager
    def _reported(self, action: str) -> Iterator[None]:
        """Convert exceptions of fsspec, botocore and the operating system to errors for users."""
        try:
            yield
        except self._errors as error:
            raise explain(error, action=action, url=self.url) from error

    @property
    def _errors(self) -> tuple[type[Exception], ...]:
        """Exceptions caused by the location rather than by the program."""
        if not self.is_remote:
            return (OSError,)
        from pipelines.storage import s3

        return (OSError, *s3.ERRORS)

    def _is_shown(self, path: str) -> bool:
        """False for the location itself, which S3 may list, and for a write in progress."""
        return path.rstrip("/") != self._path and not path.endswith(_PARTIAL)

    def _create_local(self, data: bytes) -> bool:
        target = Path(self.url)
        with _partial(target) as partial:
            partial.write_bytes(data)
            _sync(partial)
            try:
                os.link(partial, target)
            except FileExistsError:
                return False
        return True

    def _create_remote(self, data: bytes) -> bool:
        writer = secrets.token_hex(16)
        try:
            self._fs.pipe_file(self._path, data, mode="create", Metadata={_WRITER: writer})
        except OSError as error:
            if error_code(error) != "PreconditionFailed":
                raise
            # The object may be our own, from a request that was retried because its answer got lost.
            return bool(self._fs.metadata(self._path).get(_WRITER) == writer)
        return True

    def _delete_remote(self) -> None:
        bucket, _, key = self._path.partition("/")
        found = self._fs.find(self._path, withdirs=True, detail=True)
        inside = (entry for entry in found.values() if entry["name"].startswith(f"{self._path}/"))
        below = {entry["name"][len(bucket) + 1 :]: entry["type"] for entry in inside}
        keys = [key, *(name for name, kind in below.items() if kind == "file")]
        for first in range(0, len(keys), _DELETE_LIMIT):
            objects = [{"Key": name} for name in keys[first : first + _DELETE_LIMIT]]
            request = {"Objects": objects, "Quiet": True}
            answer = self._fs.call_s3("delete_objects", Bucket=bucket, Delete=request)
            for failure in answer.get("Errors", []):  # s3fs' own rm() ignores them
                kind = PermissionError if failure["Code"] == "AccessDenied" else OSError
                raise kind(f"{failure['Code']} for s3://{bucket}/{failure['Key']}")
        # Some stores keep an emptied directory as a key that ends in a slash.
        folders = {key, *(name for name, kind in below.items() if kind == "directory")}
        for folder in sorted(folders, key=len, reverse=True):
            self._fs.call_s3("delete_object", Bucket=bucket, Key=f"{folder.rstrip('/')}/")


def _normalised(url: str) -> str:
    """The URL without trailing slashes; a local path is made absolute. No message contains a secret."""
    scheme, mark, rest = url.partition(":/")
    if not url:
        raise StorageError("a storage location is empty", hint="name a directory, or s3://bucket/prefix")
    if not mark or "/" in scheme:
        return str(Path(url).expanduser().absolute())
    if scheme != "s3" or not rest.startswith("/"):
        raise StorageError(
            f"storage scheme {scheme + '://'!r} is not supported",
            hint="use a local directory without a scheme, or s3://bucket/prefix",
        )
    bucket, _, prefix = rest[1:].partition("/")
    if "@" in bucket or ":" in bucket or "?" in rest:
        raise StorageError(
            "an s3:// URL carries credentials or options (not shown)",
            hint="set AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and AWS_ENDPOINT_URL; the URL is s3://bucket/prefix",
        )
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{1,61}[A-Za-z0-9]", bucket):
        raise StorageError(
            f"{bucket!r} is not a bucket name",
            hint="s3://bucket/prefix, 3 to 63 letters, digits, '.', '-' or '_'",
        )
    return "s3://" + "/".join([bucket, *(part for part in prefix.split("/") if part)])


@contextmanager
def _partial(target: Path) -> Iterator[Path]:
    """A path next to ``target`` for its future content; removed at the end."""
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.parent / f".{secrets.token_hex(8)}{_PARTIAL}"
    try:
        yield partial
    finally:
        partial.unlink(missing_ok=True)


@contextmanager
def _replacing(target: Path) -> Iterator[Path]:
    """Like :func:`_partial`; the file written there replaces ``target`` if the block succeeds."""
    with _partial(target) as partial:
        yield partial
        _sync(partial)
        partial.replace(target)


def _sync(path: Path) -> None:
    """Wait until the file is on disk: otherwise, after a power cut, a rename may survive without the content."""
    with path.open("rb") as file:
        os.fsync(file.fileno())


def _filesystem(*, remote: bool, patient: bool) -> Any:
    if not remote:
        return LocalFileSystem(auto_mkdir=True)
    from pipelines.storage import s3

    settings = tuple(sorted(item for item in os.environ.items() if item[0].startswith("AWS_")))
    return s3.connect(settings, os.getpid(), patient=patient)
