"""A comparison as Markdown, and the texts and tables that comparison.md, comparison.html and the terminal share."""

import re
from collections.abc import Sequence

from common.compare.questions import Question, ScoredExperiment
from common.config import count
from common.data.splits import parse_split
from common.files import markdown_table, markdown_text, terminal_table
from common.metrics import METRICS
from common.stats import (
    FAMILY_ERROR,
    Estimate,
    format_difference,
    format_p,
    format_points,
    format_score,
    format_share,
    rounded,
)

Table = tuple[list[str], list[list[str]]]  # a header and rows of plain texts
CANDIDATES_TEXT = (
    "Most runs predict the same class for these rows, and it is not the label. The weight is the share of runs that "
    "predict this class, each weighted by its probability. The least probable labels come first."
)
ANSWERED_TEXT = (
    "Photos are answered in descending order of the probability of their predicted class, separately for each seed "
    "(with folds, all folds together). The table shows the accuracy of the answers by the share of photos answered."
)
AT_ERROR_TEXT = (
    "The next table shows the largest share of photos that can be answered with at most 1, 2, 5 or 10 % of the answers "
    "wrong. Only shares that show at least 99, 49, 19 or 9 products count. The share is chosen on these photos, so it "
    "is likely to be too large for others. `predict.py --risk` holds for new products, but limits the wrong answers as "
    "a share of all photos."
)
TOO_FEW = "too few products"
COMMANDS_TEXT = (
    "The commands are those of each experiment's first run; comparison.json has the command and all options of each "
    "run."
)


def markdown(
    scored_experiments: Sequence[ScoredExperiment],
    baselines: Sequence[ScoredExperiment],
    questions: Sequence[Question],
    comparison: dict,
) -> str:
    """The text of comparison.md, which shows the figures beside it; `comparison` is the content of comparison.json."""
    experiments = comparison["experiments"]
    sections = [
        "# Comparison",
        introduction(scored_experiments[0]),
        [f"- {markdown_text(text)}" for text in [*(question.sentence for question in questions), *comparison["notes"]]],
        "![Accuracy of each experiment](experiments.png)",
        score_table(scored_experiments, baselines),
    ]
    if questions:
        sections += [
            "## Differences",
            "![Differences with intervals](differences.png)",
            markdown_table(*question_table(questions)),
            family_text(questions),
        ]
    best, title, confused = best_experiment(experiments)
    sections += ["## Classes", markdown_text(title), markdown_table(*class_table(best)), markdown_text(confused)]
    sections += ["![Confusion matrices](confusion.png)", "## Calibration", "![Reliability diagrams](reliability.png)"]
    sections += [markdown_table(*calibration_table(experiments))]
    sections += ["## Answering only the most certain photos", "![Accuracy of the answered](risk_coverage.png)"]
    sections += [ANSWERED_TEXT, markdown_table(*answered_table(experiments))]
    sections += [AT_ERROR_TEXT, markdown_table(*at_error_table(experiments))]
    if comparison["mistakes"]["rows"]:
        sections += ["## Confident mistakes", markdown_text(mistakes_text(comparison))]
        sections += ["![Wrong predictions and what they depend on](heat.png)"]
    if candidates := comparison["label_candidates"]:
        sections += ["## Possible label errors", CANDIDATES_TEXT, markdown_table(*candidate_table(candidates))]
    shared, differing = run_tables(experiments)
    sections += ["## Runs", markdown_table(*shared) if shared[1] else [], COMMANDS_TEXT, markdown_table(*differing)]
    return "\n\n".join(part if isinstance(part, str) else "\n".join(part) for part in sections if part) + "\n"


def introduction(first: ScoredExperiment) -> str:
    """What was validated on, and what brackets are; `first` is any experiment of the comparison."""
    images = f"{first.n} val images" + (f" of {first.products} products" if first.products else "")
    without_id = int((first.experiment.ids["product_id"] == "").sum())
    if without_id:
        images += f" ({without_id} without a product id, each of which counts as a separate product)"
    macro_f1 = first.estimates["macro_f1"].as_dict()
    return (
        f"{images}. Brackets contain 95 % confidence intervals, which account for "
        "the choice of products and images and, for experiments with several seeds, for the choice of seeds."
        f"{'' if macro_f1['interval'] else ' Macro F1 has none if a class shows fewer than two products.'}"
    )


def score_table(scored_experiments: Sequence[ScoredExperiment], baselines: Sequence[ScoredExperiment]) -> list[str]:
    """All scores with their intervals, and the number of parameters."""
    header = ["experiment", "seeds", *METRICS.values(), "sd over seeds", "parameters"]
    rows = []
    for scored in [*scored_experiments, *baselines]:
        experiment = scored.experiment
        seeds, parameters = "", ""
        if experiment.runs:
            seeds, parameters = str(len(scored.correct)), f"{experiment.mean_of('parameters'):,.0f}"
        sd = format_share(scored.correct.mean(1).std(ddof=1)) if len(scored.correct) > 1 else ""
        cells = [with_interval(scored.estimates[name]) for name in METRICS]
        rows.append([scored.name, seeds, *cells, sd, parameters])
        if scored.unseen:
            title = f"&nbsp; {scored.unseen.n} rows of products not in train"
            accuracy = with_interval(scored.unseen.estimates["accuracy"])
            rows.append([title, "", accuracy, *[""] * (len(header) - 3)])
    return markdown_table(header, rows)


def short_table(scored_experiments: Sequence[ScoredExperiment], baselines: Sequence[ScoredExperiment]) -> list[str]:
    """For the terminal: accuracy, weighted F1, and the accuracy on products that are not in train."""
    rows = []
    for scored in [*scored_experiments, *baselines]:
        accuracy, f1 = (with_interval(scored.estimates[name]) for name in ("accuracy", "f1"))
        unseen = with_interval(scored.unseen.estimates["accuracy"]) if scored.unseen else ""
        seeds = str(len(scored.correct)) if scored.experiment.runs else ""
        rows.append([scored.name, seeds, accuracy, f1, unseen])
    return terminal_table(["experiment", "seeds", "accuracy", "F1", "accuracy on unseen products"], rows)


def question_table(questions: Sequence[Question]) -> Table:
    """The difference in accuracy of each question with its simultaneous and its own interval, and the p-values.

    The number of seeds is shown too if the study has several looks.
    """
    at_looks, rows = has_looks(questions), []
    for question in questions:
        difference = format_difference(question.change.value, question.interval)
        p_values = format_p(question.corrected_p), format_p(question.p)
        seeds = [str(question.repetitions)] * at_looks
        rows.append([question.title, *seeds, difference, format_points(question.interval_alone), *p_values])
    header = ["difference", "interval of the question alone", "p (corrected)", "p alone"]
    return ["question", *["seeds"] * at_looks, *header], rows


def has_looks(questions: Sequence[Question]) -> bool:
    """Whether the questions are from a study with looks (`common.compare.looks`)."""
    return any(question.share < 1 for question in questions)


def family_text(questions: Sequence[Question]) -> str:
    """How the intervals and decisions of `questions` are corrected for their number and for looks at the study."""
    number = questions[0].family
    if has_looks(questions):
        return (
            "The intervals beside the differences are simultaneous: with at least 95 % confidence, all of them hold "
            f"the true differences, at whichever look they are made (Bonferroni over {count(number, 'question')} and "
            "the looks). A difference is reported as real if its interval does not contain zero, that is, if the "
            "corrected p is below 0.05. Interval and p of a question alone are corrected for the looks only."
        )
    if number == 1:
        return "There is only one question, so no correction is needed."
    hold = "both hold" if number == 2 else f"all {number} hold"
    return (
        f"The intervals beside the differences are simultaneous: with at least 95 % confidence, {hold} the "
        f"true differences (Bonferroni: {100 * (1 - FAMILY_ERROR / number):.2f} % each). A difference is reported as "
        f"real if its interval does not contain zero, that is, if p multiplied by {number} is below 0.05. Fewer "
        "questions (`--ask`) have narrower intervals; they have to be chosen before the results are seen."
    )


def best_experiment(experiments: Sequence[dict]) -> tuple[dict, str, str]:
    """The most accurate experiment, the first of equals, with a title for it and its most confused pairs in words.

    `experiments` are the entries of comparison.json.
    """
    best = max(experiments, key=lambda experiment: experiment["accuracy"]["value"])
    highest = best["accuracy"]["value"] - 1e-9  # without rounding errors
    equals = [e["name"] for e in experiments if e["accuracy"]["value"] > highest and e is not best]
    title = f"{best['name']}, the most accurate experiment:" if len(experiments) > 1 else f"{best['name']}:"
    if equals:
        title = f"{best['name']}, which has the highest accuracy, as have {', '.join(equals)}:"
    pairs = [f"{p['true']} predicted as {p['predicted']} ({p['rows']:.1f} rows)" for p in best["confused"]]
    return best, title, f"Most confused: {'; '.join(pairs)}." if pairs else ""


def class_table(experiment: dict) -> Table:
    """Scores per class of an entry of comparison.json; with an interval for the recall of classes with several
    products."""
    rows = []
    for name, scores in experiment["classes"].items():
        recall = format_share(scores["recall"], 2)
        if scores["interval"]:
            recall = format_score(scores["recall"], scores["interval"], digits=2)
        precision, f1 = format_share(scores["precision"], 2), format_share(scores["f1"], 2)
        rows.append([name, str(scores["rows"]), precision, recall, f1])
    return ["class", "rows", "precision", "recall", "F1"], rows


def calibration_table(experiments: Sequence[dict]) -> Table:
    """Calibration error and log loss of each entry of comparison.json."""
    rows = [[e["name"], format_share(e["calibration_error"]), rounded(e["log_loss"], 3, 0)] for e in experiments]
    return ["experiment", "expected calibration error", "log loss (nats)"], rows


def answered_table(experiments: Sequence[dict]) -> Table:
    """The accuracy of the most certain answers, by the share of photos that are answered.

    `experiments` are the entries of comparison.json.
    """
    curves = [experiment["risk_coverage"]["accuracy_of_answered"] for experiment in experiments]
    shares = [share for share in curves[0] if round(10 * float(share)) % 2 == 0]
    rows = []
    for experiment, curve in zip(experiments, curves, strict=True):
        scores = [curve[share] for share in shares]
        cells = [format_score(score["value"], score["interval"]) if score else TOO_FEW for score in scores]
        rows.append([experiment["name"], *cells])
    return ["experiment", *(f"{100 * float(share):g} % answered" for share in shares)], rows


def at_error_table(experiments: Sequence[dict]) -> Table:
    """The share of photos that can be answered, by the share of wrong answers; of entries of comparison.json."""
    shares = [experiment["risk_coverage"]["answered_at_error"] for experiment in experiments]
    rows = [
        [experiment["name"], *(TOO_FEW if share is None else format_share(share) for share in found.values())]
        for experiment, found in zip(experiments, shares, strict=True)
    ]
    return ["experiment", *(f"{100 * float(error):g} % wrong" for error in shares[0])], rows


def mistakes_text(comparison: dict) -> str:
    """What the heat maps of comparison.json's mistakes show."""
    return (
        f"The wrong predictions of {comparison['mistakes']['run']} with the highest probabilities, each with a heat "
        "map. The prediction depends most on the bright parts: painting over a square there decreases its log "
        "probability most (occlusion: Zeiler and Fergus, 2014). Each map has its own scale."
    )


def candidate_table(candidates: Sequence[dict]) -> Table:
    """The possible label errors, entries of comparison.json."""
    rows = [[row["image_id"], row["label"], row["predicted"], f"{row['weight']:.2f}"] for row in candidates]
    return ["image", "label", "predicted", "weight"], rows


def run_tables(experiments: Sequence[dict]) -> tuple[Table, Table]:
    """How the runs were made: what they have in common, and what differs, with a command per experiment.

    `experiments` are the entries of comparison.json, whose "runs" have all options, commands and versions.
    """
    settings = [_settings(experiment["runs"]) for experiment in experiments]
    differ = [name for name, value in settings[0].items() if any(other[name] != value for other in settings)]
    shared = [[name, value] for name, value in settings[0].items() if name not in differ]
    rows = []
    for experiment, values in zip(experiments, settings, strict=True):
        seeds = ", ".join(map(str, experiment["seeds"]))
        command = f"python {experiment['runs'][0]['command']}" if experiment["runs"][0]["command"] else "not recorded"
        rows.append([experiment["name"], seeds, *(values[name] for name in differ), command])
    return (["setting", "value in all runs"], shared), (["experiment", "seeds", *differ, "command"], rows)


def _settings(runs: Sequence[dict]) -> dict[str, str]:
    """Names and values of the main settings of an experiment's runs, entries of comparison.json."""
    options = ("limit", "split_by", "bad_rows", "recipe", "epochs", "image_size")
    values: dict[str, list] = {"data": [run["config"].get("data", "") for run in runs]}
    values["fingerprint"] = [run["data_fingerprint"][:16] for run in runs]
    values |= {f"{split} rows": [run["rows"].get(split, "") for run in runs] for split in ("train", "val")}
    values |= {name.replace("_", " "): [run["config"].get(name, "") for run in runs] for name in options}
    values["commit"] = [re.sub(r"(?<=^[0-9a-f]{12})[0-9a-f]+", "", run["commit"] or "") for run in runs]
    values["torch"] = [run["versions"].get("torch", "") for run in runs]
    settings = {name: _listed(list(dict.fromkeys(each))) for name, each in values.items()}
    folds = {parse_split(text) for text in values["split by"] if text}
    if len(folds) > 1:
        split, partitions = min(folds), len({fold.partition for fold in folds})
        settings["split by"] = f"{split.column}, {split.folds} folds" + f", {partitions} partitions" * (partitions > 1)
        settings["fingerprint"] = _counted(values["fingerprint"])  # each fold has its own
    return settings


def _counted(values: list) -> str:
    different = len(set(values))
    return f"{different} different, see comparison.json" if different > 1 else values[0]


def _listed(values: list) -> str:
    """Distinct values as text: "default", "2 to 5" for more than two numbers, "none" for nothing."""
    if len(values) > 2 and all(isinstance(value, int) for value in values):
        return f"{min(values):,} to {max(values):,}"
    return ", ".join(str(value) if value != "" else "none" for value in values)


def with_interval(score: Estimate) -> str:
    """A score with its 95 % interval, such as "0.672 [0.499, 0.808]"."""
    return format_score(score.value, score.score_interval())
