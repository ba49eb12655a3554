"""Mixed images and their targets, which must not depend on how a batch is split into pieces."""

import io

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from common.augment import draw_mix, mix, replace_background
from common.config import IMAGENET, InputError, TrainConfig
from common.data.dataset import load_splits
from common.data.masks import load_masks
from common.data.pixels import crop_with, normalize, open_image
from common.data.sources import load_tables
from common.step import Draws, draw, make_batch
from tests.helpers import UNREADABLE, encode, photo, stored

CPU = torch.device("cpu")


@pytest.fixture
def small(cache):
    """A function that returns a configuration with the given options, and its train split of 40 crops."""

    def small(batch_size=12, **options):
        base = dict(data="sample", limit=40, image_size=32, crop=True, batch_size=batch_size, cache=cache)
        config = TrainConfig(**base, **options)
        train = load_splits(config)[0]
        if config.background != "keep":
            train.masks = load_masks(config, "train", train)
        return config, train

    return small


def test_mixup_and_cutmix():
    images, others = torch.ones(3, 3, 8, 8), torch.zeros(3, 3, 8, 8)
    draws = torch.tensor([[0.3, 0, 0, 0, 0], [1, 0.5, -0.5, 0.5, 0.5], [1, 0, 0, 0, 0]])
    mixed, share = mix(images, others, draws)
    torch.testing.assert_close(mixed[0], torch.full((3, 8, 8), 0.3))
    assert torch.equal(mixed[1, :, :4, 4:], others[1, :, :4, 4:]), "the upper right quarter"
    assert mixed[1].sum() == 3 * 48 and torch.equal(mixed[2], images[2])
    torch.testing.assert_close(share, torch.tensor([[0.3], [0.75], [1]]))


def test_a_cutmix_box_is_clipped_to_the_image():
    _, share = mix(torch.ones(1, 3, 8, 8), torch.zeros(1, 3, 8, 8), torch.tensor([[1.0, 1.0, 1.0, 0.5, 0.5]]))
    assert share.item() == 1 - 4 / 64


def test_draws_of_mix():
    partner, draws = draw_mix(20_000, np.random.default_rng(0))
    assert sorted(partner) == list(range(20_000))
    share, box = draws[:, 0], draws[:, 3]
    assert (share < 1).float().mean() == pytest.approx(0.4, abs=0.02)
    assert (box > 0).float().mean() == pytest.approx(0.4, abs=0.02)
    assert not ((share < 1) & (box > 0)).any(), "an image gets one of the two"
    assert (box[box > 0] ** 2).mean() == pytest.approx(0.5, abs=0.02)


@pytest.mark.parametrize("background", ["keep", "swap"])
@pytest.mark.parametrize("augment", ["none", "lab", "strong"])
def test_a_batch_is_the_same_in_pieces(small, augment, background):
    config, train = small(augment=augment, background=background)
    rows = np.arange(20, 32)
    whole = make_batch(config, train, rows, np.arange(12), draw(config, 3), CPU)
    pieces = [make_batch(config, train, rows, piece, draw(config, 3), CPU) for piece in np.split(np.arange(12), 3)]
    for one, parts in zip(whole, zip(*pieces, strict=True), strict=True):
        torch.testing.assert_close(torch.cat(parts), one)
    images, targets = whole
    assert images.shape == (12, 3, 32, 32) and images.dtype == torch.float32
    if augment == "strong":
        torch.testing.assert_close(targets.sum(1), torch.ones(12))
        own = targets[torch.arange(12), train.labels[rows]]
        assert (own < 1).any() and not torch.equal(draw(config, 3).mix, draw(config, 4).mix)
    else:
        assert torch.equal(targets, train.labels[rows])


@pytest.mark.parametrize("kind", ["gray", "blur", "swap"])
def test_only_the_background_is_replaced(small, kind):
    config, train = small(background=kind)
    rows, draws = np.arange(12), draw(config, 0)
    plain = train.batch(rows, CPU)[0]
    images, labels = make_batch(config, train, rows, rows, draws, CPU)
    assert torch.equal(labels, train.labels[rows]) and 0 < draws.replaced.sum() < 12
    changed = (images - normalize(plain, IMAGENET)).abs().amax(1) > 0.02  # (B, S, S), grey levels apart
    product, background = torch.from_numpy(train.masks[rows, 0]) == 255, torch.from_numpy(train.masks[rows, 0]) == 0
    assert not changed[~draws.replaced].any() and not changed[product].any()
    assert changed[background & draws.replaced[:, None, None]].float().mean() > 0.2, "the padding is gray before"
    if kind == "gray":
        assert images[draws.replaced].permute(0, 2, 3, 1)[background[draws.replaced]].abs().max() < 0.02
    if kind == "swap":
        i = int(draws.replaced.nonzero()[0])
        other = draws.scene[i]
        both = background[i] & background[other]
        torch.testing.assert_close(images[i][:, both], normalize(plain[other], IMAGENET)[:, both], atol=1e-3, rtol=0)
        hole = images[i][:, background[i] & product[other]]
        assert hole.std(1).max() < 1e-3, "the other product is painted over with one colour"


@pytest.mark.parametrize("size", [2, 7])
def test_a_small_image_can_be_blurred(size):
    images = torch.rand(2, 3, size, size) * 255
    masks = torch.ones(2, 1, size, size)
    assert torch.equal(replace_background(images, masks, images, masks, "blur", IMAGENET.color), images)


def test_masks_are_cropped_like_images(small):
    _, train = small(background="gray")
    tables = load_tables(small(background="keep")[0], "mask")["train"].select(train.numbers[:3])
    for mask, file, (x, y, w, h) in zip(train.masks, tables.images("mask"), tables["bbox"], strict=False):
        whole = np.asarray(open_image(file).convert("L").crop((x, y, x + w, y + h)))
        assert (mask > 127).mean() * max(w, h) ** 2 == pytest.approx((whole > 127).sum(), rel=0.1)
        assert mask.shape == (1, 32, 32)


def test_invalid_masks(parquet, rows, cache):
    """Masks in an alpha channel are used; masks with values 0 and 1 and broken files are refused."""

    def load(convert, **more):
        changed = []
        for row in rows["train"][:8]:
            mask = Image.open(io.BytesIO(row["mask"]["bytes"])).convert("L")
            changed.append(dict(row, mask={"bytes": convert(mask), "path": None}))
        data = parquet({"train": changed, "val": changed}, name=f"{convert.__name__}{more}")
        config = TrainConfig(data=data, image_size=32, cache=cache, **more)
        return load_masks(config, "train", load_splits(config)[0])

    def png(image):
        buffer = io.BytesIO()
        image.save(buffer, "PNG")
        return buffer.getvalue()

    def plain(mask):
        return png(mask)

    def alpha(mask):
        return png(Image.merge("RGBA", [Image.new("L", mask.size)] * 3 + [mask]))

    def ones(mask):
        return png(mask.point(lambda value: value > 127))

    def larger(mask):
        return png(mask.resize([2 * side for side in mask.size]))

    def broken(mask):
        return png(mask)[:50]

    def bomb(mask):
        return UNREADABLE["bomb.png"]()

    np.testing.assert_array_equal(load(alpha), load(plain))
    with pytest.raises(InputError, match="train.* 1: .*255"):
        load(ones)
    with pytest.raises(InputError, match="mask of train row 0"):
        load(broken)
    with pytest.raises(InputError, match="mask of train row 0 .*--max-megapixels"):
        load(bomb)
    for crop in (False, True):
        with pytest.raises(InputError, match="mask of train row 0 .*(size|large)"):
            load(larger, crop=crop)


def test_a_mask_is_upright_like_its_image(parquet, rows, cache):
    """Either may be stored rotated by 90 degrees. A mask on its side is refused, even if the box fits."""

    def turned(image, kind):
        return stored(encode(image.transpose(Image.Transpose.ROTATE_90), kind, exif=b"Exif\0\0" + exif.tobytes()))

    exif, image, mask = Image.Exif(), photo(64, 48), Image.new("L", (64, 48))
    exif[0x0112] = 6  # to be turned by 90 degrees clockwise
    mask.paste(255, (0, 0, 20, 48))
    plain, sideways = stored(encode(mask, "PNG")), stored(encode(mask.transpose(Image.Transpose.ROTATE_90), "PNG"))
    found = []
    for i, (photo_file, mask_file) in enumerate(
        [
            (stored(encode(image)), plain),
            (stored(encode(image)), turned(mask, "PNG")),
            (turned(image, "JPEG"), plain),
            (turned(image, "JPEG"), turned(mask, "JPEG")),
            (turned(image, "JPEG"), sideways),
            (stored(encode(image)), sideways),
        ]
    ):
        row = dict(rows["train"][0], image=photo_file, mask=mask_file, bbox=[2, 2, 40, 40])
        config = TrainConfig(data=parquet({"train": [row], "val": [row]}, str(i)), image_size=8, cache=cache, crop=True)
        train, _ = load_splits(config)
        if mask_file is sideways:
            with pytest.raises(InputError, match="mask of train row 0 differs in size"):
                load_masks(config, "train", train)
        else:
            found.append(load_masks(config, "train", train))
    assert all(abs(masks.astype(int) - found[0]).max() < 9 for masks in found), "JPEG is not exact"


@pytest.mark.parametrize("moment", ["before", "while"])
def test_masks_of_data_that_was_changed(parquet, rows, cache, monkeypatch, moment):
    """Before or while they are read."""

    def change(*args, **more):
        monkeypatch.setattr("common.data.masks.crop_with", crop_with)
        pq.write_table(pa.Table.from_pylist(rows["train"][3::-1]), f"{data}/train-00000-of-00001.parquet")
        return crop_with(*args, **more) if args else None

    data = parquet({"train": rows["train"][:4], "val": rows["train"][:4]})
    config = TrainConfig(data=data, image_size=32, cache=cache)
    train, _ = load_splits(config)
    if moment == "before":
        change()
    else:
        monkeypatch.setattr("common.data.masks.crop_with", change)
    with pytest.raises(InputError, match="the data was changed while it was read"):
        load_masks(config, "train", train)


def test_data_without_masks(parquet, rows, cache):
    data = parquet({split: [{k: v for k, v in r.items() if k != "mask"} for r in rows[split]] for split in rows})
    config = TrainConfig(data=data, image_size=32, cache=cache)
    with pytest.raises(InputError, match="train .*mask"):
        load_masks(config, "train", load_splits(config)[0])


def test_the_targets_are_those_of_the_images(small):
    config, train = small(batch_size=2)
    rows = np.array([0, len(train) - 1])
    still = torch.tensor([[0, 0, 0, 0, 1, 1, 1, 1, 1, 0, 0, 0, 0.0]]).repeat(2, 1)
    draws = Draws(still, np.array([1, 0]), torch.tensor([[0.25, 0, 0, 0, 0], [1.0, 0, 0, 0, 0]]))
    images, targets = make_batch(config, train, rows, np.arange(2), draws, CPU)
    first, last = train[0][0], train[len(train) - 1][0]
    torch.testing.assert_close(images, torch.stack([0.25 * first + 0.75 * last, last]), atol=1e-4, rtol=0)
    assert targets[0, train.labels[0]] == 0.25 and targets[0, train.labels[-1]] == 0.75
    assert targets[1, train.labels[-1]] == 1
