"""Photos of unknown classes: how well scores tell them from photos of known ones, and how many get an answer.

python -m benchmarks.unknown_classes custom_cnn                # four runs on the bundled sample
python -m benchmarks.unknown_classes resnet --weights none --image-size 64

The classes are divided at random into groups. For each group, a model is trained without it and without a third of the
remaining products, whose photos are the known ones; the photos of the group are the unknown ones. The known photos
that are refused or answered are counted on products that the calibration has not seen. Further options
are passed to the script. The same command continues where it was stopped.
"""

import importlib
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from scipy.special import logsumexp, softmax
from sklearn.covariance import LedoitWolf
from sklearn.metrics import roc_auc_score
from torch import nn

from benchmarks.prediction_sets import parts
from benchmarks.sweep import train_missing, write_rows
from common.compare.grid import Job
from common.config import DataConfig, parse, run
from common.conformal import Calibration, upper_bound
from common.data.dataset import ClassificationDataset, load_splits
from common.data.pixels import normalize
from common.data.sources import clean_categories, load_tables
from common.data.splits import connected_groups
from common.evaluate import EVAL_BATCH
from common.files import markdown_table
from common.finished_run import FinishedRun

RISKS = (0.05, 0.1, 0.2)


@dataclass(frozen=True)
class Outputs:
    """What a model gives for N photos."""

    logits: np.ndarray  # (N, C) float64
    features: np.ndarray  # (N, D) float64, the input of its last linear layer

    @property
    def probabilities(self) -> np.ndarray:
        return softmax(self.logits, axis=1)


@torch.no_grad()
def outputs(model: nn.Module, *splits: ClassificationDataset) -> Outputs:
    """What `model` gives for the photos of all splits."""
    last = [module for module in model.modules() if isinstance(module, nn.Linear)][-1]
    logits: list[np.ndarray] = []
    features: list[np.ndarray] = []
    hook = last.register_forward_pre_hook(lambda _, inputs: features.append(inputs[0].double().numpy()))
    for split in splits:
        for first in range(0, len(split), EVAL_BATCH):
            images, *_ = split.batch(np.arange(first, min(first + EVAL_BATCH, len(split))), torch.device("cpu"))
            logits.append(model(normalize(images, split.normalization)).double().numpy())
    hook.remove()
    return Outputs(np.concatenate(logits), np.concatenate(features))


def maximum_probability(photos: Outputs, train: Outputs, labels: np.ndarray) -> np.ndarray:
    """Hendrycks and Gimpel (2017)."""
    return 1 - photos.probabilities.max(1)


def energy(photos: Outputs, train: Outputs, labels: np.ndarray) -> np.ndarray:
    """Liu et al. (2020)."""
    return -logsumexp(photos.logits, axis=1)


def nearest_train_photo(photos: Outputs, train: Outputs, labels: np.ndarray) -> np.ndarray:
    """One minus the cosine of the angle between features (Sun et al., 2022)."""
    a, b = (o.features / np.linalg.norm(o.features, axis=1, keepdims=True) for o in (photos, train))
    return 1 - (a @ b.T).max(1)


def nearest_class_mean(photos: Outputs, train: Outputs, labels: np.ndarray) -> np.ndarray:
    """The Mahalanobis distance (Lee et al., 2018), with a shrunk covariance as there are few rows."""
    means = np.stack([train.features[labels == k].mean(0) for k in range(labels.max() + 1)])
    precision = LedoitWolf(assume_centered=True).fit(train.features - means[labels]).precision_
    differences = photos.features[:, None] - means
    return np.einsum("ncd,de,nce->nc", differences, precision, differences).min(1)


SCORES = {  # of how unlike the train photos a photo is; each takes it, the train photos and their labels
    "maximum probability": maximum_probability,
    "energy": energy,
    "nearest train photo": nearest_train_photo,
    "Mahalanobis distance": nearest_class_mean,
}


def measure(finished: FinishedRun, unknown: Sequence[ClassificationDataset], **source: str) -> dict[str, list[float]]:
    """Numbers of one run, by the name of a row of the tables."""
    train, val = finished.splits(**source)
    model, labels = finished.model(), val.labels.numpy()
    of_train, known, strange = outputs(model, train), outputs(model, val), outputs(model, *unknown)
    clusters = connected_groups(val.ids()["product_id"], val.ids()["image_id"])
    truth = np.arange(len(labels)), labels
    found: dict[str, list[float]] = {}
    scores = {}
    for name, score in SCORES.items():
        a, b = scores[name] = [score(photos, of_train, train.labels.numpy()) for photos in (known, strange)]
        refused = np.zeros(len(a), bool)
        refused_unknown = []
        for part in parts(clusters, np.random.default_rng(0)):
            limit = upper_bound(a[~part], clusters[~part], 0.05)
            refused[part] = a[part] > limit
            refused_unknown.append((b > limit).mean())
        auroc = roc_auc_score([0] * len(a) + [1] * len(b), np.concatenate([a, b]))
        found[name] = [auroc, refused.mean(), float(np.mean(refused_unknown))]
    for risk in RISKS:
        for name in ("", *SCORES):
            answered, wrong = np.zeros((2, len(labels)), bool)
            answered_unknown = []
            for part in parts(clusters, np.random.default_rng(0)):
                least = -upper_bound(-known.probabilities[truth][~part], clusters[~part], risk)
                sets = [Calibration(risk, least, 0, 0, 0, "").sets(o.probabilities) for o in (known, strange)]
                sure = [rows.sum(1) == 1 for rows in sets]
                if name:
                    limit = upper_bound(scores[name][0][~part], clusters[~part], risk)
                    sure = [rows & (s <= limit) for rows, s in zip(sure, scores[name], strict=True)]
                answered[part] = sure[0][part]
                wrong[part] = (sure[0] & ~sets[0][truth])[part]
                answered_unknown.append(sure[1].mean())
            title = f"risk {risk:g}" + (f", {name}" if name else "")
            found[title] = [answered.mean(), wrong.mean(), float(np.mean(answered_unknown))]
    return found


def main(argv=None):
    parser = ArgumentParser(description=__doc__, formatter_class=RawDescriptionHelpFormatter, allow_abbrev=False)
    parser.add_argument("model", help="NAME of a script train_NAME.py")
    parser.add_argument("--data", default="sample", help="as in the scripts")
    parser.add_argument("--groups", type=int, default=4, help="number of groups of classes, each of which is left out")
    parser.add_argument("--out", type=Path, default=Path("runs/unknown"))
    parser.add_argument("--cache", default=DataConfig.cache)
    args, options = parser.parse_known_args(argv)
    script = f"train_{args.model}"
    config_class = importlib.import_module(script).Config
    rows = load_tables(DataConfig(data=args.data, crop=True, split_by="product_id"))["all"]
    names = clean_categories(rows)
    classes = sorted({category for category in names if category})
    groups = np.array_split(np.random.default_rng(0).permutation(classes), args.groups)
    measured = []
    for number, group in enumerate(groups, 1):
        data, folder = args.out / "data" / str(number), args.out / args.model / str(number)
        write_rows(rows.select([i for i, category in enumerate(names) if category and category not in group]), data)
        fixed = f"--crop --augment strong --split-by product_id:1/3 --resume --data {data} --cache {args.cache}"
        line = (*fixed.split(), "--out", str(folder), *options)
        [finished] = train_missing([Job(script, "crop-strong", line, parse(config_class, line))], quiet=True)
        everything = load_splits(replace(finished.config, data=args.data, split_by="product_id", cache=args.cache))
        unknown = [split.part(np.isin(np.array(split.classes)[split.labels], group)) for split in everything]
        measured.append(measure(finished, unknown, data=str(data), cache=args.cache))
        counts = f"{sum(map(len, unknown))} unknown photos, {finished.info.rows['val']} known"
        print(f"without {', '.join(sorted(group))}: {counts}", flush=True)
    header = {"scores": ["AUROC", "known refused", "unknown refused"], "answers": ["known", "known, wrong", "unknown"]}
    for title, columns in header.items():
        table = []
        for key in measured[0]:
            if key.startswith("risk") == (title == "answers"):
                values = np.array([found[key] for found in measured])
                cells = [f"{v.mean():.3f} ({v.min():.3f} to {v.max():.3f})" for v in values.T]
                table.append([key, *cells])
        print("", *markdown_table([title, *columns], table), sep="\n")


if __name__ == "__main__":
    run(main)
