"""Options. A script's Config is its experiment; `--name value` on the command line overrides one default."""

import argparse
import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar


class InputError(ValueError):
    """A mistake of the person who runs the script: what is wrong, with the value, and what to do about it."""


class Interrupted(Exception):
    """A run was asked to stop, by SIGTERM or Ctrl-C, and has saved what it needs to go on."""


def option(
    default: Any,
    help: str,
    *,
    group: str = "model",
    choices: tuple = (),
    minimum: float = -math.inf,
    maximum: float = math.inf,
) -> Any:
    """A Config field of type bool, int, float or str that is also a flag.

    `help` is one sentence; `group` the heading in --help; `choices` the values allowed; `minimum` and `maximum` the
    range. A flag with choices and the default "none" may stand alone: `--augment` means its second choice.
    """
    rules = {"help": help, "group": group, "choices": choices, "minimum": minimum, "maximum": maximum}
    return field(default=default, metadata=rules)


@dataclass(frozen=True)
class DataConfig:
    """The options of the data path: which rows, and how they become square images."""

    data: str = option(
        "Nfiniteai/product-masks-sample",
        "'sample', a Hub id, a folder of Parquet files or an image folder",
        group="data",
    )
    crop: bool = option(False, "cut each image to its bounding box", group="data")
    margin: float = option(0.0, "context kept around the box on each side, in box sides", group="data", minimum=0)
    fit: str = option(
        "squash", "how a crop becomes square: stretched, or padded", group="data", choices=("squash", "pad")
    )
    image_size: int = option(224, "side of the square model input in pixels", group="data", minimum=1)
    split_by: str = option(
        "",
        "a split of train and val that shares no value of this id: product_id, image_id, or a fold, product_id:2/5",
        group="data",
    )
    limit: int = option(0, "use this many evenly spaced rows of each split; 0 means all", group="data", minimum=0)
    bad_rows: str = option(
        "error", "rows that cannot be used: stop, or go on without them", group="data", choices=("error", "skip")
    )
    cache: str = option(".cache", "folder of the decoded pixels, shared by all runs", group="data")

    def __post_init__(self):
        for f in fields(self):
            value, rule, flag = getattr(self, f.name), _metadata(type(self), f.name), flag_of(f.name)
            if rule["choices"] and value not in rule["choices"]:
                raise InputError(f"{flag} is {value!r}: choose from {', '.join(rule['choices'])}.")
            if isinstance(value, int | float) and not (
                rule["minimum"] <= value <= rule["maximum"] and value < math.inf
            ):
                most = f" and at most {rule['maximum']}" if rule["maximum"] < math.inf else ""
                limits = f"at least {rule['minimum']}{most}"
                raise InputError(f"{flag} is {value}: it must be {limits}.")


@dataclass(frozen=True)
class TrainConfig(DataConfig):
    """The options every training script has. A script gives its own defaults by naming a field again."""

    fit: str = "pad"
    augment: str = option(
        "none",
        "'lab': random flip and rotation up to 15 degrees; 'strong': also windows, colours, mixup and CutMix",
        group="data",
        choices=("none", "lab", "strong"),
    )
    background: str = option(
        "keep",
        "half of the train images get another background, by their masks: gray, blurred, or that of another image",
        group="data",
        choices=("keep", "gray", "blur", "swap"),
    )
    recipe: str = option(
        "default",
        "'lab': Adam, lr 1e-3 constant, batch 16, 3 epochs, 224 pixels, file order, no decay or clipping",
        group="training",
        choices=("default", "lab"),
    )
    epochs: int = option(10, "passes over the train split", group="training", minimum=1)
    batch_size: int = option(16, "images per optimizer step, over all processes", group="training", minimum=1)
    lr: float = option(1e-3, "peak learning rate", group="training", minimum=0)
    warmup: float = option(
        0.1, "share of the steps in which the lr rises, before its cosine decay", group="training", minimum=0, maximum=1
    )
    weight_decay: float = option(0.05, "decoupled weight decay, on weight matrices only", group="training", minimum=0)
    label_smoothing: float = option(
        0.0, "share of each target that goes to all classes alike", group="training", minimum=0, maximum=1
    )
    teacher: str = option("", "a finished run whose outputs the model learns from as well", group="training")
    clip_norm: float = option(1.0, "largest gradient norm; 0 means no clipping", group="training", minimum=0)
    accumulate: int = option(1, "pieces a batch is cut into to save memory", group="training", minimum=1)
    seed: int = option(
        0, "seed of the weights, the row order and the augmentation", group="training", minimum=0, maximum=2**63 - 1
    )

    data_device: str = option(
        "auto",
        "pixels on the GPU if they fill at most a quarter of its free memory",
        group="run",
        choices=("auto", "cpu"),
    )
    out: str = option("", "run folder; empty means runs/SCRIPT-VARIANT-sSEED", group="run")
    resume: bool = option(False, "go on from the run folder's checkpoint, if there is one", group="run")
    checkpoint_every: int = option(0, "steps between checkpoints; 0 means one per epoch", group="run", minimum=0)
    dry_run: bool = option(False, "two steps and one evaluation, into a temporary folder", group="run")
    summary: bool = option(False, "print the layer table before training", group="run")

    lab: ClassVar[dict] = dict(
        fit="squash",
        epochs=3,
        batch_size=16,
        lr=1e-3,
        warmup=0.0,
        weight_decay=0.0,
        clip_norm=0.0,
        label_smoothing=0.0,
        image_size=224,
    )  # what `--recipe lab` puts in place of the defaults; AdamW without weight decay is Adam

    @property
    def variant(self) -> str:
        """The preprocessing in a word: such as full, crop or crop-augment; one of `VARIANTS`."""
        return variant_of(self.crop, self.augment)


VARIANTS = {  # and the flags that make them; from the plainest to the one with most
    "full": (),
    "full-augment": ("--augment",),
    "full-strong": ("--augment", "strong"),
    "crop": ("--crop",),
    "crop-augment": ("--crop", "--augment"),
    "crop-strong": ("--crop", "--augment", "strong"),
}


def variant_of(crop: bool, augment: str) -> str:
    return ("crop" if crop else "full") + {"none": "", "lab": "-augment"}.get(augment, f"-{augment}")


def flag_of(name: str) -> str:
    return "--" + name.replace("_", "-")


def parse(config_class: type[DataConfig], argv: Sequence[str] | None = None) -> DataConfig:
    """The command line `argv` (default: this process's) as a `config_class`. Unknown flags end the script, code 2."""
    parser = argparse.ArgumentParser(
        description=sys.modules[config_class.__module__].__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    shown = {_metadata(config_class, f.name)["group"] for f in fields(config_class)}
    names = [name for name in ("data", "training", "model", "run") if name in shown]
    groups = {name: parser.add_argument_group(name) for name in names}
    for f in fields(config_class):
        rule = _metadata(config_class, f.name)
        shown = "" if f.default is False or f.default == "" else f" (default: {f.default})"
        kwargs: dict[str, Any] = dict(default=f.default, help=(rule["help"] + shown).replace("%", "%%"))
        if f.type is bool:
            kwargs |= dict(action=argparse.BooleanOptionalAction) if f.default else dict(action="store_true")
        else:
            kwargs |= dict(type=f.type, choices=rule["choices"] or None)
            kwargs |= dict(metavar=None if rule["choices"] else f.type.__name__.upper())
            if rule["choices"] and f.default == "none":
                kwargs |= dict(nargs="?", const=rule["choices"][1])
        groups[rule["group"]].add_argument(flag_of(f.name), **kwargs)
    if getattr(parser.parse_args(argv), "recipe", None) == "lab":
        parser.set_defaults(**config_class.lab)
    return config_class(**vars(parser.parse_args(argv)))


def run(function: Callable, *args: Any) -> None:
    """Calls a part of a script, such as its `main`. A mistake of the person ends it with one clear message and exit
    code 1, a request to stop with exit code 75 (the "try again later" of sysexits.h), a Ctrl-C before or after the
    training with 130.
    """
    try:
        function(*args)
    except InputError as error:
        sys.exit(f"error: {error}")
    except OSError as error:
        where = f": {error.filename}" if error.filename else ""
        sys.exit(f"error: {error.strerror or error}{where}. What was written before is whole.")
    except Interrupted as stop:
        print(stop, file=sys.stderr)
        sys.exit(75)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)


def _metadata(config_class: type, name: str) -> dict:
    """What `option` said of a field, by the nearest class that said it: a script may restate the default alone."""
    for base in config_class.__mro__:
        f = base.__dict__.get("__dataclass_fields__", {}).get(name)
        if f is not None and f.metadata:
            return f.metadata
    raise TypeError(f"{config_class.__name__}.{name} needs option(default, help)")
