"""What predict.py found, as a table, as CSV or as JSON lines."""

import json
import math
from pathlib import Path

import numpy as np
from scipy.special import softmax

from common.files import whole, write_csv
from common.inputs import Inputs
from common.tables import table


def collect(inputs: Inputs, classes: list[str], logits: np.ndarray, reasons: list[str], *, top_k: int) -> list[dict]:
    """A dict for each item: image, box, category and its probability, the `top_k` best of both, label, and error.

    `logits` are (N, C); `reasons` (N,) say why an item has none, or "".
    """
    answers = []
    for i, reason in enumerate(reasons):
        box = inputs.boxes[i] and [v if _finite(v) else None for v in inputs.boxes[i]]
        answer = {"image": inputs.names[i], "box": box, "category": None, "probability": None, "top": []}
        if not reason:
            probabilities = softmax(logits[i].astype(np.float64))
            best = np.argsort(-probabilities, kind="stable")[:top_k]
            answer["top"] = [[classes[k], float(probabilities[k])] for k in best]
            answer["category"], answer["probability"] = answer["top"][0]
        answers.append(answer | {"label": inputs.labels[i], "error": reason or None})
    return answers


def write_answers(path: Path, answers: list[dict]) -> None:
    """.jsonl: the answers as they are. .csv: the box in four columns, the best categories in one."""
    if path.suffix == ".jsonl":
        with whole(path) as partial:
            partial.write_text("".join(json.dumps(answer) + "\n" for answer in answers), encoding="utf-8")
        return
    rows = []
    for answer in answers:
        box = dict(zip(("x", "y", "width", "height"), answer["box"] or [None] * 4, strict=False))
        top = {"top": "; ".join(f"{name} {probability:.4f}" for name, probability in answer["top"])}
        rows.append({name: answer[name] for name in ("image", "category", "probability", "label", "error")} | box | top)
    write_csv(path, rows)


def shown(answers: list[dict]) -> list[str]:
    """Lines of a table for the terminal."""
    rows = []
    for answer in answers:
        box = ",".join(f"{v:g}" if isinstance(v, int | float) else str(v) for v in answer["box"] or ())
        rest = "; ".join(f"{name} {probability:.2f}" for name, probability in answer["top"][1:])
        sure = f"{answer['probability']:.2f}" if answer["top"] else ""
        name = answer["image"].encode("utf-8", "backslashreplace").decode()  # a file's name need not be UTF-8
        rows.append([name, box, answer["category"] or answer["error"], sure, rest, answer["label"] or ""])
    return table(["image", "box", "category", "p", "next", "label"], rows)


def in_a_word(answer: dict, right: bool | None) -> str:
    if not answer["top"]:
        return answer["error"]
    return f"{answer['category']} {answer['probability']:.0%}" + (f"\nis {answer['label']}" if right is False else "")


def _finite(value) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)
