"""The products' masks: as pixels beside those of the images, and what they do to a batch's backgrounds."""

import io

import datasets
import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

from common.config import DataConfig, InputError
from common.crop import PAD_COLOR
from common.data import ClassificationDataset
from common.pixels import cut, encoded_bytes
from common.sources import load_tables


def load_masks(config: DataConfig, name: str, split: ClassificationDataset) -> np.ndarray:
    """(N, 1, S, S) uint8: the masks of `split`, which is "train" or "val", cropped and resized as its images are.

    Raises:
        InputError: the data has no masks, or a mask is missing or of another size than its image.
    """
    tables = load_tables(config, "mask")
    rows = tables["all" if config.split_by else name].select(split.numbers)
    rows = rows.cast_column("mask", datasets.Image(decode=False))
    masks = np.empty((len(split), 1, config.image_size, config.image_size), np.uint8)
    for i, row in enumerate(tqdm(rows, desc=f"masks of {name}", disable=None, leave=False)):
        if row["mask"] is None:
            raise InputError(f"{name} row {split.numbers[i]} has no mask.")
        try:
            mask, image = (Image.open(io.BytesIO(encoded_bytes(row[name]))) for name in ("mask", "image"))
            fits = sorted(mask.size) == sorted(image.size)  # one of them may lie on its side
            mask = mask.getchannel("A") if "A" in mask.getbands() else mask.convert("L")
            mask, size = cut(mask, row.get("bbox"), config, fill=(0, 0, 0))
        except (OSError, ValueError) as error:
            raise InputError(f"the mask of {name} row {split.numbers[i]} does not fit its image: {error}") from error
        if not fits or not np.allclose(size, split.crop_sizes[i]):
            raise InputError(f"the mask of {name} row {split.numbers[i]} is not as large as its image.")
        masks[i] = np.asarray(mask)[:, :, 0]
    if masks.max() < 128:
        raise InputError(f"the masks of {name} reach {masks.max()}: a mask is 0 on the background, 255 on the product.")
    return masks


def replace_background(
    images: torch.Tensor, masks: torch.Tensor, others: torch.Tensor, other_masks: torch.Tensor, kind: str
) -> torch.Tensor:
    """Images (B, 3, S, S) float in [0, 255] whose background is made new; their products, by `masks`, stay.

    Args:
        masks: (B, 1, S, S) in [0, 1], 1 on the product.
        others: (B, 3, S, S), the images that "swap" takes backgrounds from; the hole that their product leaves has
            the mean colour of the rest.
        kind: "gray" (the mean colour of ImageNet), "blur" or "swap".
    """
    if kind == "gray":
        background = torch.tensor(PAD_COLOR, device=images.device, dtype=images.dtype).view(3, 1, 1)
    elif kind == "blur":
        from torchvision.transforms.v2.functional import gaussian_blur  # takes seconds

        size = max(1, images.shape[-1] // 8)
        background = gaussian_blur(images, [2 * size + 1] * 2, [size / 2] * 2)
    else:
        shown = 1 - other_masks
        mean = (others * shown).sum((2, 3), keepdim=True) / shown.sum((2, 3), keepdim=True).clamp(min=1)
        background = torch.lerp(mean, others, shown)
    return torch.lerp(background, images, masks)
