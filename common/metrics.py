"""Scores of one set of predictions, by scikit-learn."""

import numpy as np


def row_losses(labels: np.ndarray, logits: np.ndarray) -> np.ndarray:
    """Cross-entropy (N,) in nats of each row; `labels` (N,) int, `logits` (N, C)."""
    from scipy.special import log_softmax

    return -log_softmax(logits.astype(np.float64), axis=1)[np.arange(len(labels)), labels]


def scores(labels: np.ndarray, logits: np.ndarray) -> dict[str, float]:
    """The scores of `logits` (N, C) on `labels` (N,) int, as plain numbers.

    Returns:
        n; accuracy; precision, recall and f1 weighted by class support (a class without predictions counts 0);
        macro_f1; loss, the mean cross-entropy in nats; top5, the share of rows whose label is among the five highest
        logits, where there are more than ten classes.
    """
    from sklearn.metrics import f1_score, precision_recall_fscore_support, top_k_accuracy_score  # takes seconds

    predictions = logits.argmax(1)
    precision, recall, f1, _ = precision_recall_fscore_support(labels, predictions, average="weighted", zero_division=0)
    result = {
        "n": len(labels),
        "accuracy": float((predictions == labels).mean()),
        "precision": float(precision),
        "recall": float(recall),
        "f1": float(f1),
        "macro_f1": float(f1_score(labels, predictions, average="macro", zero_division=0)),
        "loss": float(row_losses(labels, logits).mean()),
    }
    if logits.shape[1] > 10:
        result["top5"] = float(top_k_accuracy_score(labels, logits, k=5, labels=np.arange(logits.shape[1])))
    return result


def epoch_line(epoch: int, epochs: int, train_loss: float, result: dict, seconds_left: float) -> str:
    """One line of an epoch's scores and the time left."""
    names = ("accuracy", "precision", "recall", "f1", "macro_f1", "top5")
    shown = "  ".join(f"{name} {result[name]:.3f}" for name in names if name in result)
    minutes, seconds = divmod(round(seconds_left), 60)
    place = f"epoch {epoch:{len(str(epochs))}}/{epochs}  {minutes}:{seconds:02} left"
    return f"{place}  train loss {train_loss:.3f}  val: loss {result['loss']:.3f}  {shown}"
