"""What reaches the console from a Ray session."""

from __future__ import annotations

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
