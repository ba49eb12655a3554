"""Figures of a comparison."""

from collections.abc import Sequence
from textwrap import fill, shorten

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from common.compare.heat_maps import Mistake, draw_heat, heat_shares
from common.compare.questions import Question, ScoredExperiment
from common.config import printable
from common.figures import confusion_counts, confusion_side, draw_confusion
from common.metrics import calibration_bins
from common.stats import format_share

VARIANT_COLORS = {
    "full": "#9aa5b1",
    "full-augment": "#66788a",
    "full-strong": "#3d4c5c",
    "crop": "#9ecae1",
    "crop-augment": "#4292c6",
    "crop-strong": "#08519c",
}
BASELINE_COLOR = "#d9c7a3"
LABEL_WIDTH = 44  # characters per line; the name of an experiment may list many options


def bars(scored_experiments: Sequence[ScoredExperiment], baselines: Sequence[ScoredExperiment]) -> Figure:
    """Accuracy of each experiment and baseline with its 95 % confidence interval, and a dot for each seed."""
    rows = [*scored_experiments, *baselines]
    figure, axis = _row_figure([scored.name for scored in rows])
    for y, scored in enumerate(rows):
        accuracy = scored.estimates["accuracy"]
        low, high = accuracy.score_interval()
        color = BASELINE_COLOR
        if scored in scored_experiments:
            color = VARIANT_COLORS.get(scored.experiment.variant, BASELINE_COLOR)
        axis.barh(y, accuracy.value, color=color, height=0.7)
        axis.plot([low, high], [y, y], color="black", linewidth=1.2)
        if len(scored.correct) > 1:
            axis.plot(scored.correct.mean(1), np.full(len(scored.correct), y + 0.2), "k.", markersize=3)
        axis.text(high + 0.01, y, format_share(accuracy.value), va="center", fontsize=9)
    axis.set(xlim=(0, 1.05), xlabel=f"val accuracy with 95 % confidence interval ({rows[0].n} images); dots: seeds")
    axis.grid(axis="x", alpha=0.3)
    axis.set_axisbelow(True)
    return figure


def forest(questions: Sequence[Question]) -> Figure:
    """Differences in accuracy with their simultaneous 95 % confidence intervals; filled if significant."""
    figure, axis = _row_figure([question.title for question in questions])
    for y, question in enumerate(questions):
        low, high = question.interval
        color = "tab:blue" if question.decided else "tab:gray"
        axis.plot([100 * low, 100 * high], [y, y], color=color, linewidth=1.5)
        face = color if question.decided else "white"
        axis.plot(100 * question.change.value, y, "o", color=color, markerfacecolor=face, markersize=6)
    axis.axvline(0, color="black", linewidth=0.8)
    axis.set_xlabel(
        "difference in accuracy (first minus second), percentage points,\n"
        "with simultaneous 95 % confidence intervals (filled: zero is outside)"
    )
    axis.grid(axis="x", alpha=0.3)
    return figure


def _row_figure(labels: Sequence[str]) -> tuple[Figure, Axes]:
    """A figure with one row per label, from top to bottom; rows are high enough for the longest label."""
    lines = [fill(label, LABEL_WIDTH) for label in labels]
    height = max(0.36, 0.2 * max(text.count("\n") + 1 for text in lines))
    figure = Figure(figsize=(9, 1.2 + height * len(lines)), layout="constrained")
    axis = figure.subplots()
    axis.set_yticks(range(len(lines)), lines)
    axis.set_ylim(len(lines) - 0.5, -0.5)
    return figure, axis


def confusions(scored_experiments: Sequence[ScoredExperiment]) -> Figure:
    """The confusion matrices of one or two experiments side by side, each the mean over its seeds."""
    classes = sorted({name for scored in scored_experiments for name in scored.classes})
    side = confusion_side(classes)
    figure = Figure(figsize=(side * len(scored_experiments), side + 0.3), layout="constrained")
    axes = figure.subplots(1, len(scored_experiments), squeeze=False)
    for axis, scored in zip(axes[0], scored_experiments, strict=True):
        predictions = np.searchsorted(classes, scored.experiment.predictions)
        labels = np.searchsorted(classes, scored.labels)
        counts = [confusion_counts(labels, row, len(classes)) for row in predictions]
        draw_confusion(axis, np.mean(counts, axis=0), classes)
        title = f"{scored.name}: accuracy {format_share(scored.estimates['accuracy'].value)}"
        axis.set_title(fill(title, 2 * LABEL_WIDTH), fontsize=11)
    return figure


def heat(mistakes: Sequence[Mistake]) -> Figure:
    """The images of wrong predictions, and below them what the predictions depend on."""
    figure = Figure(figsize=(2 * len(mistakes), 5), layout="constrained")
    axes = figure.subplots(2, len(mistakes), squeeze=False)
    for (above, below), mistake in zip(axes.T, mistakes, strict=True):
        above.imshow(mistake.pixels.transpose(1, 2, 0))
        above.axis("off")
        below.axis("off")
        names = [shorten(printable(name), 24, placeholder=" ...") for name in (mistake.prediction, mistake.label)]
        above.set_title(f"{names[0]} {mistake.probability:.0%}\nlabel: {names[1]}", fontsize=9)
        draw_heat(below, mistake.pixels, mistake.heat)
        below.set_title(fill(heat_shares(mistake), 24), fontsize=9)
    return figure


def reliability(scored_experiments: Sequence[ScoredExperiment]) -> Figure:
    """Reliability diagrams: accuracy by probability of the predicted class, with the seeds of an experiment pooled."""
    figure, axes = _small_multiples([scored.name for scored in scored_experiments])
    for axis, scored in zip(axes, scored_experiments, strict=True):
        counts, expected, correct = calibration_bins(scored.experiment.probabilities.ravel(), scored.correct.ravel())
        filled = counts > 0
        axis.plot([0, 1], [0, 1], color="black", linewidth=0.8, linestyle=":")
        centers = (np.arange(len(counts)) + 0.5) / len(counts)
        axis.bar(centers, counts / counts.sum(), width=0.9 / len(counts), color="#d5dbe1")
        mean_probability = expected[filled] / counts[filled]
        accuracy = correct[filled] / counts[filled]
        axis.plot(mean_probability, accuracy, "o-", color="tab:blue", markersize=4)
    figure.supxlabel("probability of the predicted class (bars: share of predictions)", fontsize=10)
    figure.supylabel("accuracy", fontsize=10)
    return figure


def risk_coverage(experiments: Sequence[dict]) -> Figure:
    """The accuracy of the photos that are answered, by their share, with 95 % intervals.

    `experiments` are the entries of comparison.json. Shares that show too few products are left out.
    """
    figure, axes = _small_multiples([experiment["name"] for experiment in experiments])
    for axis, experiment in zip(axes, experiments, strict=True):
        curve = experiment["risk_coverage"]["accuracy_of_answered"]
        points = [(float(share), score["value"], *score["interval"]) for share, score in curve.items() if score]
        if points:
            shares, accuracies, low, high = zip(*points, strict=True)
            axis.vlines(shares, low, high, color="black", linewidth=1)
            axis.plot(shares, accuracies, "o-", color="tab:blue", markersize=4)
        axis.grid(alpha=0.3)
    figure.supxlabel("share of photos that are answered, the most certain first", fontsize=10)
    figure.supylabel("accuracy of the answers", fontsize=10)
    return figure


def _small_multiples(titles: Sequence[str]) -> tuple[Figure, list[Axes]]:
    """A figure with square axes from 0 to 1 for each of `titles`."""
    columns = min(4, len(titles))
    rows = -(-len(titles) // columns)
    figure = Figure(figsize=(max(2.6 * columns, 4.5), 2.9 * rows + 0.3), layout="constrained")
    axes = list(figure.subplots(rows, columns, squeeze=False, sharey=True).flat)
    for axis in axes[len(titles) :]:
        axis.axis("off")
    for axis, title in zip(axes, titles, strict=False):
        axis.set(xlim=(0, 1), ylim=(0, 1))
        axis.set_title(fill(title, LABEL_WIDTH * 2 // 3), fontsize=9)
    return figure, axes[: len(titles)]
