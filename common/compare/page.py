"""comparison.html: a comparison as one file to explore in a browser, without a network or a server.

`page_content` collects everything that the page shows, and `render` writes it into page.html.j2, with page.css and
page.js inside. Texts come from data and run folders, so they are escaped, and a Content-Security-Policy allows only the
script of this folder and pictures inside the file.
"""

import base64
import hashlib
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from markupsafe import Markup
from matplotlib import colormaps
from PIL import Image

from common.compare.heat_maps import HEAT_ALPHA, Mistake, heat_shares
from common.compare.markdown import (
    ANSWERED_TEXT,
    AT_ERROR_TEXT,
    CANDIDATES_TEXT,
    COMMANDS_TEXT,
    answered_table,
    at_error_table,
    best_experiment,
    calibration_table,
    candidate_table,
    class_table,
    family_text,
    introduction,
    mistakes_text,
    question_table,
    run_tables,
    with_interval,
)
from common.compare.photos import SIDE, Photos, data_urls
from common.compare.questions import Question, ScoredExperiment
from common.config import count, printable
from common.figures import confusion_counts
from common.metrics import METRICS, calibration_bins
from common.stats import Estimate, format_difference, format_share, rounded

FOLDER = Path(__file__).parent
MAX_CLASSES = 40  # in the confusion matrix
CHANGED = 0.5  # by which the share of seeds that are right has to change for a photo to count as fixed or broken


def page_content(
    scored_experiments: Sequence[ScoredExperiment],
    baselines: Sequence[ScoredExperiment],
    questions: Sequence[Question],
    comparison: dict,
    photos: Photos,
    mistakes: Sequence[Mistake] = (),
) -> dict[str, Any]:
    """Everything that the page shows, as plain texts, numbers and lists.

    `comparison` is the content of comparison.json.
    """
    first, experiments = scored_experiments[0], comparison["experiments"]
    candidates, rows = comparison["label_candidates"], photos.rows
    position = {row: i for i, row in enumerate(rows)}
    best, best_title, confused = best_experiment(experiments)
    best_number = experiments.index(best)
    changes = [changed_rows(question) for question in questions]
    settings, differing = run_tables(experiments)
    pictures = data_urls(dict(enumerate(picture for mistake in mistakes for picture in draw_mistake(mistake))))
    content = {
        "title": f"Comparison of {count(len(experiments), 'experiment')}",
        "introduction": introduction(first),
        "sentences": [{"text": question.sentence, "decided": question.decided} for question in questions],
        "notes": comparison["notes"],
        "shown": {"rows": len(rows), "photos": len(photos.urls), "of": first.n, "missing": photos.missing},
        "scores": score_table(scored_experiments, baselines),
        "accuracies": accuracy_chart(scored_experiments, baselines),
        "differences": difference_chart(questions),
        "questions": question_table(questions),
        "family": family_text(questions) if questions else "",
        "experiments": [experiment["name"] for experiment in experiments],
        "best": best_number,
        "changes": [
            {
                "title": question.title,
                "sentence": question.sentence,
                "before": question.a.name,
                "after": question.b.name,
                "fixed": len(fixed),
                "broken": len(broken),
                "less": int((change != 0).sum()) - len(fixed) - len(broken),
            }
            for question, (fixed, broken, change) in zip(questions, changes, strict=True)
        ],
        "classes": {
            "title": best_title,
            "confused": confused,
            "table": class_table(best),
            "recalls": recall_strips(best),
            "examples": class_examples(scored_experiments[best_number], rows),
        },
        "candidates": [
            {"text": cells, "photo": position.get(candidate["row"])}
            for candidate, cells in zip(candidates, candidate_table(candidates)[1], strict=True)
        ],
        "candidates_text": CANDIDATES_TEXT,
        "calibration": {
            "table": calibration_table(experiments),
            "diagrams": [reliability(scored) for scored in scored_experiments],
        },
        "mistakes": [
            {
                "picture": pictures[2 * i],
                "heat": pictures[2 * i + 1],
                "label": mistake.label,
                "predicted": f"{mistake.prediction} {mistake.probability:.0%}",
                "shares": heat_shares(mistake),
                "image_id": mistake.image_id,
            }
            for i, mistake in enumerate(mistakes)
        ],
        "mistakes_text": mistakes_text(comparison) if mistakes else "",
        "answered": {
            "text": ANSWERED_TEXT,
            "table": answered_table(experiments),
            "at_error_text": AT_ERROR_TEXT,
            "at_error": at_error_table(experiments),
            "curves": [
                {"name": experiment["name"], "points": to_svg(answered_curve(experiment))} for experiment in experiments
            ],
        },
        "settings": settings,
        "commands": differing,
        "commands_text": COMMANDS_TEXT,
        "data": script_data(scored_experiments, questions, photos),
    }
    return _printable(content)


def script_data(
    scored_experiments: Sequence[ScoredExperiment], questions: Sequence[Question], photos: Photos
) -> dict[str, Any]:
    """What page.js needs, in short: rows are named by their position among those shown, classes by their number."""
    first, rows = scored_experiments[0], photos.rows
    position = {row: i for i, row in enumerate(rows)}
    labels, image_ids = first.labels.tolist(), first.experiment.ids["image_id"].tolist()
    classes, in_matrix, matrices = confusion_matrices(scored_experiments)
    compared = []
    for question in questions:
        fixed, broken, _ = changed_rows(question)
        compared.append(
            {
                "experiments": [scored_experiments.index(question.a), scored_experiments.index(question.b)],
                "names": short_names(question),
                "fixed": [position[row] for row in fixed if row in position],
                "broken": [position[row] for row in broken if row in position],
            }
        )
    return {
        "classes": classes,
        "matrix": in_matrix,
        "rows": [[image_ids[row], classes.index(labels[row])] for row in rows],
        "photos": [photos.urls.get(row, "") for row in rows],
        "experiments": [
            {
                "name": scored.name,
                "predictions": np.searchsorted(classes, scored.predictions[:, rows]).tolist(),
                "cells": cells,
            }
            for scored, cells in zip(scored_experiments, matrices, strict=True)
        ],
        "questions": compared,
    }


def render(content: dict[str, Any]) -> str:
    """The HTML of `page_content`."""
    css, script = ((FOLDER / name).read_text(encoding="utf-8") for name in ("page.css", "page.js"))
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(FOLDER),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.policies["json.dumps_kwargs"] = {"separators": (",", ":")}  # `tojson` escapes <, >, & and '
    policy = "; ".join(
        [
            "default-src 'none'",
            "img-src data:",
            f"style-src {_source(css)}",
            f"script-src {_source(script)}",
            "base-uri 'none'",
            "form-action 'none'",
        ]
    )
    template = environment.get_template("page.html.j2")
    return template.render(content, css=Markup(css), script=Markup(script), policy=Markup(policy))


def _source(text: str) -> str:
    """The text of an inline style or script as a source of a Content-Security-Policy."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _printable(value: Any) -> Any:
    """`value`, a plain dict, list or scalar, with all texts in it as `printable` shows them."""
    if isinstance(value, str):
        return printable(value)
    if isinstance(value, dict):
        return {name: _printable(part) for name, part in value.items()}
    return [_printable(part) for part in value] if isinstance(value, list | tuple) else value


# Tables and charts ---------------------------------------------------------------------------------------------------


def score_table(scored_experiments: Sequence[ScoredExperiment], baselines: Sequence[ScoredExperiment]) -> dict:
    """All scores with their intervals; each cell has a text, and a value to sort by."""
    unseen = next((scored.unseen for scored in scored_experiments if scored.unseen), None)
    header = ["experiment", "seeds", *METRICS.values(), "sd over seeds", "parameters"]
    if unseen:
        header.insert(3, f"accuracy on {unseen.n} rows of products not in train")
    rows = []
    for scored in [*scored_experiments, *baselines]:
        runs = scored.experiment.runs
        accuracy, *others = (_score_cell(scored.estimates[name]) for name in METRICS)
        on_unseen = [_score_cell(scored.unseen.estimates["accuracy"])] if scored.unseen else [_cell()]
        sd = scored.correct.mean(1).std(ddof=1) if len(scored.correct) > 1 else None
        parameters = scored.experiment.mean_of("parameters") if runs else None
        rows.append(
            [
                _cell(scored.name, scored.name),
                _cell(str(len(scored.correct)), len(scored.correct)) if runs else _cell(),
                accuracy,
                *(on_unseen if unseen else []),
                *others,
                _cell() if sd is None else _cell(format_share(sd), float(sd)),
                _cell() if parameters is None else _cell(f"{parameters:,.0f}", parameters),
            ]
        )
    return {"header": header, "rows": rows}


def _cell(text: str = "", value: str | float | None = None) -> dict:
    return {"text": text, "value": value}


def _score_cell(score: Estimate) -> dict:
    return _cell(with_interval(score), score.value)


def accuracy_chart(scored_experiments: Sequence[ScoredExperiment], baselines: Sequence[ScoredExperiment]) -> dict:
    """The accuracy of each experiment and baseline with its interval, and a dot for each seed."""
    rows = []
    for scored in [*scored_experiments, *baselines]:
        accuracy = scored.estimates["accuracy"]
        low, high = accuracy.score_interval()
        seeds = scored.correct.mean(1).tolist() if len(scored.correct) > 1 else []
        strip = {"value": accuracy.value, "low": low, "high": high}
        text, filled = with_interval(accuracy), bool(scored.experiment.runs)
        rows.append({"name": scored.name, "text": text, "filled": filled, **_strip(strip, seeds)})
    return {"rows": rows, "ticks": [{"text": f"{tick / 10:.1f}", "at": f"{10 * tick}%"} for tick in range(0, 11, 2)]}


def difference_chart(questions: Sequence[Question]) -> dict:
    """The difference of each question with its simultaneous interval, in percentage points."""
    bounds = [100 * bound for question in questions for bound in (*question.interval, question.change.value)]
    lowest, highest = min([0.0, *bounds]), max([0.0, *bounds])
    step = next(step for step in (1, 2, 5, 10, 20, 50) if highest - lowest <= 7 * step or step == 50)
    first, last = math.floor(lowest / step), max(math.ceil(highest / step), math.floor(lowest / step) + 1)
    scale = (first * step / 100, last * step / 100)
    rows = []
    for question in questions:
        low, high = question.interval
        text = format_difference(question.change.value, question.interval)
        strip = _strip({"value": question.change.value, "low": low, "high": high}, [], scale)
        rows.append({"name": question.title, "text": text, "filled": question.decided, **strip})
    points = range(first * step, last * step + 1, step)
    ticks = [{"text": f"{point:+}" if point else "0", "at": _at(point / 100, scale)} for point in points]
    return {"rows": rows, "ticks": ticks, "zero": _at(0, scale)}


def _strip(values: Mapping[str, float], seeds: Sequence[float], scale: tuple[float, float] = (0, 1)) -> dict:
    return {name: _at(value, scale) for name, value in values.items()} | {"seeds": [_at(s, scale) for s in seeds]}


def _at(value: float, scale: tuple[float, float]) -> str:
    """The place of `value` on `scale` as a percentage, for SVG."""
    low, high = scale
    return f"{100 * (value - low) / (high - low):.2f}%"


def recall_strips(experiment: dict) -> list[dict | None]:
    """The recall of each class, of an entry of comparison.json, with its interval, if it has one."""
    return [
        _strip({"value": scores["recall"], "low": scores["interval"][0], "high": scores["interval"][1]}, [])
        if scores["interval"]
        else None
        for scores in experiment["classes"].values()
    ]


def reliability(scored: ScoredExperiment) -> dict:
    """Accuracy by probability of the predicted class, with the seeds of an experiment pooled."""
    counts, expected, correct = calibration_bins(scored.experiment.probabilities.ravel(), scored.correct.ravel())
    bins = len(counts)
    filled = np.flatnonzero(counts)
    points = [(float(expected[i] / counts[i]), float(correct[i] / counts[i])) for i in filled]
    bars = [(f"{100 * i / bins:g}", f"{100 * counts[i] / counts.sum():.2f}") for i in filled]
    rows = [
        [f"{i / bins:g} to {(i + 1) / bins:g}", f"{counts[i]:.0f}", format_share(x, 2), format_share(y, 2)]
        for i, (x, y) in zip(filled, points, strict=True)
    ]
    return {"name": scored.name, "points": to_svg(points), "bars": bars, "rows": rows}


def answered_curve(experiment: dict) -> list[tuple[float, float]]:
    """Shares of the rows that are answered, and their accuracy, of an entry of comparison.json."""
    curve = experiment["risk_coverage"]["accuracy_of_answered"]
    return [(float(share), score["value"]) for share, score in curve.items() if score]


def draw_mistake(mistake: Mistake) -> tuple[Image.Image, Image.Image]:
    """The image of a wrong prediction, and the same darker where its heat is low; at most as large as a photo."""
    pixels = mistake.pixels.transpose(1, 2, 0)
    heat = colormaps["inferno"](mistake.heat / (mistake.heat.max() or 1), bytes=True)[..., :3]
    image = Image.fromarray(pixels)
    overlay = Image.blend(image, Image.fromarray(heat), HEAT_ALPHA)
    for picture in (image, overlay):
        picture.thumbnail((SIDE, SIDE))
    return image, overlay


def to_svg(points: Sequence[tuple[float, float]]) -> list[tuple[str, str]]:
    """Points in the unit square as coordinates of a square of 100, whose y axis points down."""
    return [(f"{100 * x:.2f}", f"{100 - 100 * y:.2f}") for x, y in points]


# Rows ----------------------------------------------------------------------------------------------------------------


def confusion_matrices(scored_experiments: Sequence[ScoredExperiment]) -> tuple[list[str], list[int], list[list]]:
    """The classes, the numbers of those in the matrices, and for each experiment the cells of its matrix.

    A cell has the numbers of the true and the predicted class, the count as text, its share of the true class in
    percent, and the number of rows for which any seed predicts the class. Counts are means over the seeds. Of more than
    `MAX_CLASSES` classes, the matrices have those with most errors.
    """
    classes = sorted({str(name) for scored in scored_experiments for name in scored.classes})
    number = len(classes)
    labels = np.searchsorted(classes, scored_experiments[0].labels)  # (N,)
    predictions = [np.searchsorted(classes, scored.predictions) for scored in scored_experiments]  # of (S, N)
    means = [np.mean([confusion_counts(labels, seed, number) for seed in seeds], axis=0) for seeds in predictions]
    total = np.sum(means, axis=0)  # (C, C)
    errors = total.sum(0) + total.sum(1) - 2 * total.diagonal()
    shown = np.sort(np.argsort(-errors, kind="stable")[:MAX_CLASSES])
    both_shown = np.outer(*[np.isin(np.arange(number), shown)] * 2)
    matrices = []
    for mean, seeds in zip(means, predictions, strict=True):
        row, predicted = np.divmod(np.unique(np.arange(len(labels)) * number + seeds), number)
        rows = confusion_counts(labels[row], predicted, number)
        share = 100 * mean / np.maximum(mean.sum(1, keepdims=True), 1)
        cells = [
            [i, j, rounded(mean[i, j], 1, 0).removesuffix(".0"), round(share[i, j]), int(rows[i, j])]
            for i, j in np.argwhere(mean * both_shown).tolist()
        ]
        matrices.append(cells)
    return classes, shown.tolist(), matrices


def short_names(question: Question) -> list[str]:
    """What distinguishes the two experiments of a question: their variants or their models."""
    a, b = question.a.experiment, question.b.experiment
    return [a.variant, b.variant] if a.model == b.model else [a.model, b.model]


def changed_rows(question: Question) -> tuple[list[int], list[int], np.ndarray]:
    """The rows that a change fixed and those that it broke, the clearest first; and the change of each row, (N,).

    The change is that of the share of seeds that are right; a row counts from `CHANGED` on.
    """
    change = question.b.correct.mean(0) - question.a.correct.mean(0)
    change[np.abs(change) < 1e-9] = 0  # rounding errors
    order = np.argsort(-np.abs(change), kind="stable")
    fixed, broken = (order[sign * change[order] >= CHANGED - 1e-9].tolist() for sign in (1, -1))
    return fixed, broken, change


def class_examples(scored: ScoredExperiment, rows: Sequence[int]) -> list[list[int]]:
    """For each class, in alphabetical order, up to three of `rows`, by position: from rarely to often right."""
    right, labels = scored.correct[:, rows].mean(0), scored.labels[rows]
    examples = []
    for name in sorted(set(scored.labels)):
        of_class = np.flatnonzero(labels == name)
        of_class = of_class[np.argsort(right[of_class], kind="stable")]
        places = np.unique(np.linspace(0, len(of_class) - 1, 3).round().astype(int))[: len(of_class)]
        examples.append(of_class[places].tolist())
    return examples
