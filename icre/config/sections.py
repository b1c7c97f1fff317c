"""The rooms of a recipe, one class each; a docstring under every field says what it means.

All fields have defaults: those of docs/method.md §3, the SGD recipe of the AGW/CAJ/DEEN line.
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
"""Evaluation protocols: icre/evaluation/protocols.py says what each of them is."""

FOLDER_CHOICES = {"trials", "shots", "camera_rule", "cmc", "seed"}
"""Keys of ``evaluation`` that only the protocol ``folder`` leaves open."""

Seed = Annotated[int, Field(ge=0, lt=2**31)]
Share = Annotated[float, Field(ge=0.0, le=1.0)]
Positive = Annotated[int, Field(ge=1)]
PositiveFloat = Annotated[float, Field(gt=0.0)]
NonNegative = Annotated[float, Field(ge=0.0)]
Count = Annotated[int, Field(ge=0)]
Workers = Count | tuple[Positive, Positive]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=80)]


class Section(BaseModel):
    """Base of every section: unknown keys are errors, values do not change once read."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False)


class Synthetic(Section):
    """Procedural people, for demos and tests; nothing measured on them is a claim about real footage."""

    identities: Positive = 96
    """Identities drawn."""
    images_per_modality: Positive = 10
    """Images of each identity in each modality."""
    visible_cameras: Positive = 4
    """Colour cameras."""
    infrared_cameras: Positive = 2
    """Infrared cameras."""
    difficulty: Share = 0.4
    """0: little but the identity varies; 1: viewpoint, occlusion and noise hide most of it."""
    seed: Seed = 0
    """Seed of the people; the recipe's ``seed`` does not change them."""


class Split(Section):
    """Which identities train, validate and test; an identity is in exactly one of the three."""

    file: str | None = None
    """JSON ``{"train": [...], "val": [...], "test": [...]}`` of identities, relative to ``data.root``."""
    val: Share = 0.1
    """Without a file: share of identities held out from training to choose the best epoch."""
    test: Share = 0.5
    """Without a file: share of identities never trained on; benchmark sources have their own. Membership is a hash
    of the identity's name, so identities that arrive later never move the others."""
    seed: Seed = 0
    """Seed of that hash; the recipe's ``seed`` moves no identity between the parts."""


class Data(Section):
    """From an image folder to a prepared (Parquet) data set."""

    name: Name = "people"
    """Name of the prepared data set: ``<storage>/datasets/<name>``."""
    source: Literal["folder", "sysu", "regdb", "llcm"] = "folder"
    """Layout of ``root``. folder: ``{visible,infrared}/<identity>/<camera>_<anything>.<jpg|png|...>``; the others are
    SYSU-MM01, RegDB and LLCM as they are released, with their own training and test identities."""
    root: str | None = None
    """Where the images are: a local folder; for source folder also s3://."""
    trial: Annotated[int, Field(ge=1, le=10)] = 1
    """Which of RegDB's ten splits; only for source regdb."""
    height: Annotated[int, Field(ge=32, multiple_of=16)] = 288
    """Trained, and by default stored, height in pixels."""
    width: Annotated[int, Field(ge=32, multiple_of=16)] = 144
    """Trained, and by default stored, width in pixels."""
    store: Literal["resized", "original"] = "resized"
    """resized: every image is stored at ``height`` x ``width``. original: each at its own size, to be resized whenever
    it is read; one prepared data set then serves every training size."""
    split: Split = Split()
    shard_mib: PositiveFloat = 128.0
    """Target size of a Parquet shard, MiB; a shard ends where an identity ends."""
    jpeg_quality: Annotated[int, Field(ge=50, le=100)] = 95
    """Quality of images that had to be resized or converted; one that already fits keeps its original bytes."""
    max_unreadable_share: Share = 0.01
    """Unreadable images are set aside and listed; more than this share of all images stops ``prepare``."""
    synthetic: Synthetic | None = None
    """When given, ``icre synthesize`` renders this set into ``data.root``."""


class Model(Section):
    """The network of docs/method.md §1."""

    backbone: Literal["resnet18", "resnet50", "resnet50_half"] = "resnet50"
    """Dual-stream backbone; ``resnet50_half`` is the half-width variant for experiments on small machines."""
    weights: str | None = None
    """ImageNet checkpoint with torchvision's key names: a path, https:// or s3://. None: random start."""
    weights_sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")] | None = None
    """Expected checksum of the weights file."""
    dim: Positive = 512
    """Width of MPFR's map and of SDCE's tokens."""
    heads: Positive = 8
    """Attention heads of SDCE."""
    mpfr_stages: tuple[Annotated[int, Field(ge=1, le=4)], ...] = (1, 2, 3)
    """Stages that MPFR reads; (2, 3, 4) is the other reading of the paper."""
    mpfr_mask: Literal["sigmoid", "softmax", "none"] = "sigmoid"
    """Spatial importance masks: independent, competing over the scales, or none."""
    mpfr_fusion: Literal["sum", "concat"] = "sum"
    """How MPFR joins the masked scales before its 3x3 convolution."""
    sdce_order: Literal["cross_self", "cross", "self", "self_cross"] = "cross_self"
    """Order of SDCE's two attention stages."""
    output_gain: NonNegative = 0.0
    """Weight that the last batch norm of MPFR and SDCE starts with; 0 starts training exactly at the baseline."""


class Icg(Section):
    """Identity Clues Guided loss, docs/method.md §2."""

    weight: NonNegative = 1.0
    """λ: weight of the loss."""
    rho1: NonNegative = 0.1
    """ρ1: distance to the other modality's centre that is tolerated."""
    rho2: NonNegative = 0.7
    """ρ2: distance that centres of different identities must keep."""
    normalize: bool = True
    """L2-normalise the features first; False is the other reading (with ρ1 = 0.01)."""
    centers: Literal["cross", "both", "joint"] = "cross"
    """What pulls an image: its identity's centre in the other modality, both centres, or one without modality."""


class Loss(Section):
    """L = L_id + λ · L_icg; ``icg`` counts only with "icg" among the components."""

    icg: Icg = Icg()
    triplet: Literal["batch_hard", "weighted_regularized", "hetero_center"] | None = None
    """A reference loss of the ablation, added to the others; None: the paper's objective."""
    triplet_normalize: bool = False
    """L2-normalise the features of ``triplet`` first; its papers do not."""


class Batch(Section):
    """One global batch: P identities × (K_V visible + K_I infrared), cut over the workers by identity."""

    identities: Positive = 8
    """P"""
    visible: Positive = 4
    """K_V"""
    infrared: Positive = 4
    """K_I"""

    @property
    def size(self) -> int:
        """Images in the global batch."""
        return self.identities * (self.visible + self.infrared)


class Augmentation(Section):
    """Batched on the training device, seeded by (seed, epoch, sample slot)."""

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
    """Two parameter groups: the backbone and everything new."""

    name: OptimizerName = "sgd"
    """sgd: Nesterov momentum 0.9. adam adds the penalty to the gradient, adamw shrinks the weights apart from it; what
    that means for MPFR and SDCE: docs/method.md section 6."""
    lr: PositiveFloat = 0.1
    """Learning rate of new layers after warm-up."""
    backbone_lr: PositiveFloat = 0.01
    """Learning rate of the backbone after warm-up."""
    weight_decay: NonNegative = 5e-4
    """L2 penalty on every parameter."""
    max_grad_norm: PositiveFloat | None = None
    """Clip the global gradient norm; None: no clipping."""


class Schedule(Section):
    """Linear warm-up, then steps down."""

    warmup_epochs: NonNegative = 10.0
    """Epochs of linear warm-up from a tenth of the learning rate."""
    milestones: tuple[PositiveFloat, ...] = (20.0, 50.0)
    """Epochs at which the learning rate is multiplied by ``gamma``."""
    gamma: Annotated[float, Field(gt=0.0, le=1.0)] = 0.1
    """Factor at each milestone."""


class Train(Section):
    """How long, and on what."""

    epochs: Positive = 80
    """Epochs."""
    steps_per_epoch: Positive | None = None
    """None: images of the larger modality / (P·K of that modality), as the field counts an epoch."""
    workers: Workers = 1
    """Training processes; each takes its cut of every global batch. [min, max]: as many as the cluster has room for,
    now and later. 0: the command's own process trains, which starts sooner and suits a debugger; nothing replaces it
    when it is lost."""
    gpus_per_worker: Annotated[int, Field(ge=0, le=1)] = 0
    """0: train on CPU."""
    cpus_per_worker: PositiveFloat = 1.0
    """Logical CPUs that Ray reserves for each worker."""
    loaders: Positive = 2
    """Decode tasks in flight for each worker; Ray places them on any node with a free CPU."""
    loader_cpus: PositiveFloat = 1.0
    """Logical CPUs that Ray reserves for each decode task."""
    cache: Literal["encoded", "decoded"] = "encoded"
    """What a node keeps on its disk. encoded: all images, decoded by tasks again and again. decoded: the pixels of the
    training images; for data sets that fit, batches then cost no decoding and no tasks."""
    sync_batch_norm: bool = True
    """Batch statistics over the global batch, so that N workers equal one."""
    validate_every: Positive = 1
    """Epochs between validations on the held-out training identities."""
    max_failures: Annotated[int, Field(ge=0)] = 3
    """Times that lost workers are replaced, and training goes on from the last checkpoint; preemptions announced by the
    cluster do not count."""
    max_skipped_steps: Annotated[int, Field(ge=0)] = 0
    """Steps whose loss or gradient is not finite that are left out and counted before training stops."""
    step_timeout_s: PositiveFloat = 1800.0
    """Seconds without a finished step after which a worker counts as hung: it prints its stacks and is replaced."""

    @property
    def worker_range(self) -> tuple[int, int]:
        """Fewest and most training processes, the command's own included."""
        return (max(1, self.workers),) * 2 if isinstance(self.workers, int) else self.workers


class Checkpoints(Section):
    """When a checkpoint is written, always in the background, and which ones are kept."""

    minutes: PositiveFloat | None = 10.0
    """Minutes between checkpoints inside an epoch; None: at the ends of epochs alone."""
    keep: Positive = 2
    """Newest checkpoints that are kept."""
    keep_every: Positive | None = None
    """Every so many epochs one is kept for good; None: none but the newest and the best."""
    best: Literal["mAP", "rank1", "mINP"] = "mAP"
    """What chooses ``best``: this metric on the validation identities, mean of the protocol's directions."""


class Compute(Section):
    """How a step is computed: speed and memory, not the method. What each costs: docs/architecture.md."""

    precision: Precision = "fp32"
    """Number format of the network's forward pass; weights, GeM, BNNeck and losses stay float32."""
    channels_last: bool = False
    """Images and convolution weights with the channels innermost in memory, what GPUs with tensor cores prefer."""
    compile: bool = False
    """torch.compile of the network; where the compiler does not work, a warning, and training without it."""
    micro_batches: Positive = 1
    """Parts that a worker's cut of the batch is computed in, one after the other, for less memory; the metric loss
    still sees the whole global batch, batch norm the part alone."""
    checkpoint_activations: bool = False
    """Keep only the backbone's stage outputs, and compute the rest a second time for the backward pass."""


class Evaluation(Section):
    """Who queries whom among the test identities, and how that is counted."""

    protocol: ProtocolName = "folder"
    """Of a benchmark data set: docs/protocols.md lists them. folder: all images of one modality query a sampled gallery
    of the other, by the four choices that follow; the other protocols have made theirs."""
    trials: Positive = 10
    """Gallery draws; tables show their mean ± std."""
    shots: Positive = 1
    """Gallery images of each (identity, camera)."""
    camera_rule: Literal["none", "same_camera"] = "none"
    """same_camera: gallery images of the query's identity and camera are ignored."""
    cmc: Literal["image", "identity"] = "image"
    """What CMC counts: images, or identities (SYSU-MM01, LLCM)."""
    seed: Seed = 0
    """Seed of the gallery draws; trainings that differ in the recipe's ``seed`` are ranked by the same draws."""
    flip: bool = False
    """Average the features of an image and of its mirror image; tables say so."""
    rerank: bool = False
    """Rank by k-reciprocal neighbours (k1 20, k2 6, weight 0.3) instead of cosine distance; tables say so."""
    batch_size: Positive = 64
    """Images in one forward pass."""
    workers: Count = 1
    """Embedding processes; 0: the command's own."""
    cpus_per_worker: PositiveFloat = 1.0
    """Logical CPUs that Ray reserves for each of them."""
    gpus_per_worker: Annotated[int, Field(ge=0, le=1)] = 0
    """0: embed on CPU."""


class Telemetry(Section):
    """Where else a training tells how it goes; its live metrics, its summary and TensorBoard's files need no setting.
    Credentials are no part of an address: MLflow reads its own from MLFLOW_TRACKING_USERNAME and _PASSWORD."""

    mlflow: Annotated[str, Field(pattern=r"^[^@\s]+$")] | None = None
    """MLflow tracking URI, such as http://host:5000; needs the extra ``mlflow``. None: off."""
    pushgateway: Annotated[str, Field(pattern=r"^https?://[^@\s]+$")] | None = None
    """Prometheus Pushgateway that gets the summary of a run that ended, such as http://host:9091. None: off."""
