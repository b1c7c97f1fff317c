"""The method is a library of its own: it imports, and runs, where nothing of the cluster is installed."""

from __future__ import annotations

import json
import subprocess
import sys

ABSENT = ("ray", "s3fs", "fsspec", "prometheus_client", "torchvision", "pipelines", "cluster")

PROGRAM = """
import importlib, json, pkgutil, sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {absent}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Absent())
import icre

names = [module.name for module in pkgutil.walk_packages(icre.__path__, "icre.")]
for name in names:
    importlib.import_module(name)

from icre.config import load_recipe
from icre.model.build import build_network

recipe = load_recipe(None, ["model.backbone=resnet18", "model.dim=32"])
network = build_network(recipe, classes=3)
loaded = sorted({{name.partition(".")[0] for name in sys.modules}} & set({absent}))
print(json.dumps({{"names": names, "loaded": loaded}}))
"""


def test_every_module_imports_without_the_cluster() -> None:
    program = PROGRAM.format(absent=ABSENT)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["loaded"] == []
    assert {"icre.training.step", "icre.evaluation.diagnostics", "icre.data.sources.folder"} <= set(found["names"])
