"""Product masks, cropped and resized in the same way as the images they belong to."""

from collections.abc import Iterable, Sequence

import numpy as np
from PIL import Image, ImageChops, ImageDraw
from tqdm import tqdm

from common.config import DataConfig, InputError
from common.data.annotations import POLYGONS
from common.data.boxes import to_pixels
from common.data.crop import upright_size
from common.data.dataset import ClassificationDataset
from common.data.pixels import crop_with, error_reason, open_image
from common.data.sources import load_tables


def draw_mask(outlines: Sequence[Sequence[float]] | None, size: tuple[int, int]) -> Image.Image:
    """A mask of `size` pixels, 255 within the polygons x1, y1, x2, y2, ... in pixels of the upright image.

    Raises:
        ValueError: there are no polygons.
    """
    if not outlines:
        raise ValueError("it has no polygons, and masks in run-length encoding are not read")
    mask = Image.new("L", size)
    for outline in outlines:
        points = np.clip(np.asarray(outline), -1e5, 1e5).reshape(-1, 2)
        starts = np.clip(np.floor(points.min(0)), 0, size).astype(int)
        ends = np.clip(np.ceil(points.max(0)), 0, size).astype(int)
        width, height = (ends - starts).tolist()
        if min(width, height) > 0:
            scale = 4 if width * height < 1_000_000 else 1  # Pillow also fills the pixels that an edge touches
            part = Image.new("L", (width * scale, height * scale))
            ImageDraw.Draw(part).polygon(((points - starts) * scale).ravel().tolist(), fill=255)
            box = (*starts.tolist(), *ends.tolist())
            mask.paste(ImageChops.lighter(mask.crop(box), part.reduce(scale)), box)
    return mask


def load_masks(config: DataConfig, name: str, split: ClassificationDataset) -> np.ndarray:
    """The masks of `split`, aligned with its images: (N, 1, S, S) uint8, 0 for the background, 255 for the product.

    If a mask file has an alpha channel, that channel is the mask. `name` is the name of the split, "train" or "val".

    Raises:
        InputError: the data has no column mask; a mask is missing, cannot be read or differs from its image in size; no
            mask value reaches 128; or the data was changed since `split` was loaded.
    """
    load_tables(config, "mask")  # only checks that there are masks
    rows = split.rows
    masks = np.empty((len(split), 1, config.image_size, config.image_size), np.uint8)
    boxes = rows["bbox"] if "bbox" in rows else [None] * len(rows)
    outlines = rows["mask"] if rows.types.get("mask") == POLYGONS else None
    masks_of_rows: Iterable = outlines if outlines is not None else rows.images("mask")
    files = zip(masks_of_rows, rows.images(), boxes, strict=True)
    for i, (mask_source, image_file, bbox) in enumerate(
        tqdm(files, desc=f"loading {name} masks", total=len(rows), disable=None, leave=False)
    ):
        try:
            image = open_image(image_file, max_megapixels=config.max_megapixels)
            if outlines is not None:
                stored = draw_mask(mask_source, upright_size(image))
            else:
                stored = open_image(mask_source, max_megapixels=config.max_megapixels)
            same_size = upright_size(stored) == upright_size(image)
            mask = stored.getchannel("A") if "A" in stored.getbands() else stored.convert("L")
            box = to_pixels(bbox, rows.box_format, upright_size(image))
            mask, _ = crop_with(config, mask, box, fill=(0, 0, 0))
        except Exception as error:  # PIL raises many kinds of exceptions for broken files
            reason = error_reason(error)
            raise InputError(f"the mask of {name} row {split.numbers[i]} cannot be used: {reason}.") from error
        if not same_size:
            raise InputError(f"the mask of {name} row {split.numbers[i]} differs in size from its image.")
        masks[i] = np.asarray(mask)[:, :, 0]
    rows.check_unchanged()
    if masks.max() < 128:
        raise InputError(
            f"the largest value in the {name} masks is {masks.max()}: use 0 for the background, 255 for the product."
        )
    return masks
