"""Looks for what makes a score on this data unbelievable: leakage, duplicates, rare classes, tiny boxes, bad rows.

python audit.py --data sample --crop
python audit.py --data sample --crop --split-by product_id --out report.json
"""

from dataclasses import dataclass
from pathlib import Path

from common.config import DataConfig, option, parse, run


@dataclass(frozen=True)
class Config(DataConfig):
    image_size: int = 64
    bad_rows: str = "skip"
    out: str = option("data_report.json", "file of the report", group="run")


if __name__ == "__main__":
    run(parse, Config)  # --help and mistyped options are answered here, before the imports below take their seconds

from common.audit import audit, describe
from common.data import load_splits
from common.files import write_json


def main(argv=None):
    config = parse(Config, argv)
    train, val = load_splits(config)
    report = audit(train, val)
    print(describe(train, val, report))
    write_json(config.out, report)
    print(f"written: {Path(config.out)}")
    return report


if __name__ == "__main__":
    run(main)
