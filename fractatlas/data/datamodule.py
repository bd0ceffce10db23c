"""Provide batches of radiographs: the ``LightningDataModule``."""

import logging
import signal
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import lightning
import numpy as np
import pandas as pd
import torch
from lightning.pytorch.overrides.distributed import UnrepeatedDistributedSampler
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, DistributedSampler, Sampler

from fractatlas.data.association import describe_association
from fractatlas.data.cache import Decoder, PixelCache, open_cache
from fractatlas.data.catalogue import exclude_seen, read_catalogue
from fractatlas.data.fracture_masks import FractureMasks
from fractatlas.data.groups import GIVEN, add_given
from fractatlas.data.leaks import COLUMNS, crossings, describe_groups, describe_leak, find_leaks, reported_kinds
from fractatlas.data.sources.source import Source
from fractatlas.data.splits import SCORED, has_given_split
from fractatlas.data.transforms import Preprocess
from fractatlas.errors import InputError
from fractatlas.signals import STOP_SIGNALS
from fractatlas.wording import SHOWN_NAMES, join_names, plural

log = logging.getLogger(__name__)

Batch = dict[str, Tensor]


class Radiographs(Dataset):
    """Images of one subset.

    An item contains ``image`` uint8 (1, size, size), ``label`` float32 (), ``index`` int64 (), its row in ``table``,
    and ``mask`` uint8 (2, size, size), if ``masks`` is given.

    Args:
        table: one row per image, with the column ``label``.
        pixels: function from rows of ``table`` to uint8 (n, 1, size, size).
        masks: function from rows of ``table`` to uint8 (n, 2, size, size): see ``FractureMasks``.
    """

    def __init__(
        self,
        table: pd.DataFrame,
        pixels: Callable[[Sequence[int]], Tensor],
        masks: Callable[[Sequence[int]], Tensor] | None = None,
    ):
        self.table, self.pixels, self.masks = table, pixels, masks
        self._labels = torch.tensor(table["label"].to_numpy(), dtype=torch.float32)

    def __len__(self) -> int:
        return len(self._labels)

    def __getitem__(self, row: int) -> Batch:
        return {name: values[0] for name, values in self.__getitems__([row]).items()}

    def __getitems__(self, rows: Sequence[int]) -> Batch:
        """Return a complete batch, so that the loader does not need to collate items."""
        index = torch.as_tensor(rows)
        batch = {"image": self.pixels(rows), "label": self._labels[index], "index": index}
        return batch | {"mask": self.masks(rows)} if self.masks else batch


class ResumableSampler(DistributedSampler):
    """Shuffle by seed and epoch; omit the first ``skip`` images of the epoch that is resumed."""

    skip = 0

    def __iter__(self) -> Iterator[int]:
        indices = list(super().__iter__())
        skip, self.skip = self.skip, 0
        return iter(indices[skip:])


class RadiographDataModule(lightning.LightningDataModule):
    """Provide the radiographs of a source in batches.

    A batch contains ``image`` float32 (n, 3, size, size), normalised, ``label`` float32 (n,) and ``index`` int64 (n,),
    the row of ``subset(name)``. With ``masks``, it also contains ``mask`` (n, 2, size, size): the outlines and boxes of
    the fractures, augmented like the images; it is absent if the data have no boxes. Images are copied to the device as
    one channel of 8 bits; augmentation (train only) and normalisation run on the device. The cache does not change the
    pixels.

    Args:
        source: the data set; see ``data.sources``.
        split: function from a catalogue to a split; see ``splits``.
        preprocess: geometry and normalisation.
        augment: transform of a batch, uint8 (n, 1, size, size), on the training device, and of its boxes and masks.
        batch_size: images per process and step.
        num_workers: decoding processes per training process, without cache.
        pin_memory: as in ``DataLoader``.
        seed: seed of the order of the training images.
        cache: whether decoded images and image statistics are stored in ``cache_dir``.
        cache_dir: folder that any number of data sets, settings and processes can share.
        keep_contradictions: whether near-duplicates with opposite labels are kept.
        masks: whether batches contain the masks of the fractures.
        seen: ``image_id, split, dhash`` of images that a network was trained with: images that are identical or nearly
            identical to one of them are excluded. ``None`` excludes none.
    """

    def __init__(
        self,
        source: Source,
        split: Callable[[pd.DataFrame], pd.DataFrame],
        preprocess: Preprocess,
        augment: nn.Module,
        batch_size: int,
        num_workers: int,
        pin_memory: bool,
        seed: int,
        cache: bool,
        cache_dir: str,
        keep_contradictions: bool,
        masks: bool = False,
        seen: pd.DataFrame | None = None,
    ):
        super().__init__()
        self.source, self.root = source, source.root
        self.preprocess = preprocess
        self.catalogue = self.split = pd.DataFrame()
        self.augment = augment
        self.validation_subset = "val"
        self._make_split, self._seed, self._seen = split, seed, seen
        self._cache, self._keep_contradictions = Path(cache_dir) if cache else None, keep_contradictions
        self._batches_done, self._masks = 0, masks
        # Copying rows from the cache is faster than transferring them between processes.
        workers = 0 if cache else num_workers
        self._loading: dict[str, Any] = {"batch_size": batch_size, "num_workers": workers, "pin_memory": pin_memory}

    def prepare_data(self) -> None:
        """Generate the data folder if it does not exist and can be generated."""
        self.source.prepare()

    def setup(self, stage: str | None = None) -> None:
        """Read the catalogue, make the split, check it for leaks and fill the cache; a second call does nothing."""
        if len(self.catalogue):
            return
        log.info("reading the data in %s", self.source.place)
        self.catalogue = read_catalogue(self.source, self._cache, self._keep_contradictions)
        if self._seen is not None:
            self.catalogue = exclude_seen(self.catalogue, self._seen)
        self.split = self._make_split(self.catalogue)
        given = [name for name in GIVEN.values() if name in self.split]
        from_split = {name for name in given if name not in self.catalogue}
        if given:
            self.catalogue = add_given(self.catalogue, self.split[["image_id", *given]])
        excluded = self.catalogue.loc[self.catalogue["excluded"] != "", ["excluded", "image_id"]]
        for reason, ids in excluded.groupby("excluded")["image_id"]:
            log.info("excluded (catalogue.csv): %s, %s: %s", plural(len(ids), "image"), reason, join_names([*ids]))
        notes = self.catalogue[self.catalogue["note"] != ""]
        for note in notes.head(SHOWN_NAMES).itertuples():
            log.info("%s: %s", note.image_id, note.note)
        if len(notes) > SHOWN_NAMES:
            log.info("and %d more notes (catalogue.csv)", len(notes) - SHOWN_NAMES)
        for name in self.subset_names:
            labels = self.split.loc[self.split["split"] == name, "label"]
            share = f"{100 * labels.mean():.1f} %"
            log.info("%s: %s, %d fractured (%s)", name, plural(len(labels), "image"), labels.sum(), share)
            if labels.nunique() < 2:
                log.warning("%s: images of one class only: AUROC and average precision are undefined", name)
        given_split = has_given_split(self.catalogue)
        if unassigned := len(self.catalogue) - len(excluded) - len(self.split):
            where = "that the split does not contain"
            if given_split and self.subset_names == ["test"]:
                where = "of the other subsets that the data set gives, which are not scored"
            log.info("in no subset: %s %s", plural(unassigned, "image"), where)
        self.crossings = crossings(self.split, self.catalogue)
        self.leaks = find_leaks(self.split, self.catalogue)
        if self.leaks.keys() <= {"duplicates"}:
            log.info("no patients, exams or groups are known: only near-duplicates stay together")
        if self._seen is not None:  # images of the training are excluded, whatever the relation
            self.leaks = {kind: leak | {"elsewhere": True} for kind, leak in self.leaks.items()}
        from_file = {kind for kind, column in COLUMNS.items() if column in from_split}
        _log_leaks(self.leaks, from_file, self.source.draw_split if given_split else None)
        if association := describe_association(self._images(self.split)):
            log.log(association.level, "%s", association.text)
        if self._cache:
            images = self._images(self.split)
            self._pixels = open_cache(self._cache, self.root, images["path"], images["content"], self.preprocess)

    @property
    def subset_names(self) -> list[str]:
        """The subsets that the split contains."""
        return [name for name in SCORED if (self.split["split"] == name).any()]

    def subset(self, name: str) -> pd.DataFrame:
        """Return the split and the catalogue of one subset; ``index`` of a batch is a row number of this table."""
        return self._images(self.split[self.split["split"] == name])

    def dataset(self, name: str) -> Radiographs:
        """Return the images of one subset."""
        table = self.subset(name)
        masks = None
        if self._masks and (boxes := self.source.boxes()):
            masks = FractureMasks(table, self.source.outlines(), boxes, self.preprocess)
        if not self._cache:
            return Radiographs(table, Decoder(self.root, table["path"], self.preprocess), masks)
        rows = self._pixels.rows[self.split["split"] == name]
        return Radiographs(table, PixelCache(self._pixels.pixels, rows), masks)

    def _images(self, split: pd.DataFrame) -> pd.DataFrame:
        """Join rows of the split, in their order, with the catalogue."""
        known = self.catalogue.drop(columns=[name for name in split if name != "image_id"], errors="ignore")
        return split.merge(known, on="image_id", how="left")

    def boxes(self, name: str) -> list[Tensor]:
        """Return the boxes of each image of a subset in pixels of the preprocessed image: float (n, 4)."""
        boxes, none = self.source.boxes(), np.zeros((0, 4), dtype=np.float32)
        rows = self.subset(name).itertuples()
        return [self.preprocess.boxes(boxes.get(row.image_id, none), row.width, row.height) for row in rows]

    def train_dataloader(self) -> DataLoader:
        """Return batches in an order that depends on seed and epoch only."""
        dataset = self.dataset("train")
        # Lightning sets the epoch. The sampler pads to an equal number of images per process.
        sampler = ResumableSampler(dataset, self._world_size, self._rank, shuffle=True, seed=self._seed)
        sampler.skip = self._batches_done * self._loading["batch_size"]
        # BatchNorm needs at least two images: a last batch of one image is dropped.
        drop_last = len(sampler) % self._loading["batch_size"] == 1 and len(sampler) > 1
        return self._loader(dataset, sampler, drop_last=drop_last)

    def val_dataloader(self) -> DataLoader:
        """Return the batches of ``validation_subset`` in the order of the split."""
        return self.evaluation_dataloader(self.validation_subset)

    def test_dataloader(self) -> DataLoader:
        """Return the batches of ``test`` in the order of the split."""
        return self.evaluation_dataloader("test")

    def evaluation_dataloader(self, name: str) -> DataLoader:
        """Return each image of a subset once, divided between the processes without padding."""
        dataset = self.dataset(name)
        if len(dataset) < self._world_size:
            images = plural(len(dataset), "image")
            raise InputError(f"{name} has {images} for {self._world_size} processes; use fewer devices")
        sampler = UnrepeatedDistributedSampler(dataset, self._world_size, self._rank, shuffle=False)
        return self._loader(dataset, sampler)

    def rows_dataloader(self, name: str, rows: Sequence[int]) -> DataLoader:
        """Return the images ``rows`` of a subset, in this order."""
        return self._loader(self.dataset(name), rows)

    def on_after_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        """Augment (in training) and normalise on the device."""
        images = batch["image"]
        if self.trainer and self.trainer.training:
            torch.manual_seed(self._step_seed())
            if "mask" in batch:
                images, *_, masks = self.augment(images, None, batch["mask"].float())
                batch = batch | {"mask": masks}
            else:
                images = self.augment(images)
        return batch | {"image": self.preprocess.normalise(images)}

    def _step_seed(self) -> int:
        """Return the seed of augmentation and dropout in this step; it is the same in a resumed run."""
        assert self.trainer
        step = self.trainer.fit_loop.epoch_loop.batch_progress.current.completed
        position = (self._seed, self._rank, self.trainer.current_epoch, step)
        return int(np.random.SeedSequence(position).generate_state(1)[0])

    def state_dict(self) -> dict[str, int]:
        """Return the number of completed batches of the epoch, for a checkpoint within an epoch."""
        assert self.trainer
        loop = self.trainer.fit_loop
        return {"batches_done": int(loop.epoch_loop.batch_progress.current.completed % max(1, loop.max_batches))}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Restore the number of completed batches of the epoch."""
        self._batches_done = state["batches_done"]

    def _loader(self, dataset: Dataset, sampler: Sampler | Sequence[int], drop_last: bool = False) -> DataLoader:
        return DataLoader(
            dataset,
            sampler=sampler,
            drop_last=drop_last,
            collate_fn=_identity,
            persistent_workers=self._loading["num_workers"] > 0,
            worker_init_fn=_ignore_stop_signals,
            **self._loading,
        )

    @property
    def _world_size(self) -> int:
        return self.trainer.world_size if self.trainer else 1

    @property
    def _rank(self) -> int:
        return self.trainer.global_rank if self.trainer else 0


def _identity(batch: Any) -> Any:
    return batch


def _ignore_stop_signals(worker: int) -> None:
    """Ignore stop signals in a worker: a terminal or SLURM sends them to all processes, and the parent handles them."""
    for number in (signal.SIGINT, *STOP_SIGNALS):
        signal.signal(number, signal.SIG_IGN)


def _log_leaks(leaks: dict[str, dict[str, Any]], of_the_split: set[str], draw_split: str | None) -> None:
    """Log one line for each kind of relation.

    Args:
        leaks: from ``find_leaks``.
        of_the_split: the kinds that the file of the split gave.
        draw_split: if the data set gives a split, the override that ignores it, or ``""``.
    """
    for kind in reported_kinds(leaks):
        leak = leaks.get(kind)
        if leak and leak["divided"]:
            remedy = "assign each to one subset in the file" if kind in of_the_split else "split=grouped prevents this"
            if draw_split is not None:
                remedy = "correct the given split" + (f", or draw the split ({draw_split})" if draw_split else "")
            log.warning("leak check: %s; %s", describe_leak(kind, leak), remedy)
        else:
            log.info("leak check: %s", describe_leak(kind, leak))
    log.info("%s", describe_groups(leaks))
