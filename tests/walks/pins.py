"""The numbers of the README's road with a fixed seed. `python -m tests.walks.pins` writes them anew.

Only a change that means to change a number has a reason to do that.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from pathlib import Path
from typing import Any

from tests.walks.commands import block_with
from tests.walks.walking import SAME_ARITHMETIC, Folder, plain_environment, write_recipes

FILE = Path(__file__).with_name("pins.json")
NEEDED = ("synthesize", "prepare", "train", "evaluate")

# Nothing of ICRE: what a processor and the libraries make of the same sums. All kinds of layers that a network like
# this one has, in both passes, and the functions by which images are drawn.
PLAIN = """
import hashlib
import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

torch.manual_seed(0)
torch.set_num_threads(1)
stem = nn.Sequential(nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64), nn.ReLU(), nn.MaxPool2d(3, 2, 1))
body = nn.Sequential(
    nn.Conv2d(64, 64, 3, 1, 1, bias=False), nn.BatchNorm2d(64), nn.ReLU(),
    nn.Conv2d(64, 128, 3, 2, 1, bias=False), nn.BatchNorm2d(128), nn.ReLU(),
    nn.Conv2d(128, 256, 1, 2, bias=False), nn.BatchNorm2d(256), nn.ReLU(),
)
attention, head = nn.MultiheadAttention(256, 4, batch_first=True), nn.Linear(256, 10)
network = nn.ModuleList([stem, body, attention, head])
optimizer = torch.optim.SGD(network.parameters(), lr=0.01, momentum=0.9, weight_decay=5e-4)
for _ in range(4):
    maps = body(stem(F.interpolate(torch.randn(16, 3, 60, 30), (64, 32), mode="bilinear")))
    tokens = maps.flatten(2).transpose(1, 2)
    features = attention(tokens, tokens, tokens)[0].clamp(min=1e-6).pow(3).mean(1).pow(1 / 3)
    distances = torch.cdist(features, features).mean()
    loss = F.cross_entropy(head(F.normalize(features)), torch.arange(16) % 10) + distances
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
digest = hashlib.sha256()
for value in network.state_dict().values():
    digest.update(value.numpy().tobytes())
line = np.linspace(0.01, 20, 100_000)
for function in (np.sin, np.cos, np.exp, np.log, np.sqrt):
    digest.update(function(line).tobytes())
    digest.update(function(line.astype(np.float32)).tobytes())
print(digest.hexdigest())
"""


def fingerprint(folder: Folder) -> str:
    """Hash of a plain torch computation on this machine, in the environment in which the numbers are pinned."""
    before = folder.environment
    folder.environment = before | SAME_ARITHMETIC
    try:
        return folder.run("python", "-c", PLAIN).last_line
    finally:
        folder.environment = before


def images(folder: Folder) -> str:
    """SHA-256 of the synthetic images."""
    root, digest = folder / "storage/images/demo", hashlib.sha256()
    for path in sorted(root.rglob("*.jpg")):
        digest.update(path.relative_to(root).as_posix().encode() + path.read_bytes())
    return digest.hexdigest()


def numbers(folder: Folder) -> dict[str, Any]:
    """Losses of all steps, and metrics of both networks."""
    training = folder.training("mine")
    losses = [row["loss"] for row in training.rows("step")]
    return {"losses": losses, **{checkpoint: training.metrics(checkpoint) for checkpoint in ("best", "untrained")}}


def main() -> None:
    """Walk the road in an empty folder and write the numbers."""
    with tempfile.TemporaryDirectory(prefix="icre-pins-") as scratch:
        (base := Path(scratch) / "logs").mkdir()
        environment = plain_environment(Path(scratch) / "cache") | SAME_ARITHMETIC
        folder = Folder(Path(scratch) / "road", environment, base, started := [])
        try:
            write_recipes(folder.path)
            for words in block_with("icre synthesize --config configs/demo.yaml"):
                if words[1] in NEEDED:
                    folder.run(*words)
            found = {
                "fingerprint": fingerprint(folder),
                "images": images(folder),
                "weights": folder.training("mine").weights,
                **numbers(folder),
            }
        finally:
            for running in started:
                running.kill()
    FILE.write_text(json.dumps(found, indent=2) + "\n")
    print(f"wrote {FILE}")


if __name__ == "__main__":
    main()
