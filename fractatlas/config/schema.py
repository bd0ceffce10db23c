"""Declare the names, types and ranges of every configuration key.

One dataclass for each part that Hydra instantiates; ``_target_`` selects it. A target that no dataclass lists is
instantiated only in an ``EXTENSIBLE`` part, and only if ``trusted_targets`` contains its package (see
``fractatlas.config.trusted``). Defaults are in ``conf/``, and a description of each key is in ``conf/`` or in
``fractatlas/config/meanings.yaml``. ``fractatlas.config.validation`` applies this schema.
"""

import functools
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, dataclass_transform, get_args, get_type_hints

from annotated_types import Ge, Gt, Interval, Len, Lt, MinLen
from pydantic import (
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    ValidationInfo,
    ValidatorFunctionWrapHandler,
    WrapValidator,
)

from fractatlas.config.trusted import SWITCH, is_trusted

Count = Annotated[int, Ge(0)]
Positive = Annotated[int, Ge(1)]
Probability = Annotated[float, Interval(ge=0, le=1)]
Proportion = Annotated[float, Interval(gt=0, lt=1)]
Rate = Annotated[float, Gt(0)]
NonNegative = Annotated[float, Ge(0)]
Batches = Positive | Annotated[float, Interval(gt=0, le=1)]  # a number of batches, or a fraction of all
Monitor = Literal["val/loss", "val/accuracy", "val/balanced_accuracy", "val/auroc", "val/average_precision", "val/f1",
                  "val/mcc", "val/sensitivity", "val/specificity", "val/hit"]  # fmt: skip
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")]
Pixels = Annotated[int, Interval(ge=8, le=4096)]
Channels = Annotated[list[float], Len(3, 3)]
AS_TYPED = "taken from the command line as it was typed"
TypedPath = Annotated[str, Field(min_length=1), AS_TYPED]


def _check_unless_trusted(part: Any, check: ValidatorFunctionWrapHandler, info: ValidationInfo) -> Any:
    target = part.get("_target_") if isinstance(part, dict) else None
    if is_trusted(target, (info.context or {}).get(SWITCH, ())) and target not in listed_targets():
        return part
    return check(part)


EXTENSIBLE = WrapValidator(_check_unless_trusted)  # marks a part that may have a trusted target instead of a listed one


@dataclass_transform()
class Strict:
    """Make each subclass a dataclass, and refuse keys that it does not have."""

    __pydantic_config__ = ConfigDict(extra="forbid", allow_inf_nan=False)

    def __init_subclass__(cls):
        dataclass(cls)


class Partial(Strict):
    """Build a function that takes the remaining arguments later, instead of calling it."""

    _partial_: Literal[True]


class Phantom(Partial):
    """Generate phantoms on first use."""

    _target_: Literal["fractatlas.data.sources.phantom.generate"]
    images: Annotated[int, Ge(60)]
    seed: Count


class Loading(Strict):
    """How images are cached and batched: the keys of every data set."""

    cache: bool
    cache_dir: str
    keep_contradictions: bool
    batch_size: Positive
    num_workers: Count
    pin_memory: bool


class FracAtlasData(Loading):
    """FracAtlas in its published layout, or phantoms in this layout."""

    # The name is that of earlier versions, so that their checkpoints and run folders stay valid.
    _target_: Literal["fractatlas.data.datamodule.RadiographDataModule"]
    root: str
    prepare: Phantom | None


class Columns(Strict):
    """Names of the columns of a table; ``null``: the table has no such column."""

    image_id: str | None
    path: Annotated[str, Field(min_length=1)]
    label: Annotated[str, Field(min_length=1)]
    patient: str | None
    exam: str | None
    group: str | None
    split: str | None
    source: str | None


class TableData(Loading):
    """A table with one row for each image."""

    _target_: Literal["fractatlas.data.sources.table.Table"]
    table: Annotated[str, Field(min_length=1)] | Annotated[list[str], Len(1, 100)]
    root: str | None
    positive: str | Count | None
    columns: Columns
    boxes: str | Annotated[list[str | None], Len(1, 100)] | None
    dicom_tags: list[Literal["PatientID", "BodyPartExamined", "ViewPosition", "PixelSpacing", "PatientSex",
                             "PatientAge"]]  # fmt: skip
    finding: Annotated[str, Field(min_length=1)] = "fracture"  # absent from tables of earlier versions


class FoldersData(Loading):
    """A folder with one sub-folder for each class."""

    _target_: Literal["fractatlas.data.sources.folders.Folders"]
    root: Annotated[str, Field(min_length=1)]
    positive: str | Count | None


class MuraData(Loading):
    """MURA in its published layout."""

    _target_: Literal["fractatlas.data.sources.mura.Mura"]
    root: Annotated[str, Field(min_length=1)]
    given_split: bool


class GrazPedWriData(Loading):
    """GRAZPEDWRI-DX in its published layout."""

    _target_: Literal["fractatlas.data.sources.grazpedwri.GrazPedWri"]
    root: Annotated[str, Field(min_length=1)]


class DrawnSplit(Partial):
    """Draw a split, stratified by label: by group, or by image."""

    _target_: Literal["fractatlas.data.splits.grouped_split", "fractatlas.data.splits.random_split"]
    ratios: Annotated[list[Proportion], Len(3, 3)]
    seed: Count
    previous: str | None

    def __post_init__(self):
        if abs(sum(self.ratios) - 1) > 1e-6:
            raise ValueError(f"ratios={self.ratios}: the sum is {sum(self.ratios):g}, should be 1")


class KFoldSplit(Partial):
    """Cross-validate by group: each fold is the test subset once."""

    _target_: Literal["fractatlas.data.splits.kfold_split"]
    folds: Annotated[int, Interval(ge=3, le=100)]
    fold: Count
    seed: Count

    def __post_init__(self):
        if self.fold >= self.folds:
            raise ValueError(f"fold={self.fold} should be less than split.folds={self.folds}; the first fold is 0")


class ManifestSplit(Partial):
    """Read the split from a CSV file."""

    _target_: Literal["fractatlas.data.splits.manifest_split"]
    path: str


class ResizeAndCrop(Strict):
    """Resize the shorter side, then crop the centre."""

    _target_: Literal["fractatlas.data.transforms.resize_and_crop"]
    resize: Pixels
    crop: Pixels
    mean: Channels
    std: Annotated[list[Rate], Len(3, 3)]

    def __post_init__(self):
        if self.crop > self.resize:
            raise ValueError(f"crop={self.crop} should be at most preprocess.resize={self.resize}")


class Letterbox(Strict):
    """Resize the longer side, then pad to a square."""

    _target_: Literal["fractatlas.data.transforms.letterbox"]
    size: Pixels
    fill: Annotated[int, Interval(ge=0, le=255)]
    mean: Channels
    std: Annotated[list[Rate], Len(3, 3)]


class NoAugmentation(Strict):
    """Leave training images unchanged."""

    _target_: Literal["torchvision.transforms.v2.Identity"]


class LightAugmentation(Strict):
    """Flip, rotate, scale, and change brightness and contrast at random."""

    _target_: Literal["fractatlas.data.transforms.light_augmentation"]
    flip: Probability
    degrees: Annotated[float, Interval(ge=0, le=180)]
    brightness: Probability
    contrast: Probability
    scale: Probability = 0.0


class Backbone(Strict):
    """Keys of both network families."""

    weights: str | None
    weights_dir: str
    dropout: Annotated[float, Ge(0), Lt(1)]
    freeze: Literal["none", "trunk"] | Annotated[int, Interval(ge=0, le=5)]
    stage_decay: Annotated[float, Interval(gt=0, le=1)]
    mirror: bool
    channels_last: bool
    compile: bool
    variant: str

    def __post_init__(self):
        if getattr(self, "head", None) == "keep" and self.weights in (None, "imagenet"):
            raise ValueError(
                f"head=keep: model.weights={self.weights or 'null'} has no head of a fracture; use a run folder"
            )
        if self.weights == "imagenet" and self.variant.endswith("_tiny"):
            raise ValueError(
                f"weights=imagenet: there are no ImageNet weights for {self.variant}; use model.weights=null"
            )


class DenseNet(Backbone):
    """DenseNet (Huang et al. 2017)."""

    _target_: Literal["fractatlas.models.backbones.densenet"]
    variant: Literal["densenet121", "densenet161", "densenet169", "densenet201", "densenet_tiny"]
    head: Literal["new", "keep"] | None = None


class ResNet(Backbone):
    """ResNet (He et al. 2016)."""

    _target_: Literal["fractatlas.models.backbones.resnet"]
    variant: Literal["resnet18", "resnet34", "resnet50", "resnet101", "resnet152", "resnet_tiny"]
    head: Literal["new", "keep"] | None = None


class FractureMap(Partial):
    """A second output: the probability of a fracture for each cell of the image."""

    _target_: Literal["fractatlas.models.fracture_map.FractureMap"]
    stride: Literal[4, 8]
    channels: Annotated[int, Interval(ge=8, le=1024)]
    pooling: Literal["topk", "logsumexp", "none"]
    loss: Literal["focal", "dice"]
    weight: Rate


class BinaryCrossEntropy(Strict):
    """Binary cross-entropy of the logit."""

    _target_: Literal["fractatlas.models.classifier.binary_cross_entropy"]
    pos_weight: Rate | None


class Optimizer(Partial):
    """Keys of every optimizer."""

    lr: Rate
    weight_decay: NonNegative


class Adam(Optimizer):
    """Adam, or AdamW with decoupled weight decay."""

    _target_: Literal["torch.optim.Adam", "torch.optim.AdamW"]
    betas: Annotated[list[Annotated[float, Ge(0), Lt(1)]], Len(2, 2)]
    fused: bool | None = None


class SGD(Optimizer):
    """Stochastic gradient descent with momentum."""

    _target_: Literal["torch.optim.SGD"]
    momentum: Annotated[float, Ge(0), Lt(1)]
    nesterov: bool
    fused: bool | None = None

    def __post_init__(self):
        if self.nesterov and not self.momentum:
            raise ValueError("nesterov=true needs a momentum above 0; set optimizer.momentum")


class ConstantSchedule(Partial):
    """Keep the learning rate constant."""

    _target_: Literal["fractatlas.models.schedules.constant"]


class CosineSchedule(Partial):
    """Increase the learning rate linearly, then decrease it to zero along a cosine."""

    _target_: Literal["fractatlas.models.schedules.cosine"]
    warmup: Annotated[float, Ge(0), Lt(1)]


class FixedThreshold(Partial):
    """Classify as fractured if the probability is at least ``value``."""

    _target_: Literal["fractatlas.evaluation.operating_point.fixed"]
    value: Proportion


class YoudenThreshold(Partial):
    """Choose the threshold that maximises sensitivity + specificity on the validation subset."""

    _target_: Literal["fractatlas.evaluation.operating_point.youden"]


class AccuracyThreshold(Partial):
    """Choose the threshold that maximises the accuracy on the validation subset."""

    _target_: Literal["fractatlas.evaluation.operating_point.highest_accuracy"]


class SensitivityThreshold(Partial):
    """Choose the highest threshold that reaches ``sensitivity`` on the validation subset."""

    _target_: Literal["fractatlas.evaluation.operating_point.target_sensitivity"]
    sensitivity: Annotated[float, Interval(gt=0, le=1)]


class Trainer(Strict):
    """Arguments of Lightning's ``Trainer`` that can be set; the others are fixed by the package."""

    _target_: Literal["lightning.Trainer"]
    accelerator: Literal["auto", "cpu", "gpu", "cuda", "mps"]
    devices: Literal["auto"] | Positive | Literal[-1] | list[Count]
    num_nodes: Positive
    strategy: Literal["auto", "ddp", "ddp_find_unused_parameters_true"]
    precision: Literal["auto", "32-true", "16-mixed", "bf16-mixed"]
    max_epochs: Positive
    min_epochs: Positive | None
    accumulate_grad_batches: Positive
    gradient_clip_val: Rate | None
    limit_train_batches: Batches
    limit_val_batches: Batches
    limit_test_batches: Batches
    overfit_batches: Count | Probability
    check_val_every_n_epoch: Positive
    log_every_n_steps: Positive
    num_sanity_val_steps: Annotated[int, Ge(-1)]
    sync_batchnorm: bool
    deterministic: bool | Literal["warn"]
    benchmark: bool
    detect_anomaly: bool
    profiler: Literal["simple", "advanced", "pytorch"] | None
    enable_model_summary: bool

    def __post_init__(self):
        if self.check_val_every_n_epoch > self.max_epochs:
            every, epochs = self.check_val_every_n_epoch, self.max_epochs
            raise ValueError(f"check_val_every_n_epoch={every}: no epoch would be validated; use at most {epochs}")
        if self.accelerator == "cpu" and (self.devices == -1 or isinstance(self.devices, list)):
            raise ValueError(f"devices={self.devices}: should be a number of processes with trainer.accelerator=cpu")


class BestCheckpoint(Strict):
    """Save the checkpoint of the best epoch."""

    _target_: Literal["fractatlas.training.callbacks.BestCheckpoint"]
    dirpath: str
    monitor: Monitor


class LearningRateMonitor(Strict):
    """Log the learning rate."""

    _target_: Literal["lightning.pytorch.callbacks.LearningRateMonitor"]
    logging_interval: Literal["step", "epoch"]


class EarlyStopping(Strict):
    """Stop after ``patience`` validations without an improvement of ``monitor``."""

    _target_: Literal["fractatlas.training.callbacks.EarlyStopping"]
    monitor: Monitor
    patience: Positive
    min_delta: NonNegative


class Progress(Strict):
    """Show the progress of the training."""

    _target_: Literal["fractatlas.training.progress.TerminalProgressBar", "fractatlas.training.progress.ProgressLines"]


class InputGrid(Strict):
    """Log a grid of preprocessed training images."""

    _target_: Literal["fractatlas.training.callbacks.InputGrid"]
    images: Positive


class MapGrid(Strict):
    """Log a grid of fracture maps of validation images after each epoch."""

    _target_: Literal["fractatlas.training.callbacks.MapGrid"]
    images: Positive


class LastCheckpoint(Strict):
    """Write ``last.ckpt`` at the start of each epoch, at these intervals, and when the run stops."""

    _target_: Literal["fractatlas.training.resume.LastCheckpoint"]
    every_n_steps: Positive | None
    every_minutes: Rate | None


class WeightAveraging(Strict):
    """Validate, save and score an exponential moving average of the weights."""

    _target_: Literal["lightning.pytorch.callbacks.EMAWeightAveraging"]
    decay: Proportion


class Callbacks(Strict):
    """Callbacks of a run; ``null`` disables one."""

    checkpoint: BestCheckpoint
    last: LastCheckpoint | None
    learning_rate: LearningRateMonitor | None
    progress_bar: Progress | None
    progress_lines: Progress | None
    input_grid: InputGrid | None
    average: WeightAveraging | None
    early_stopping: EarlyStopping | None
    map_grid: MapGrid | None = None


class TensorBoard(Strict):
    """Write TensorBoard logs."""

    _target_: Literal["fractatlas.training.tensorboard.RunLogger"]
    save_dir: str
    name: str
    version: str


class Csv(Strict):
    """Write the curves to a CSV file."""

    _target_: Literal["fractatlas.training.trackers.CsvLogger"]
    save_dir: str
    version: Name


class Mlflow(Strict):
    """Log to MLflow."""

    _target_: Literal["fractatlas.training.trackers.MlflowLogger"]
    experiment_name: Annotated[str, Field(min_length=1)]
    tracking_uri: Annotated[str, Field(min_length=1)]
    run_folder: str


class Wandb(Strict):
    """Log to Weights & Biases."""

    _target_: Literal["fractatlas.training.trackers.WandbLogger"]
    project: Name
    entity: Name | None
    offline: bool
    run_folder: str


class Loggers(Strict):
    """Trackers of a run; ``logger=[tensorboard,csv]`` chooses several."""

    tensorboard: TensorBoard | None = None
    csv: Csv | None = None
    mlflow: Mlflow | None = None
    wandb: Wandb | None = None


def _logger_schema(part: Any) -> str:
    """Return the schema of a logger: older runs and loggers of other packages have one ``_target_`` at the top."""
    return "TensorBoard" if isinstance(part, dict) and "_target_" in part else "Loggers"


class Paths(Strict):
    """Folders; every default is relative to ``root``."""

    root: str
    data_dir: str
    data_root: str
    cache_dir: str
    weights: str
    log_dir: str
    output_dir: str


# Parts with several schemas: ``_target_`` selects one.
_BY_TARGET = Field(discriminator="_target_")
Data = Annotated[FracAtlasData | TableData | FoldersData | MuraData | GrazPedWriData, _BY_TARGET]
Split = Annotated[DrawnSplit | KFoldSplit | ManifestSplit, _BY_TARGET]
Preprocess = Annotated[ResizeAndCrop | Letterbox, _BY_TARGET]
Augment = Annotated[NoAugmentation | LightAugmentation, _BY_TARGET, EXTENSIBLE]
Model = Annotated[DenseNet | ResNet, _BY_TARGET, EXTENSIBLE]
Loss = Annotated[BinaryCrossEntropy, EXTENSIBLE]
AnyOptimizer = Annotated[Adam | SGD, _BY_TARGET, EXTENSIBLE]
Scheduler = Annotated[ConstantSchedule | CosineSchedule, _BY_TARGET, EXTENSIBLE]
Logger = Annotated[
    Annotated[Loggers, Tag("Loggers")] | Annotated[TensorBoard, Tag("TensorBoard")],
    Discriminator(_logger_schema),
    EXTENSIBLE,
]
Threshold = Annotated[FixedThreshold | AccuracyThreshold | YoudenThreshold | SensitivityThreshold, _BY_TARGET]


class TrainConfig(Strict):
    """A configuration composed from ``conf/train.yaml``."""

    task_name: Name
    seed: Annotated[int, Interval(ge=0, lt=2**32)]
    monitor: Monitor
    test: bool
    report: bool
    resume: str | None
    data: Data
    split: Split
    preprocess: Preprocess
    augment: Augment
    model: Model
    loss: Loss
    optimizer: AnyOptimizer
    scheduler: Scheduler
    threshold: Threshold
    trainer: Trainer
    callbacks: Callbacks
    logger: Logger
    paths: Paths
    map: FractureMap | None = None
    trusted_targets: list[str] = field(default_factory=list)

    def __post_init__(self):
        clip, fused = self.trainer.gradient_clip_val, getattr(self.optimizer, "fused", False)
        if clip and fused and self.trainer.precision == "16-mixed":
            raise ValueError(f"trainer.gradient_clip_val={clip} with 16-mixed precision needs optimizer.fused=false")
        if self.monitor == "val/hit" and self.map is None:
            raise ValueError("monitor=val/hit needs a fracture map; add map=fpn")


class EvaluateConfig(Strict):
    """A configuration composed from ``conf/evaluate.yaml``."""

    task_name: Name
    ckpt: TypedPath | None
    subset: Literal["train", "val", "test", "all"] | None
    split_file: TypedPath | None
    predictions: TypedPath | None
    catalogue: TypedPath | None
    heatmaps: TypedPath | None
    gradcam: bool
    data_root: TypedPath | None
    report: bool
    threshold: Threshold
    trainer: Trainer
    paths: Paths
    data: Data | None = None
    recalibrate: Proportion | None = None
    trusted_targets: list[str] = field(default_factory=list)


class PredictConfig(Strict):
    """A configuration composed from ``conf/predict.yaml``."""

    task_name: Name
    ckpt: TypedPath | Annotated[list[TypedPath], MinLen(1)]
    input: TypedPath
    heatmaps: bool
    dicom_out: bool
    gradcam: bool
    box_threshold: Proportion | None
    batch_size: Positive
    threads: Positive | None
    trainer: Trainer
    paths: Paths
    trusted_targets: list[str] = field(default_factory=list)


class ServeConfig(Strict):
    """A configuration composed from ``conf/serve.yaml``."""

    ckpt: TypedPath | Annotated[list[TypedPath], MinLen(1)]
    host: Annotated[str, Field(min_length=1)]
    port: Annotated[int, Interval(ge=0, le=65535)]
    device: Literal["auto", "cpu", "cuda", "mps"]
    box_threshold: Proportion | None
    batch_size: Positive
    threads: Positive | None
    max_bytes: Annotated[int, Interval(ge=1024, le=2**30)]
    max_files: Positive
    max_requests: Positive
    max_seconds: Rate
    image_side: Annotated[int, Interval(ge=64, le=8192)]
    trusted_targets: list[str] = field(default_factory=list)


class Sampler(Strict):
    """Propose the hyperparameters of the next trial."""

    _target_: Literal["optuna.samplers.TPESampler", "optuna.samplers.GPSampler", "optuna.samplers.RandomSampler",
                      "optuna.samplers.QMCSampler"]  # fmt: skip
    seed: Annotated[int, Interval(ge=0, lt=2**32)]
    n_startup_trials: Count = 10
    constant_liar: bool = False
    multivariate: bool = False
    qmc_type: Literal["sobol", "halton"] = "sobol"
    scramble: bool = False


class NopPruner(Strict):
    """Complete every trial."""

    _target_: Literal["optuna.pruners.NopPruner"]


class MedianPruner(Strict):
    """Stop a trial that is worse than the median of earlier trials at the same epoch."""

    _target_: Literal["optuna.pruners.MedianPruner"]
    n_startup_trials: Count
    n_warmup_steps: Count


class HyperbandPruner(Strict):
    """Stop trials by successive halving in brackets (Li et al. 2018)."""

    _target_: Literal["optuna.pruners.HyperbandPruner"]
    min_resource: Positive
    max_resource: Positive
    reduction_factor: Annotated[int, Ge(2)]


class SearchConfig(Strict):
    """The search, composed from ``conf/hydra/sweeper/resumable.yaml``."""

    _target_: Literal["fractatlas.search.sweeper.ResumableSweeper"]
    sampler: Sampler
    pruner: Annotated[NopPruner | MedianPruner | HyperbandPruner, _BY_TARGET]
    study_name: Name
    storage: str
    n_trials: Positive
    n_jobs: Positive
    heartbeat_timeout: Annotated[int, Ge(2)]
    start_points: Literal["latin_hypercube", "random"]
    params: dict[str, str]


class GridConfig(Strict):
    """The grid, composed from ``conf/hydra/sweeper/basic.yaml``."""

    _target_: Literal["fractatlas.search.grid.GridSweeper"]
    max_batch_size: Positive | None
    params: dict[str, str] | None


@functools.cache
def parts() -> tuple[type, ...]:
    """Return the dataclasses of this module."""
    return tuple(part for part in globals().values() if isinstance(part, type) and issubclass(part, Strict))


@functools.cache
def listed_targets() -> frozenset[str]:
    """Return every ``_target_`` that a dataclass of this module lists."""
    return frozenset(target for part in parts() for target in get_args(get_type_hints(part).get("_target_")))
