"""The ``LightningDataModule``: a catalogue and a split in, batches out."""

import logging
import signal
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import lightning
import numpy as np
import pandas as pd
import torch
from lightning.pytorch.overrides.distributed import UnrepeatedDistributedSampler
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, DistributedSampler, Sampler
from torchvision.transforms import v2

from fractatlas.data.cache import Decoder, PixelCache, open_cache
from fractatlas.data.catalogue import read_boxes, read_catalogue
from fractatlas.data.splits import PARTS, crossings
from fractatlas.data.transforms import Preprocess
from fractatlas.errors import InputError

log = logging.getLogger(__name__)

Batch = dict[str, Tensor]


class Radiographs(Dataset):
    """The images of one part of a split.

    An item is ``image`` uint8 (1, size, size), ``label`` float32 () and ``index`` int64 (), the row of ``table``.

    Args:
        table: ``label``, one row per image.
        pixels: rows of ``table`` in, uint8 (n, 1, size, size) out.
    """

    def __init__(self, table: pd.DataFrame, pixels: Callable[[Sequence[int]], Tensor]):
        self.table, self.pixels = table, pixels
        self._labels = torch.tensor(table["label"].to_numpy(), dtype=torch.float32)

    def __len__(self) -> int:
        return len(self._labels)

    def __getitem__(self, row: int) -> Batch:
        return {name: values[0] for name, values in self.__getitems__([row]).items()}

    def __getitems__(self, rows: Sequence[int]) -> Batch:
        """A whole batch at once, which spares the loader from putting it together."""
        index = torch.as_tensor(rows)
        return {"image": self.pixels(rows), "label": self._labels[index], "index": index}


class ResumableSampler(DistributedSampler):
    """Shuffles by seed and epoch, and leaves out the first ``skip`` images of the epoch that is gone on with."""

    skip = 0

    def __iter__(self) -> Iterator[int]:
        indices = list(super().__iter__())
        skip, self.skip = self.skip, 0
        return iter(indices[skip:])


class RadiographDataModule(lightning.LightningDataModule):
    """Radiographs of a FracAtlas folder in batches.

    A batch is ``image`` float32 (n, 3, size, size), normalised, ``label`` float32 (n,) and ``index`` int64 (n,), the
    row of ``part(name)``. Images travel to the device as one channel of 8 bits; augmentation (train only) and
    normalisation happen there. With or without the cache the pixels are the same.

    Args:
        root: a folder in the published FracAtlas layout.
        split: a catalogue in, a split out; see ``splits``.
        preprocess: geometry and normalisation.
        augment: for one uint8 (1, size, size) image.
        batch_size: images per process and step.
        num_workers: decoding processes per training process, where there is no cache.
        pin_memory: as in ``DataLoader``.
        seed: of the order of the training images.
        cache: whether images are decoded once, into ``cache_dir``, and what was found in them remembered there.
        cache_dir: a folder that any number of data sets, settings and processes can share.
        keep_contradictions: whether copies of one image with opposite labels stay in.
        prepare: writes the folder ``root`` when it is not there.
    """

    def __init__(
        self,
        root: str,
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
        prepare: Callable[[Path], None] | None = None,
    ):
        super().__init__()
        self.root = Path(root)
        self.preprocess = preprocess
        self.catalogue = self.split = pd.DataFrame()
        self.augment = augment
        self.validated_part = "val"
        self._make_split, self._prepare, self._seed = split, prepare, seed
        self._cache, self._keep_contradictions = Path(cache_dir) if cache else None, keep_contradictions
        self._batches_done = 0
        # Copying rows out of the cache takes less than handing them from one process to another.
        workers = 0 if cache else num_workers
        self._loading = {"batch_size": batch_size, "num_workers": workers, "pin_memory": pin_memory}

    def prepare_data(self) -> None:
        """Write the data folder, if it is one that can be generated."""
        if self._prepare and not self.root.exists():
            self._prepare(self.root)

    def setup(self, stage: str | None = None) -> None:
        """Read the catalogue, make the split, check it for leaks and decode what the cache lacks, once."""
        if len(self.catalogue):
            return
        self.catalogue = read_catalogue(self.root, self._cache, self._keep_contradictions)
        self.split = self._make_split(self.catalogue)
        excluded = self.catalogue.loc[self.catalogue["excluded"] != "", ["excluded", "image_id"]]
        for reason, ids in excluded.groupby("excluded")["image_id"]:
            log.info("excluded: %d %s (%s)", len(ids), reason, " ".join(ids))
        for note in self.catalogue.loc[self.catalogue["note"] != "", ["image_id", "note"]].itertuples():
            log.info("%s: %s", note.image_id, note.note)
        for name in PARTS:
            labels = self.split.loc[self.split["split"] == name, "label"]
            log.info("%s: %d images, %d fractured (%.1f %%)", name, len(labels), labels.sum(), 100 * labels.mean())
        if absent := len(self.catalogue) - len(excluded) - len(self.split):
            log.info("in no part: %d images that the split does not list", absent)
        self.crossings = crossings(self.split, self.catalogue)
        _tell(self.crossings)
        if self._cache:
            images = self._images(self.split)
            self._pixels = open_cache(self._cache, self.root, images["path"], images["content"], self.preprocess)

    def part(self, name: str) -> pd.DataFrame:
        """The rows of the split called ``name``, joined with the catalogue; a batch's ``index`` counts them."""
        return self._images(self.split[self.split["split"] == name])

    def dataset(self, name: str) -> Radiographs:
        """The images of the part called ``name``."""
        table = self.part(name)
        if not self._cache:
            return Radiographs(table, Decoder(self.root, table["path"], self.preprocess))
        rows = self._pixels.rows[self.split["split"] == name]
        return Radiographs(table, PixelCache(self._pixels.pixels, rows))

    def _images(self, split: pd.DataFrame) -> pd.DataFrame:
        """Rows of the split, in their order, with all that the catalogue knows of them."""
        return split.merge(self.catalogue.drop(columns=["label", "group"]), on="image_id", how="left")

    def boxes(self, name: str) -> list[Tensor]:
        """For each image of a part, its fractures as the network sees them: float (n, 4) left, top, right, bottom."""
        boxes = read_boxes(self.root)
        return [
            self.preprocess.boxes(boxes[row.image_id], row.width, row.height)
            if row.image_id in boxes
            else torch.zeros(0, 4)
            for row in self.part(name).itertuples()
        ]

    def train_dataloader(self) -> DataLoader:
        """Shuffled anew each epoch, by seed and epoch alone."""
        dataset = self.dataset("train")
        # Lightning tells it the epoch. It pads to a whole number of images per process, which is fine for training.
        sampler = ResumableSampler(dataset, self._world_size, self._rank, shuffle=True, seed=self._seed)
        sampler.skip = self._batches_done * self._loading["batch_size"]
        # BatchNorm cannot learn from one image: where the last batch would be one, it is left out of this epoch.
        alone = len(sampler) % self._loading["batch_size"] == 1 and len(sampler) > 1
        return self._loader(dataset, sampler, drop_last=alone)

    def val_dataloader(self) -> DataLoader:
        """In the split's order; another part than ``val`` where ``validated_part`` names one."""
        return self.evaluation_dataloader(self.validated_part)

    def test_dataloader(self) -> DataLoader:
        """In the split's order."""
        return self.evaluation_dataloader("test")

    def evaluation_dataloader(self, name: str) -> DataLoader:
        """Every image of a part once, shared out over the processes without the padding that counts some twice."""
        dataset = self.dataset(name)
        if len(dataset) < self._world_size:
            raise InputError(f"{name} has {len(dataset)} images for {self._world_size} processes: use fewer devices")
        if self._world_size == 1:
            return self._loader(dataset, None)
        sampler = UnrepeatedDistributedSampler(dataset, self._world_size, self._rank, shuffle=False)
        return self._loader(dataset, sampler)

    def rows_dataloader(self, name: str, rows: Sequence[int]) -> DataLoader:
        """Some images of a part, in the order of ``rows``."""
        return self._loader(self.dataset(name), rows)

    def on_after_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        """Augment and normalise, on the device."""
        images = batch["image"]
        if self.trainer and self.trainer.training:
            torch.manual_seed(self._step_seed())
            if not isinstance(self.augment, v2.Identity):
                images = torch.stack([self.augment(image) for image in images])
        return batch | {"image": self.preprocess.normalise(images)}

    def _step_seed(self) -> int:
        """Of a training step's augmentation and dropout: the same, however the run came to this step."""
        loop = self.trainer.fit_loop
        place = (self._seed, self._rank, self.trainer.current_epoch, loop.epoch_loop.batch_progress.current.completed)
        return int(np.random.SeedSequence(place).generate_state(1)[0])

    def state_dict(self) -> dict[str, int]:
        """How many batches of the epoch are done, for a checkpoint in its middle."""
        loop = self.trainer.fit_loop
        return {"batches_done": loop.epoch_loop.batch_progress.current.completed % max(1, loop.max_batches)}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go on after the batches that were done."""
        self._batches_done = state["batches_done"]

    def _loader(self, dataset: Dataset, sampler: Sampler | Sequence[int] | None, drop_last: bool = False) -> DataLoader:
        workers = self._loading["num_workers"] > 0
        return DataLoader(
            dataset,
            sampler=sampler,
            drop_last=drop_last,
            collate_fn=_as_it_is,
            persistent_workers=workers,
            worker_init_fn=_leave_signals_to_the_parent,
            **self._loading,
        )

    @property
    def _world_size(self) -> int:
        return self.trainer.world_size if self.trainer else 1

    @property
    def _rank(self) -> int:
        return self.trainer.global_rank if self.trainer else 0


def _as_it_is(batch: Batch) -> Batch:
    return batch


def _leave_signals_to_the_parent(worker: int) -> None:
    """A terminal or SLURM asks them, too, to stop, and the step under way still needs them."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)


def _tell(crossings: dict[str, dict[str, int]]) -> None:
    """Log what a split tears apart."""
    if not any(crossings["groups"].values()):
        log.info("leak check: no near-duplicates and no neighbours of one study in different parts")
        return
    for part in ("val", "test"):
        log.warning(
            "leak check: of %s, %d images have a near-duplicate and %d a neighbour of the same study in another part",
            part, crossings["duplicates"][part], crossings["studies"][part],
        )  # fmt: skip
