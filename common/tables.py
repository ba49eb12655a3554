"""A comparison in words and tables, as comparison.md and the terminal show it."""

from collections.abc import Sequence

from common.comparison import Question, Scored
from common.stats import Estimate

TITLES = {"accuracy": "accuracy", "precision": "precision", "recall": "recall", "f1": "F1", "macro_f1": "macro F1"}

P_VALUES = (
    "Each interval is for one question alone; p decides, corrected for all questions by Holm's method. It is the "
    "larger one of two: that of a t-test with the variance over products and seeds and, between single runs, McNemar's "
    "exact one, between experiments of several seeds that of a t-test over the seeds alone, which takes these very "
    "images as given."
)


def markdown(scored: Sequence[Scored], baselines: Sequence[Scored], asked: Sequence[Question], found: dict) -> str:
    """The whole comparison as Markdown, with the pictures beside it; `found` is what comparison.json holds."""
    n, products, experiments = scored[0].n, scored[0].clusters.max() + 1, found["experiments"]
    sections = [
        "# Comparison",
        f"{n} val images of {products} products. Brackets are 95 % intervals: other images of other products "
        "might have been drawn and, where there are several seeds, other seeds.",
        [f"- {sentence}" for sentence in [*(question.sentence for question in asked), *found["notes"]]],
        "![Accuracy of each experiment](experiments.png)",
        score_table(scored, baselines),
    ]
    if asked:
        sections += [
            "## Differences",
            "![Differences with intervals](differences.png)",
            question_table(asked),
            P_VALUES,
        ]
    sections += ["## Classes", *class_sections(experiments), "![Confusion matrices](confusion.png)"]
    sections += ["## Calibration", "![Reliability](reliability.png)", calibration_table(experiments)]
    if found["label_candidates"]:
        rows = [[r["image_id"], r["label"], r["predicted"], f"{r['weight']:.2f}"] for r in found["label_candidates"]]
        what = "Most runs call these rows the same other class, weighted by their probability."
        sections += ["## Wrong labels?", what, table(["image", "label", "predicted", "weight"], rows)]
    return "\n\n".join(part if isinstance(part, str) else "\n".join(part) for part in sections if part) + "\n"


def score_table(scored: Sequence[Scored], baselines: Sequence[Scored]) -> list[str]:
    header = ["experiment", "seeds", *TITLES.values(), "sd over seeds", "parameters", "images/s", "training"]
    rows = []
    for one in [*scored, *baselines]:
        experiment, cells = one.experiment, [_bracketed(one.estimates[name]) for name in TITLES]
        sd = f"{one.right.mean(1).std(ddof=1):.3f}" if len(one.right) > 1 else ""
        run = ["", "", ""]
        if experiment.runs:
            parameters, rate, seconds = (experiment.mean_of(k) for k in ("parameters", "images_per_second", "seconds"))
            run = [f"{parameters / 1e6:.1f} M", f"{rate:,.0f}", f"{seconds:,.0f} s"]
        rows.append([one.name, str(len(one.right)) if experiment.runs else "", *cells, sd, *run])
        if one.unseen:
            new = _bracketed(one.unseen.estimates["accuracy"])
            rows.append(
                [f"&nbsp; the {one.unseen.n} rows of products not in train", "", new, *[""] * (len(header) - 3)]
            )
    return table(header, rows)


def short_table(scored: Sequence[Scored], baselines: Sequence[Scored]) -> list[str]:
    """For the terminal: accuracy and F1, and the accuracy on products that train never shows."""
    rows = []
    for one in [*scored, *baselines]:
        new = _bracketed(one.unseen.estimates["accuracy"]) if one.unseen else ""
        cells = [_bracketed(one.estimates["accuracy"]), _bracketed(one.estimates["f1"]), new]
        rows.append([one.name, str(len(one.right)), *cells])
    return table(["experiment", "seeds", "accuracy", "F1", "accuracy on new products"], rows)


def question_table(asked: Sequence[Question]) -> list[str]:
    rows = []
    for q in asked:
        low, high = q.change.interval()
        points = f"{100 * q.change.value:+.1f} [{100 * low:.1f}, {100 * high:.1f}]"
        rows.append([q.title, points, *map(_p_value, (q.p, q.holm_p, q.mcnemar_p, q.seeds_p))])
    return table(["question", "points", "p", "p (Holm)", "McNemar", "seeds"], rows)


def class_sections(experiments: Sequence[dict]) -> list[str | list[str]]:
    """The most accurate experiment's scores of each class, recall with its interval, and its most confused pairs."""
    best = max(experiments, key=lambda one: one["accuracy"]["value"])
    rows = []
    for name, found in best["classes"].items():
        low, high = found["interval"]
        cells = [f"{found[key]:.2f}" for key in ("precision", "recall", "f1")]
        rows.append([name, str(found["rows"]), cells[0], f"{cells[1]} [{low:.2f}, {high:.2f}]", cells[2]])
    pairs = [f"{p['true']} called {p['predicted']} ({p['rows']:.1f} rows)" for p in best["confused"]]
    confused = f"Most confused: {'; '.join(pairs)}." if pairs else ""
    scores = table(["class", "rows", "precision", "recall", "F1"], rows)
    return [f"{best['name']}, the most accurate:", scores, confused]


def calibration_table(experiments: Sequence[dict]) -> list[str]:
    rows = [[one["name"], f"{one['calibration_error']:.3f}", f"{one['log_loss']:.3f}"] for one in experiments]
    return table(["experiment", "expected calibration error", "log loss (nats)"], rows)


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines of a Markdown table whose columns are aligned in plain text too."""
    cells = [[cell.replace("|", "\\|").replace("\n", " ") for cell in row] for row in [header, *rows]]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = ["| " + " | ".join(map(str.ljust, row, widths)) + " |" for row in cells]
    return [lines[0], "| " + " | ".join("-" * width for width in widths) + " |", *lines[1:]]


def _p_value(p: float | None) -> str:
    return "" if p is None else "< 0.0001" if p < 1e-4 else f"{p:.4f}"


def _bracketed(found: Estimate) -> str:
    low, high = found.share_interval()
    return f"{found.value:.3f} [{low:.3f}, {high:.3f}]"
