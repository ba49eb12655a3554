"""Results of predict.py as dicts, and their output as a text table, CSV or JSON Lines."""

import json
import math
from pathlib import Path

import numpy as np
from scipy.special import softmax

from common.config import count, printable
from common.conformal import Calibration
from common.deploy.inputs import Detections, Inputs
from common.files import atomic_path, terminal_table, write_csv

KEYS = ("image", "box", "category", "probability", "top", "label", "error")  # of a result
BOX_COLUMNS = ("x", "y", "width", "height")
COLUMNS = ("image", "category", "probability", "label", "error", *BOX_COLUMNS, "top")  # of a CSV file
SET_KEYS = ("answer", "set", "unlike")  # of a result and of a CSV file with --risk, after the others
UNSURE = "unsure"  # the answer if the set has none or several categories, or the crop may show something else
MAX_NAMES = 3  # categories of a set in the table for the terminal


def collect(inputs: Inputs, classes: list[str], logits: np.ndarray, reasons: list[str], *, top_k: int) -> list[dict]:
    """One dict for each crop, with the `KEYS`.

    Args:
        inputs: N crops.
        classes: C category names.
        logits: (N, C).
        reasons: (N,) why the crop could not be classified, or "".
        top_k: number of [category, probability] pairs in top, best first.

    Returns:
        N dicts of JSON values. Values of the box that are not finite are None. For failed crops, category and
        probability are None, top is empty, and error is the reason.
    """
    results = []
    for i, reason in enumerate(reasons):
        box, top = inputs.boxes[i], []
        finite: list | None = None if box is None else [value if _finite(value) else None for value in box]
        if not reason:
            probabilities = softmax(logits[i].astype(np.float64))
            best = np.argsort(-probabilities, kind="stable")[:top_k]
            top = [[classes[k], float(probabilities[k])] for k in best]
        results.append(
            {
                "image": inputs.names[i],
                "box": finite,
                "category": top[0][0] if top else None,
                "probability": top[0][1] if top else None,
                "top": top,
                "label": inputs.labels[i],
                "error": reason or None,
            }
        )
    return results


def with_answers(results: list[dict], classes: list[str], logits: np.ndarray, calibration: Calibration) -> list[dict]:
    """The results of `collect`, whose arguments are the same, with the `SET_KEYS`.

    The answer is the only category of the set or, if it has none or several or the crop is unlike those of the
    categories, `UNSURE`. The set has the most probable category first. For failed crops, answer and unlike are None,
    and the set is empty.
    """
    probabilities = softmax(logits.astype(np.float64), axis=1)
    best_first = np.argsort(-probabilities, axis=1, kind="stable")
    answered = []
    for result, order, in_set, unlike in zip(
        results, best_first, calibration.sets(probabilities), calibration.unlike(probabilities).tolist(), strict=True
    ):
        names = [classes[k] for k in order if in_set[k]]
        answer = names[0] if len(names) == 1 and not unlike else UNSURE
        values = (None, [], None) if result["error"] else (answer, names, unlike)
        answered.append(result | dict(zip(SET_KEYS, values, strict=True)))
    return answered


def write_predictions(path: Path, results: list[dict]) -> None:
    """Writes the results of `collect`, in the format that the suffix of `path` selects.

    .jsonl: one dict per line. .csv: x, y, width and height are separate columns, and top and set are one string each.
    """
    if path.suffix == ".jsonl":
        with atomic_path(path) as partial:
            partial.write_text("".join(json.dumps(result) + "\n" for result in results), encoding="utf-8")
        return
    rows = []
    for result in results:
        box = dict(zip(BOX_COLUMNS, result["box"] or [None] * 4, strict=False))
        top = "; ".join(f"{name} {probability:.4f}" for name, probability in result["top"])
        cells = result | box | {"top": top}
        if "set" in result:
            cells["set"] = "; ".join(result["set"])
        rows.append({name: cells[name] for name in (*COLUMNS, *SET_KEYS) if name in cells})
    write_csv(path, rows)


def write_detections(path: Path, detections: Detections, results: list[dict]) -> None:
    """Writes the file of a detector again, with category and probability, or the error, added to each object."""
    objects = [dict(item) for item in detections.objects]
    for number, result in zip(detections.numbers, results, strict=True):
        objects[number] |= {name: result[name] for name in ("category", "probability", *SET_KEYS) if name in result}
        objects[number] |= {"error": result["error"]} if result["error"] else {}
    content = detections.content
    content = content | {"annotations": objects} if isinstance(content, dict) else objects
    with atomic_path(path) as partial:
        partial.write_text(json.dumps(content) + "\n", encoding="utf-8")


def has_detections(path: Path) -> bool:
    """Whether `path` is a file of `write_detections`."""
    try:
        content = json.loads(path.read_bytes())
    except (ValueError, RecursionError):
        return False
    objects = content.get("annotations") if isinstance(content, dict) else content
    keys = {"bbox", "category", "probability"}
    return (
        isinstance(objects, list) and bool(objects) and all(isinstance(o, dict) and keys <= o.keys() for o in objects)
    )


def has_predictions(path: Path) -> bool:
    """Whether the first line of `path` is as `write_predictions` writes it."""
    with open(path, "rb") as file:
        line = file.readline(1_000_000)
    if path.suffix == ".csv":
        return line.strip().decode("utf-8", "replace").split(",") in ([*COLUMNS], [*COLUMNS, *SET_KEYS])
    try:
        result = json.loads(line)
    except (ValueError, RecursionError):
        return False
    return isinstance(result, dict) and tuple(result) in (KEYS, (*KEYS, *SET_KEYS))


def text_table(results: list[dict]) -> list[str]:
    """The lines of a table for the terminal, one row per crop. Column p is the probability of the category."""
    header, rows = ["image", "box", "category", "p", "next", "label"], []
    if any("set" in result for result in results):
        header += SET_KEYS
    for result in results:
        box = ",".join(f"{v:g}" if isinstance(v, int | float) else str(v) for v in result["box"] or ())
        others = "; ".join(f"{name} {p:.2f}" for name, p in result["top"][1:])
        probability = f"{result['probability']:.2f}" if result["top"] else ""
        category, label = result["category"] or result["error"], result["label"] or ""
        row = [result["image"], box, category, probability, others, label]
        if "set" in result:
            more = len(result["set"]) - MAX_NAMES
            shown = "; ".join(result["set"][:MAX_NAMES]) + (f" and {more} more" if more > 0 else "")
            row += [result["answer"] or "", shown, "yes" if result["unlike"] else ""]
        rows.append(row)
    return terminal_table(header, rows)


def answer_line(results: list[dict], scored: np.ndarray) -> str:
    """How many crops were answered, from results with the `SET_KEYS`, and how many of the answers are right.

    Only crops with a label that the model knows, `scored` (N,) bool, can be right.
    """
    classified = [result for result in results if not result["error"]]
    answered = np.array([result["answer"] not in (None, UNSURE) for result in results])
    right = sum(
        result["answer"] == result["label"] for result, ok in zip(results, answered & scored, strict=True) if ok
    )
    of_labels = f" (right: {right} of the {(answered & scored).sum()} with a label)" if scored.any() else ""
    unlike = sum(result["unlike"] for result in classified)
    return (
        f"answered {answered.sum()} of {count(len(classified), 'crop')}{of_labels}; unsure about "
        f"{len(classified) - answered.sum()}, of which {unlike} may show something else"
    )


def caption(result: dict, correct: bool | None) -> str:
    """Caption of a crop in the gallery: category and probability, after "unsure" if that is the answer, or the error;
    and the label if it differs.
    """
    if not result["top"]:
        return printable(result["error"])
    unsure = f"{UNSURE}: " if result.get("answer") == UNSURE else ""
    label = f"\nlabel: {printable(result['label'])}" if correct is False else ""
    return f"{unsure}{printable(result['category'])} {result['probability']:.0%}" + label


def _finite(value) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)
