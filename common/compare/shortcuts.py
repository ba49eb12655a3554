"""Measures whether a model recognises the product or relies on its background.

The method follows ImageNet-9 (Xiao et al., 2021). Using the product masks, parts of each val image are painted over
with the mean colour of the model's normalisation, which is close to zero in its input. Where the product is painted
over, its outline is still visible, so the outline alone is scored too. Heat maps (`common.compare.heat_maps`) say how
much of what a prediction depends on is within the mask.
"""

from collections.abc import Sequence
from dataclasses import replace
from itertools import chain, count
from pathlib import Path

import numpy as np
from accelerate import Accelerator
from matplotlib.figure import Figure
from tqdm import tqdm

from common.compare.experiments import Experiment, split_of
from common.compare.heat_maps import draw_heat, heat_maps, shares_on_product, val_masks
from common.compare.questions import ScoredExperiment, ask
from common.config import printable
from common.data.dataset import ClassificationDataset
from common.evaluate import evaluate
from common.figures import save_figure
from common.files import check_output_folder, terminal_table, write_json
from common.finished_run import FinishedRun
from common.run_folder import IDS
from common.stats import format_difference, format_share, score_estimate

VIEWS = ("as trained", "product alone", "background alone", "outline alone")
HEAT_ROWS = 32  # val rows of which heat maps are made


def check_shortcuts(runs: Sequence[FinishedRun], out: Path, **source: str) -> list[dict]:
    """Scores each run on every view of its val images; `source` is passed to `FinishedRun.splits`.

    Prints a table, and writes shortcuts.json and a figure for each run to the folder `out`.

    Returns:
        The content of shortcuts.json.
    """
    names = ["-".join(run.folder.resolve().parts[-2:]) for run in runs]
    figures: list[str] = []
    for name in names:
        choices = (f"shortcuts-{name}{suffix}.png" for suffix in chain([""], (f"-{i}" for i in count(2))))
        taken = set(map(str.lower, figures))  # some file systems ignore case
        figures.append(next(choice for choice in choices if choice.lower() not in taken))
    fields = {"run": str, "accuracy": dict, "product_against_background": dict}
    check_output_folder(out, ["shortcuts.json", *figures], **fields)
    results, figure_of, rows = [], {}, []
    for run, name in zip(runs, figures, strict=True):
        val, masks = load_val(run, **source)
        views = masked_views(val, masks)
        accelerator = Accelerator()
        model = run.model().to(accelerator.device)
        predictions = {}
        for view, pixels in tqdm(views.items(), desc=printable(run.folder.name), disable=None):
            split = replace(val, pixels=pixels, index=np.arange(len(val)))
            predictions[view] = evaluate(model, split, accelerator, run.config.fit).argmax(1)
        run.check_predictions(predictions["as trained"])
        scored = {
            view: ScoredExperiment(_as_experiment(run, val, view, predicted)) for view, predicted in predictions.items()
        }
        question = ask("model", scored["background alone"], scored["product alone"])
        accuracy = {view: experiment.estimates["accuracy"] for view, experiment in scored.items()}
        chosen = np.unique(np.linspace(0, len(val) - 1, HEAT_ROWS).round().astype(int))
        heat = heat_maps(model, val.part(np.isin(np.arange(len(val)), chosen)))
        on_product = heat_on_product(heat, masks[chosen], scored["as trained"].clusters[chosen])
        results.append(
            {
                "run": run.name,
                "accuracy": {view: estimate.as_dict() for view, estimate in accuracy.items()},
                "product_against_background": question.as_dict(),
                "heat_on_product": on_product,
            }
        )
        difference = format_difference(question.change.value, question.interval)
        shares = [format_share(estimate.value) for estimate in accuracy.values()]
        heat_share = f"{format_share(on_product['value'], 2)} on {format_share(on_product['area'], 2)} of the image"
        rows.append([run.name, *shares, difference, heat_share if on_product["interval"] else ""])
        figure_of[name] = _views_figure(val, views, predictions, chosen, heat)
    write_json(out / "shortcuts.json", results)
    for name, figure in figure_of.items():
        save_figure(out / name, figure)
    print("\n".join(terminal_table(["val accuracy", *VIEWS, "product - background", "heat on the product"], rows)))
    print(f"\nwritten: {printable(str(out))}/shortcuts.json and figures")
    return results


def load_val(run: FinishedRun, **source: str) -> tuple[ClassificationDataset, np.ndarray]:
    """The val split of a run and its masks (N, 1, S, S) uint8.

    Raises:
        InputError: the data is missing or has changed since the run was trained, it has no masks, or a mask differs
            in size from its image.
    """
    val = run.splits(**source)[1]
    return val, val_masks(run, val, **source)


def masked_views(val: ClassificationDataset, masks: np.ndarray) -> dict[str, np.ndarray]:
    """The pixels (N, 3, S, S) uint8 of a val split in each of `VIEWS`, from its masks (N, 1, S, S) uint8."""
    pixels = val.pixels[val.index]
    mean_color = np.array(val.normalization.color, np.uint8)[:, None, None]
    product, touched = masks > 127, masks > 0  # a pixel at the edge shows product and background
    views = (
        pixels,
        np.where(product, pixels, mean_color),
        np.where(touched, mean_color, pixels),
        np.where(product, mean_color, np.uint8(0)),
    )
    return dict(zip(VIEWS, views, strict=True))


def heat_on_product(heat: np.ndarray, masks: np.ndarray, clusters: np.ndarray) -> dict:
    """The mean share of the heat (N, S, S) within the masks (N, 1, S, S), for shortcuts.json.

    The 95 % confidence interval accounts for the choice of products and images, `clusters` (N,). Value and interval are
    None if the images with any heat show a single product. `area` is the mean share of the image within the mask.
    """
    shares = shares_on_product(heat, masks)
    warm = ~np.isnan(shares)
    found: dict = {"value": None, "interval": None, "rows": int(warm.sum())}
    found["area"] = float((masks[warm, 0] > 127).mean()) if warm.any() else None
    members = np.unique(clusters[warm], return_inverse=True)[1]
    if members.any():
        sums, counts = np.bincount(members, shares[warm]), np.bincount(members)
        without = (sums.sum() - sums) / (counts.sum() - counts)
        found |= score_estimate(np.array([shares[warm].mean()]), without[None]).as_dict()
    return found


def _as_experiment(run: FinishedRun, val: ClassificationDataset, view: str, predictions: np.ndarray) -> Experiment:
    """The experiment of one run, validated on a view; `predictions` (N,) are class numbers."""
    names = np.array(val.classes)[predictions]
    splits = np.full((1, len(names)), str(split_of(run)))
    return Experiment(view, run.config.variant, [run.config.seed], run.rows[IDS], splits, names[None])


def _views_figure(
    val: ClassificationDataset,
    views: dict,
    predictions: dict,
    chosen: np.ndarray,
    heat: np.ndarray,
    examples: int = 8,
) -> Figure:
    """Some val images in every view, with the predictions, and their heat maps: `heat` is that of the rows `chosen`."""
    numbers = np.unique(np.linspace(0, len(chosen) - 1, examples).round().astype(int))
    figure = Figure(figsize=(1.5 * len(numbers) + 0.6, 1.85 * (len(views) + 1)), layout="constrained")
    axes = figure.subplots(len(views) + 1, len(numbers), squeeze=False)
    for row, (view, pixels) in zip(axes, views.items(), strict=False):
        for axis, i in zip(row, chosen[numbers], strict=True):
            prediction = predictions[view][i]
            color = "tab:green" if prediction == val.labels[i] else "tab:red"
            axis.imshow(pixels[i].transpose(1, 2, 0))
            axis.set_title(printable(val.classes[prediction]), fontsize=8, color=color)
        row[0].set_ylabel(view, fontsize=9)
    for axis, i in zip(axes[-1], numbers, strict=True):
        draw_heat(axis, views["as trained"][chosen[i]], heat[i])
    axes[-1, 0].set_ylabel("heat map", fontsize=9)
    for axis in axes.flat:
        axis.set(xticks=[], yticks=[])
    return figure
