"""Product masks, cropped and resized in the same way as the images they belong to."""

from collections.abc import Iterable

import numpy as np
from tqdm import tqdm

from common.config import DataConfig, InputError
from common.data.boxes import to_pixels
from common.data.crop import upright_size
from common.data.dataset import ClassificationDataset
from common.data.pixels import crop_with, error_reason, open_image
from common.data.segmentation import draw_mask
from common.data.sources import load_tables
from common.data.table import SEGMENTATION


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
    segmentations = rows["mask"] if rows.types.get("mask") == SEGMENTATION else None
    masks_of_rows: Iterable = segmentations if segmentations is not None else rows.images("mask")
    files = zip(masks_of_rows, rows.images(), boxes, strict=True)
    for i, (mask_source, image_file, bbox) in enumerate(
        tqdm(files, desc=f"loading {name} masks", total=len(rows), disable=None, leave=False)
    ):
        try:
            image = open_image(image_file, max_megapixels=config.max_megapixels)
            if segmentations is not None:
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
