"""A run's README.md: a model card in the Hub's format, so that the folder is a model page when it is uploaded."""

import numpy as np
import pandas as pd
from huggingface_hub import EvalResult, ModelCardData

from common.audit import findings
from common.comparison import Scored
from common.config import InputError
from common.finished import Experiment
from common.runs import HARMLESS
from common.sources import is_hub_id
from common.tables import table

WORDS = {"accuracy": "accuracy", "precision": "weighted precision", "recall": "weighted recall", "f1": "weighted F1"}
WORDS |= {"macro_f1": "macro F1"}


def model_card(run: dict, report: dict, scores: dict, rows: pd.DataFrame) -> str:
    """The text of the card.

    Args:
        run, report: what run.json and data_report.json hold.
        scores: as of `common.metrics.scores`.
        rows: the val rows with image_id, product_id, label and prediction.
    """
    config, recipe = run["config"], "" if run["config"]["recipe"] == "default" else f"-{run['config']['recipe']}"
    name = f"{run['script']}{recipe}-{run['variant']}"
    return "\n".join(
        [
            "---",
            _header(run, scores, name),
            "---",
            "",
            f"# {name}",
            "",
            f"Classifies product photos{' within their bounding box' if config['crop'] else ''} into "
            f"{len(run['classes'])} categories: {', '.join(run['classes'])}. {run['parameters']:,} parameters, trained "
            f"by `{run['script']}.py` on {run['rows']['train']:,} images.",
            "",
            "## Use",
            "",
            "With the project's code, from its folder:",
            "",
            "```bash",
            "python predict.py RUN photo.jpg" + " --bbox 40,60,200,180" * config["crop"],
            "python export.py RUN   # an ONNX file",
            "```",
            "",
            "RUN is this folder. The outputs are logits in the order of `labels.json`.",
            "",
            "## Data and preprocessing",
            "",
            f"`{config['data']}`, {run['rows']['train']:,} train and {run['rows']['val']:,} val rows"
            + (f", {run['rows']['dropped']} rows of other categories left out" if run["rows"]["dropped"] else "")
            + (f", split by {config['split_by']}" if config["split_by"] else "")
            + f"; fingerprint `{run['data_fingerprint'][:16]}`.",
            _preprocessing(config),
            "",
            "## Results on val",
            "",
            *_results(scores, rows),
            "",
            "The scores are those of the last epoch, whose weights these are.",
            "",
            "![Confusion matrix](confusion.png)",
            "",
            "![Learning curves](curves.png)",
            "",
            "## Limits",
            "",
            *(f"- {sentence}" for sentence in findings(report)),
            "- It knows these categories only, and names one of them for any image.",
            "- Photos unlike those of its training may be classified worse than the scores say.",
            "",
            "## Reproduce",
            "",
            "```bash",
            f"python {run['script']}.py {run['command'].partition(' ')[2]}",
            "```",
            "",
            f"Commit {run['commit'] or 'unknown'}; {run['processes']} process(es) on {run['device']}, mixed precision "
            f"{run['mixed_precision']}; {', '.join(f'{k} {v}' for k, v in run['versions'].items())}. All options:",
            "",
            *table(["option", "value"], [[k, f"`{v}`"] for k, v in config.items() if k not in HARMLESS and v != ""]),
            "",
        ]
    )


def _header(run: dict, scores: dict, name: str) -> str:
    data = run["config"]["data"]
    on_hub = is_hub_id(data)
    where = dict(task_type="image-classification", dataset_type=data if on_hub else "other", dataset_name=data)
    measured = [
        EvalResult(metric_type=metric, metric_name=WORDS[metric], metric_value=scores[metric], **where)
        for metric in ("accuracy", "precision", "recall", "f1")
    ]
    data = ModelCardData(
        library_name="pytorch",
        pipeline_tag="image-classification",
        tags=["product-photos", run["script"].removeprefix("train_")],
        datasets=[data] if on_hub else None,
        metrics=["accuracy", "precision", "recall", "f1"],
        model_name=name,
        eval_results=measured,
    )
    return data.to_yaml().rstrip()


def _preprocessing(config: dict) -> str:
    what = "Each image is cut to its box" if config["crop"] else "The whole image"
    if config["crop"] and config["margin"]:
        what += f" with {config['margin']:g} of its sides around it"
    fit = "stretched" if config["fit"] == "squash" else "padded"
    augment = {"none": "no augmentation", "lab": "random flips and rotations", "strong": "strong augmentation"}
    size = f"{config['image_size']} x {config['image_size']} pixels"
    more = f"; in training, {augment[config['augment']]}"
    if config["background"] != "keep":
        more += f", and half of the images on another background ({config['background']})"
    if config["teacher"]:
        more += f", and the outputs of a teacher, {config['teacher']}"
    return f"{what}, {fit} to {size}, normalised by ImageNet's mean and deviation{more}."


def _results(scores: dict, rows: pd.DataFrame) -> list[str]:
    """A table of scores, with intervals that hold for other val rows of other products."""
    predictions = rows["prediction"].to_numpy()[None]
    try:
        intervals = {
            k: e.share_interval() for k, e in Scored(Experiment("", "", [0], rows, predictions)).estimates.items()
        }
    except InputError:  # one product only: nothing can be said of others
        intervals = {}
    lines = []
    for metric, words in WORDS.items():
        low, high = intervals.get(metric, (np.nan, np.nan))
        lines.append([words, f"{scores[metric]:.3f}", f"{low:.3f} to {high:.3f}" if metric in intervals else ""])
    lines.append(["log loss, nats", f"{scores['loss']:.3f}", ""])
    others = "products" if rows["product_id"].any() else "images"
    return table([f"n = {scores['n']}", "", f"95 % interval, other {others}"], lines)
