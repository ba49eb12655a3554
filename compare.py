"""Compares finished runs: which idea helps, by how much, and how sure that is.

python compare.py runs/study                          # every finished run in a folder
python compare.py runs/a runs/b                       # these two
python compare.py --shortcuts runs/a                  # does the score come from the product or from its background?

Runs that differ in the seed alone are one experiment. Writes comparison.md, comparison.json and pictures to --out.
"""

import argparse
from pathlib import Path

from common.config import InputError, run


def read_options(argv=None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", help="run folders, or folders of run folders")
    parser.add_argument("--shortcuts", action="store_true", help="score each run on product and background alone")
    parser.add_argument("--out", type=Path, default=Path("comparison"), help="folder (default: comparison)")
    return parser.parse_args(argv)


if __name__ == "__main__":
    run(read_options)  # --help and mistyped options are answered here, before the imports below take their seconds

from common import charts, findings, tables
from common.baselines import majority, nearest_neighbour
from common.comparison import Scored, questions
from common.files import whole, write_json
from common.finished import Experiment, find_runs, gather
from common.report import save_figure


def compare(experiments: list[Experiment], out: Path) -> dict:
    """Writes the comparison of `experiments` to `out`; returns what comparison.json holds."""
    scored = [Scored(experiment) for experiment in experiments]
    asked = questions(scored)
    baselines, notes = find_baselines(experiments)
    if any(len(one.right) == 1 for one in scored):
        notes.append("where there is one seed, its interval says nothing of other seeds")
    seen = experiments[0].ids["product_id"].isin(experiments[0].shared_products).sum()
    if seen:
        notes.append(f"{seen} of {scored[0].n} val rows show a product that train shows too: it may know them by heart")

    def accuracy(one):
        return one.estimates["accuracy"].value

    best = max(scored, key=accuracy)
    partners = [q.a if q.b is best else q.b for q in asked if best in (q.a, q.b)]
    pair = [*sorted(partners, key=accuracy)[-1:], best]
    save_figure(out / "experiments.png", charts.bars(scored, baselines))
    save_figure(out / "reliability.png", charts.reliability(scored))
    save_figure(out / "confusion.png", charts.confusions(pair))
    (out / "differences.png").unlink(missing_ok=True)  # of an earlier comparison
    if asked:
        save_figure(out / "differences.png", charts.forest(asked))
    result = {
        "experiments": [findings.numbers(one) for one in scored],
        "baselines": [findings.numbers(one) for one in baselines],
        "questions": [findings.question_numbers(question) for question in asked],
        "label_candidates": findings.label_candidates(scored),
        "notes": notes,
    }
    with whole(out / "comparison.md") as partial:
        partial.write_text(tables.markdown(scored, baselines, asked, result))
    write_json(out / "comparison.json", result)
    print("\n".join(tables.short_table(scored, baselines)), "", *(q.sentence for q in asked), *notes, sep="\n")
    print(f"\nwritten: {out}/comparison.md, comparison.json and pictures")
    return result


def find_baselines(experiments: list[Experiment]) -> tuple[list[Scored], list[str]]:
    """The majority class and, on the full image and on the crop, the nearest neighbour; why not, where not."""
    found, notes = [Scored(majority(experiments[0]))], []
    for crop in ("full", "crop"):
        for experiment in experiments:
            if experiment.variant.startswith(crop):
                try:
                    found.append(Scored(nearest_neighbour(experiment)))
                except InputError as error:
                    notes.append(f"no nearest neighbour on the {crop}: {error}")
                break
    return found, notes


def main(argv=None):
    options = read_options(argv)
    runs = find_runs(options.runs)
    if options.shortcuts:
        from common.shortcuts import check

        return check(runs, options.out)
    return compare(gather(runs), options.out)


if __name__ == "__main__":
    run(main)
