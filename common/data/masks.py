"""Product masks, cropped and resized in the same way as the images they belong to."""

import numpy as np
from tqdm import tqdm

from common.config import DataConfig, InputError
from common.data.crop import upright_size
from common.data.dataset import ClassificationDataset
from common.data.pixels import crop_with, error_reason, open_image
from common.data.sources import load_tables


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
    files = zip(rows.images("mask"), rows.images(), boxes, strict=True)
    for i, (mask_file, image_file, bbox) in enumerate(
        tqdm(files, desc=f"loading {name} masks", total=len(rows), disable=None, leave=False)
    ):
        try:
            stored, image = (open_image(file, max_megapixels=config.max_megapixels) for file in (mask_file, image_file))
            same_size = upright_size(stored) == upright_size(image)
            mask = stored.getchannel("A") if "A" in stored.getbands() else stored.convert("L")
            mask, _ = crop_with(config, mask, bbox, fill=(0, 0, 0))
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
