"""Uses a finished run on images: which category is in each box, and how sure the model is.

python predict.py RUN photo.jpg --bbox 40,60,200,180     # one product in a photo
python predict.py RUN photos/ --boxes boxes.csv          # many: lines of file,x,y,width,height
python predict.py RUN val.parquet --output found.csv     # rows in the Hub's schema; or a Hub id, or 'sample'
python predict.py RUN 'photos/*.jpg' --gallery found.png # a picture to look at

Crops are made as in the run's training. Images that cannot be used are listed with the reason, and the rest goes on.
"""

import argparse
from pathlib import Path

from common.config import InputError, run

SHOWN = 20  # lines on the terminal


def read_options(argv=None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("run", type=Path, help="folder of a finished run")
    parser.add_argument("source", help="image, folder, glob, Parquet file or folder of these, Hub id or 'sample'")
    parser.add_argument("--bbox", default="", help="x,y,width,height in pixels, for a single image")
    parser.add_argument("--boxes", default="", help="CSV file with the columns file, x, y, width, height")
    parser.add_argument("--no-box-ok", action="store_true", help="use the whole image where there is no box")
    parser.add_argument("--split", default="", help="split of a table (default: val, or the only one)")
    parser.add_argument("--top-k", type=int, default=3, help="categories listed for each image (default: 3)")
    parser.add_argument("--output", type=Path, help="file of all results, .csv or .jsonl")
    parser.add_argument("--gallery", type=Path, help="PNG of photos with their boxes and categories")
    options = parser.parse_args(argv)
    if options.output and options.output.suffix not in (".csv", ".jsonl"):
        parser.error(f"--output {options.output}: choose a name that ends in .csv or .jsonl")
    if options.gallery and options.gallery.suffix != ".png":
        parser.error(f"--gallery {options.gallery}: choose a name that ends in .png")
    if options.output and str(options.output) in (options.boxes, options.source):
        parser.error(f"--output {options.output} is an input: choose another name")
    if options.top_k < 1:
        parser.error(f"--top-k is {options.top_k}: it must be at least 1")
    return options


if __name__ == "__main__":
    run(read_options)  # --help and mistyped options are answered here, before the imports below take their seconds

import numpy as np

from common.answers import collect, in_a_word, shown, write_answers
from common.finished import read_run
from common.inference import classify, prepare
from common.inputs import read_inputs
from common.metrics import scores


def main(argv=None):
    options = read_options(argv)
    finished = read_run(options.run)
    config, classes = finished.config, finished.run["classes"]
    inputs = read_inputs(options.source, bbox=options.bbox, boxes=options.boxes, split=options.split)
    has_box = [box is not None for box in inputs.boxes]
    if config.crop and not any(has_box) and not options.no_box_ok:
        raise InputError(
            f"{options.run} was trained on crops, and {options.source} comes without boxes: give them with --bbox or "
            "--boxes, or let it see whole images with --no-box-ok."
        )
    for path in filter(None, (options.output, options.gallery)):
        path.parent.mkdir(parents=True, exist_ok=True)  # fails now, and not when all is done
    model, device = prepare(finished)
    logits, reasons = classify(model, inputs, config, len(classes), device, no_box_ok=options.no_box_ok)
    answers = collect(inputs, classes, logits, reasons, top_k=options.top_k)
    known = np.array([not answer["error"] and answer["label"] in classes for answer in answers])

    later = [answer for answer in answers[SHOWN:] if answer["error"]][:SHOWN]
    print("\n".join(shown(answers[:SHOWN] + later)))
    if len(answers) > SHOWN + len(later):
        print(f"and {len(answers) - SHOWN - len(later)} more" + ("" if options.output else ", see --output"))
    failed = sum(map(bool, reasons))
    print(f"\n{inputs.what}, {len(answers)} crops, {len(answers) - failed} classified, {failed} not")
    if not config.crop and any(has_box):
        print(f"{options.run} was trained on whole images: it did not look at the boxes")
    if known.any():
        labels = np.array([classes.index(answer["label"]) for answer, good in zip(answers, known, strict=True) if good])
        for name, value in scores(labels, logits[known]).items():
            print(f"{name:<10} {value}")
        if config.split_by:
            print(f"the run made its own split, by {config.split_by}: it may have been trained on some of these rows")
    unknown = {a["label"] for a, good in zip(answers, known, strict=True) if a["label"] and not a["error"] and not good}
    if unknown:
        print(f"not scored, as the run does not know them: {', '.join(sorted(unknown))}")
    if options.output:
        write_answers(options.output, answers)
        print(f"written: {options.output}")
    if options.gallery:
        from common.gallery import save_gallery  # matplotlib takes a second

        right = [answer["category"] == answer["label"] if k else None for answer, k in zip(answers, known, strict=True)]
        save_gallery(options.gallery, inputs, list(map(in_a_word, answers, right)), right)
        print(f"written: {options.gallery}")
    if failed == len(answers):
        raise InputError(f"none of {inputs.what} could be used; the first: {reasons[0]}.")
    return answers


if __name__ == "__main__":
    run(main)
