"""The local object store: a real server that refuses strangers, keeps its data, and cleans up."""

from __future__ import annotations

import os
import shlex
import signal
import socket
import subprocess
import sys
import sysconfig
import threading
import time
from pathlib import Path
from typing import Any

import botocore.session
import pytest
from botocore.exceptions import ClientError

from cluster.local.object_store import ObjectStore
from icre.errors import IcreError


def client(environment: dict[str, str], **replaced: str) -> Any:
    """A plain botocore client, independent of the project's own storage layer."""
    values = environment | replaced
    return botocore.session.Session().create_client(
        "s3",
        endpoint_url=values["AWS_ENDPOINT_URL"],
        region_name=values["AWS_REGION"],
        aws_access_key_id=values["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=values["AWS_SECRET_ACCESS_KEY"],
    )


def answers(endpoint: str) -> bool:
    host, _, port = endpoint.removeprefix("http://").rpartition(":")
    with socket.socket() as probe:
        return probe.connect_ex((host, int(port))) == 0


@pytest.mark.parametrize("variable", ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"])
def test_only_its_own_keys_are_accepted(object_store: ObjectStore, variable: str) -> None:
    stranger = client(object_store.environment(), **{variable: "0" * 20})
    with pytest.raises(ClientError) as caught:
        stranger.put_object(Bucket=object_store.bucket, Key="x", Body=b"x")
    assert caught.value.response["ResponseMetadata"]["HTTPStatusCode"] == 403


def test_requests_are_counted_by_kind_and_failed_ones_too() -> None:
    with ObjectStore(bucket="icre-counted") as store:
        s3, before = client(store.environment()), store.requests()
        for key in ("a", "b", "c"):
            s3.put_object(Bucket=store.bucket, Key=key, Body=b"x")
        s3.get_object(Bucket=store.bucket, Key="a")["Body"].read()
        with pytest.raises(ClientError):
            s3.get_object(Bucket=store.bucket, Key="nowhere")
        s3.list_objects_v2(Bucket=store.bucket)
        assert store.requests() - before == {"PUT": 3, "GET": 2, "LIST": 1}


def test_acknowledged_objects_survive_a_kill(object_store: ObjectStore) -> None:
    content = {f"kill/{number}": os.urandom(1 + number * 50_000) for number in range(8)}
    s3 = client(object_store.environment())
    for key, body in content.items():
        s3.put_object(Bucket=object_store.bucket, Key=key, Body=body)
    object_store.kill()
    assert not answers(object_store.endpoint)
    object_store.restart()
    for key, body in content.items():
        assert s3.get_object(Bucket=object_store.bucket, Key=key)["Body"].read() == body


def test_it_outlives_the_thread_that_started_it(object_store: ObjectStore) -> None:
    starter = threading.Thread(target=object_store.restart)
    starter.start()
    starter.join()
    time.sleep(0.5)  # the time it had been dead after
    assert answers(object_store.endpoint)


def test_the_command_serves_until_interrupted() -> None:
    command = [sys.executable, "-m", "cluster.local.object_store", "--bucket", "by-hand"]
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        text=True,
        # A shell starts background jobs, a CI run among them, with Ctrl-C ignored, and children inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    assert process.stdout is not None
    environment = {}
    for line in process.stdout:
        if not line.startswith("export "):
            break
        name, _, value = shlex.split(line)[1].partition("=")
        environment[name] = value
    assert "s3://by-hand" in line
    assert client(environment).list_objects_v2(Bucket="by-hand")["KeyCount"] == 0
    process.send_signal(signal.SIGINT)
    assert process.wait(20) == 0
    process.stdout.close()
    assert not answers(environment["AWS_ENDPOINT_URL"])


def test_nothing_is_left_when_the_start_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    weed = tmp_path / "weed"
    weed.write_text("#!/bin/sh\necho out of order\nexit 3\n")
    weed.chmod(0o755)
    monkeypatch.setattr(sysconfig, "get_path", lambda name: str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    with pytest.raises(IcreError, match="out of order"), ObjectStore():
        pass
    assert not list((tmp_path / "temporary").iterdir())


def test_a_missing_server_is_told_with_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sysconfig, "get_path", lambda name: str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(IcreError) as caught, ObjectStore():
        pass
    assert "icre[dev]" in caught.value.hint
