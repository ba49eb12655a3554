"""Synthetic photos in the Hub's schema: a folder of Parquet files with images, boxes, categories and ids."""

import io
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image, ImageDraw

KINDS = {"jpeg": ("JPEG", 1024, 768), "png": ("PNG", 1024, 1024), "small": ("JPEG", 48, 48)}  # format, width, height


def make_photo(width: int, height: int, rng: np.random.Generator) -> Image.Image:
    """Noise with the spectrum of a photo (amplitude ~ frequency ** -1.2), overlaid with sharp-edged ellipses."""
    fy, fx = np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None]
    falloff = np.maximum(np.hypot(fy, fx), 1 / max(width, height)) ** -1.2
    waves = rng.normal(size=(3, height, width // 2 + 1)) + 1j * rng.normal(size=(3, height, width // 2 + 1))
    noise = np.fft.irfft2(waves * falloff, (height, width))
    noise = 0.6 * noise[:1] + 0.4 * noise  # correlated channels, as in photos
    pixels = np.clip(128 + 40 * noise / noise.std() + rng.normal(scale=2, size=noise.shape), 0, 255)
    image = Image.fromarray(pixels.astype(np.uint8).transpose(1, 2, 0))
    draw = ImageDraw.Draw(image)
    for _ in range(12):
        x, y = rng.uniform(0, width), rng.uniform(0, height)
        w, h = rng.uniform(0.05, 0.3, 2) * (width, height)
        draw.ellipse((x, y, x + w, y + h), fill=tuple(rng.integers(0, 256, 3).tolist()))
    return image


def make_data(folder: Path, kind: str, splits: dict[str, int]) -> None:
    """Writes `folder`/SPLIT.parquet for each {SPLIT: number of rows}: random windows of four larger photos."""
    form, width, height = KINDS[kind]
    rng = np.random.default_rng(0)
    bases = [make_photo(width + 64, height + 64, rng) for _ in range(4)]
    folder.mkdir(parents=True)
    for split, n in splits.items():
        rows = []
        for i in range(n):
            left, top = rng.integers(0, 64, 2).tolist()
            photo, encoded = bases[i % 4].crop((left, top, left + width, top + height)), io.BytesIO()
            photo.save(encoded, form, quality=90)  # PNG ignores the quality
            w, h = (rng.uniform(0.25, 0.75, 2) * (width, height)).astype(int).tolist()
            bbox = [int(rng.integers(0, width - w + 1)), int(rng.integers(0, height - h + 1)), w, h]
            image = {"bytes": encoded.getvalue(), "path": f"{split}-{i}"}
            ids = {"image_id": f"{split}-{i}", "product_id": f"product-{i % 50}", "scene_id": f"scene-{i}"}
            rows.append({"image": image, "category": f"class_{i % 12}", "bbox": bbox, **ids})
        pq.write_table(pa.Table.from_pylist(rows), folder / f"{split}.parquet", row_group_size=1000)
