"""Does a model's score come from the product, or from the background that it happens to stand in?

The idea is ImageNet-9's (Xiao et al., 2021). A part of each val image is painted over with the colour that is zero to
the model, by the product's mask. The hole that this leaves has the product's outline, so the outline is scored too.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from accelerate import Accelerator
from tqdm import tqdm

from common.comparison import Scored, ask
from common.crop import PAD_COLOR
from common.data import ClassificationDataset
from common.evaluate import predict
from common.files import write_json
from common.findings import estimate_numbers, question_numbers
from common.finished import Experiment, FinishedRun
from common.masks import load_masks
from common.report import plt, save_figure
from common.tables import table

VIEWS = ("as trained", "product alone", "background alone", "outline alone")


def check(runs: Sequence[FinishedRun], out: Path) -> list[dict]:
    """Scores each run on every view of its val images; writes shortcuts.json and a picture for each run to `out`."""
    results, rows = [], []
    for run in runs:
        val, views = masked_views(run)
        accelerator = Accelerator()
        model = run.model().to(accelerator.device)
        guesses = {}
        for name, pixels in tqdm(views.items(), desc=run.folder.name, disable=None):
            split = replace(val, pixels=pixels, index=np.arange(len(val)))
            guesses[name] = predict(model, split, accelerator, run.config.fit).argmax(1)
        scored = {name: Scored(_as_experiment(run, val, name, numbers)) for name, numbers in guesses.items()}
        question = ask("model", scored["background alone"], scored["product alone"])
        question.holm_p = question.p
        accuracy = {name: one.estimates["accuracy"] for name, one in scored.items()}
        results.append(
            {
                "run": str(run.folder),
                "accuracy": {name: estimate_numbers(found) for name, found in accuracy.items()},
                "product_against_background": question_numbers(question),
            }
        )
        low, high = question.change.interval()
        change = f"{100 * question.change.value:+.1f} [{100 * low:.1f}, {100 * high:.1f}]"
        rows.append([str(run.folder), *(f"{found.value:.3f}" for found in accuracy.values()), change])
        save_figure(out / f"shortcuts-{'-'.join(run.folder.resolve().parts[-2:])}.png", _picture(val, views, guesses))
    write_json(out / "shortcuts.json", results)
    print("\n".join(table(["val accuracy", *VIEWS, "product - background, points"], rows)))
    print(f"\nwritten: {out}/shortcuts.json and pictures")
    return results


def masked_views(run: FinishedRun) -> tuple[ClassificationDataset, dict[str, np.ndarray]]:
    """The run's val split, and its pixels (N, 3, S, S) uint8 in each of `VIEWS`.

    Raises:
        InputError: the data is not what the run was trained on, or has no masks, or masks of another size.
    """
    config = run.config
    val = run.splits()[1]
    masks = load_masks(config, "val", val)
    pixels, gray = val.pixels[val.index], np.array(PAD_COLOR, np.uint8)[:, None, None]
    product, touched = masks > 127, masks > 0  # at its edge a pixel shows both
    views = np.where(product, pixels, gray), np.where(touched, gray, pixels), np.where(product, gray, np.uint8(0))
    return val, dict(zip(VIEWS, (pixels, *views), strict=True))


def _as_experiment(run: FinishedRun, val: ClassificationDataset, view: str, guesses: np.ndarray) -> Experiment:
    names = np.array(val.classes)
    ids = run.rows[["image_id", "product_id", "scene_id", "label"]]
    return Experiment(view, run.config.variant, [run.config.seed], ids, names[guesses][None])


def _picture(val: ClassificationDataset, views: dict, guesses: dict, examples: int = 8) -> plt.Figure:
    """Some val images in every view, with what the model says of them."""
    rows = np.linspace(0, len(val) - 1, min(examples, len(val))).round().astype(int)
    figure, axes = plt.subplots(
        len(views), len(rows), figsize=(1.5 * len(rows) + 0.6, 1.85 * len(views)), layout="constrained", squeeze=False
    )
    for line, (name, pixels) in zip(axes, views.items(), strict=True):
        for axis, i in zip(line, rows, strict=True):
            axis.imshow(pixels[i].transpose(1, 2, 0))
            right = guesses[name][i] == val.labels[i]
            axis.set_title(val.classes[guesses[name][i]], fontsize=8, color="tab:green" if right else "tab:red")
            axis.set(xticks=[], yticks=[])
        line[0].set_ylabel(name, fontsize=9)
    return figure
