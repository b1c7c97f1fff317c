"""Sections of a recipe, one class each, with a docstring below every field.

All fields have defaults, taken from docs/method.md §3, the SGD recipe of the AGW/CAJ/DEEN line.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

Component = Literal["mpfr", "sdce", "icg"]
"""The three parts that ICRE adds to the baseline (Table "components" of the paper)."""

Precision = Literal["fp32", "bf16"]
"""Number formats of the network's forward pass."""

OptimizerName = Literal["sgd", "adam", "adamw"]

ProtocolName = Literal[
    "folder",
    "sysu-all-single",
    "sysu-all-multi",
    "sysu-indoor-single",
    "sysu-indoor-multi",
    "sysu-all-single-official",
    "sysu-all-multi-official",
    "sysu-indoor-single-official",
    "sysu-indoor-multi-official",
    "regdb",
    "llcm",
    "llcm-drawn-queries",
]
"""Evaluation protocols, defined in icre/evaluation/protocols.py."""

FOLDER_CHOICES = {"trials", "shots", "camera_rule", "cmc", "seed"}
"""Keys of ``evaluation`` that are fixed by every protocol but ``folder``."""

Seed = Annotated[int, Field(ge=0, lt=2**31)]
Share = Annotated[float, Field(ge=0.0, le=1.0)]
Positive = Annotated[int, Field(ge=1)]
PositiveFloat = Annotated[float, Field(gt=0.0)]
NonNegative = Annotated[float, Field(ge=0.0)]
Count = Annotated[int, Field(ge=0)]
Workers = Count | tuple[Positive, Positive]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=80)]


class Section(BaseModel):
    """Base of every section: unknown keys are errors, values are immutable."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False)


class Synthetic(Section):
    """Procedural people, for demos and tests; results on them do not apply to real footage."""

    identities: Positive = 96
    """Number of identities."""
    images_per_modality: Positive = 10
    """Images of each identity in each modality."""
    visible_cameras: Positive = 4
    """Number of colour cameras."""
    infrared_cameras: Positive = 2
    """Number of infrared cameras."""
    difficulty: Share = 0.4
    """0: little but the identity varies. 1: viewpoint, occlusion and noise hide most of it."""
    seed: Seed = 0
    """Seed of the synthetic people, independent of the recipe's ``seed``."""


class Split(Section):
    """Training, validation and test identities; each identity is in exactly one of the three."""

    file: str | None = None
    """JSON ``{"train": [...], "val": [...], "test": [...]}`` of identities, relative to ``data.root``."""
    val: Share = 0.1
    """Without a file: share of identities held out from training to choose the best epoch."""
    test: Share = 0.5
    """Without a file: share of identities held out for testing; benchmark sources have their own. Membership is a hash
    of the identity's name, so new identities never move existing ones."""
    seed: Seed = 0
    """Seed of that hash, independent of the recipe's ``seed``."""


class Data(Section):
    """Preparation of an image folder as a Parquet data set."""

    name: Name = "people"
    """Name of the prepared data set: ``<storage>/datasets/<name>``."""
    source: Literal["folder", "sysu", "regdb", "llcm"] = "folder"
    """Layout of ``root``. folder: ``{visible,infrared}/<identity>/<camera>_<anything>.<jpg|png|...>``. The others are
    SYSU-MM01, RegDB and LLCM as released, with their own training and test identities."""
    root: str | None = None
    """Location of the images: a local folder; for source folder also s3://."""
    trial: Annotated[int, Field(ge=1, le=10)] = 1
    """One of RegDB's ten splits; only for source regdb."""
    height: Annotated[int, Field(ge=32, multiple_of=16)] = 288
    """Image height in training and, by default, in storage; pixels."""
    width: Annotated[int, Field(ge=32, multiple_of=16)] = 144
    """Image width in training and, by default, in storage; pixels."""
    store: Literal["resized", "original"] = "resized"
    """resized: every image is stored at ``height`` x ``width``. original: images keep their size and are resized when
    read, so one prepared data set serves every training size."""
    split: Split = Split()
    shard_mib: PositiveFloat = 128.0
    """Target size of a Parquet shard, MiB; identities are not split over shards."""
    jpeg_quality: Annotated[int, Field(ge=50, le=100)] = 95
    """JPEG quality of resized or converted images; images that already fit keep their original bytes."""
    max_unreadable_share: Share = 0.01
    """Maximum share of unreadable images, which are skipped and listed; above it, ``prepare`` stops."""
    synthetic: Synthetic | None = None
    """Data set that ``icre synthesize`` renders into ``data.root``."""


class Model(Section):
    """The network of docs/method.md §1."""

    backbone: Literal["resnet18", "resnet50", "resnet50_half"] = "resnet50"
    """Dual-stream backbone; ``resnet50_half`` is the half-width variant for experiments on small machines."""
    weights: str | None = None
    """ImageNet checkpoint with torchvision's key names: a path, https:// or s3://. None: random initialisation."""
    weights_sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")] | None = None
    """Expected checksum of the weights file."""
    dim: Positive = 512
    """Channels of MPFR's map and SDCE's tokens."""
    heads: Positive = 8
    """Attention heads of SDCE."""
    mpfr_stages: tuple[Annotated[int, Field(ge=1, le=4)], ...] = (1, 2, 3)
    """Backbone stages fused by MPFR; (2, 3, 4) is the other reading of the paper."""
    mpfr_mask: Literal["sigmoid", "softmax", "none"] = "sigmoid"
    """Spatial importance masks: independent, competing over the scales, or none."""
    mpfr_fusion: Literal["sum", "concat"] = "sum"
    """Fusion of the masked scales before MPFR's 3x3 convolution."""
    sdce_order: Literal["cross_self", "cross", "self", "self_cross"] = "cross_self"
    """Order of SDCE's two attention stages."""
    output_gain: NonNegative = 0.0
    """Initial weight of the last batch norm of MPFR and SDCE; 0 starts training exactly at the baseline."""


class Icg(Section):
    """Identity Clues Guided loss, docs/method.md §2."""

    weight: NonNegative = 1.0
    """λ: weight of the loss."""
    rho1: NonNegative = 0.1
    """ρ1: tolerated distance to the other modality's centre."""
    rho2: NonNegative = 0.7
    """ρ2: minimum distance between centres of different identities."""
    normalize: bool = True
    """L2-normalise the features first; False is the other reading (with ρ1 = 0.01)."""
    centers: Literal["cross", "both", "joint"] = "cross"
    """Centres that pull an image: its identity's in the other modality, in both, or one over both modalities."""


class Loss(Section):
    """L = L_id + λ · L_icg; ``icg`` applies only with "icg" among the components."""

    icg: Icg = Icg()
    triplet: Literal["batch_hard", "weighted_regularized", "hetero_center"] | None = None
    """Reference loss of the ablation, added to the others; None: the paper's objective."""
    triplet_normalize: bool = False
    """L2-normalise the features of ``triplet`` first, which its papers do not."""


class Batch(Section):
    """One global batch: P identities × (K_V visible + K_I infrared), split over the workers by identity."""

    identities: Positive = 8
    """P: identities per batch."""
    visible: Positive = 4
    """K_V: visible images per identity."""
    infrared: Positive = 4
    """K_I: infrared images per identity."""

    @property
    def size(self) -> int:
        """Images in the global batch."""
        return self.identities * (self.visible + self.infrared)


class Augmentation(Section):
    """Augmentation, batched on the training device and seeded by (seed, epoch, sample slot)."""

    pad: Annotated[int, Field(ge=0)] = 10
    """Zero padding in pixels on every side before the random crop."""
    flip: Share = 0.5
    """Probability of a horizontal flip."""
    erase: Share = 0.5
    """Probability of random erasing."""
    grayscale: Share = 0.1
    """Probability that a visible image becomes grey."""
    channel_exchange: Share = 0.5
    """Probability of CAJ's channel exchange for a visible image."""


class Optimizer(Section):
    """Optimiser with two parameter groups: the backbone and the new layers."""

    name: OptimizerName = "sgd"
    """sgd: Nesterov momentum 0.9. adam adds the penalty to the gradient, adamw decouples it. Effect on MPFR and SDCE:
    docs/method.md section 6."""
    lr: PositiveFloat = 0.1
    """Learning rate of new layers after warm-up."""
    backbone_lr: PositiveFloat = 0.01
    """Learning rate of the backbone after warm-up."""
    weight_decay: NonNegative = 5e-4
    """L2 penalty on every parameter."""
    max_grad_norm: PositiveFloat | None = None
    """Maximum global gradient norm, enforced by clipping; None: no clipping."""


class Schedule(Section):
    """Linear warm-up, then step decay."""

    warmup_epochs: NonNegative = 10.0
    """Epochs of linear warm-up from a tenth of the learning rate."""
    milestones: tuple[PositiveFloat, ...] = (20.0, 50.0)
    """Epochs at which the learning rate is multiplied by ``gamma``."""
    gamma: Annotated[float, Field(gt=0.0, le=1.0)] = 0.1
    """Factor at each milestone."""


class Train(Section):
    """Length of training and its resources."""

    epochs: Positive = 80
    """Training epochs."""
    steps_per_epoch: Positive | None = None
    """Steps per epoch; None: images of the larger modality / (P·K of that modality), the usual definition."""
    workers: Workers = 1
    """Training processes; each takes its share of every global batch. [min, max]: elastic, as many as fit the cluster.
    0: train in the command's own process, which starts faster and allows debugging but is not replaced if lost."""
    gpus_per_worker: Annotated[int, Field(ge=0, le=1)] = 0
    """GPUs of each worker; 0: train on CPU."""
    cpus_per_worker: PositiveFloat = 1.0
    """Logical CPUs that Ray reserves for each worker."""
    loaders: Positive = 2
    """Concurrent decode tasks per worker; Ray places them on any node with a free CPU."""
    loader_cpus: PositiveFloat = 1.0
    """Logical CPUs that Ray reserves for each decode task."""
    cache: Literal["encoded", "decoded"] = "encoded"
    """Content of a node's disk cache. encoded: all images, decoded by tasks for every batch. decoded: the pixels of the
    training images; batches of data sets that fit then need no decoding and no tasks."""
    sync_batch_norm: bool = True
    """Batch statistics over the global batch, which makes N workers equivalent to one."""
    validate_every: Positive = 1
    """Epochs between validations on the held-out training identities."""
    max_failures: Annotated[int, Field(ge=0)] = 3
    """Maximum number of times that lost workers are replaced and training resumes from the last checkpoint. Preemptions
    announced by the cluster do not count."""
    max_skipped_steps: Annotated[int, Field(ge=0)] = 0
    """Maximum number of skipped steps (loss or gradient not finite) before training stops."""
    step_timeout_s: PositiveFloat = 1800.0
    """Seconds without a finished step after which a worker counts as hung, prints its stacks and is replaced."""

    @property
    def worker_range(self) -> tuple[int, int]:
        """Minimum and maximum number of training processes, including the command's own."""
        return (max(1, self.workers),) * 2 if isinstance(self.workers, int) else self.workers


class Checkpoints(Section):
    """When checkpoints are written, always in the background, and which are kept."""

    minutes: PositiveFloat | None = 10.0
    """Minutes between checkpoints inside an epoch; None: only at the end of epochs."""
    keep: Positive = 2
    """Number of newest checkpoints to keep."""
    keep_every: Positive | None = None
    """Epochs between checkpoints that are kept permanently; None: keep only the newest and the best."""
    best: Literal["mAP", "rank1", "mINP"] = "mAP"
    """Metric that selects ``best``: on the validation identities, averaged over the protocol's directions."""


class Compute(Section):
    """Computation of a step: speed and memory, not the method. Costs are in docs/architecture.md."""

    precision: Precision = "fp32"
    """Number format of the network's forward pass; weights, GeM, BNNeck and losses stay float32."""
    channels_last: bool = False
    """Channels-last memory layout of images and convolution weights, preferred by GPUs with tensor cores."""
    compile: bool = False
    """Compile the network with torch.compile; if the compiler does not work, warn and train without it."""
    micro_batches: Positive = 1
    """Number of parts in which a worker's share of the batch is computed sequentially, to save memory. The metric loss
    still uses the whole global batch, batch norm only the part."""
    checkpoint_activations: bool = False
    """Keep only the backbone's stage outputs and recompute the rest in the backward pass."""


class Evaluation(Section):
    """Evaluation protocol on the test identities, and its resources."""

    protocol: ProtocolName = "folder"
    """Protocol of a benchmark data set, see docs/protocols.md, or folder: all images of one modality query a sampled
    gallery of the other, with the next four settings, which the other protocols fix."""
    trials: Positive = 10
    """Gallery draws; tables show their mean ± std."""
    shots: Positive = 1
    """Gallery images per (identity, camera)."""
    camera_rule: Literal["none", "same_camera"] = "none"
    """same_camera: gallery images of the query's identity and camera are ignored."""
    cmc: Literal["image", "identity"] = "image"
    """Unit of CMC: images, or identities (SYSU-MM01, LLCM)."""
    seed: Seed = 0
    """Seed of the gallery draws, independent of the recipe's ``seed``."""
    flip: bool = False
    """Average the features of an image and its mirror image; marked in tables."""
    rerank: bool = False
    """Rank by k-reciprocal neighbours (k1 20, k2 6, weight 0.3) instead of cosine distance; marked in tables."""
    batch_size: Positive = 64
    """Images per forward pass."""
    workers: Count = 1
    """Embedding processes; 0: the command's own process."""
    cpus_per_worker: PositiveFloat = 1.0
    """Logical CPUs that Ray reserves for each embedding process."""
    gpus_per_worker: Annotated[int, Field(ge=0, le=1)] = 0
    """GPUs of each embedding process; 0: embed on CPU."""


class Telemetry(Section):
    """External telemetry sinks; live metrics, the summary and TensorBoard's files need no setting. Addresses must not
    contain credentials: MLflow reads them from MLFLOW_TRACKING_USERNAME and _PASSWORD."""

    mlflow: Annotated[str, Field(pattern=r"^[^@\s]+$")] | None = None
    """MLflow tracking URI (e.g. http://host:5000); requires the extra ``mlflow``. None: off."""
    pushgateway: Annotated[str, Field(pattern=r"^https?://[^@\s]+$")] | None = None
    """Prometheus Pushgateway (e.g. http://host:9091) for the summary of a run that has ended. None: off."""
