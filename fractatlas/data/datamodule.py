"""The ``LightningDataModule``: a catalogue and a split in, batches out."""

import logging
from collections.abc import Callable, Iterator
from pathlib import Path

import lightning
import pandas as pd
import torch
from lightning.pytorch.overrides.distributed import UnrepeatedDistributedSampler
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, DistributedSampler, Sampler
from torchvision.transforms import v2

from fractatlas.data.catalogue import load_image, read_boxes, read_catalogue
from fractatlas.data.splits import PARTS
from fractatlas.data.transforms import Preprocess
from fractatlas.errors import InputError

log = logging.getLogger(__name__)

Batch = dict[str, Tensor]


class Radiographs(Dataset):
    """The images of one part of a split, decoded when asked for.

    An item is ``image`` uint8 (1, size, size), ``label`` float32 () and ``index`` int64 (), the row of ``table``.

    Args:
        root: the data folder.
        table: ``image_id, path, label``, one row per image.
        preprocess: the geometry.
    """

    def __init__(self, root: Path, table: pd.DataFrame, preprocess: Preprocess):
        self.root, self.table, self.preprocess = root, table.reset_index(drop=True), preprocess
        self._paths = self.table["path"].tolist()
        self._labels = torch.tensor(self.table["label"].to_numpy(), dtype=torch.float32)

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, index: int) -> Batch:
        try:
            image = load_image(self.root / self._paths[index])
        except OSError as error:
            raise InputError(f"{self.root / self._paths[index]} can no longer be read: {error}") from None
        return {"image": self.preprocess(image), "label": self._labels[index], "index": torch.tensor(index)}


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
    normalisation happen there.

    Args:
        root: a folder in the published FracAtlas layout.
        split: a catalogue in, a split out; see ``splits``.
        preprocess: geometry and normalisation.
        augment: for one uint8 (1, size, size) image.
        batch_size: images per process and step.
        num_workers: decoding processes per training process.
        pin_memory: as in ``DataLoader``.
        seed: of the order of the training images.
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
        prepare: Callable[[Path], None] | None = None,
    ):
        super().__init__()
        self.root = Path(root)
        self.preprocess = preprocess
        self.catalogue = self.split = pd.DataFrame()
        self.augment = augment
        self.validated_part = "val"
        self._make_split, self._prepare, self._seed = split, prepare, seed
        self._batches_done = 0
        self._loading = {"batch_size": batch_size, "num_workers": num_workers, "pin_memory": pin_memory}

    def prepare_data(self) -> None:
        """Write the data folder, if it is one that can be generated."""
        if self._prepare and not self.root.exists():
            self._prepare(self.root)

    def setup(self, stage: str | None = None) -> None:
        """Read the catalogue and make the split, once."""
        if len(self.catalogue):
            return
        self.catalogue = read_catalogue(self.root)
        self.split = self._make_split(self.catalogue)
        excluded = self.catalogue.loc[self.catalogue["excluded"] != "", ["excluded", "image_id"]]
        for reason, ids in excluded.groupby("excluded")["image_id"]:
            log.info("excluded: %d %s (%s)", len(ids), reason, " ".join(ids))
        for note in self.catalogue.loc[self.catalogue["note"] != "", ["image_id", "note"]].itertuples():
            log.info("%s: %s", note.image_id, note.note)
        for name in PARTS:
            labels = self.split.loc[self.split["split"] == name, "label"]
            log.info("%s: %d images, %d fractured (%.1f %%)", name, len(labels), labels.sum(), 100 * labels.mean())

    def part(self, name: str) -> pd.DataFrame:
        """The rows of the split called ``name``, joined with the catalogue; a batch's ``index`` counts them."""
        rows = self.split[self.split["split"] == name]
        return rows.merge(self.catalogue.drop(columns="label"), on="image_id").reset_index(drop=True)

    def dataset(self, name: str) -> Radiographs:
        """The images of the part called ``name``."""
        return Radiographs(self.root, self.part(name), self.preprocess)

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

    def on_after_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        """Augment and normalise, on the device."""
        images = batch["image"]
        if self.trainer and self.trainer.training and not isinstance(self.augment, v2.Identity):
            images = torch.stack([self.augment(image) for image in images])
        return batch | {"image": self.preprocess.normalise(images)}

    def state_dict(self) -> dict[str, int]:
        """How many batches of the epoch are done, for a checkpoint in its middle."""
        loop = self.trainer.fit_loop
        return {"batches_done": loop.epoch_loop.batch_progress.current.completed % max(1, loop.max_batches)}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go on after the batches that were done."""
        self._batches_done = state["batches_done"]

    def _loader(self, dataset: Dataset, sampler: Sampler | None, drop_last: bool = False) -> DataLoader:
        workers = self._loading["num_workers"] > 0
        return DataLoader(dataset, sampler=sampler, drop_last=drop_last, persistent_workers=workers, **self._loading)

    @property
    def _world_size(self) -> int:
        return self.trainer.world_size if self.trainer else 1

    @property
    def _rank(self) -> int:
        return self.trainer.global_rank if self.trainer else 0
