"""A comparison as Markdown text and tables, for comparison.md and the terminal."""

from collections.abc import Sequence

from common.compare.questions import Question, ScoredExperiment
from common.files import markdown_table
from common.metrics import METRICS
from common.stats import Estimate, format_difference, format_score

P_VALUES = (
    "Each interval is for one question alone. Decisions are based on p after Holm's correction for all questions. p is "
    "the larger p-value of two tests. The first is a t-test with the variance over products and seeds; the second is "
    "McNemar's exact test between single runs, or a t-test over the seeds alone, which treats the val images as fixed, "
    "between experiments with several seeds each. Between one seed and several, only the first test applies."
)


def markdown(
    scored_experiments: Sequence[ScoredExperiment],
    baselines: Sequence[ScoredExperiment],
    questions: Sequence[Question],
    comparison: dict,
) -> str:
    """The text of comparison.md, which shows the figures beside it; `comparison` is the content of comparison.json."""
    first = scored_experiments[0]
    products = first.clusters.max() + 1
    experiments = comparison["experiments"]
    sections = [
        "# Comparison",
        f"{first.n} val images of {products} products. Brackets contain 95 % confidence intervals, which account for "
        "the choice of products and images and, for experiments with several seeds, for the choice of seeds.",
        [f"- {sentence}" for sentence in [*(question.sentence for question in questions), *comparison["notes"]]],
        "![Accuracy of each experiment](experiments.png)",
        score_table(scored_experiments, baselines),
    ]
    if questions:
        sections += [
            "## Differences",
            "![Differences with intervals](differences.png)",
            question_table(questions),
            P_VALUES,
        ]
    sections += ["## Classes", *class_sections(experiments), "![Confusion matrices](confusion.png)"]
    sections += ["## Calibration", "![Reliability diagrams](reliability.png)", calibration_table(experiments)]
    candidates = comparison["label_candidates"]
    if candidates:
        rows = [[row["image_id"], row["label"], row["predicted"], f"{row['weight']:.2f}"] for row in candidates]
        sections += [
            "## Possible label errors",
            "Most runs predict the same class for these rows, and it is not the label. The weight is the share of runs "
            "that predict this class, each weighted by its probability.",
            markdown_table(["image", "label", "predicted", "weight"], rows),
        ]
    return "\n\n".join(part if isinstance(part, str) else "\n".join(part) for part in sections if part) + "\n"


def score_table(scored_experiments: Sequence[ScoredExperiment], baselines: Sequence[ScoredExperiment]) -> list[str]:
    """All scores with their intervals, and the size and speed of the models."""
    header = ["experiment", "seeds", *METRICS.values(), "sd over seeds", "parameters", "images/s", "training"]
    rows = []
    for scored in [*scored_experiments, *baselines]:
        experiment = scored.experiment
        seeds, size_and_speed = "", ["", "", ""]
        if experiment.runs:
            seeds = str(len(scored.correct))
            size_and_speed = [
                f"{experiment.mean_of('parameters') / 1e6:.1f} M",
                f"{experiment.mean_of('images_per_second'):,.0f}",
                f"{experiment.mean_of('seconds'):,.0f} s",
            ]
        sd = f"{scored.correct.mean(1).std(ddof=1):.3f}" if len(scored.correct) > 1 else ""
        cells = [_with_interval(scored.estimates[name]) for name in METRICS]
        rows.append([scored.name, seeds, *cells, sd, *size_and_speed])
        if scored.unseen:
            title = f"&nbsp; {scored.unseen.n} rows of products not in train"
            accuracy = _with_interval(scored.unseen.estimates["accuracy"])
            rows.append([title, "", accuracy, *[""] * (len(header) - 3)])
    return markdown_table(header, rows)


def short_table(scored_experiments: Sequence[ScoredExperiment], baselines: Sequence[ScoredExperiment]) -> list[str]:
    """For the terminal: accuracy, weighted F1, and the accuracy on products that are not in train."""
    rows = []
    for scored in [*scored_experiments, *baselines]:
        accuracy, f1 = (_with_interval(scored.estimates[name]) for name in ("accuracy", "f1"))
        unseen = _with_interval(scored.unseen.estimates["accuracy"]) if scored.unseen else ""
        rows.append([scored.name, str(len(scored.correct)), accuracy, f1, unseen])
    return markdown_table(["experiment", "seeds", "accuracy", "F1", "accuracy on unseen products"], rows)


def question_table(questions: Sequence[Question]) -> list[str]:
    """The difference in accuracy and the p-values of each question."""
    rows = []
    for question in questions:
        difference = format_difference(question.change.value, question.change.interval())
        p_values = (question.p, question.holm_p, question.mcnemar_p, question.seeds_p)
        rows.append([question.title, difference, *map(_format_p, p_values)])
    return markdown_table(["question", "difference", "p", "p (Holm)", "McNemar", "seeds"], rows)


def class_sections(experiments: Sequence[dict]) -> list[str | list[str]]:
    """Scores per class of the most accurate experiment, with an interval for the recall, and its most confused pairs.

    `experiments` are the entries of comparison.json.
    """
    best = max(experiments, key=lambda experiment: experiment["accuracy"]["value"])
    rows = []
    for name, scores in best["classes"].items():
        recall = format_score(scores["recall"], scores["interval"], digits=2)
        rows.append([name, str(scores["rows"]), f"{scores['precision']:.2f}", recall, f"{scores['f1']:.2f}"])
    pairs = [f"{p['true']} predicted as {p['predicted']} ({p['rows']:.1f} rows)" for p in best["confused"]]
    confused = f"Most confused: {'; '.join(pairs)}." if pairs else ""
    scores = markdown_table(["class", "rows", "precision", "recall", "F1"], rows)
    return [f"{best['name']}, the most accurate experiment:", scores, confused]


def calibration_table(experiments: Sequence[dict]) -> list[str]:
    """Calibration error and log loss of each entry of comparison.json."""
    rows = [[e["name"], f"{e['calibration_error']:.3f}", f"{e['log_loss']:.3f}"] for e in experiments]
    return markdown_table(["experiment", "expected calibration error", "log loss (nats)"], rows)


def _format_p(p: float | None) -> str:
    if p is None:
        return ""
    return "< 0.0001" if p < 1e-4 else f"{p:.4f}"


def _with_interval(score: Estimate) -> str:
    return format_score(score.value, score.score_interval())
