"""Compares finished runs: differences in accuracy between variants and models, with confidence intervals.

python compare.py runs/study                          # all finished runs in a folder
python compare.py runs/a runs/b                       # two runs
python compare.py runs/study --ask crop models         # fewer questions, which narrows the intervals
python compare.py runs/a owner/name                   # with a run on the Hub
python compare.py --shortcuts runs/a                  # does a model rely on the background?

Runs that differ only in the seed form one experiment. Writes comparison.html (to explore in a browser), comparison.md,
comparison.json and figures to the folder given by --out.
"""

import argparse
from pathlib import Path
from typing import Any

from common.config import InputError, printable, run

QUESTIONS = ("crop", "augment", "strong", "models")  # what the variants add, and which model is better
FIGURES = ("experiments", "differences", "reliability", "risk_coverage", "confusion", "heat")
FILES = ("comparison.json", "comparison.md", "comparison.html", *(f"{name}.png" for name in FIGURES))


def read_options(argv=None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", help="run folders, folders of run folders, or runs on the Hub")
    parser.add_argument("--shortcuts", action="store_true", help="score each run on product and background separately")
    parser.add_argument(
        "--ask",
        nargs="+",
        choices=QUESTIONS,
        default=QUESTIONS,
        help="questions to ask (default: all); fewer questions have narrower intervals, but choose them before you see "
        "any results",
    )
    parser.add_argument(
        "--data", default="", help="where the data of the runs is, unless it is the default or 'sample'"
    )
    parser.add_argument("--cache", default=".cache", help="folder for decoded pixels (default: .cache)")
    parser.add_argument("--out", type=Path, default=Path("comparison"), help="output folder (default: comparison)")
    return parser.parse_args(argv)


def main(argv=None):
    options = read_options(argv)
    # Imported here because these take seconds, and --help should be fast.
    from common.compare import figures
    from common.compare.baselines import find_baselines
    from common.compare.experiments import code_notes, comparable, fold_notes, group_runs
    from common.compare.heat_maps import confident_mistakes
    from common.compare.looks import looks_of_runs, questions_at_looks
    from common.compare.markdown import markdown, short_table
    from common.compare.page import page_content, render
    from common.compare.photos import find_photos
    from common.compare.questions import ScoredExperiment, family_notes, questions
    from common.compare.shortcuts import check_shortcuts
    from common.compare.summary import experiment_summary, label_candidates, seed_and_leakage_notes
    from common.figures import save_figure
    from common.files import atomic_path, check_output_folder, write_json
    from common.finished_run import find_runs
    from common.stats import FAMILY_ERROR

    out = options.out
    runs, notes = find_runs(options.runs)
    if options.shortcuts:
        return check_shortcuts(runs, out, data=options.data, cache=options.cache)

    check_output_folder(out, FILES, questions=list, experiments=list)
    looks = looks_of_runs(runs)
    runs, left_out = comparable(runs)
    notes += left_out + code_notes(runs)
    experiments = group_runs(runs)
    notes += fold_notes(experiments)
    scored_experiments = [ScoredExperiment(experiment) for experiment in experiments]
    at_looks: list[str] = []
    if looks:
        answers, at_looks = questions_at_looks(scored_experiments, looks, options.ask)
        notes += at_looks
    else:
        answers = questions(scored_experiments, options.ask)
    if not answers and not at_looks and set(options.ask) < set(QUESTIONS):
        notes.append(f"no difference was tested: no two of these experiments answer --ask {' '.join(options.ask)}")
    baselines, missing = find_baselines(experiments, data=options.data, cache=options.cache)

    def accuracy(scored: ScoredExperiment) -> float:
        return scored.estimates["accuracy"].value

    best = max(scored_experiments, key=accuracy)
    explained_run = best.experiment.runs[0]
    try:
        mistakes = confident_mistakes(explained_run, data=options.data, cache=options.cache)
    except InputError as error:
        mistakes = []
        notes.append(f"there are no heat maps of mistakes: {error}")
    comparison: dict[str, Any] = {
        "experiments": [experiment_summary(scored) for scored in scored_experiments],
        "baselines": [experiment_summary(scored) for scored in baselines],
        "questions": [question.as_dict() for question in answers],
        "label_candidates": label_candidates(scored_experiments),
        "mistakes": {"run": explained_run.name, "rows": [mistake.as_dict() for mistake in mistakes]},
        "family": {
            "asked": list(options.ask),
            "questions": answers[0].family if answers else 0,
            "error": FAMILY_ERROR,
            "looks": looks.seeds if looks else [],
        },
        "notes": notes + missing + seed_and_leakage_notes(scored_experiments) + family_notes(answers),
    }
    compared_with_best = [q.a if q.b is best else q.b for q in answers if best in (q.a, q.b)]
    runner_up = sorted(compared_with_best, key=accuracy)[-1:]  # empty if no question involves the best
    write_json(out / "comparison.json", comparison)
    save_figure(out / "experiments.png", figures.bars(scored_experiments, baselines))
    save_figure(out / "reliability.png", figures.reliability(scored_experiments))
    save_figure(out / "risk_coverage.png", figures.risk_coverage(comparison["experiments"]))
    save_figure(out / "confusion.png", figures.confusions([*runner_up, best]))
    for name in ("differences.png", "heat.png"):
        (out / name).unlink(missing_ok=True)  # from an earlier comparison
    if mistakes:
        save_figure(out / "heat.png", figures.heat(mistakes))
    if answers:
        save_figure(out / "differences.png", figures.forest(answers))
    with atomic_path(out / "comparison.md") as partial:
        partial.write_text(markdown(scored_experiments, baselines, answers, comparison), encoding="utf-8")
    suspects = [candidate["row"] for candidate in comparison["label_candidates"]]
    photos = find_photos(scored_experiments, suspects, data=options.data, cache=options.cache)
    with atomic_path(out / "comparison.html") as partial:
        page = page_content(scored_experiments, baselines, answers, comparison, photos, mistakes)
        partial.write_text(render(page), encoding="utf-8")

    sentences = [question.sentence for question in answers]
    print(*short_table(scored_experiments, baselines), "", sep="\n")
    print(*map(printable, [*sentences, *comparison["notes"]]), sep="\n")
    print(f"\nwritten: {printable(str(out))}/comparison.html, comparison.md, comparison.json and figures")
    return comparison


if __name__ == "__main__":
    run(main)
