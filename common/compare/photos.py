"""Small photos of val rows for comparison.html, which contains them as data: URLs."""

import base64
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from common.compare.experiments import Experiment, join_folds
from common.compare.questions import ScoredExperiment
from common.config import DataConfig, InputError
from common.data.boxes import to_pixels
from common.data.crop import padding, upright_size
from common.data.pixels import crop_with, open_image

MAX_PHOTOS = 500
SIDE = 192  # longer side in pixels
MAX_BYTES = 3_300_000  # of all photos together; a third more as data: URLs
QUALITIES = (80, 40, 0)  # of WebP; the first with which the photos have at most MAX_BYTES


@dataclass(frozen=True)
class Photos:
    """The val rows that the page shows, and their photos."""

    rows: list[int]  # row numbers, ascending
    urls: dict[int, str]  # the photo of each row as a data: URL; empty if there are none
    missing: str = ""  # why there are none


def find_photos(scored_experiments: Sequence[ScoredExperiment], first: Iterable[int] = (), **source: str) -> Photos:
    """The photos of the rows of `choose_rows`; `source` is passed to `FinishedRun.splits`."""
    rows = choose_rows(scored_experiments, first)
    try:
        photos = read_photos([scored.experiment for scored in scored_experiments], rows, **source)
    except InputError as error:
        return Photos(rows, {}, str(error))
    return Photos(rows, data_urls(photos))


def choose_rows(scored_experiments: Sequence[ScoredExperiment], first: Iterable[int] = ()) -> list[int]:
    """The numbers of the rows that are shown, in ascending order: all or, of more, `MAX_PHOTOS`.

    These are the rows `first`, and then those that most runs classify wrongly.
    """
    right = np.concatenate([scored.correct for scored in scored_experiments]).mean(0)  # (N,)
    rows = dict.fromkeys([*first, *np.argsort(right, kind="stable").tolist()])
    return sorted(list(rows)[:MAX_PHOTOS])


def read_photos(experiments: Sequence[Experiment], rows: Sequence[int], **source: str) -> dict[int, Image.Image]:
    """The photos of val rows, by row: cropped to the box if any of `experiments` uses crops, otherwise whole.

    Rows whose image can no longer be read are left out. `source` is passed to `FinishedRun.splits`.

    Raises:
        InputError: the data is missing or has changed since the runs were trained.
    """
    experiment = next((e for e in experiments if e.variant.startswith("crop")), experiments[0])
    partition = min(split.partition for split in experiment.run_of_split)
    folds = {split: run for split, run in experiment.run_of_split.items() if split.partition == partition}
    table = join_folds({fold: run.rows.assign(number=np.arange(len(run.rows))) for fold, run in folds.items()})
    wanted, photos = table.iloc[rows], {}
    for fold, run in folds.items():
        val = run.splits(**source)[1].rows
        options = run.info.config
        config = DataConfig(crop=options["crop"], margin=options["margin"], fit="pad", image_size=SIDE)
        of_fold = wanted.loc[wanted["split_by"] == str(fold), "number"].sort_values()
        chosen = val.select(of_fold.to_numpy())
        boxes = chosen["bbox"] if config.crop else [None] * len(chosen)
        for row, encoded, bbox in zip(of_fold.index.tolist(), chosen.images(), boxes, strict=True):
            try:
                image = open_image(encoded)
                square, sides = crop_with(config, image, to_pixels(bbox, val.box_format, upright_size(image)))
            except Exception:  # changed meanwhile; broken files raise errors of many kinds
                continue
            x, y = padding(sides, SIDE)
            photos[row] = square.crop((x, y, SIDE - x, SIDE - y))
    return photos


def data_urls(photos: Mapping[int, Image.Image]) -> dict[int, str]:
    """`photos` as data: URLs, of lower quality the more bytes they would have."""
    files: dict[int, bytes] = {}
    for quality in QUALITIES:
        files = {row: _webp(photo, quality) for row, photo in photos.items()}
        if sum(map(len, files.values())) <= MAX_BYTES:
            break
    return {row: f"data:image/webp;base64,{base64.b64encode(file).decode()}" for row, file in files.items()}


def _webp(image: Image.Image, quality: int) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "WEBP", quality=quality)
    return buffer.getvalue()
