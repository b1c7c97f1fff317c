"""The report as a browser draws it."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.pipelines.test_report_page import page as example_page

FLAGS = "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
FLAGS += "--disable-component-update --disable-sync"


@pytest.mark.timeout(180)
def test_a_browser_draws_the_page_without_a_network(tmp_path: Path) -> None:
    browser = shutil.which("chromium")
    if browser is None:
        if os.environ.get("ICRE_REQUIRE_BROWSER"):
            pytest.fail("ICRE_REQUIRE_BROWSER is set and there is no chromium")
        pytest.skip("no chromium on this machine")
    page = tmp_path / "index.html"
    page.write_text(example_page())
    shot = tmp_path / "page.png"
    command = [browser, *FLAGS.split(), f"--user-data-dir={tmp_path}/user"]
    subprocess.run(
        [*command, f"--screenshot={shot}", "--window-size=1000,2000", page.as_uri()],
        check=True,
        capture_output=True,
        timeout=120,
    )
    pixels = np.asarray(Image.open(shot).convert("RGB"))
    assert pixels.shape == (2000, 1000, 3)
    # A page that failed to draw is one colour; text and the loss curve bring many.
    assert len(np.unique(pixels.reshape(-1, 3), axis=0)) > 200
    inked = (np.abs(pixels.astype(int) - pixels[0, 0]).max(axis=2) > 40).any(axis=1)
    assert inked.mean() > 0.2
