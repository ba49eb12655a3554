"""Product masks, cropped and resized in the same way as the images they belong to."""

import io

import datasets
import numpy as np
from PIL import Image
from tqdm import tqdm

from common.config import DataConfig, InputError
from common.data.dataset import ClassificationDataset
from common.data.pixels import crop_with, encoded_bytes
from common.data.sources import load_tables


def load_masks(config: DataConfig, name: str, split: ClassificationDataset) -> np.ndarray:
    """The masks of `split`, aligned with its images: (N, 1, S, S) uint8, 0 for the background, 255 for the product.

    If a mask file has an alpha channel, that channel is the mask. `name` is the name of the split, "train" or "val".

    Raises:
        InputError: the data has no column mask; a mask is missing, cannot be read or differs from its image in size; or
            no mask value reaches 128.
    """
    tables = load_tables(config, "mask")
    rows = tables["all" if config.split_by else name].select(split.numbers)
    rows = rows.cast_column("mask", datasets.Image(decode=False))
    masks = np.empty((len(split), 1, config.image_size, config.image_size), np.uint8)
    for i, row in enumerate(tqdm(rows, desc=f"loading {name} masks", disable=None, leave=False)):
        if row["mask"] is None:
            raise InputError(f"{name} row {split.numbers[i]} has no mask.")
        try:
            stored, image = (Image.open(io.BytesIO(encoded_bytes(row[column]))) for column in ("mask", "image"))
            same_size = sorted(stored.size) == sorted(image.size)  # either may be stored rotated by 90 degrees (EXIF)
            mask = stored.getchannel("A") if "A" in stored.getbands() else stored.convert("L")
            mask, crop_size = crop_with(config, mask, row.get("bbox"), fill=(0, 0, 0))
        except (OSError, ValueError) as error:
            raise InputError(f"the mask of {name} row {split.numbers[i]} cannot be used: {error}") from error
        if not same_size or not np.allclose(crop_size, split.crop_sizes[i]):
            raise InputError(f"the mask of {name} row {split.numbers[i]} differs in size from its image.")
        masks[i] = np.asarray(mask)[:, :, 0]
    if masks.max() < 128:
        raise InputError(
            f"the largest value in the {name} masks is {masks.max()}: use 0 for the background, 255 for the product."
        )
    return masks
