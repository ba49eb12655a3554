"""Command-line options. A script's Config defines its experiment; `--name value` overrides a default."""

import argparse
import atexit
import gc
import io
import math
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from types import UnionType
from typing import Any, ClassVar, TypeVar, get_args, get_origin

ID_COLUMNS = ("image_id", "product_id", "scene_id")  # optional columns of the data
HUB_DATA = "Nfiniteai/product-masks-sample"
KNOWN_DATA = ("sample", HUB_DATA)  # data that a tool reads without being told to, whoever wrote the run folder
TYPE_NAMES: dict[Any, str] = {bool: "true or false", int: "a whole number", float: "a number", str: "text"}


class InputError(ValueError):
    """Invalid user input. The message says what is wrong, quotes the value and says what to do about it."""


class Interrupted(Exception):
    """The run was asked to stop by SIGTERM or Ctrl-C and has saved a checkpoint."""


# C0 and C1 controls, which terminals obey, marks that reorder or break the text around them, and half characters
_UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def printable(text: str) -> str:
    """`text` in one line, with control characters and bidirectional marks as escapes such as \\x1b and \\u202e.

    For text from data or file names on its way to a terminal or a document.
    """
    return _UNPRINTABLE.sub(lambda match: match[0].encode("unicode_escape").decode(), text)


def count(n: int, noun: str) -> str:
    """Such as "1 row", "2,100 rows" and "3 categories"."""
    plural = f"{noun[:-1]}ies" if noun.endswith("y") else f"{noun}es" if noun.endswith(("s", "x")) else f"{noun}s"
    return f"{n:,} {noun if n == 1 else plural}"


def option(
    default: Any,
    help: str,
    *,
    group: str = "model",
    choices: tuple = (),
    minimum: float = -math.inf,
    maximum: float = math.inf,
) -> Any:
    """A Config field of type bool, int, float or str that is also a command-line flag.

    Args:
        default: the value if the flag is not given.
        help: one phrase for --help.
        group: the heading under which --help lists it: "data", "training", "model" or "run".
        choices: allowed values. With the default "none" the flag may be given without a value, which selects the
            second choice: `--augment` means `--augment lab`.
        minimum, maximum: allowed range, inclusive.
    """
    rules = {"help": help, "group": group, "choices": choices, "minimum": minimum, "maximum": maximum}
    return field(default=default, metadata=rules)


@dataclass(frozen=True)
class Normalization:
    """Mean and standard deviation, of R, G and B in [0, 1], by which a model's input pixels are normalised."""

    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    @property
    def color(self) -> tuple[int, int, int]:
        """The mean as an RGB colour in [0, 255], which is close to zero after normalisation."""
        red, green, blue = (round(255 * value) for value in self.mean)
        return red, green, blue


IMAGENET = Normalization(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))


@dataclass(frozen=True)
class DataConfig:
    """Data options: which rows are read, and how they are turned into square images."""

    data: str = option(
        HUB_DATA,
        "'sample', a Hub id, a folder of Parquet files or an image folder",
        group="data",
    )
    crop: bool = option(False, "crop each image to its bounding box", group="data")
    margin: float = option(
        0.0, "context kept around the box, as a fraction of its width and height", group="data", minimum=0
    )
    fit: str = option(
        "squash", "make a crop square by stretching or by padding", group="data", choices=("squash", "pad")
    )
    image_size: int = option(
        224, "width and height of the model input in pixels", group="data", minimum=1, maximum=8192
    )
    split_by: str = option(
        "",
        "split so that train and val share no value of this id column; product_id:2/5 is the second of five folds, and "
        "product_id:2/5:1 the second in partition 1, another division into folds",
        group="data",
    )
    val_split: str = option("", "the split used as val if it has another name, such as test", group="data")
    box_format: str = option(
        "auto",
        "what the numbers of a box mean; in pixels or, which is recognised, as fractions of the image. auto: as the "
        "layout of the data says, otherwise xywh in pixels",
        group="data",
        choices=("auto", "xywh", "xyxy", "cxcywh"),
    )
    limit: int = option(0, "use only this many rows of each split, evenly spaced; 0 means all", group="data", minimum=0)
    bad_rows: str = option(
        "error", "stop at rows that cannot be used, or leave them out", group="data", choices=("error", "skip")
    )
    max_megapixels: int = option(179, "photos with more pixels are rows that cannot be used", group="data", minimum=1)
    cache: str = option(".cache", "folder for decoded pixels, shared by all runs", group="data")

    def __post_init__(self):
        for f in fields(self):
            value, rule, flag = getattr(self, f.name), _metadata(type(self), f.name), flag_of(f.name)
            if not fits(value, f.type):
                raise InputError(f"{flag} is {value!r}: it must be {TYPE_NAMES[f.type]}.")
            if rule["choices"] and value not in rule["choices"]:
                raise InputError(f"{flag} is {value!r}: choose from {', '.join(rule['choices'])}.")
            if isinstance(value, int | float) and not (
                rule["minimum"] <= value <= rule["maximum"] and value < math.inf
            ):
                most = f" and at most {rule['maximum']}" if rule["maximum"] < math.inf else ""
                limits = f"at least {rule['minimum']}{most}"
                raise InputError(f"{flag} is {value}: it must be {limits}.")

    @property
    def normalization(self) -> Normalization:
        """What the model's pixels are normalised with. A script whose weights were made with other values overrides it.

        It is not an option: the weights determine it.
        """
        return IMAGENET

    @property
    def pixel_options(self) -> tuple:
        """What the pixels of a row depend on; the last is the colour of the padding."""
        color = self.normalization.color if self.fit == "pad" else None
        return self.crop, self.margin * self.crop, self.fit, self.image_size, self.max_megapixels, color


@dataclass(frozen=True)
class TrainConfig(DataConfig):
    """Options of every training script. A script changes a default by redeclaring the field."""

    fit: str = "pad"
    augment: str = option(
        "none",
        "'lab': random flips, rotations up to 15 degrees; 'strong': also resized crops, colour, erasing, mixup, CutMix",
        group="data",
        choices=("none", "lab", "strong"),
    )
    background: str = option(
        "keep",
        "replace the background of half of the train images: gray, blurred, or swapped with another image's",
        group="data",
        choices=("keep", "gray", "blur", "swap"),
    )
    recipe: str = option(
        "default",
        "'lab' reproduces the lab study: Adam, constant lr 1e-3, batch 16, 3 epochs, 224 pixels, rows in file order",
        group="training",
        choices=("default", "lab"),
    )
    epochs: int = option(20, "passes over the train split", group="training", minimum=1, maximum=100_000)
    batch_size: int = option(16, "images per optimizer step, across all processes", group="training", minimum=1)
    lr: float = option(1e-3, "peak learning rate", group="training", minimum=0)
    warmup: float = option(
        0.1,
        "fraction of the steps with linear warm-up of the learning rate; cosine decay follows",
        group="training",
        minimum=0,
        maximum=1,
    )
    weight_decay: float = option(
        0.05, "decoupled weight decay, applied to weight matrices only", group="training", minimum=0
    )
    label_smoothing: float = option(
        0.0, "fraction of each target that is spread evenly over all classes", group="training", minimum=0, maximum=1
    )
    teacher: str = option("", "run folder of a teacher for knowledge distillation", group="training")
    clip_norm: float = option(1.0, "maximum gradient norm; 0 means no clipping", group="training", minimum=0)
    accumulate: int = option(1, "split each batch into this many pieces to save memory", group="training", minimum=1)
    seed: int = option(
        0, "seed of the weights, the row order and the augmentation", group="training", minimum=0, maximum=2**63 - 1
    )

    data_device: str = option(
        "auto",
        "where pixels are kept; auto: on the GPU if they fill less than a quarter of its free memory",
        group="run",
        choices=("auto", "cpu"),
    )
    out: str = option("", "run folder; empty means runs/SCRIPT-VARIANT-sSEED", group="run")
    resume: bool = option(False, "continue from the checkpoint in the run folder, if there is one", group="run")
    log_with: str = option(
        "", "also log to tensorboard, wandb, trackio or another tracker of Accelerate; several with commas", group="run"
    )
    checkpoint_every: int = option(0, "steps between checkpoints; 0 means one per epoch", group="run", minimum=0)
    dry_run: bool = option(False, "run two steps and one evaluation in a temporary folder", group="run")
    summary: bool = option(False, "print the layer table, then train", group="run")

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
    )  # the defaults of `--recipe lab`; AdamW without weight decay is Adam

    @property
    def variant(self) -> str:
        """The name of the preprocessing, one of `VARIANTS`, such as "full" or "crop-augment"."""
        return variant_of(self.crop, self.augment)


VARIANTS = {  # names and flags, from the least to the most preprocessing
    "full": (),
    "full-augment": ("--augment",),
    "full-strong": ("--augment", "strong"),
    "crop": ("--crop",),
    "crop-augment": ("--crop", "--augment"),
    "crop-strong": ("--crop", "--augment", "strong"),
}


def variant_of(crop: bool, augment: str) -> str:
    return ("crop" if crop else "full") + {"none": "", "lab": "-augment"}.get(augment, f"-{augment}")


ADDED_LATER = {"val_split": "", "box_format": "auto"}  # and their values if they are not used


def identity(options: Mapping[str, Any]) -> dict[str, Any]:
    """The options that affect the results of a run: all except those for paths, checkpoints and display.

    `max_megapixels` only decides which rows are used, and a run's identity contains a fingerprint of these. Options of
    `ADDED_LATER` count only if they are used: a run that did not have them yet is the run without them.
    """
    harmless = {
        "out", "resume", "checkpoint_every", "cache", "max_megapixels", "data_device", "log_with", "summary", "dry_run"
    }  # fmt: skip
    return {
        name: value
        for name, value in options.items()
        if name not in harmless and not (name in ADDED_LATER and value == ADDED_LATER[name])
    }


def fits(value: Any, hint: Any) -> bool:
    """Whether `value` has the type `hint`, as a value read from JSON: an int fits float, but a bool fits no number."""
    if hint is Any:
        return True
    if isinstance(hint, UnionType):
        return any(fits(value, part) for part in get_args(hint))
    if get_origin(hint) is list:
        return isinstance(value, list) and all(fits(item, get_args(hint)[0]) for item in value)
    if get_origin(hint) is dict:
        return isinstance(value, dict) and all(
            fits(item, part) for pair in value.items() for item, part in zip(pair, get_args(hint), strict=True)
        )
    if hint in (int, float):
        limit = 2**63 if hint is int else sys.float_info.max  # JSON has numbers of any size, and NaN
        return isinstance(value, (int, hint)) and not isinstance(value, bool) and abs(value) <= limit
    return isinstance(value, hint)


def differences(recorded: Mapping[str, Any], config: TrainConfig) -> list[str]:
    """The options `recorded` in run.json that affect results and differ from `config`, such as "--lr 0.001"."""
    differ = []
    options = {name: ADDED_LATER[name] for name in ADDED_LATER if name in identity(recorded)}
    for name, value in (options | identity(asdict(config))).items():
        other = recorded.get(name, ADDED_LATER.get(name))
        if other != value:
            absent = other is None or other is False or other == ""
            differ.append(f"no {flag_of(name)}" if absent else f"{flag_of(name)} {other}".removesuffix(" True"))
    return differ


def flag_of(name: str) -> str:
    """The flag of a field: "--image-size" for "image_size"."""
    return "--" + name.replace("_", "-")


C = TypeVar("C", bound=DataConfig)


def parse(config_class: type[C], argv: Sequence[str] | None = None) -> C:
    """The command line `argv` (default: that of the process) as a `config_class`.

    Options on the command line take precedence over `--recipe lab`, and the recipe over the defaults. Unknown flags and
    malformed values end the script with exit code 2.

    Raises:
        InputError: a value is out of range.
    """
    parser = argparse.ArgumentParser(
        description=sys.modules[config_class.__module__].__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        argument_default=argparse.SUPPRESS,
        allow_abbrev=False,
    )
    used = {_metadata(config_class, f.name)["group"] for f in fields(config_class)}
    names = [name for name in ("data", "training", "model", "run") if name in used]
    groups = {name: parser.add_argument_group(name) for name in names}
    for f in fields(config_class):
        rule = _metadata(config_class, f.name)
        default = "" if f.default is False or f.default == "" else f" (default: {f.default})"
        kwargs: dict[str, Any] = dict(help=(rule["help"] + default).replace("%", "%%"))
        if f.type is bool:
            kwargs |= dict(action=argparse.BooleanOptionalAction) if f.default else dict(action="store_true")
        else:
            kwargs |= dict(type=f.type, choices=rule["choices"] or None)
            kwargs |= dict(metavar=None if rule["choices"] else type(f.default).__name__.upper())
            if rule["choices"] and f.default == "none":
                kwargs |= dict(nargs="?", const=rule["choices"][1])
        groups[rule["group"]].add_argument(flag_of(f.name), **kwargs)
    typed = vars(parser.parse_args(argv))
    recipe = getattr(config_class, "lab", {}) if typed.get("recipe") == "lab" else {}
    return config_class(**(recipe | typed))


def run(main: Callable) -> None:
    """Calls a script's `main` and turns expected failures into one message and an exit code.

    Output appears line by line, also in a file or pipe, and characters that the terminal cannot show become escapes.

    Exit codes: 1 for `InputError` and operating system errors, 75 (EX_TEMPFAIL of sysexits.h) for a run that saved a
    checkpoint and can be resumed, 130 for Ctrl-C outside of training.
    """
    atexit.register(gc.freeze)  # or the last garbage collection spends a second on PyTorch's modules
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(line_buffering=True, errors="backslashreplace")
    try:
        check_file_names()
        main()
    except InputError as error:
        sys.exit(f"error: {_shown(error)}")
    except OSError as error:
        where = f": {error.filename}" if error.filename else ""
        sys.exit(f"error: {_shown(error.strerror or error)}{_shown(where)}. Files written earlier are complete.")
    except Interrupted as stop:
        print(_shown(stop), file=sys.stderr)
        sys.exit(75)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)


def _shown(message: object) -> str:
    """A `printable` message. Only indented lines are kept as lines, so that no file name can look like a message."""
    return "\n".join(map(printable, re.split(r"\n(?=  )", str(message))))


def check_file_names() -> None:
    """Raises InputError if Python would read file names, and so the categories of an image folder, in another encoding.

    Under LC_ALL=C Python uses UTF-8; under a locale such as en_US.ISO-8859-1 it does so only if asked.
    """
    encoding = sys.getfilesystemencoding()
    if encoding != "utf-8":
        raise InputError(f"file names are read as {encoding} here, not as UTF-8: set PYTHONUTF8=1 and start again.")


def _metadata(config_class: type, name: str) -> dict:
    """The metadata of a field from the nearest class that uses `option`: a subclass may redefine only the default."""
    for base in config_class.__mro__:
        f = base.__dict__.get("__dataclass_fields__", {}).get(name)
        if f is not None and f.metadata:
            return f.metadata
    raise TypeError(f"{config_class.__name__}.{name} needs option(default, help)")
