"""A comparison in words and tables, as comparison.md and the terminal show it."""

from collections.abc import Sequence

from common.comparison import Question, Scored
from common.findings import confused_pairs, label_candidates, numbers, per_class
from common.stats import Estimate

TITLES = {"accuracy": "accuracy", "precision": "precision", "recall": "recall", "f1": "F1", "macro_f1": "macro F1"}


def markdown(
    scored: Sequence[Scored], baselines: Sequence[Scored], asked: Sequence[Question], notes: Sequence[str]
) -> str:
    """The whole comparison as Markdown, with the pictures that stand beside it."""
    n, products = scored[0].n, scored[0].clusters.max() + 1
    lines = [
        "# Comparison",
        "",
        f"{n} val images of {products} products. Brackets are 95 % intervals: other images of other products "
        "might have been drawn and, where there are several seeds, other seeds.",
        "",
        *[f"- {question.sentence}" for question in asked],
        *[f"- {note}" for note in notes],
        "",
        "![Accuracy of each experiment](experiments.png)",
        "",
        *score_table(scored, baselines),
    ]
    if asked:
        lines += [
            "",
            "## Differences",
            "",
            "![Differences with intervals](differences.png)",
            "",
            *question_table(asked),
            "",
        ]
        lines += [
            "p decides, corrected for all questions by Holm's method. It is the larger one of two: that of a t-test "
            "with the variance over products and seeds, and, for single runs, McNemar's exact one, for several seeds "
            "that of a t-test over the seeds alone, which takes these very images as given.",
        ]
    lines += ["", "## Classes", "", *class_table(scored), "", "![Confusion matrices](confusion.png)", ""]
    lines += ["", "## Calibration", "", "![Reliability](reliability.png)", "", *calibration_table(scored), ""]
    candidates = label_candidates(scored)
    if candidates:
        lines += [
            "## Wrong labels?",
            "",
            "Most runs call these rows the same other class, weighted by their probability.",
            "",
        ]
        rows = [[r["image_id"], r["label"], r["predicted"], f"{r['weight']:.2f}"] for r in candidates]
        lines += table(["image", "label", "predicted", "weight"], rows)
    return "\n".join(lines).rstrip() + "\n"


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
        rows.append([one.name.strip(), str(len(one.right)) if experiment.runs else "", *cells, sd, *run])
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
        rows.append([one.name.strip(), str(len(one.right)), *cells])
    return table(["experiment", "seeds", "accuracy", "F1", "accuracy on new products"], rows)


def question_table(asked: Sequence[Question]) -> list[str]:
    rows = []
    for q in asked:
        low, high = q.change.interval()
        points = f"{100 * q.change.value:+.1f} [{100 * low:.1f}, {100 * high:.1f}]"
        other = [f"{p:.3f}" if p is not None else "" for p in (q.mcnemar_p, q.seeds_p)]
        rows.append([q.title, points, f"{q.p:.4f}", f"{q.holm_p:.4f}", *other])
    return table(["question", "points", "p", "p (Holm)", "McNemar", "seeds"], rows)


def class_table(scored: Sequence[Scored]) -> list[str]:
    """Recall of each class in each experiment, with Wilson's interval in the best one; the most confused pairs."""
    best = max(scored, key=lambda one: one.estimates["accuracy"].value)
    rows = []
    for name, found in per_class(best).items():
        low, high = found["interval"]
        cells = [f"{found[key]:.2f}" for key in ("precision", "recall", "f1")]
        rows.append([name, str(found["rows"]), cells[0], f"{cells[1]} [{low:.2f}, {high:.2f}]", cells[2]])
    pairs = [f"{p['true']} called {p['predicted']} ({p['rows']:.1f} rows)" for p in confused_pairs(best)]
    lines = [f"{best.name}, the most accurate:", "", *table(["class", "rows", "precision", "recall", "F1"], rows), ""]
    return [*lines, f"Most confused: {'; '.join(pairs)}."] if pairs else lines


def calibration_table(scored: Sequence[Scored]) -> list[str]:
    found = [numbers(one) for one in scored]
    rows = [[one["name"], f"{one['calibration_error']:.3f}", f"{one['log_loss']:.3f}"] for one in found]
    return table(["experiment", "expected calibration error", "log loss (nats)"], rows)


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines of a Markdown table whose columns are aligned in plain text too."""
    cells = [[cell.replace("|", "\\|") for cell in row] for row in [header, *rows]]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = ["| " + " | ".join(map(str.ljust, row, widths)) + " |" for row in cells]
    return [lines[0], "| " + " | ".join("-" * width for width in widths) + " |", *lines[1:]]


def _bracketed(found: Estimate) -> str:
    low, high = found.share_interval()
    return f"{found.value:.3f} [{low:.3f}, {high:.3f}]"
