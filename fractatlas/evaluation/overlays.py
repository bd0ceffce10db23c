"""Draw heatmaps and boxes over radiographs."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image, ImageDraw, ImageFont, ImageOps

from fractatlas.data.images import read_content
from fractatlas.evaluation.candidates import CORNERS
from fractatlas.evaluation.localisation import Heatmaps, place

SIDE = 256  # pixels of the shorter side of a drawn radiograph
OPACITY = 0.55  # at the highest heat, so that the bone stays visible
BOX_COLOUR = (64, 224, 255)
CANDIDATE_COLOUR = (255, 80, 255)  # not a colour of the palette
FRAME_COLOUR = (176, 176, 176)
PALETTE = "turbo"


def overlay(
    image: Image.Image,
    heat: np.ndarray | None,
    boxes: np.ndarray | None = None,
    view: np.ndarray | None = None,
    candidates: np.ndarray | None = None,
) -> Image.Image:
    """Draw heat, boxes and candidate boxes over a radiograph; higher heat is more opaque.

    Args:
        image: of mode ``L``, upright.
        heat: (height, width) of the image, 0 to 1, as ``evaluation.localisation.place`` returns it after scaling;
            ``None`` draws none.
        boxes: (n, 4), left, top, right, bottom in the image's pixels.
        view: the rectangle that the network receives, in the image's pixels. If it is a crop, it is drawn as a frame,
            because the heat ends at its edges.
        candidates: (n, 5), left, top, right, bottom in the image's pixels, and the score, which is written above or
            below the box.

    Returns:
        An image of mode ``RGB`` and the same size.
    """
    import matplotlib  # slow to import, and not every command draws

    pixels = np.asarray(image.convert("RGB"), dtype=np.float32)
    if heat is not None:
        heat = np.clip(heat, 0, 1).astype(np.float32)
        opacity = OPACITY * heat[..., None]
        colours = matplotlib.colormaps[PALETTE](heat, bytes=True)[..., :3]
        pixels = (1 - opacity) * pixels + opacity * colours
    drawn = Image.fromarray(pixels.round().astype(np.uint8))
    pen, thickness = ImageDraw.Draw(drawn), max(1, round(min(image.size) / 200))
    if view is not None and is_crop(view, image.size):
        _rectangle(pen, view, FRAME_COLOUR, thickness)
    for box in () if boxes is None else boxes:
        _rectangle(pen, box, BOX_COLOUR, thickness)
    font = ImageFont.load_default(max(9, round(min(image.size) / 18)))
    for *box, score in () if candidates is None else np.asarray(candidates)[::-1]:  # the highest score on top
        _rectangle(pen, np.array(box), CANDIDATE_COLOUR, thickness)
        _write_score(pen, box, f"{score:.2f}", font, drawn.size)
    return drawn


def _write_score(pen: ImageDraw.ImageDraw, box: Sequence[float], text: str, font: Any, size: tuple[int, int]) -> None:
    """Write the score above a box, or below it at the upper edge of the image."""
    left, top, _, bottom = box
    width, height = pen.textlength(text, font), round(1.1 * font.size)
    y = max(0, top - height if top >= height else min(bottom, size[1] - height))
    x = max(0, min(left, size[0] - width))
    pen.rectangle((x, y, x + width, y + height - 1), fill="black")
    pen.text((x, y + height / 2), text, fill="white", font=font, anchor="lm")  # JPEG would blur a colour


def full_heat(box_threshold: float | None) -> float:
    """Return the probability of a fracture map that is drawn in the last colour, the same in all images.

    The box threshold is in the middle of the colours. Without one (``None`` or 0), all probabilities are in the scale.
    """
    return min(1.0, 2 * box_threshold) if box_threshold else 1.0


def is_crop(view: np.ndarray, size: tuple[int, int]) -> bool:
    """Return whether a view (left, top, right, bottom) leaves out a pixel of an image of ``size`` (width, height)."""
    left, top, right, bottom = (float(edge) for edge in view)
    return left >= 1 or top >= 1 or right <= size[0] - 1 or bottom <= size[1] - 1


def _rectangle(pen: ImageDraw.ImageDraw, corners: np.ndarray, colour: tuple[int, int, int], thickness: int) -> None:
    left, top, right, bottom = np.asarray(corners, dtype=float)
    ordered = np.sort([[left, top], [right - 1, bottom - 1]], axis=0)  # right and bottom are exclusive
    pen.rectangle(ordered.round().astype(int).ravel().tolist(), outline=colour, width=thickness)


def colour_key(width: int, height: int, highest: float = 1.0) -> Image.Image:
    """Draw the colours of heat from 0 to ``highest``, from left to right, as on a grey radiograph."""
    grey = Image.new("L", (width, height), 128)
    return overlay(grey, np.tile(np.linspace(0, highest, width), (height, 1)))


def annotate(
    image: Image.Image, probability: float, highest: float | None, note: str = "", maximum: str = "maximum"
) -> Image.Image:
    """Add a strip below a drawn radiograph with the probability and the key of the heatmap's colours.

    Args:
        image: of mode ``RGB``.
        probability: of a fracture.
        highest: the largest heat in the image, 0 to 1, as ``overlay`` draws it; ``None`` if it has no heatmap.
        note: lines below, in the colour of candidate boxes; they are wrapped to the width of the image.
        maximum: the text at the end of the key.
    """
    width, size = image.width, max(9, round(min(image.size) / 18))
    font, line = ImageFont.load_default(size), round(1.5 * size)
    lines = [f"probability of a fracture {probability:.3f}"]
    if highest is not None:
        lines.append("heat 0" if highest > 0 else "heatmap is zero everywhere")
    texts = [*lines, *_wrap(note, font, width - size)]
    drawn = Image.new("RGB", (width, image.height + line * len(texts) + size // 2))
    drawn.paste(image)
    pen = ImageDraw.Draw(drawn)
    for row, text in enumerate(texts):
        colour = CANDIDATE_COLOUR if row >= len(lines) else (255, 255, 255)
        pen.text((size // 2, image.height + row * line + size // 4), text, fill=colour, font=font)
    if highest:
        left, top = round(size + pen.textlength(lines[1], font)), image.height + line + size // 2
        right = round(width - 1.5 * size - pen.textlength(maximum, font))
        if right > left:
            drawn.paste(colour_key(right - left, size, highest), (left, top))
            pen.text((right + size // 2, top - size // 4), maximum, fill="white", font=font)
    return drawn


def _wrap(text: str, font: ImageFont.ImageFont | ImageFont.FreeTypeFont, width: int) -> list[str]:
    """Divide a text at its line breaks, and at spaces so that no line is wider than ``width`` pixels."""
    lines = []
    for paragraph in text.splitlines():
        line = ""
        for word in paragraph.split():
            if line and font.getlength(f"{line} {word}") > width:
                lines.append(line)
                line = word
            else:
                line = f"{line} {word}" if line else word
        lines.append(line)
    return lines


def draw_radiographs(
    table: pd.DataFrame,
    root: Path,
    boxes: Mapping[str, np.ndarray],
    heatmaps: Heatmaps | None,
    candidates: pd.DataFrame | None = None,
    full: float | None = None,
) -> list[dict[str, Any]]:
    """Draw every radiograph of a table with the boxes of its fractures and, if it has one, its heatmap.

    Args:
        table: ``image_id, path, label, probability``, one row per radiograph.
        root: the data folder; radiographs without a file in it are skipped.
        boxes: for each fractured image id, (n, 4) left, top, right, bottom in pixels.
        heatmaps: scaled to ``full``.
        candidates: ``image_id, left, top, right, bottom, score`` of the candidate boxes to draw.
        full: the heat that is drawn in the last colour, see ``full_heat``; ``None`` is the maximum of each heatmap.

    Returns:
        For each drawn radiograph ``image_id, label, probability``, ``image``: PIL, RGB, ``SIDE`` pixels on the
        shorter side, ``highest``: the largest heat as drawn, or ``None`` without a heatmap, and ``cropped``: whether
        the heatmap covers a part of the radiograph only.
    """
    rows = {} if heatmaps is None else {name: row for row, name in enumerate(heatmaps.image_id.tolist())}
    drawn = []
    for item in table.itertuples():
        if not isinstance(item.path, str) or not (root / item.path).is_file():
            continue
        image = read_content((root / item.path).read_bytes())
        scale = SIDE / min(image.size)
        small = image.resize([max(1, round(side * scale)) for side in image.size], Image.Resampling.LANCZOS)
        heat = view = highest = None
        if heatmaps is not None and item.image_id in rows:
            row = rows[item.image_id]
            view = heatmaps.view[row] * scale
            heat = place(heatmaps.heat[row], view, *small.size)
            heat = np.minimum(heat / (full or max(heat.max(), 1e-9)), 1)
            highest = float(heat.max())
        corners, found = boxes.get(item.image_id), None
        if candidates is not None:
            found = candidates.loc[candidates["image_id"] == item.image_id, [*CORNERS, "score"]].to_numpy()
            found = found * [scale, scale, scale, scale, 1]
        picture = overlay(small, heat, None if corners is None else corners * scale, view, found)
        fields = {"image_id": item.image_id, "label": item.label, "probability": item.probability}
        cropped = view is not None and is_crop(view, small.size)
        drawn.append(fields | {"image": picture, "highest": highest, "cropped": cropped})
    return drawn


def tile(drawn: list[dict[str, Any]], columns: int = 4) -> np.ndarray:
    """Place the images of ``draw_radiographs`` in a grid, with their probabilities: uint8 (height, width, 3)."""
    tiles = [
        np.asarray(annotate(ImageOps.pad(item["image"], (SIDE, SIDE)), item["probability"], item["highest"]))
        for item in drawn
    ]
    height = max(len(one) for one in tiles)
    tiles = [np.pad(one, ((0, height - len(one)), (0, 0), (0, 0))) for one in tiles]
    tiles += [np.zeros_like(tiles[0])] * (-len(tiles) % columns)
    return np.vstack([np.hstack(tiles[row : row + columns]) for row in range(0, len(tiles), columns)])
