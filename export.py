"""Exports the model of a finished run as a single file that needs neither this project nor, as ONNX, PyTorch.

python export.py RUN                       # RUN/model.onnx; needs the packages onnx, onnxruntime and onnxscript
python export.py RUN --to pt2              # RUN/model.pt2, for torch.export.load

The model takes raw crops, uint8 (N, 3, S, S) in RGB for any N, and returns logits, float32 (N, C). Class names and the
preprocessing, step by step, are in the file's metadata. The file is kept only if it agrees with PyTorch on the val
split. Beside an ONNX file, a script such as model_onnx.py classifies photos as predict.py does, with onnxruntime.
"""

import argparse
from pathlib import Path

from common.config import InputError, printable, run

SUFFIXES = {"onnx": ".onnx", "pt2": ".pt2"}


def read_options(argv=None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("run", help="folder of a finished run, or a run on the Hub: owner/name")
    parser.add_argument("--to", choices=SUFFIXES, default="onnx", help="format (default: onnx)")
    parser.add_argument(
        "--output", type=Path, help="file (default: model.onnx or model.pt2 in the run folder, or here)"
    )
    parser.add_argument("--data", default="", help="where the data of the run is, unless it is the default or 'sample'")
    parser.add_argument("--cache", default=".cache", help="folder for decoded pixels (default: .cache)")
    options = parser.parse_args(argv)
    if options.output and options.output.suffix != SUFFIXES[options.to]:
        parser.error(f"--output {options.output}: choose a name that ends in {SUFFIXES[options.to]}")
    return options


def main(argv=None):
    options = read_options(argv)
    # Imported here because these take seconds, and --help should be fast.
    import numpy as np
    import torch

    from common.data.sources import is_hub_id
    from common.deploy.formats import (
        FORMATS,
        RawModel,
        is_export,
        metadata,
        script_path,
        verification_images,
        without_fused_attention,
        write_script,
    )
    from common.files import atomic_path, check_output
    from common.finished_run import open_run

    folder = Path() if is_hub_id(options.run) else Path(options.run)
    path = options.output or folder / f"model{SUFFIXES[options.to]}"
    check_output(path, is_export)
    finished = open_run(options.run)
    write, read = FORMATS[options.to]
    script = script_path(path) if options.to == "onnx" else None
    pixels, on_val = verification_images(finished, options.data, options.cache)
    checked = f"{sum(map(len, pixels))} {'val rows' if on_val else 'noise images'}"
    model = RawModel(finished.model(), finished.config.normalization).eval()
    with atomic_path(path) as partial, without_fused_attention():
        example = torch.zeros(2, *pixels[0].shape[1:], dtype=torch.uint8)  # N = 1 would be exported as a constant
        with torch.no_grad():
            expected = np.concatenate([model(torch.from_numpy(batch)).numpy() for batch in pixels])
        agree = finished.check_predictions(expected.argmax(1)) if on_val else 0
        write(model, example, metadata(finished), partial)
        exported = read(partial)
        actual = np.concatenate([exported(batch) for batch in pixels])
        differ = int((actual.argmax(1) != expected.argmax(1)).sum())
        if differ:
            raise InputError(f"{path} was not written: it disagrees with PyTorch on {differ} of {checked}.")
    print(f"{checked}: same predictions as PyTorch, logits differ by at most {abs(actual - expected).max():.1e}")
    if on_val:
        print(f"{agree} of {len(actual)} predictions match predictions.csv")
    print(f"written: {printable(str(path))} ({path.stat().st_size / 1e6:.1f} MB)")
    if script:
        write_script(script)
        print(f"written: {printable(str(script))}, which classifies a photo with it")
    return path


if __name__ == "__main__":
    run(main)
