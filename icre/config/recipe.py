"""The recipe: its sections and the rules between them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, get_args

import yaml
from pydantic import model_validator

from icre.config.retraining import Retrain
from icre.config.sections import (
    FOLDER_CHOICES,
    Augmentation,
    Batch,
    Checkpoints,
    Component,
    Compute,
    Data,
    Evaluation,
    Loss,
    Model,
    Name,
    Optimizer,
    Schedule,
    Section,
    Seed,
    Telemetry,
    Train,
)
from icre.config.tuning import Tune


class Recipe(Section):
    """All settings of a run."""

    name: Name = "icre"
    """Runs are named ``<name>-<date>-<time>`` unless ``--run`` is given."""
    storage: str = "storage"
    """Location of data sets and runs: a folder, or s3://bucket/prefix."""
    seed: Seed = 0
    """Seed of the training: initial weights, batches and augmentation. Splits, gallery draws and synthetic people have
    separate seeds."""
    components: tuple[Component, ...] = get_args(Component)
    """Enabled parts of ICRE; [] is the baseline."""
    data: Data = Data()
    model: Model = Model()
    loss: Loss = Loss()
    batch: Batch = Batch()
    augmentation: Augmentation = Augmentation()
    optimizer: Optimizer = Optimizer()
    schedule: Schedule = Schedule()
    train: Train = Train()
    checkpoints: Checkpoints = Checkpoints()
    compute: Compute = Compute()
    evaluation: Evaluation = Evaluation()
    telemetry: Telemetry = Telemetry()
    retrain: Retrain = Retrain()
    tune: Tune = Tune()

    @model_validator(mode="after")
    def _cross_field_rules(self) -> Recipe:
        broken = [message for ok, message in self._rules() if not ok]
        if broken:
            raise ValueError("\n".join(broken))
        return self

    def _rules(self) -> Iterable[tuple[bool, str]]:
        m, t, split = self.model, self.train, self.data.split
        yield (
            len(set(self.components)) == len(self.components),
            f"components={list(self.components)}: each component at most once",
        )
        yield (
            "icg" not in self.components or self.loss.icg.weight > 0,
            "loss.icg.weight=0 with icg among the components: remove icg, or give it a weight above 0",
        )
        yield m.dim % m.heads == 0, f"model.dim={m.dim} must be a multiple of model.heads={m.heads}"
        yield (
            len(m.mpfr_stages) > 0 and list(m.mpfr_stages) == sorted(set(m.mpfr_stages)),
            f"model.mpfr_stages={list(m.mpfr_stages)}: at least one stage, ascending, each once",
        )
        yield (
            not (self.has("mpfr") and self.has("sdce") and m.sdce_order == "self"),
            "model.sdce_order=self never reads MPFR's map: remove mpfr from components, or change the order",
        )
        yield (
            m.weights is not None or m.weights_sha256 is None,
            "model.weights_sha256 is given without model.weights: name the file, or remove the checksum",
        )
        yield (
            not (m.weights or "").startswith("http://") or m.weights_sha256 is not None,
            f"model.weights={m.weights}: over plain http anybody on the way can change the file: give https://, or "
            "model.weights_sha256",
        )
        fewest, most = t.worker_range
        yield fewest <= most, f"train.workers={[fewest, most]}: the first is the minimum, the second the maximum"
        yield (
            self.batch.identities >= most,
            f"batch.identities={self.batch.identities} must be at least train.workers={most}: "
            "each worker takes whole identities of a batch",
        )
        for workers in range(fewest, most + 1) if self.compute.micro_batches > 1 else ():
            yield (
                self.batch.identities % (workers * self.compute.micro_batches) == 0,
                f"batch.identities={self.batch.identities} must be a multiple of train.workers={workers} x "
                f"compute.micro_batches={self.compute.micro_batches}: every part holds whole identities",
            )
        yield (
            not (self.compute.compile and self.compute.checkpoint_activations),
            "compute.compile=true with compute.checkpoint_activations=true: choose one; "
            "the compiler decides for itself what it keeps for the backward pass",
        )
        yield (
            split.file is None or self.data.source == "folder",
            f"data.split.file={split.file} with data.source={self.data.source}, which has its own identity lists: "
            "remove one of the two",
        )
        yield (
            self.data.trial == 1 or self.data.source == "regdb",
            f"data.trial={self.data.trial} with data.source={self.data.source}: only regdb has numbered splits",
        )
        yield (
            split.file is not None or split.val + split.test < 1,
            f"data.split.val={split.val} + data.split.test={split.test} leaves no identity to train on",
        )
        milestones = self.schedule.milestones
        yield (
            list(milestones) == sorted(set(milestones)),
            f"schedule.milestones={list(milestones)}: ascending, each once",
        )
        own = self.evaluation.model_dump(include=FOLDER_CHOICES)
        changed = {key: value for key, value in own.items() if value != Evaluation.model_fields[key].default}
        yield (
            self.evaluation.protocol == "folder" or not changed,
            f"{', '.join(f'evaluation.{key}={value}' for key, value in changed.items())} with "
            f"evaluation.protocol={self.evaluation.protocol}, which has made this choice: remove it, or choose folder",
        )
        yield (
            self.schedule.warmup_epochs <= t.epochs,
            f"schedule.warmup_epochs={self.schedule.warmup_epochs} is longer than train.epochs={t.epochs}",
        )
        yield from ((False, problem) for problem in self.tune.problems())

    def has(self, component: Component) -> bool:
        """Whether ``component`` is enabled."""
        return component in self.components

    def to_dict(self) -> dict[str, Any]:
        """The recipe as plain JSON types, in the order of the sections."""
        data: dict[str, Any] = self.model_dump(mode="json")
        return data

    def to_yaml(self) -> str:
        """The resolved recipe as YAML; reading it back gives an equal recipe."""
        return yaml.safe_dump(self.to_dict(), sort_keys=False, allow_unicode=True)
