"""What a finished run shows of itself: a table of predictions and three pictures."""

import shutil
from collections.abc import Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")  # no display needed
matplotlib.rcParams["text.parse_math"] = False  # a category may hold a $
import matplotlib.pyplot as plt  # noqa: E402
import numpy as np  # noqa: E402
import pandas as pd  # noqa: E402
import safetensors.torch  # noqa: E402
from matplotlib.ticker import MaxNLocator  # noqa: E402
from scipy.special import softmax  # noqa: E402
from sklearn.metrics import confusion_matrix  # noqa: E402
from torch import nn  # noqa: E402

from common.card import model_card  # noqa: E402
from common.data import ClassificationDataset  # noqa: E402
from common.files import whole, write_csv, write_json  # noqa: E402
from common.metrics import row_losses, scores  # noqa: E402


def write_results(
    out: Path,
    model: nn.Module,
    logits: np.ndarray,
    val: ClassificationDataset,
    run: dict,
    report: dict,
    best: dict,
    log: list[dict],
) -> None:
    """The finished run's files. metrics.json comes last: a folder that has it is finished."""
    with whole(out / "model.safetensors") as partial:
        partial.write_bytes(safetensors.torch.save({k: v.contiguous() for k, v in model.state_dict().items()}))
    write_json(out / "labels.json", val.classes)
    rows, found = predictions(val, logits), scores(val.labels.numpy(), logits)
    write_csv(out / "predictions.csv", rows)
    write_plots(out, val, logits, log)
    with whole(out / "README.md") as partial:
        partial.write_text(model_card(run, report, found, pd.DataFrame(rows)), encoding="utf-8")
    write_json(out / "metrics.json", found | {"best_epoch": best})
    shutil.rmtree(out / "checkpoint", ignore_errors=True)  # three times the weights, and of no more use


def predictions(val: ClassificationDataset, logits: np.ndarray) -> list[dict]:
    """One row per val image: ids, label, prediction, the prediction's probability, the label's loss in nats."""
    labels, probabilities = val.labels.numpy(), softmax(logits.astype(np.float64), axis=1)
    guesses, ids = probabilities.argmax(1), val.ids()
    columns = {
        **ids,
        "label": [val.classes[i] for i in labels],
        "prediction": [val.classes[i] for i in guesses],
        "probability": probabilities.max(1).tolist(),
        "loss": row_losses(labels, logits).tolist(),
    }
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def write_plots(out: Path, val: ClassificationDataset, logits: np.ndarray, log: list[dict]) -> None:
    """curves.png, confusion.png and mistakes.png into the folder `out`."""
    for name, figure in (
        ("curves.png", _curves(log)),
        ("confusion.png", _confusion(val, logits)),
        ("mistakes.png", _mistakes(val, logits)),
    ):
        save_figure(out / name, figure)


def save_figure(path: Path, figure: plt.Figure) -> None:
    with whole(path) as partial:
        figure.savefig(partial, format="png", dpi=120)
    plt.close(figure)


def _curves(log: list[dict]) -> plt.Figure:
    """Losses and val scores over the epochs."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4), layout="constrained")
    steps, epochs = [e for e in log if "loss" in e], [e for e in log if "val_loss" in e]
    left.plot(
        [e["epoch"] for e in steps],
        [e["loss"] for e in steps],
        color="tab:blue",
        label="train",
        marker=",",
        linewidth=1,
    )
    left.plot(
        [e["epoch"] for e in epochs], [e["val_loss"] for e in epochs], color="tab:orange", label="val", marker="."
    )
    left.set(xlabel="epoch", ylabel="cross-entropy (nats)", ylim=(0, None))
    for name in ("accuracy", "f1", "macro_f1"):
        right.plot([e["epoch"] for e in epochs], [e[f"val_{name}"] for e in epochs], label=f"val {name}", marker=".")
    right.set(xlabel="epoch", ylim=(0, 1))
    for axis in (left, right):
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
        axis.grid(alpha=0.3)
        axis.legend()
    return figure


def _confusion(val: ClassificationDataset, logits: np.ndarray) -> plt.Figure:
    side = confusion_side(val.classes)
    figure, axis = plt.subplots(figsize=(side, side), layout="constrained")
    counts = confusion_matrix(val.labels.numpy(), logits.argmax(1), labels=range(len(val.classes)))
    draw_confusion(axis, counts, val.classes)
    axis.set_title(f"{counts.trace()} of {counts.sum()} val rows right", fontsize=11)
    return figure


def confusion_side(classes: Sequence[str]) -> float:
    """Inches of a confusion matrix with room for the class names."""
    return min(2.5 + 0.45 * len(classes), 30)


def draw_confusion(axis: plt.Axes, counts: np.ndarray, classes: Sequence[str]) -> None:
    """Numbers of rows (C, C), true class by predicted class; the colour is the share of the true class."""
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    axis.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    for row, column in np.argwhere(counts) if len(classes) <= 60 else ():
        shade = "white" if shares[row, column] > 0.5 else "black"
        axis.text(
            column,
            row,
            f"{counts[row, column]:.1f}".removesuffix(".0"),
            ha="center",
            va="center",
            color=shade,
            fontsize=9,
        )
    axis.set_xticks(range(len(classes)), classes, rotation=90)
    axis.set_yticks(range(len(classes)), classes)
    axis.set(xlabel="predicted", ylabel="true")


def _mistakes(val: ClassificationDataset, logits: np.ndarray, most: int = 24) -> plt.Figure:
    """The val rows that are wrong with the highest probability, as the model saw them."""
    labels, probabilities = val.labels.numpy(), softmax(logits, axis=1)
    predictions = probabilities.argmax(1)
    wrong = np.flatnonzero(predictions != labels)
    wrong = wrong[np.argsort(-probabilities[wrong].max(1), kind="stable")][:most]
    columns = 6
    lines = max(1, -(-len(wrong) // columns))
    figure, axes = plt.subplots(lines, columns, figsize=(11, 2.25 * lines), layout="constrained", squeeze=False)
    for axis in axes.flat:
        axis.axis("off")
    for axis, i in zip(axes.flat, wrong, strict=False):
        axis.imshow(val.pixels[val.index[i]].transpose(1, 2, 0))
        guess = f"{val.classes[predictions[i]]} {probabilities[i].max():.0%}"
        axis.set_title(f"{guess}\nis {val.classes[labels[i]]}", fontsize=9)
    figure.suptitle(f"{(predictions != labels).sum()} of {len(labels)} val rows wrong; the most confident first")
    return figure
