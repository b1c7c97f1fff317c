"""Two rows of a table of ablations. One process, two trainings."""

from __future__ import annotations

import pytest

from tests.walks.conftest import Road
from tests.walks.walking import table

pytestmark = pytest.mark.timeout(1800)


def test_two_rows_of_a_table(road: Road, running_ray: dict[str, str]) -> None:
    """Each row is trained and evaluated; the table is printed, and written where the last line says."""
    folder, before = road.folder.on(running_ray), road.folder.runs()
    rows = ["--only", "baseline", "--only", "ICG"]
    told = folder.run(
        "icre", "ablate", "--config", "configs/ablation-synthetic.yaml", "--table", "components", "--seeds", "1", *rows
    )
    trained = folder.runs() - before
    assert len(trained) == 2
    assert all(folder.training(run).state == "finished" for run in trained)
    printed = table(told.out)
    assert {"baseline", "ICG"} <= printed.keys()
    assert [printed[row][0] for row in ("baseline", "ICG")] == ["1", "1"]
    written = table((folder / "storage/ablations/ablation-synthetic-components/table.md").read_text())
    assert written.items() <= printed.items()  # what is printed begins with what was prepared
    for run in trained:
        for value in folder.training(run).metrics("best").values():
            assert f"{100 * value:.1f}" in told.out
