"""The model of docs/scaling.md: seconds of a training step on W workers, from computation and communication.

    python -m benchmarks.scaling_model        # its table for GPUs

:mod:`benchmarks.scaling` measures the constants of a machine and compares.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil, log2
from pathlib import Path

import torch
from torch import nn

from icre import config
from icre.model.build import build_network
from icre.model.complexity import OPTIMIZER_FLOATS, complexity

CLASSES = 395
FIRST_BUCKET, BUCKET = 2**20, 25 * 2**20
"""Bucket sizes of DistributedDataParallel's gradients."""
PREDICTED = ((1, 8), (2, 8), (4, 8), (8, 8), (8, 64), (64, 64), (64, 320), (64, 512), (256, 256), (256, 2048))
"""Workers and identities of a batch: each worker needs at least one identity."""


def main() -> None:
    """Print the model's predictions for GPUs."""
    print(prediction_markdown())


@dataclass(frozen=True)
class Network:
    """Properties of a network and its batch that determine the traffic of a step; bytes."""

    gradient_bytes: int
    feature_dim: int
    batch_norms: int
    batch_norm_channels: int
    """Channels of all batch norms together."""
    state_bytes: int
    """Weights, running statistics and optimiser state: the size of a checkpoint."""

    @property
    def buckets(self) -> int:
        """Number of buckets in which DistributedDataParallel sends the gradients."""
        return 1 + ceil(max(0, self.gradient_bytes - FIRST_BUCKET) / BUCKET)

    def gathered_bytes(self, batch: int) -> int:
        """Features, labels and modalities of all images, on each worker."""
        return batch * (4 * self.feature_dim + 8 + 1)

    def statistics_bytes(self, workers: int) -> tuple[int, int]:
        """Means, variances and counts gathered in the forward pass, and sums reduced in the backward pass."""
        return workers * 4 * (2 * self.batch_norm_channels + self.batch_norms), 4 * 2 * self.batch_norm_channels


@dataclass(frozen=True)
class Machine:
    """The model's constants; see docs/scaling.md for the formula."""

    fixed_s: float
    """Seconds per step, independent of the batch."""
    image_s: float
    """Seconds per image that a worker computes."""
    latency_s: float
    """Seconds of one hop of a collective."""
    bandwidth: float
    """Bytes per second between neighbours."""
    copy_bandwidth: float
    """Bytes per second from device to host memory, for a checkpoint."""
    ring: bool
    """Small collectives go once around a ring (gloo); False: through a tree (NCCL)."""

    def hops(self, workers: int) -> int:
        """Hops of a small collective, one way."""
        return workers - 1 if self.ring else ceil(log2(workers))


@dataclass(frozen=True)
class Step:
    """Seconds of a step's parts."""

    compute: float
    gradients: float
    features: float
    batch_norm: float
    checkpoint: float

    @property
    def total(self) -> float:
        """Seconds of the step, assuming no overlap."""
        return self.compute + self.gradients + self.features + self.batch_norm + self.checkpoint


def predict(
    network: Network,
    machine: Machine,
    *,
    workers: int,
    batch: int,
    sharing: float = 1.0,
    checkpoint_every_s: float = 600.0,
) -> Step:
    """Predict a step of ``batch`` images on ``workers`` workers with the model of docs/scaling.md.

    sharing: slowdown of a worker's computation relative to running alone, where workers share cores.
    """
    w, hops, wire = workers, machine.hops(workers), machine.bandwidth
    ring = (w - 1) / w
    features, (gathered, reduced) = network.gathered_bytes(batch), network.statistics_bytes(w)
    # A gather goes once around, a reduction twice. Besides features: labels, modalities; loss terms, flags.
    parts = {
        "compute": sharing * (machine.fixed_s + machine.image_s * batch / w),
        "gradients": 2 * ring * network.gradient_bytes / wire + 2 * hops * machine.latency_s * network.buckets,
        "features": 3 * ring * features / wire + (3 + 3 * 2) * hops * machine.latency_s,
        "batch_norm": ring * (gathered + 2 * reduced) / wire + (1 + 2) * hops * machine.latency_s * network.batch_norms,
    }
    stall_s = network.state_bytes / machine.copy_bandwidth
    return Step(**parts, checkpoint=stall_s * sum(parts.values()) / checkpoint_every_s)


def network_of(recipe: config.Recipe) -> Network:
    """Derived from shapes alone."""
    with torch.device("meta"):
        network = build_network(recipe, classes=CLASSES)
    norms = [m.num_features for m in network.modules() if isinstance(m, nn.BatchNorm1d | nn.BatchNorm2d)]
    gradients = sum(p.nbytes for p in network.parameters() if p.requires_grad)
    weights = sum(tensor.nbytes for tensor in (*network.parameters(), *network.buffers()))
    return Network(
        gradient_bytes=gradients,
        feature_dim=network.head.neck.num_features,
        batch_norms=len(norms),
        batch_norm_channels=sum(norms),
        state_bytes=weights + OPTIMIZER_FLOATS[recipe.optimizer.name] * gradients,
    )


def prediction_markdown() -> str:
    """Predictions for the SYSU recipe on GPUs; the constants are assumptions."""
    recipe = config.load_recipe(Path(__file__).resolve().parents[1] / "configs" / "sysu-sgd.yaml")
    network, gpu = network_of(recipe), gpu_of(recipe)
    each = recipe.batch.visible + recipe.batch.infrared
    lines = [
        "| GPUs | identities P | images a GPU | step ms | compute | gradients | features | batch norm | images/s "
        "| of ideal |",
        "|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    alone = predict(network, gpu, workers=1, batch=recipe.batch.size)
    for workers, identities in PREDICTED:
        batch = identities * each
        step = predict(network, gpu, workers=workers, batch=batch)
        ideal = workers * recipe.batch.size / alone.total
        parts = [step.total, step.compute, step.gradients, step.features, step.batch_norm]
        lines.append(
            f"| {workers} | {identities} | {batch // workers} | "
            + " | ".join(f"{1000 * part:.1f}" for part in parts)
            + f" | {batch / step.total:.0f} | {100 * batch / step.total / ideal:.0f} % |"
        )
    return "\n".join(lines)


def gpu_of(recipe: config.Recipe) -> Machine:
    """A GPU of an assumed cluster, without any measurement."""
    macs = complexity(recipe, classes=CLASSES).total.macs
    return Machine(
        fixed_s=0.010,
        image_s=6 * macs / 20e12,
        latency_s=10e-6,
        bandwidth=400e9 / 8,
        copy_bandwidth=10e9,
        ring=False,
    )


if __name__ == "__main__":
    main()
