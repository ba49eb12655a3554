"""Classifies new images with a trained model and prints the category and its probability for each box.

python predict.py RUN photo.jpg --bbox 40,60,200,180            # one product in a photo
python predict.py RUN photos/ --boxes boxes.csv                 # many: CSV lines of file,x,y,width,height
python predict.py RUN photos/ --boxes detections.json --output found.json  # what a detector found (COCO results)
python predict.py RUN photos/ --no-box-ok                       # photos/CLASS/photo.jpg: prints the scores, too
python predict.py RUN val.parquet --output predictions.csv      # data in the training format, a Hub id or 'sample'
python predict.py RUN 'photos/*.jpg' --gallery predictions.png  # also draw the photos with boxes and categories
python predict.py RUN photos/ --boxes boxes.csv --risk 0.05     # answer "unsure" rather than a wrong category

With --risk 0.05, each box gets a set of possible categories. For a photo of a new product, it holds the right one with
a probability of at least 95 %. The answer is "unsure" if the set has none or several, or if the photo may show
something else. The run needs enough val products that are not in train, as with --split-by product_id
(docs/statistics.md).

Images are cropped and resized as in the run's training. Images that cannot be used are listed with the reason; all
others are classified.
"""

import argparse
from dataclasses import replace
from pathlib import Path

from common.config import DataConfig, InputError, count, printable, run

MAX_SHOWN = 20  # rows printed to the terminal


def read_options(argv=None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("run", type=Path, help="folder of a finished run, or the Hub id of one")
    parser.add_argument("source", help="image, folder or glob of images, Parquet file or folder, Hub id, or 'sample'")
    parser.add_argument("--bbox", default="", help="x,y,width,height in pixels; for a single image")
    parser.add_argument("--boxes", default="", help="CSV file with file, x, y, width, height; or COCO results (.json)")
    parser.add_argument("--no-box-ok", action="store_true", help="use the whole image if it has no box")
    parser.add_argument("--split", default="", help="split of a table (default: val, or the only split)")
    parser.add_argument("--top-k", type=int, default=3, help="number of categories listed for each box (default: 3)")
    parser.add_argument(
        "--risk",
        type=float,
        help="answer 'unsure' where needed, so that a photo of a new product gets a wrong answer with at most this "
        "probability",
    )
    parser.add_argument(
        "--max-megapixels",
        type=int,
        default=DataConfig.max_megapixels,
        help=f"do not read larger photos (default: {DataConfig.max_megapixels})",
    )
    parser.add_argument("--output", type=Path, help="write all results to this .csv, .jsonl or .json file")
    parser.add_argument("--gallery", type=Path, help="write photos with boxes and categories to this .png file")
    options = parser.parse_args(argv)
    if options.output and options.output.suffix not in (".csv", ".jsonl", ".json"):
        parser.error(f"--output {options.output}: the file name must end in .csv, .jsonl or .json")
    if options.output and options.output.suffix == ".json" and not options.boxes.lower().endswith(".json"):
        parser.error(f"--output {options.output}: .json adds categories to the file of --boxes FILE.json; use .jsonl")
    if options.gallery and options.gallery.suffix != ".png":
        parser.error(f"--gallery {options.gallery}: the file name must end in .png")
    if options.top_k < 1:
        parser.error(f"--top-k is {options.top_k}: it must be at least 1")
    if options.risk is not None and not 0 < options.risk < 1:
        parser.error(f"--risk is {options.risk:g}: it must be between 0 and 1, such as 0.05")
    if options.risk is not None and options.no_box_ok:
        parser.error("--risk holds for crops like those of the run's val split: remove --no-box-ok")
    if options.max_megapixels < 1:
        parser.error(f"--max-megapixels is {options.max_megapixels}: it must be at least 1")
    return options


def main(argv=None):
    options = read_options(argv)
    # Imported here because these take seconds, and --help should be fast.
    import numpy as np

    from common.conformal import calibrate
    from common.data.boxes import upper_left_note
    from common.data.image_folder import count_and_names
    from common.deploy.classify import classify, load_model
    from common.deploy.gallery import is_gallery, save_gallery
    from common.deploy.inputs import read_inputs
    from common.deploy.predictions import (
        UNSURE,
        answer_line,
        caption,
        collect,
        has_detections,
        has_predictions,
        text_table,
        with_answers,
        write_detections,
        write_predictions,
    )
    from common.files import check_output
    from common.finished_run import open_run
    from common.metrics import scores

    if options.output:
        check_output(options.output, has_detections if options.output.suffix == ".json" else has_predictions)
    if options.gallery:
        check_output(options.gallery, is_gallery)
    trained = open_run(str(options.run))
    config, classes = replace(trained.config, max_megapixels=options.max_megapixels), trained.info.classes
    calibration = calibrate(trained, options.risk) if options.risk is not None else None
    inputs = read_inputs(
        options.source, bbox=options.bbox, boxes=options.boxes, split=options.split, config=config, classes=classes
    )
    has_box = [box is not None for box in inputs.boxes]
    if config.crop and not any(has_box) and not options.no_box_ok:
        raise InputError(
            f"{options.run} was trained on crops, and {options.source} has no boxes: give them with --bbox or --boxes, "
            "or classify the whole images with --no-box-ok."
        )
    model, device = load_model(trained)
    logits, reasons, boxes = classify(model, inputs, config, len(classes), device, no_box_ok=options.no_box_ok)
    if inputs.box_format:  # from here on in pixels; boxes that were not used are not converted
        pixel_boxes = [None if np.isnan(box).any() else box[:4].tolist() for box in boxes]
        inputs = replace(inputs, boxes=pixel_boxes, box_format="")
    results = collect(inputs, classes, logits, reasons, top_k=options.top_k)
    if calibration:
        results = with_answers(results, classes, logits, calibration)
    scored = np.array([not result["error"] and result["label"] in classes for result in results])

    run_folder = printable(str(options.run))
    later_errors = [result for result in results[MAX_SHOWN:] if result["error"]][:MAX_SHOWN]
    print("\n".join(text_table(results[:MAX_SHOWN] + later_errors)))
    remaining = len(results) - MAX_SHOWN - len(later_errors)
    if remaining > 0:
        print(f"and {remaining} more" + ("" if options.output else "; use --output to save all results"))
    failed = sum(map(bool, reasons))
    counts = f"{count(len(results), 'crop')}, {len(results) - failed} classified, {failed} failed"
    print(f"\n{printable(inputs.description)}: {counts}")
    if inputs.unread:
        print(printable(f"not read: {count_and_names(inputs.unread)}"))
    note = upper_left_note(boxes)
    if note:
        print(note)
    if not config.crop and any(has_box):
        print(f"{run_folder} was trained on whole images: the boxes were ignored")
    if scored.any():
        labels = np.array([classes.index(result["label"]) for result, ok in zip(results, scored, strict=True) if ok])
        for name, value in scores(labels, logits[scored]).items():
            print(f"{name:<10} {value}")
        if config.split_by:
            split_by = printable(config.split_by)
            print(f"{run_folder} used --split-by {split_by}, so some of these rows may be its training data")
    unknown = {r["label"] for r in results if r["label"] and not r["error"]} - set(classes)
    if unknown:
        print(printable(f"not scored, because the model does not know these categories: {', '.join(sorted(unknown))}"))
    if options.output:
        if inputs.detections and options.output.suffix == ".json":
            write_detections(options.output, inputs.detections, results)
        else:
            write_predictions(options.output, results)
        print(f"written: {printable(str(options.output))}")
    if options.gallery:
        correct = [
            r["category"] == r["label"] if ok and r.get("answer") != UNSURE else None
            for r, ok in zip(results, scored, strict=True)
        ]
        captions = list(map(caption, results, correct))
        save_gallery(options.gallery, inputs, captions, correct, max_megapixels=options.max_megapixels)
        print(f"written: {printable(str(options.gallery))}")
    if calibration:
        print(calibration.promise)
        print(answer_line(results, scored))
    if failed == len(results):
        raise InputError(f"{inputs.description}: no crop could be classified. Reason for the first: {reasons[0]}.")
    return results


if __name__ == "__main__":
    run(main)
