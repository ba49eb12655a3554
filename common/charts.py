"""Pictures of a comparison."""

from collections.abc import Sequence
from textwrap import fill

import numpy as np
from sklearn.metrics import confusion_matrix

from common.comparison import Question, Scored
from common.metrics import calibration_bins
from common.report import confusion_side, draw_confusion, plt

VARIANT_COLORS = {
    "full": "#9aa5b1",
    "full-augment": "#66788a",
    "full-strong": "#3d4c5c",
    "crop": "#9ecae1",
    "crop-augment": "#4292c6",
    "crop-strong": "#08519c",
}
BASELINE_COLOR = "#d9c7a3"
LABEL_WIDTH = 44  # characters of a line; an experiment's name may list many options


def bars(scored: Sequence[Scored], baselines: Sequence[Scored]) -> plt.Figure:
    """Accuracy of each experiment with its 95 % interval; a dot for each seed."""
    rows = [*scored, *baselines]
    figure, axis = _rows([one.name for one in rows])
    for y, one in enumerate(rows):
        found = one.estimates["accuracy"]
        low, high = found.share_interval()
        color = VARIANT_COLORS.get(one.experiment.variant, BASELINE_COLOR) if one in scored else BASELINE_COLOR
        axis.barh(y, found.value, color=color, height=0.7)
        axis.plot([low, high], [y, y], color="black", linewidth=1.2)
        if len(one.right) > 1:
            axis.plot(one.right.mean(1), np.full(len(one.right), y + 0.2), "k.", markersize=3)
        axis.text(high + 0.01, y, f"{found.value:.3f}", va="center", fontsize=9)
    axis.set(xlim=(0, 1.05), xlabel=f"val accuracy, 95 % interval ({rows[0].n} images); dots: seeds")
    axis.grid(axis="x", alpha=0.3)
    axis.set_axisbelow(True)
    return figure


def forest(asked: Sequence[Question]) -> plt.Figure:
    """The differences in points with their 95 % intervals; filled where decided after Holm's correction."""
    figure, axis = _rows([question.title for question in asked])
    for y, question in enumerate(asked):
        low, high = question.change.interval()
        color = "tab:blue" if question.decided else "tab:gray"
        axis.plot([100 * low, 100 * high], [y, y], color=color, linewidth=1.5)
        face = color if question.decided else "white"
        axis.plot(100 * question.change.value, y, "o", color=color, markerfacecolor=face, markersize=6)
    axis.axvline(0, color="black", linewidth=0.8)
    axis.set_xlabel("difference in accuracy, points, with 95 % interval\n(filled: distinguishable, corrected for all)")
    axis.grid(axis="x", alpha=0.3)
    return figure


def _rows(labels: Sequence[str]) -> tuple[plt.Figure, plt.Axes]:
    """A figure with a row for each label, from above, as high as the longest label needs."""
    lines = [fill(label, LABEL_WIDTH) for label in labels]
    height = max(0.36, 0.2 * max(text.count("\n") + 1 for text in lines))
    figure, axis = plt.subplots(figsize=(9, 1.2 + height * len(lines)), layout="constrained")
    axis.set_yticks(range(len(lines)), lines)
    axis.set_ylim(len(lines) - 0.5, -0.5)
    return figure, axis


def confusions(scored: Sequence[Scored]) -> plt.Figure:
    """The confusion matrices of one experiment or two, side by side; of the mean over their seeds."""
    classes = sorted({name for one in scored for name in one.classes})
    side = confusion_side(classes)
    size = (side * len(scored), side + 0.3)
    figure, axes = plt.subplots(1, len(scored), figsize=size, layout="constrained", squeeze=False)
    for axis, one in zip(axes[0], scored, strict=True):
        predictions = one.experiment.predictions
        counts = sum(confusion_matrix(one.labels, guesses, labels=classes) for guesses in predictions)
        draw_confusion(axis, counts / len(predictions), classes)
        title = f"{one.name}: accuracy {one.estimates['accuracy'].value:.3f}"
        axis.set_title(fill(title, 2 * LABEL_WIDTH), fontsize=11)
    return figure


def reliability(scored: Sequence[Scored]) -> plt.Figure:
    """How often the predicted class is right, by its probability; all seeds of an experiment together."""
    columns = min(4, len(scored))
    lines = -(-len(scored) // columns)
    size = (max(2.6 * columns, 4.5), 2.9 * lines + 0.3)
    figure, axes = plt.subplots(lines, columns, figsize=size, layout="constrained", squeeze=False, sharey=True)
    for axis in axes.flat:
        axis.axis("off")
    for axis, one in zip(axes.flat, scored, strict=False):
        counts, expected, right = calibration_bins(one.experiment.probabilities.ravel(), one.right.ravel())
        there = counts > 0
        axis.axis("on")
        axis.plot([0, 1], [0, 1], color="black", linewidth=0.8, linestyle=":")
        middles = (np.arange(len(counts)) + 0.5) / len(counts)
        axis.bar(middles, counts / counts.sum(), width=0.9 / len(counts), color="#d5dbe1")
        axis.plot(expected[there] / counts[there], right[there] / counts[there], "o-", color="tab:blue", markersize=4)
        axis.set(xlim=(0, 1), ylim=(0, 1))
        axis.set_title(fill(one.name, LABEL_WIDTH * 2 // 3), fontsize=9)
    figure.supxlabel("probability of the predicted class (bars: share of rows)", fontsize=10)
    figure.supylabel("accuracy", fontsize=10)
    return figure
