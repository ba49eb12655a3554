"""Looks at the results of a study between its runs: questions that are answered get no more seeds.

This is a group-sequential design (Pocock, 1977; Lan and DeMets, 1983). The numbers of seeds after which there is a look
are fixed before the first run, and each look has a share of the error of a question, in proportion to the seeds that it
adds. The shares add up to one, so with Bonferroni's correction the intervals hold at all looks together, whatever the
reason that an experiment gets no more seeds (repeated confidence intervals: Jennison and Turnbull, 1989). The looks may
depend on each other in any way, and they do: they share val images and seeds.

A look uses exactly the first seeds of both experiments, so a study that is interrupted or repeated decides the same.
docs/statistics.md says how often it decides, and how many runs it saves (benchmarks/coverage.py).
"""

import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from scipy import special

from common.compare.experiments import group_runs
from common.compare.grid import Job, finished_run
from common.compare.questions import MIN_SEEDS, SAME, Question, ScoredExperiment, ask, pairs
from common.config import InputError, count, fits
from common.files import open_regular, write_json
from common.finished_run import FinishedRun, read_run
from common.stats import FAMILY_ERROR, SeedVariance

FILE = "looks.json"  # beside the run folders
SPENDING = "proportional to seeds"  # how the error is divided among the looks
MAX_SEEDS = 1000
GIVE_UP = 0.1  # a question is given up if the probability that more seeds will answer it is smaller

Name = tuple[str, str]  # model and variant of an experiment
Asked = tuple[str, Name, Name]  # a question, as from `pairs`


@dataclass(frozen=True)
class Looks:
    """The numbers of seeds after which there are looks: `MIN_SEEDS`, doubled each time, and finally `max_seeds`."""

    max_seeds: int

    @property
    def seeds(self) -> list[int]:
        doubles = (MIN_SEEDS * 2**k for k in range(self.max_seeds.bit_length()))
        return [*(number for number in doubles if number < self.max_seeds), self.max_seeds]

    @property
    def shares(self) -> list[float]:
        """The share of the error that each look has; their sum is 1."""
        seeds = [0, *self.seeds]
        return [(after - before) / self.max_seeds for before, after in zip(seeds, seeds[1:], strict=False)]

    def __str__(self) -> str:
        return f"{_listed(self.seeds)} seeds"


def _listed(values: Sequence) -> str:
    """For example "3, 6 and 12"."""
    *first, last = map(str, values)
    return f"{', '.join(first)} and {last}" if first else last


# Recorded looks ------------------------------------------------------------------------------------------------------


def read_looks(root: Path) -> Looks | None:
    """The looks recorded in the folder of a study; None if its number of seeds was fixed.

    Raises:
        InputError: the file cannot be read, or study.py has not written it.
    """
    path = root / FILE
    if not path.is_symlink() and not path.exists():
        return None
    try:
        with open_regular(path, limit=10_000) as file:
            content = json.loads(file.read())
        seeds = content.get("looks") if isinstance(content, dict) else None
        if not fits(seeds, list[int]) or not seeds or not MIN_SEEDS < seeds[-1] <= MAX_SEEDS:
            raise InputError("it has no list of looks")
        looks = Looks(seeds[-1])
        if content != _content(looks):
            raise InputError("these are not the looks of this version of study.py")
    except (InputError, ValueError, RecursionError) as error:
        raise InputError(
            f"{path} is not a record of the looks at a study ({error}): restore the file, which study.py wrote before "
            "the first run."
        ) from None
    return looks


def _content(looks: Looks) -> dict:
    return {"looks": looks.seeds, "spending": SPENDING}


def check_looks(root: Path, looks: Looks | None) -> None:
    """Raises InputError if the study in the folder `root` has other looks; None stands for none.

    Before the first run, they may still be replaced by others.
    """
    recorded, has_runs = read_looks(root), any(root.glob("*/run.json"))
    if recorded and recorded != looks and (has_runs or not looks):
        raise InputError(
            f"{root} belongs to a study with looks after {recorded}: continue it with --until-decided --max-seeds "
            f"{recorded.max_seeds}, or choose another folder with --out."
        )
    if looks and not recorded and has_runs:
        raise InputError(
            f"{root} already holds runs, but looks must be fixed before the first one: choose another folder with "
            "--out, or continue without --until-decided."
        )


def looks_of_runs(runs: Sequence[FinishedRun]) -> Looks | None:
    """The looks of the studies that `runs` belong to, whose folders may be links; InputError if they differ."""
    by_folder = {
        run.folder.parent: read_looks(run.folder.parent) or read_looks(run.folder.resolve().parent) for run in runs
    }
    (first, looks), *others = by_folder.items()
    for folder, other in others:
        if other != looks:
            descriptions = (
                f"{root} has {f'looks after {each}' if each else 'no looks'}"
                for root, each in ((first, looks), (folder, other))
            )
            raise InputError(f"{' and '.join(descriptions)}: compare studies with different looks separately.")
    return looks


# Decisions -----------------------------------------------------------------------------------------------------------


def study_looks(
    jobs: Sequence[Job], looks: Looks | None, say: Callable[[str], None] = print, *, record: bool = True
) -> Iterator[list[Job]]:
    """The runs of each look at a study, in turn; all `jobs` at once if there are no looks.

    The runs have to be finished before the next look is requested, which depends on their results. `say` is called with
    a line about what each look decides.

    Args:
        jobs: the runs of the study with the largest number of seeds.
        record: write the looks to the study's folder, which has to be done before its first run.

    Raises:
        InputError: the folder belongs to a study with other looks, there is no question about the experiments, or a
            run was made with other options.
    """
    root = jobs[0].folder.parent
    check_looks(root, looks)
    if not looks:
        yield list(jobs)
        return
    jobs_of: dict[Name, list[Job]] = {}
    for job in sorted(jobs, key=lambda job: job.folder):  # in the order of `find_runs`, for the same questions
        jobs_of.setdefault((job.script.removeprefix("train_"), job.variant), []).append(job)
    asked = list(pairs(jobs_of))
    if not asked:
        raise InputError("compare.py has no question about these experiments, so there is nothing to decide.")
    if record and read_looks(root) != looks:
        write_json(root / FILE, _content(looks))

    def chosen(names: Iterable[Name], seeds: int) -> list[Job]:
        return [job for name in names for job in jobs_of[name] if job.config.seed < seeds]

    def scored(names: Iterable[Name], seeds: int) -> dict[Name, ScoredExperiment]:
        runs = (finished_run(job) or read_run(job.folder) for job in chosen(names, seeds))  # or an error says why not
        experiments = group_runs(list(runs))
        return {(each.model, each.variant): ScoredExperiment(each) for each in experiments}

    for names, seeds in follow(asked, looks, scored, say):
        # Experiments without a question get the seeds of the first look.
        look = chosen(jobs_of if seeds == looks.seeds[0] else names, seeds)
        yield [job for job in jobs if job in look]


def current_look(
    jobs: Sequence[Job],
    looks: Looks | None,
    say: Callable[[str], None] = lambda line: None,
    *,
    record: bool = True,
) -> list[Job]:
    """The runs of the first look of `study_looks` with unfinished runs, or of the last look."""
    look: list[Job] = []
    for look in study_looks(jobs, looks, say, record=record):
        if not all(job.has_results for job in look):
            break
    return look


def follow(
    asked: Sequence[Asked],
    looks: Looks,
    scored: Callable[[Iterable[Name], int], Mapping[Name, ScoredExperiment]],
    say: Callable[[str], None] = lambda line: None,
) -> Iterator[tuple[list[Name], int]]:
    """The experiments of each look, in turn, and their number of seeds; see `study_looks`.

    Args:
        asked: the questions, as from `pairs`.
        scored: returns the experiments with these names, with at least this number of seeds.
    """
    left = list(asked)
    for seeds in looks.seeds:
        names = list(dict.fromkeys(name for _, *both in left for name in both))
        yield names, seeds
        experiments = scored(names, seeds)
        answers = [(question, answer_at(question, experiments, looks, seeds, family=len(asked))) for question in left]
        undecided = [(question, answer) for question, answer in answers if not answer.answered]
        likely = {question for question, answer in undecided if chance(answer, looks) >= GIVE_UP}
        go_on = {name for _, *both in likely for name in both}
        # A question that is given up is asked again if both experiments get more seeds anyway, for other questions.
        left = [question for question, _ in undecided if set(question[1:]) <= go_on]
        decided = [answer.title for _, answer in answers if answer.answered]
        given_up = [answer.title for question, answer in undecided if question not in likely]
        open_ = [answer.title for question, answer in undecided if question in likely]
        parts = {"decided": decided, "given up" if seeds < looks.max_seeds else "not decided": given_up, "open": open_}
        line = "; ".join(f"{len(titles)} {state} ({', '.join(titles)})" for state, titles in parts.items() if titles)
        more = f"{len(go_on)} of {len(names)} experiments get more seeds" if left else "no experiment gets more seeds"
        say(f"after {seeds} seeds: {line}; {more}")
        if not left:
            return


def answer_at(
    question: Asked, experiments: Mapping[Name, ScoredExperiment], looks: Looks, seeds: int, *, family: int
) -> Question:
    """The answer to one of `family` questions at the look after `seeds` seeds."""
    kind, a, b = question
    share = looks.shares[looks.seeds.index(seeds)]
    return replace(ask(kind, experiments[a], experiments[b], seeds), share=share, family=family)


def chance(answer: Question, looks: Looks) -> float:
    """The probability that a question that is not answered yet will be answered at the last look.

    The val images stay the same, so only the new seeds change the difference: by zero on average, with a part of the
    variance over seeds that is observed now (predictive power: Spiegelhalter, Freedman and Blackburn, 1986).
    """
    change, last = answer.change, looks.max_seeds
    now = answer.seeds[0]
    if answer.reason_against or now >= last:
        return 0.0
    kept = now / last
    parts = change.seed_variances
    later = tuple(SeedVariance(part.observed * kept, part.explained * kept, last) for part in parts)
    images = max(0.0, change.image_variance - (1 - kept) * sum(part.explained for part in parts))
    at_last = replace(change, image_variance=images, seed_variances=later)
    margin = at_last.margin(1 - FAMILY_ERROR * looks.shares[-1] / answer.family)
    variance = sum(part.observed for part in parts)
    if not variance:
        return float(abs(change.value) > margin or abs(change.value) + margin <= SAME)
    df = variance**2 / sum(part.observed**2 / (part.seeds - 1) for part in parts)
    scale = math.sqrt(variance * (1 - kept))

    def within(limit: float) -> float:
        """The probability of a difference from -limit to limit."""
        low, high = ((bound - change.value) / scale for bound in (-limit, limit))
        return float(special.stdtr(df, high) - special.stdtr(df, low))

    return 1 - within(margin) + (within(SAME - margin) if margin < SAME else 0.0)


# Answers -------------------------------------------------------------------------------------------------------------


def questions_at_looks(
    scored_experiments: Sequence[ScoredExperiment], looks: Looks, asked: Sequence[str] | None = None
) -> tuple[list[Question], list[str]]:
    """The questions of the kinds `asked`, as from `questions`, with their answers at the looks of the study.

    An answer is that of the first look at which the question is answered or, if there is none, of the last look that
    both experiments have reached.

    Returns:
        The questions, and sentences about the looks. Experiments that have not reached the first look are not compared.

    Raises:
        InputError: the runs are those of a cross-validation.
    """
    if any(scored.experiment.folds for scored in scored_experiments):
        raise InputError(f"a study with looks ({FILE}) has no folds: compare its runs without those of --split-by.")
    experiments = {(scored.experiment.model, scored.experiment.variant): scored for scored in scored_experiments}
    questions = list(pairs(experiments, asked))
    answers = []
    for question in questions:
        reached = min(_first_seeds(experiments[name]) for name in question[1:])
        at_looks = [
            answer_at(question, experiments, looks, seeds, family=len(questions))
            for seeds in looks.seeds
            if seeds <= reached
        ]
        answers += [answer for answer in at_looks if answer.answered][:1] or at_looks[-1:]
    notes = []
    if questions:
        times = _listed([f"{1 / share:.3g}" for share in looks.shares])
        notes.append(
            f"the study was planned with looks after {looks}, at each of which a question could be answered; an answer "
            "uses only the seeds up to its look, and its intervals and p-values are corrected for the looks, as for "
            f"{times} times as many questions at these looks in turn"
        )
    if left := sum(not answer.answered and answer.seeds[0] < looks.max_seeds for answer in answers):
        notes.append(f"{count(left, 'question')} not decided: given up or, if the study is not finished, open")
    if missing := len(questions) - len(answers):
        first = looks.seeds[0]
        notes.append(f"{count(missing, 'question')} not asked: an experiment has not finished seeds 0 to {first - 1}")
    return answers, notes


def _first_seeds(scored: ScoredExperiment) -> int:
    """The number of seeds 0, 1, ... of an experiment before the first that is missing."""
    seeds = scored.experiment.seeds
    return next((i for i, seed in enumerate(seeds) if seed != i), len(seeds))
