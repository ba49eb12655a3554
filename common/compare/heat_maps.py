"""Shows which parts of an image a prediction depends on, by occlusion (Zeiler and Fergus, 2014).

A square is painted over, at many places in turn, with the mean colour of the model's normalisation. The heat of a pixel
is how much the log probability of the predicted class decreases, on average, while the pixel is covered. This needs
only the model's outputs, so it works for every model.
"""

from dataclasses import dataclass, replace

import numpy as np
import torch
from accelerate import Accelerator
from matplotlib.axes import Axes
from torch import nn
from tqdm import tqdm

from common.config import InputError, Normalization
from common.data.dataset import ClassificationDataset
from common.data.masks import load_masks
from common.data.pixels import normalize
from common.finished_run import FinishedRun
from common.stats import format_share

SIDE = 0.2  # of the square, as a fraction of the image's
PLACES = 9  # of the square in each direction: neighbours overlap by half
MISTAKES = 6  # shown in a comparison
HEAT_ALPHA = 0.6  # opacity of a heat map over its image


@dataclass
class Mistake:
    """A wrong prediction, and what it depends on."""

    row: int  # of the run's val rows
    image_id: str
    label: str
    prediction: str
    probability: float  # of the prediction
    pixels: np.ndarray  # (3, S, S) uint8
    heat: np.ndarray  # (S, S) float32, see `heat_map`
    on_product: float | None  # share of the heat within the product's mask; None without masks or heat
    area: float | None  # share of the image within the mask: what `on_product` would be if all pixels counted equally

    def as_dict(self) -> dict:
        """The fields that go into comparison.json."""
        names = ("image_id", "label", "prediction", "probability", "on_product", "area")
        return {name: getattr(self, name) for name in names}


@torch.no_grad()
def heat_map(model: nn.Module, pixels: np.ndarray, normalization: Normalization, device: torch.device) -> np.ndarray:
    """The heat (S, S) float32, at least 0, of an image (3, S, S) uint8.

    Args:
        model: maps normalised images (B, 3, S, S) float32 to logits (B, C); on `device`, in evaluation mode.
    """
    size = pixels.shape[-1]
    side = max(1, round(SIDE * size))
    starts = np.unique(np.linspace(0, size - side, PLACES).round().astype(int)).tolist()
    squares = [np.s_[top : top + side, left : left + side] for top in starts for left in starts]
    color = torch.tensor(normalization.color, dtype=torch.uint8)[:, None, None]
    images = torch.from_numpy(pixels.copy()).repeat(1 + len(squares), 1, 1, 1)
    for image, square in zip(images[1:], squares, strict=True):
        image[:, *square] = color
    parts = [model(normalize(part, normalization)).float().cpu() for part in images.to(device).split(64)]
    predicted = torch.cat(parts).log_softmax(1)
    predicted = predicted[:, predicted[0].argmax()]
    heat, covered = np.zeros((size, size)), np.zeros((size, size))
    for square, decrease in zip(squares, (predicted[0] - predicted[1:]).clamp(min=0).tolist(), strict=True):
        heat[square] += decrease
        covered[square] += 1
    return (heat / covered).astype(np.float32)


def heat_maps(model: nn.Module, split: ClassificationDataset) -> np.ndarray:
    """The heat maps (N, S, S) float32 of the images of `split`, for the classes that `model` predicts."""
    device = next(model.parameters()).device
    progress = tqdm(split.index.tolist(), desc="heat maps", disable=None, leave=False)
    return np.stack([heat_map(model, split.pixels[i], split.normalization, device) for i in progress])


def heat_shares(mistake: Mistake) -> str:
    """How much of the heat is on the product, in words; "" if it is not known."""
    if mistake.on_product is None or mistake.area is None:
        return ""
    shares = format_share(mistake.on_product, 2), format_share(mistake.area, 2)
    return f"{shares[0]} of the heat is on the product, which fills {shares[1]} of the image"


def draw_heat(axis: Axes, pixels: np.ndarray, heat: np.ndarray) -> None:
    """Draws an image (3, S, S) uint8, darker where its heat (S, S) is low."""
    axis.imshow(pixels.transpose(1, 2, 0))
    axis.imshow(heat, cmap="inferno", alpha=HEAT_ALPHA, vmin=0)


def shares_on_product(heat: np.ndarray, masks: np.ndarray) -> np.ndarray:
    """The share (N,) of each heat map (N, S, S) that is within the mask (N, 1, S, S) uint8; NaN without any heat."""
    total = heat.sum((1, 2))
    inside = (heat * (masks[:, 0] > 127)).sum((1, 2))
    return np.divide(inside, total, out=np.full(len(heat), np.nan), where=total > 0)


def val_masks(run: FinishedRun, part: ClassificationDataset, **source: str) -> np.ndarray:
    """The masks (N, 1, S, S) uint8 of rows of the run's val split; `source` is passed to `FinishedRun.splits`, too.

    Raises:
        InputError: the data has no masks, or they do not fit the images.
    """
    return load_masks(replace(run.config, data=source.get("data") or run.config.data), "val", part)


def confident_mistakes(run: FinishedRun, **source: str) -> list[Mistake]:
    """The wrong predictions of a run with the highest probabilities; `source` is passed to `FinishedRun.splits`.

    Raises:
        InputError: the data is missing or has changed, or the model cannot be rebuilt.
    """
    wrong = run.rows[run.rows["label"] != run.rows["prediction"]]
    wrong = wrong.nlargest(MISTAKES, "probability").sort_index()
    if wrong.empty:
        return []
    val = run.splits(**source)[1]
    part = val.part(np.isin(np.arange(len(val)), wrong.index))
    heat = heat_maps(run.model().to(Accelerator().device), part)
    try:
        masks = val_masks(run, part, **source)
        shares = [None if np.isnan(share) else float(share) for share in shares_on_product(heat, masks)]
        areas = (masks[:, 0] > 127).mean((1, 2)).tolist()
    except InputError:  # the data has no masks
        shares = areas = [None] * len(part)
    found = []
    for i, row in enumerate(wrong.index):
        image_id, label, prediction, probability = wrong.loc[row, ["image_id", "label", "prediction", "probability"]]
        pixels = part.pixels[part.index[i]]
        found.append(Mistake(row, image_id, label, prediction, probability, pixels, heat[i], shares[i], areas[i]))
    return sorted(found, key=lambda mistake: -mistake.probability)
