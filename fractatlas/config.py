"""The schema of a composed configuration: names, types and ranges. Defaults live in ``conf/`` alone.

Plain dataclasses, one per part that Hydra instantiates, told apart by ``_target_``; a part that is not listed
here is not instantiated, whether it was typed on the command line or read out of a checkpoint. ``check`` runs
after composition, because Hydra's ``+`` and ``++`` open even a structured node. No torch is imported here.
"""

import dataclasses
import difflib
import functools
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any, Literal, get_args, get_type_hints

from annotated_types import Ge, Gt, Interval, Len, Lt
from omegaconf import DictConfig, OmegaConf
from pydantic import ConfigDict, Field, TypeAdapter, ValidationError

from fractatlas.errors import InputError

METRICS = ("loss", "accuracy", "balanced_accuracy", "auroc", "average_precision", "f1", "mcc", "sensitivity",
           "specificity")  # fmt: skip

Count = Annotated[int, Ge(0)]
Positive = Annotated[int, Ge(1)]
Probability = Annotated[float, Interval(ge=0, le=1)]
Proportion = Annotated[float, Interval(gt=0, lt=1)]
Rate = Annotated[float, Gt(0)]
NonNegative = Annotated[float, Ge(0)]
Batches = Positive | Annotated[float, Interval(gt=0, le=1)]  # a number of them, or a share
Monitor = Literal[tuple(f"val/{name}" for name in METRICS)]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")]
Pixels = Annotated[int, Interval(ge=8, le=4096)]
Channels = Annotated[list[float], Len(3, 3)]
AS_TYPED = "taken from the command line as it was typed"
TypedPath = Annotated[str, Field(min_length=1), AS_TYPED]


class Strict:
    """Refuse keys that the dataclass does not have."""

    __pydantic_config__ = ConfigDict(extra="forbid", allow_inf_nan=False)


@dataclass
class Phantom(Strict):
    """Where ``data=phantom`` comes from."""

    _target_: Literal["fractatlas.data.phantom.generate"]
    _partial_: Literal[True]
    images: Annotated[int, Ge(60)]
    seed: Count


@dataclass
class Data(Strict):
    """The images and how they are batched."""

    _target_: Literal["fractatlas.data.datamodule.RadiographDataModule"]
    root: str
    prepare: Phantom | None
    cache: bool
    cache_dir: str
    keep_contradictions: bool
    batch_size: Positive
    num_workers: Count
    pin_memory: bool


@dataclass
class DrawnSplit(Strict):
    """Stratified by label; group by group or image by image."""

    _target_: Literal["fractatlas.data.splits.grouped_split", "fractatlas.data.splits.random_split"]
    _partial_: Literal[True]
    ratios: Annotated[list[Proportion], Len(3, 3)]
    seed: Count
    previous: str | None


@dataclass
class KFoldSplit(Strict):
    """Each fold tests once."""

    _target_: Literal["fractatlas.data.splits.kfold_split"]
    _partial_: Literal[True]
    folds: Annotated[int, Interval(ge=3, le=100)]
    fold: Count
    seed: Count


@dataclass
class ManifestSplit(Strict):
    """As a CSV file says."""

    _target_: Literal["fractatlas.data.splits.manifest_split"]
    _partial_: Literal[True]
    path: str


@dataclass
class ResizeAndCrop(Strict):
    """Shorter side, centre."""

    _target_: Literal["fractatlas.data.transforms.resize_and_crop"]
    resize: Pixels
    crop: Pixels
    mean: Channels
    std: Annotated[list[Rate], Len(3, 3)]


@dataclass
class Letterbox(Strict):
    """Longer side, padded."""

    _target_: Literal["fractatlas.data.transforms.letterbox"]
    size: Pixels
    fill: Annotated[int, Interval(ge=0, le=255)]
    mean: Channels
    std: Annotated[list[Rate], Len(3, 3)]


@dataclass
class NoAugmentation(Strict):
    """Images as they are."""

    _target_: Literal["torchvision.transforms.v2.Identity"]


@dataclass
class LightAugmentation(Strict):
    """Mirror, turn and expose a little."""

    _target_: Literal["fractatlas.data.transforms.light_augmentation"]
    flip: Probability
    degrees: Annotated[float, Interval(ge=0, le=180)]
    brightness: Probability
    contrast: Probability


@dataclass
class Backbone(Strict):
    """What both families of network share."""

    weights: str | None
    weights_dir: str
    dropout: Annotated[float, Ge(0), Lt(1)]
    freeze: Literal["none", "trunk"] | Annotated[int, Interval(ge=0, le=5)]
    stage_decay: Annotated[float, Interval(gt=0, le=1)]
    mirror: bool
    channels_last: bool


@dataclass
class DenseNet(Backbone):
    """Huang et al. 2017."""

    _target_: Literal["fractatlas.models.backbones.densenet"]
    variant: Literal["densenet121", "densenet161", "densenet169", "densenet201", "densenet_tiny"]


@dataclass
class ResNet(Backbone):
    """He et al. 2016."""

    _target_: Literal["fractatlas.models.backbones.resnet"]
    variant: Literal["resnet18", "resnet34", "resnet50", "resnet101", "resnet152", "resnet_tiny"]


@dataclass
class BinaryCrossEntropy(Strict):
    """On the logit."""

    _target_: Literal["fractatlas.models.classifier.binary_cross_entropy"]
    pos_weight: Rate | None


@dataclass
class Optimizer(Strict):
    """What every optimizer takes."""

    _partial_: Literal[True]
    lr: Rate
    weight_decay: NonNegative


@dataclass
class Adam(Optimizer):
    """Adam, or AdamW with its decoupled weight decay."""

    _target_: Literal["torch.optim.Adam", "torch.optim.AdamW"]
    betas: Annotated[list[Annotated[float, Ge(0), Lt(1)]], Len(2, 2)]


@dataclass
class SGD(Optimizer):
    """With momentum."""

    _target_: Literal["torch.optim.SGD"]
    momentum: Annotated[float, Ge(0), Lt(1)]
    nesterov: bool

    def __post_init__(self):
        if self.nesterov and not self.momentum:
            raise ValueError("nesterov=true needs a momentum above 0")


@dataclass
class ConstantSchedule(Strict):
    """The learning rate stays."""

    _target_: Literal["fractatlas.models.schedules.constant"]
    _partial_: Literal[True]


@dataclass
class CosineSchedule(Strict):
    """Warm up, then down to zero."""

    _target_: Literal["fractatlas.models.schedules.cosine"]
    _partial_: Literal[True]
    warmup: Annotated[float, Ge(0), Lt(1)]


@dataclass
class FixedThreshold(Strict):
    """Fractured from ``value`` on."""

    _target_: Literal["fractatlas.evaluation.operating_point.fixed"]
    _partial_: Literal[True]
    value: Proportion


@dataclass
class YoudenThreshold(Strict):
    """Where sensitivity and specificity are best together."""

    _target_: Literal["fractatlas.evaluation.operating_point.youden"]
    _partial_: Literal[True]


@dataclass
class SensitivityThreshold(Strict):
    """Where enough fractures are found."""

    _target_: Literal["fractatlas.evaluation.operating_point.target_sensitivity"]
    _partial_: Literal[True]
    sensitivity: Annotated[float, Interval(gt=0, le=1)]


@dataclass
class Trainer(Strict):
    """Lightning's ``Trainer``: the arguments that are a researcher's to choose."""

    _target_: Literal["lightning.Trainer"]
    accelerator: Literal["auto", "cpu", "gpu", "cuda", "mps"]
    devices: Literal["auto"] | Positive | Literal[-1] | list[Count]
    num_nodes: Positive
    strategy: Literal["auto", "ddp", "ddp_find_unused_parameters_true"]
    precision: Literal["32-true", "16-mixed", "bf16-mixed"]
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
            raise ValueError("check_val_every_n_epoch above max_epochs: no epoch would be validated")


@dataclass
class ModelCheckpoint(Strict):
    """Keep the best and the last."""

    _target_: Literal["lightning.pytorch.callbacks.ModelCheckpoint"]
    dirpath: str
    filename: str
    monitor: Monitor
    mode: Literal["min", "max"]
    save_last: Literal[False]
    save_top_k: Literal[1]
    auto_insert_metric_name: bool
    enable_version_counter: bool


@dataclass
class LearningRateMonitor(Strict):
    """The learning rate as a curve."""

    _target_: Literal["lightning.pytorch.callbacks.LearningRateMonitor"]
    logging_interval: Literal["step", "epoch"]


@dataclass
class EarlyStopping(Strict):
    """Stop when ``monitor`` no longer improves."""

    _target_: Literal["lightning.pytorch.callbacks.EarlyStopping"]
    monitor: Monitor
    mode: Literal["min", "max"]
    patience: Positive
    min_delta: NonNegative


@dataclass
class TerminalProgressBar(Strict):
    """A bar for people."""

    _target_: Literal["fractatlas.training.callbacks.TerminalProgressBar"]


@dataclass
class ProgressLines(Strict):
    """Lines for log files."""

    _target_: Literal["fractatlas.training.callbacks.ProgressLines"]


@dataclass
class InputGrid(Strict):
    """The images as the network sees them."""

    _target_: Literal["fractatlas.training.callbacks.InputGrid"]
    images: Positive


@dataclass
class KeepLast(Strict):
    """How often ``last.ckpt`` is written, beside once an epoch and when the run is stopped."""

    _target_: Literal["fractatlas.training.resume.KeepLast"]
    every_n_steps: Positive | None
    every_minutes: Rate | None


@dataclass
class WeightAveraging(Strict):
    """Validate, keep and score a moving average of the weights."""

    _target_: Literal["lightning.pytorch.callbacks.EMAWeightAveraging"]
    decay: Proportion


@dataclass
class Callbacks(Strict):
    """By their part in a run; ``null`` leaves one out."""

    checkpoint: ModelCheckpoint
    last: KeepLast | None
    learning_rate: LearningRateMonitor | None
    progress_bar: TerminalProgressBar | None
    progress_lines: ProgressLines | None
    input_grid: InputGrid | None
    average: WeightAveraging | None
    early_stopping: EarlyStopping | None


@dataclass
class TensorBoard(Strict):
    """The logs that users read."""

    _target_: Literal["lightning.pytorch.loggers.TensorBoardLogger"]
    save_dir: str
    name: str
    version: str
    default_hp_metric: Literal[False]


@dataclass
class Paths(Strict):
    """Folders."""

    root: str
    data_dir: str
    data_root: str
    cache_dir: str
    weights: str
    log_dir: str
    output_dir: str


def _one_of(*schemas: type) -> Any:
    """A part that may be any of ``schemas``; its ``_target_`` says which."""
    union = schemas[0]
    for schema in schemas[1:]:
        union |= schema
    return Annotated[union, Field(discriminator="_target_")]


@dataclass
class TrainConfig(Strict):
    """``conf/train.yaml``, composed."""

    task_name: Name
    seed: Annotated[int, Interval(ge=0, lt=2**32)]
    monitor: Monitor
    test: bool
    report: bool
    resume: str | None
    data: Data
    split: _one_of(DrawnSplit, KFoldSplit, ManifestSplit)
    preprocess: _one_of(ResizeAndCrop, Letterbox)
    augment: _one_of(NoAugmentation, LightAugmentation)
    model: _one_of(DenseNet, ResNet)
    loss: BinaryCrossEntropy
    optimizer: _one_of(Adam, SGD)
    scheduler: _one_of(ConstantSchedule, CosineSchedule)
    threshold: _one_of(FixedThreshold, YoudenThreshold, SensitivityThreshold)
    trainer: Trainer
    callbacks: Callbacks
    logger: TensorBoard
    paths: Paths


@dataclass
class EvaluateConfig(Strict):
    """``conf/evaluate.yaml``, composed."""

    task_name: Name
    ckpt: TypedPath | None
    split_part: Literal["train", "val", "test"]
    predictions: TypedPath | None
    catalogue: TypedPath | None
    heatmaps: TypedPath | None
    data_root: TypedPath | None
    report: bool
    threshold: _one_of(FixedThreshold, YoudenThreshold, SensitivityThreshold)
    trainer: Trainer
    paths: Paths


@dataclass
class PredictConfig(Strict):
    """``conf/predict.yaml``, composed."""

    task_name: Name
    ckpt: TypedPath
    input: TypedPath
    heatmaps: bool
    batch_size: Positive
    threads: Positive | None
    trainer: Trainer
    paths: Paths


@dataclass
class Sampler(Strict):
    """What proposes the next point."""

    _target_: Literal["optuna.samplers.TPESampler", "optuna.samplers.GPSampler", "optuna.samplers.RandomSampler",
                      "optuna.samplers.QMCSampler"]  # fmt: skip
    seed: Annotated[int, Interval(ge=0, lt=2**32)]
    n_startup_trials: Count = 10
    constant_liar: bool = False
    multivariate: bool = False
    qmc_type: Literal["sobol", "halton"] = "sobol"
    scramble: bool = False


@dataclass
class NopPruner(Strict):
    """Stop no trial."""

    _target_: Literal["optuna.pruners.NopPruner"]


@dataclass
class MedianPruner(Strict):
    """Stop what is worse than the median."""

    _target_: Literal["optuna.pruners.MedianPruner"]
    n_startup_trials: Count
    n_warmup_steps: Count


@dataclass
class HyperbandPruner(Strict):
    """Halve again and again."""

    _target_: Literal["optuna.pruners.HyperbandPruner"]
    min_resource: Positive
    max_resource: Positive
    reduction_factor: Annotated[int, Ge(2)]


@dataclass
class SearchConfig(Strict):
    """``conf/hydra/sweeper/study.yaml``, composed."""

    _target_: Literal["fractatlas.search.sweeper.StudySweeper"]
    sampler: Sampler
    pruner: _one_of(NopPruner, MedianPruner, HyperbandPruner)
    study_name: Name
    storage: str
    n_trials: Positive
    n_jobs: Positive
    lease: Annotated[int, Ge(2)]
    params: dict[str, str]


SCHEMAS = {name for name, value in globals().items() if dataclasses.is_dataclass(value)}


def mode_of(monitor: Any) -> str:
    """Whether ``monitor`` is better when small (``min``: a loss) or when large (``max``: all else)."""
    return "min" if str(monitor).endswith("loss") else "max"


OmegaConf.register_resolver("mode", mode_of, replace=True)


def known_keys(schema: type, prefix: str = "") -> Iterator[str]:
    """Every dotted key that a configuration of ``schema`` can have."""
    for name, hint in get_type_hints(schema).items():
        yield prefix + name
        for part in _dataclasses_in(hint):
            yield from known_keys(part, f"{prefix}{name}.")


def parts(schema: type) -> set[str]:
    """The keys of ``schema`` that hold a part of their own (``model``, ``optimizer``) and no plain value."""
    return {name for name, hint in get_type_hints(schema).items() if any(_dataclasses_in(hint))}


def typed_paths(schema: type) -> set[str]:
    """The keys of ``schema`` whose value is a path, to be taken as it was typed."""
    hints = get_type_hints(schema, include_extras=True)
    return {
        name
        for name, hint in hints.items()
        if any(AS_TYPED in getattr(one, "__metadata__", ()) for one in (hint, *get_args(hint)))
    }


def _dataclasses_in(hint: Any) -> Iterator[type]:
    if dataclasses.is_dataclass(hint):
        yield hint
    for inner in get_args(hint):
        yield from _dataclasses_in(inner)


def unknown_key(key: str, schema: type) -> str:
    """One line for a ``key`` that ``schema`` does not have, with the nearest one that it has."""
    known = sorted(set(known_keys(schema)))
    leaf = key.rpartition(".")[2]
    siblings = [
        name.rpartition(".")[2]
        for name in known
        if name.rpartition(".")[0] == key.rpartition(".")[0] and "._" not in name
    ]
    if key in known:
        return f"'{key}' does not belong to the '{key.partition('.')[0]}' that is chosen"
    nearest = difflib.get_close_matches(key, known, n=1, cutoff=0.7)
    nearest = nearest or [name for name in known if name.rpartition(".")[2] == leaf]
    if nearest:
        return f"unknown key '{key}'; did you mean '{nearest[0]}'?"
    return f"unknown key '{key}'" + (f"; known here: {', '.join(siblings)}" if siblings else "")


def check(config: DictConfig, schema: type) -> dict[str, Any]:
    """Hold a composed configuration against its schema.

    Args:
        config: the composed configuration; its interpolations are resolved here.
        schema: ``TrainConfig``, ``EvaluateConfig`` or ``PredictConfig``.

    Returns:
        The configuration as plain dicts, lists and scalars, which a checkpoint can hold.

    Raises:
        InputError: a key is unknown, missing, of the wrong type or out of range: one line for each.
        omegaconf.errors.OmegaConfBaseException: an interpolation leads nowhere.
    """
    plain = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    try:
        # Strict, so that "3" is not a number; by way of JSON, because only there does strict let a dict in.
        _adapter(schema).validate_json(json.dumps(plain), strict=True)
    except ValidationError as error:
        raise InputError("\n".join(_lines(error, schema))) from None
    return plain


@functools.cache
def _adapter(schema: type) -> TypeAdapter:
    return TypeAdapter(schema)


def _lines(error: ValidationError, schema: type) -> Iterator[str]:
    """One line per wrong value: the branches of a union count as one, and so do keys that take it from another."""
    by_key: dict[str, list[dict]] = {}
    for item in error.errors(include_url=False):
        key = ".".join(str(step) for step in item["loc"] if not _names_a_branch(str(step)))
        by_key.setdefault(key, []).append(item)
    said = set()
    for key, items in by_key.items():
        first = items[0]
        kind, value = first["type"], first["input"]
        if kind in ("unexpected_keyword_argument", "extra_forbidden"):
            yield unknown_key(key, schema)
        elif kind in ("missing", "string_too_short"):
            yield f"{key} needs a value"
        elif kind == "value_error":
            yield f"{key}: {first['ctx']['error']}"
        elif kind == "union_tag_invalid":
            yield f"{key}._target_={first['ctx']['tag']}: should be one of {first['ctx']['expected_tags']}"
        else:
            shown = value if isinstance(value, str) else json.dumps(value)
            allowed = ", or ".join(dict.fromkeys(item["msg"].removeprefix("Input should be ") for item in items))
            says = f"{shown}: should be {allowed}" if first["msg"].startswith("Input") else f"{shown}: {allowed}"
            if says not in said:
                said.add(says)
                yield f"{key}={says}"


def _names_a_branch(step: str) -> bool:
    """Whether pydantic put ``step`` into a location to name the branch of a union that it tried."""
    return step in ("int", "float", "bool", "str") or step in SCHEMAS or any(mark in step for mark in ".[-(")
