"""What every source of images provides: the class that a new source extends."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from fractatlas.data.sources.annotations import Annotation, has_area


class Source(ABC):
    """A data set in one layout on disk.

    A source reads tables and lists files; it does not decode images. ``catalogue.read_catalogue`` adds what is common
    to all sources: checks of the files, hashes, copies, groups and reasons for exclusion.

    Attributes:
        name: of the data set or the layout, for messages and pages.
        finding: what label 1 means.
        has_exams: whether ``rows`` infers exams.
        ignored: annotations that ``boxes`` and ``outlines`` do not contain; see ``ignore_outside``.
        draw_split: the override that ignores a split of the data set itself; ``""``: there is none.
        root: the folder that paths in the catalogue are relative to.
        settings: the arguments with which ``open_source`` opens the source again, as plain values.
    """

    name = ""
    finding = "fracture"
    has_exams = False
    draw_split = ""
    ignored: Sequence[Annotation] = ()
    root: Path
    settings: dict[str, Any]

    @property
    def place(self) -> str:
        """Where the data are, for messages."""
        return str(self.root)

    @abstractmethod
    def require(self) -> None:
        """Require the files of the layout, without reading images.

        Raises:
            InputError: a file or folder is missing.
        """

    def prepare(self) -> None:  # noqa: B027, because most sources have nothing to create
        """Create the data if they do not exist and can be created."""

    @abstractmethod
    def rows(self) -> pd.DataFrame:
        """Return one row per image, ordered by ``image_id``.

        Returns:
            ``image_id`` (unique), ``path`` (relative to ``root``; ``""`` if there is no file), ``label`` (0 or 1), and
            optionally: ``exam`` (inferred), the columns of ``groups.GIVEN``, ``given_split`` (``train``, ``val``,
            ``test`` or ``""``), ``source`` (name of the data set, if there are several), ``excluded`` (a reason, or
            ``""``), ``note`` (how a contradiction was resolved, or ``""``), and further columns, which are attributes
            of the images.

        Raises:
            InputError: a file does not have the format of the layout.
        """

    def annotations(self) -> list[Annotation]:
        """Return the annotated fractures of all images; empty by default.

        Raises:
            InputError: a file of annotations is broken.
        """
        return []

    def annotated_sizes(self) -> dict[str, dict[str, tuple[int, int]]]:
        """Return, for each file of annotations, the width and height of images that it states, by image id."""
        return {}

    def ignore_outside(self, sizes: Mapping[str, tuple[int, int]]) -> None:
        """Move the annotations whose box has no area in its image to ``ignored``.

        Args:
            sizes: width and height of the upright images, by image id; other images are not checked.
        """
        inside: dict[bool, list[Annotation]] = {True: [], False: []}
        for one in self._annotations:
            inside[one.image_id not in sizes or has_area(one, sizes[one.image_id])].append(one)
        self._annotations, self.ignored = inside[True], [*self.ignored, *inside[False]]

    def boxes(self) -> dict[str, np.ndarray]:
        """Return the boxes by image id, only for images that have one.

        Each is float32 (n, 4): left, top, right, bottom in pixels of the upright image.
        """
        boxes: dict[str, list[list[float]]] = {}
        for one in self._annotations:
            boxes.setdefault(one.image_id, []).append(one.box)
        return {image_id: np.array(rows, dtype=np.float32) for image_id, rows in boxes.items()}

    def outlines(self) -> dict[str, list[np.ndarray]]:
        """Return the outlines by image id, only for images that have one: polygons, or the box if there is none.

        Each polygon is float32 (k, 2): x and y in pixels of the upright image.
        """
        outlines: dict[str, list[np.ndarray]] = {}
        for one in self._annotations:
            left, top, right, bottom = one.box
            corners = np.array([[left, top], [right, top], [right, bottom], [left, bottom]], dtype=np.float32)
            outlines.setdefault(one.image_id, []).extend(one.polygons or [corners])
        return outlines

    @cached_property
    def _annotations(self) -> list[Annotation]:
        return self.annotations()
