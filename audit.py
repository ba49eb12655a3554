"""Reports data problems that make a score misleading: leakage, duplicates, rare classes, tiny boxes, bad rows.

python audit.py --data sample --crop
python audit.py --data sample --crop --split-by product_id --out report.json
"""

from dataclasses import dataclass

from common.config import DataConfig, InputError, option, parse, printable, run


@dataclass(frozen=True)
class Config(DataConfig):
    image_size: int = 64
    bad_rows: str = "skip"
    out: str = option("data_report.json", "report file", group="run")


def main(argv=None):
    config = parse(Config, argv)
    # Imported here because these take seconds, and --help should be fast.
    from common.data.audit import audit, describe
    from common.data.dataset import load_splits
    from common.files import check_output, has_fields, write_json

    if not config.out.endswith(".json"):
        raise InputError(f"--out {config.out}: the file name must end in .json.")
    fields = {"rows": dict, "classes": dict, "duplicates": dict, "near_duplicates": dict}
    check_output(config.out, lambda path: has_fields(path, **fields))
    train, val = load_splits(config)
    report = audit(train, val)
    print(describe(train, val, report))
    write_json(config.out, report)
    print(f"written: {printable(config.out)}")
    return report


if __name__ == "__main__":
    run(main)
