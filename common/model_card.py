"""Writes the README.md of a run: a model card in the format of the Hugging Face Hub, ready for upload."""

import shlex
from collections.abc import Mapping

import numpy as np
from huggingface_hub import EvalResult, ModelCardData

from common.config import identity, printable
from common.data.sources import is_hub_id
from common.data.splits import connected_groups
from common.files import markdown_table, markdown_text
from common.metrics import METRICS, leave_one_out
from common.stats import format_score, score_estimates


def model_card(
    name: str,
    run: dict,
    notes: list[str],
    scores: dict,
    columns: Mapping[str, list],
    intervals: dict[str, tuple[float, float]],
) -> str:
    """The text of the model card.

    Args:
        name: the title of the card.
        run: the content of run.json.
        notes: sentences about the data (`common.data.audit.findings`).
        scores: the result of `common.metrics.scores`.
        columns: the columns of predictions.csv.
        intervals: the result of `score_intervals`.
    """
    config, rows_used = run["config"], run["rows"]
    where = " within their bounding box" if config["crop"] else ""
    bbox = " --bbox 40,60,200,180" if config["crop"] else ""
    data = f"{markdown_text(config['data'])}, {rows_used['train']:,} train and {rows_used['val']:,} val rows"
    if rows_used["dropped"]:
        data += f", {rows_used['dropped']} train rows of other categories left out"
    if config["split_by"]:
        data += f", split by {markdown_text(config['split_by'])}"
    classes = markdown_text(", ".join(run["classes"]))
    versions = ", ".join(f"{package} {version}" for package, version in run["versions"].items())
    return "\n".join(
        [
            "---",
            _header(run, scores, name),
            "---",
            "",
            f"# {name}",
            "",
            f"Classifies product photos{where} into {len(run['classes'])} categories: {classes}. "
            f"The model has {run['parameters']:,} parameters and was trained by `{run['script']}.py` on "
            f"{rows_used['train']:,} images.",
            "",
            "## Use",
            "",
            "In the project folder, where RUN is the path of this folder:",
            "",
            "```bash",
            f"python predict.py RUN photo.jpg{bbox}",
            "python export.py RUN   # writes an ONNX file",
            "```",
            "",
            "The model returns logits in the order of `labels.json`.",
            "",
            "## Data and preprocessing",
            "",
            f"{data}; fingerprint `{run['data_fingerprint'][:16]}`.",
            _preprocessing(config, run["normalization"]),
            "",
            "## Results on val",
            "",
            *_results(scores, columns, intervals),
            "",
            "Scores and weights are those of the last epoch.",
            "",
            "![Confusion matrix](confusion.png)",
            "",
            "![Learning curves](curves.png)",
            "",
            "## Limits",
            "",
            *(f"- {markdown_text(sentence)}" for sentence in notes),
            "- Closed set: every image gets one of these labels, even if it shows something else.",
            "- Accuracy may be lower on photos that differ from the training data.",
            "",
            "## Reproduce",
            "",
            "```bash",
            f"python {run['script']}.py {printable(shlex.join(shlex.split(run['command'])[1:]))}",
            "```",
            "",
            f"Commit {run['commit'] or 'unknown'}; {run['processes']} process(es) on {run['device']}, mixed precision "
            f"{run['mixed_precision']}; {versions}. All options:",
            "",
            *markdown_table(
                ["option", "value"],
                [[option, str(value)] for option, value in identity(config).items() if value != ""],
            ),
            "",
        ]
    )


def hub_config(run: dict) -> dict:
    """The content of config.json, by which the Hub counts downloads: how to prepare images for the model.

    Args:
        run: the content of run.json.
    """
    options = ("image_size", "crop", "margin", "fit")
    return {
        "model": run["script"].removeprefix("train_"),
        "classes": run["classes"],
        **{name: run["config"][name] for name in options},
        **run["normalization"],
    }


def _header(run: dict, scores: dict, name: str) -> str:
    """The metadata of the card as YAML."""
    data = printable(run["config"]["data"])
    on_hub = is_hub_id(data)
    metrics = ["accuracy", "precision", "recall", "f1"]
    results = [
        EvalResult(
            task_type="image-classification",
            dataset_type=data if on_hub else "other",
            dataset_name=data,
            metric_type=metric,
            metric_name=METRICS[metric],
            metric_value=scores[metric],
        )
        for metric in metrics
    ]
    card_data = ModelCardData(
        library_name="pytorch",
        pipeline_tag="image-classification",
        tags=["product-photos", run["script"].removeprefix("train_")],
        datasets=[data] if on_hub else None,
        metrics=metrics,
        model_name=name,
        eval_results=results,
    )
    return card_data.to_yaml().rstrip()


def _preprocessing(config: dict, normalization: dict[str, list[float]]) -> str:
    """Sentences about the model input and the training data."""
    crop = ""
    if config["crop"]:
        crop = "cropped to its bounding box, "
        if config["margin"]:
            crop = f"cropped to its bounding box with a margin of {config['margin']:g} of its width and height, "
    fit = "stretched" if config["fit"] == "squash" else "padded"
    size = f"{config['image_size']} x {config['image_size']} pixels"
    augment = {"none": "no augmentation", "lab": "random flips and rotations", "strong": "strong augmentation"}
    training = [augment[config["augment"]]]
    if config["background"] != "keep":
        training.append(f"a different background in half of the images ({config['background']})")
    if config["teacher"]:
        training.append(f"knowledge distillation from {markdown_text(config['teacher'])}")
    mean, std = (" / ".join(f"{value:g}" for value in normalization[name]) for name in ("mean", "std"))
    return (
        f"Each image is {crop}{fit} to {size}, and normalised with the mean {mean} and the standard deviation {std} of "
        "R, G and B. "
        f"In training: {', '.join(training)}."
    )


def score_intervals(columns: Mapping[str, list]) -> dict[str, tuple[float, float]]:
    """The 95 % confidence intervals of `METRICS`, which account for the choice of products and images; {} if none.

    `columns` are those of predictions.csv.
    """
    clusters = connected_groups(columns["product_id"], columns["image_id"])
    if clusters.max() == 0:  # the variance over products needs at least two
        return {}
    labels, predictions = (np.array(columns[name], dtype=object) for name in ("label", "prediction"))
    estimates = score_estimates(*leave_one_out(labels, predictions[None], clusters))
    return {metric: estimate.score_interval() for metric, estimate in estimates.items()}


def _results(scores: dict, columns: Mapping[str, list], intervals: dict[str, tuple[float, float]]) -> list[str]:
    """A table of scores with confidence intervals."""
    cells = []
    for metric, title in METRICS.items():
        score = scores[metric]
        cells.append([title, format_score(score, intervals[metric]) if intervals else f"{score:.3f}"])
    cells.append(["log loss, nats", f"{scores['loss']:.3f}"])
    unit = "products" if any(columns["product_id"]) else "images"
    return markdown_table([f"n = {scores['n']}", f"value [95 % confidence interval over {unit}]"], cells)
