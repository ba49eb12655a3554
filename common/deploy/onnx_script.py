"""Classifies a photo with the ONNX model of the same name beside this script.

python model_onnx.py photo.jpg --bbox 40,60,200,180

Prints the best categories and their probabilities. Needs only the packages numpy, onnxruntime and pillow. Class names
and settings are read from the model's metadata, whose entry "preprocessing_steps" describes the preprocessing in words.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnxruntime
from PIL import Image

from common.data.crop import crop_image

SHOWN = 5  # categories printed


def classify(
    session: onnxruntime.InferenceSession, photo: str, bbox: Sequence[float] | None = None
) -> list[tuple[str, float]]:
    """All categories of the model with their probabilities, best first.

    `bbox` is x, y, width, height in pixels of the upright photo. Models that were trained on whole images ignore it.

    Raises:
        ValueError: the box is invalid for this photo, or missing although the model was trained on crops.
        OSError: the photo cannot be read.
    """
    metadata = session.get_modelmeta().custom_metadata_map
    labels, settings = json.loads(metadata["labels"]), json.loads(metadata["preprocessing"])
    if settings["crop"] and bbox is None:
        raise ValueError("the model was trained on crops: give the box of the product with --bbox x,y,width,height")
    with Image.open(photo, formats=settings["formats"]) as image:  # others, such as EPS, may start programs
        crop, _ = crop_image(
            image,
            bbox if settings["crop"] else None,
            size=settings["image_size"],
            margin=settings["margin"],
            fit=settings["fit"],
            fill=tuple(settings.get("pad_color", (0, 0, 0))),  # absent unless `fit` pads
        )
    images = np.ascontiguousarray(np.asarray(crop).transpose(2, 0, 1)[None])  # (1, 3, S, S) uint8
    logits = session.run(None, {"images": images})[0][0].astype(np.float64)
    probabilities = np.exp(logits - logits.max())
    probabilities /= probabilities.sum()
    return [(labels[i], float(probabilities[i])) for i in np.argsort(-probabilities, kind="stable")]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photo", help="image file")
    parser.add_argument("--bbox", help="x,y,width,height in pixels of the upright photo")
    options = parser.parse_args()
    script = Path(__file__)
    model = script.with_name(script.stem.removesuffix("_onnx") + ".onnx")
    try:
        bbox = [float(value) for value in options.bbox.split(",")] if options.bbox is not None else None
        session = onnxruntime.InferenceSession(str(model), providers=["CPUExecutionProvider"])
        for label, probability in classify(session, options.photo, bbox)[:SHOWN]:
            print(f"{label:<24} {probability:.4f}")
    except Exception as error:  # onnxruntime and PIL raise many kinds of exceptions
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
