"""Photo-like data in the Hub's schema, made on the fly: Parquet files with images, boxes, categories and ids."""

import io
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image, ImageDraw

KINDS = {"jpeg": (1024, 768), "png": (1024, 1024), "small": (48, 48)}  # width, height; small ones are JPEGs
CLASSES = [f"class_{i}" for i in range(12)]


def make_photo(width: int, height: int, rng: np.random.Generator) -> Image.Image:
    """Noise with a photo's spectrum (amplitude falls as frequency to the power -1.2) with sharp-edged shapes on it."""
    fy, fx = np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None]
    falloff = np.maximum(np.hypot(fy, fx), 1 / max(width, height)) ** -1.2
    waves = rng.normal(size=(3, height, width // 2 + 1)) + 1j * rng.normal(size=(3, height, width // 2 + 1))
    noise = np.fft.irfft2(waves * falloff, (height, width))
    noise = 0.6 * noise[:1] + 0.4 * noise  # mostly common to the three channels, as in photos
    pixels = np.clip(128 + 40 * noise / noise.std() + rng.normal(scale=2, size=noise.shape), 0, 255)
    image = Image.fromarray(pixels.astype(np.uint8).transpose(1, 2, 0))
    draw = ImageDraw.Draw(image)
    for _ in range(12):
        x, y = rng.uniform(0, width), rng.uniform(0, height)
        w, h = rng.uniform(0.05, 0.3, 2) * (width, height)
        draw.ellipse((x, y, x + w, y + h), fill=tuple(rng.integers(0, 256, 3).tolist()))
    return image


def make_data(folder: Path, kind: str, rows: dict[str, int], seed: int = 0) -> Path:
    """Writes {split: number of rows} as `folder`/SPLIT.parquet and returns `folder`.

    The photos of a split are different cuts of a few noises; boxes have sides of 0.25 to 0.75 of the image's.
    """
    width, height = KINDS[kind]
    rng = np.random.default_rng(seed)
    bases = [np.asarray(make_photo(width + 64, height + 64, rng)) for _ in range(4)]
    folder.mkdir(parents=True)
    schema = pa.schema(
        [
            ("image", pa.struct([("bytes", pa.binary()), ("path", pa.string())])),
            ("image_id", pa.string()),
            ("category", pa.string()),
            ("bbox", pa.list_(pa.int32())),
            ("product_id", pa.string()),
            ("scene_id", pa.string()),
        ]
    )
    for split, n in rows.items():
        with pq.ParquetWriter(folder / f"{split}.parquet", schema) as file:
            for first in range(0, n, 1000):
                batch = [_row(i, split, kind, bases, rng) for i in range(first, min(first + 1000, n))]
                file.write_table(pa.Table.from_pylist(batch, schema=schema))
    return folder


def _row(i: int, split: str, kind: str, bases: list[np.ndarray], rng: np.random.Generator) -> dict:
    width, height = KINDS[kind]
    dx, dy = rng.integers(0, 64, 2)
    image = Image.fromarray(bases[i % len(bases)][dy : dy + height, dx : dx + width])
    encoded = io.BytesIO()
    image.save(encoded, **dict(format="PNG") if kind == "png" else dict(format="JPEG", quality=90))
    w, h = (rng.uniform(0.25, 0.75, 2) * (width, height)).astype(int).tolist()
    bbox = [int(rng.integers(0, width - w + 1)), int(rng.integers(0, height - h + 1)), w, h]
    return {
        "image": {"bytes": encoded.getvalue(), "path": None},
        "image_id": f"{split}-{i}",
        "category": CLASSES[i % len(CLASSES)],
        "bbox": bbox,
        "product_id": f"product-{i % 50}",
        "scene_id": f"scene-{i}",
    }
