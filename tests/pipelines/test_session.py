"""What reaches the console from a Ray session."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

PROGRAM = """
import sys, threading
from pathlib import Path
from pipelines.runtime.session import ray_messages_to

with ray_messages_to(Path(sys.argv[1])):
    thread = threading.Thread(target=print, args=("a warning of Ray's",), name="ray_listen_error_messages")
    thread.start()
    thread.join()
    print("a result")
print("another")
"""


def test_standard_output_holds_results_only(tmp_path: Path) -> None:
    log = tmp_path / "driver.out"
    done = subprocess.run([sys.executable, "-c", PROGRAM, str(log)], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["a result", "another"]
    assert log.read_text() == "a warning of Ray's\n"


@pytest.mark.usefixtures("ray_cluster")
def test_ray_prints_its_warnings_in_a_thread_of_that_name() -> None:
    assert "ray_listen_error_messages" in {thread.name for thread in threading.enumerate()}


def test_a_ray_that_is_not_there_is_an_error_of_the_users(tmp_path: Path) -> None:
    program = (
        "import sys; from pathlib import Path; from pipelines.runtime.session import Demand, ray_session\n"
        "with ray_session(Path(sys.argv[1]), demand=Demand(1)): pass"
    )
    environment = os.environ | {"RAY_ADDRESS": "127.0.0.1:9"}
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path)], env=environment, capture_output=True, text=True
    )
    assert "UserError: RAY_ADDRESS=127.0.0.1:9: cannot join this Ray cluster" in done.stderr
