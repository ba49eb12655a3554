"""Heat maps show what a prediction depends on, for models whose dependence is known and for every real one."""

import numpy as np
import pytest
import torch
from torch import nn

import compare
from common.compare.heat_maps import MISTAKES, confident_mistakes, heat_map, shares_on_product
from common.compare.shortcuts import HEAT_ROWS, heat_on_product
from common.config import IMAGENET, InputError
from common.finished_run import read_run
from tests.helpers import SCRIPTS, edit_json, read_json

DEVICE = torch.device("cpu")
SIZE = 60
WHITE = np.full((3, SIZE, SIZE), 255, np.uint8)


class LooksAt(nn.Module):
    """Class 1 is the more likely, the brighter the window is."""

    def __init__(self, window, sign=1.0):
        super().__init__()
        self.window, self.sign = window, sign

    def forward(self, images):
        brightness = self.sign * images[:, :, *self.window].mean((1, 2, 3))
        return torch.stack([-brightness, brightness], 1)


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_heat_is_where_the_model_looks(sign):
    """With either sign, the predicted class is the one that covering the window makes less likely."""
    window = np.s_[6:18, 36:48]
    heat = heat_map(LooksAt(window, sign), WHITE, IMAGENET, DEVICE)
    assert heat.shape == (SIZE, SIZE) and heat.dtype == np.float32 and heat.min() == 0
    hottest = np.argwhere(heat == heat.max())
    assert (hottest.min(0) >= (6, 36)).all() and (hottest.max(0) < (18, 48)).all()
    far = np.ones_like(heat, bool)
    far[: 18 + SIZE // 5, 36 - SIZE // 5 : 48 + SIZE // 5] = False  # a square that reaches into the window covers these
    assert (heat[far] == 0).all()


def test_every_pixel_is_covered_equally():
    """A model that looks everywhere has the same heat in the middle and, within the rounding of squares, elsewhere."""
    heat = heat_map(LooksAt(np.s_[:, :]), WHITE, IMAGENET, DEVICE)
    assert heat.max() == pytest.approx(heat.min(), rel=1e-3)


def test_an_image_without_effect_has_no_heat():
    gray = np.broadcast_to(np.array(IMAGENET.color, np.uint8)[:, None, None], WHITE.shape)
    heat = heat_map(LooksAt(np.s_[:, :]), gray, IMAGENET, DEVICE)
    assert (heat == 0).all()
    mask = np.full((1, 1, SIZE, SIZE), 255, np.uint8)
    assert np.isnan(shares_on_product(heat[None], mask)).all()
    nothing = {"value": None, "interval": None, "rows": 0, "area": None}
    assert heat_on_product(heat[None], mask, np.zeros(1, int)) == nothing


def test_the_share_on_the_product_is_a_mean_over_images():
    heat = np.zeros((4, 4, 4), np.float32)
    heat[:3, 0, 0], heat[0, 1, 1] = 1, 3  # one of four units, all, and all of the heat is in the first column
    masks = np.zeros((4, 1, 4, 4), np.uint8)
    masks[:, :, :, 0] = 255
    found = heat_on_product(heat, masks, np.array([0, 1, 1, 2]))
    assert found["value"] == pytest.approx((0.25 + 1 + 1) / 3) and found["rows"] == 3 and found["area"] == 0.25
    assert found["interval"][0] < found["value"] < found["interval"][1]
    alone = heat_on_product(heat, masks, np.array([0, 0, 0, 1]))
    assert alone["value"] is None and alone["interval"] is None, "the row without heat is the only other product"


@pytest.mark.parametrize("script", SCRIPTS)
def test_confident_mistakes_of_every_model(finished_run, script, cache):
    run = read_run(finished_run(script))
    found = confident_mistakes(run, cache=cache)
    wrong = run.rows[run.rows["label"] != run.rows["prediction"]]
    assert len(found) == MISTAKES <= len(wrong)
    expected = sorted(wrong["probability"], reverse=True)[:MISTAKES]
    assert [mistake.probability for mistake in found] == pytest.approx(expected)
    _, val = run.splits(cache=cache)
    for mistake in found:
        row = run.rows.loc[mistake.row]
        assert (mistake.image_id, mistake.label, mistake.prediction) == (*row[["image_id", "label", "prediction"]],)
        np.testing.assert_array_equal(mistake.pixels, val.pixels[val.index[mistake.row]])
        assert mistake.heat.max() > 0 and 0 <= mistake.on_product <= 1 and 0 < mistake.area < 1


def test_a_comparison_and_the_shortcuts_have_them(finished_run, tmp_path, cache):
    run = finished_run(SCRIPTS[0])
    found = compare.main([str(run), "--cache", cache, "--out", str(tmp_path / "comparison")])
    assert len(found["mistakes"]["rows"]) == MISTAKES and found["mistakes"]["run"] == str(run)
    assert (tmp_path / "comparison" / "heat.png").exists()
    assert "(heat.png)" in (tmp_path / "comparison" / "comparison.md").read_text()
    [scores] = compare.main(["--shortcuts", str(run), "--cache", cache, "--out", str(tmp_path / "shortcuts")])
    heat = scores["heat_on_product"]
    assert heat["rows"] == HEAT_ROWS and heat["interval"][0] < heat["value"] < heat["interval"][1]


def test_a_model_that_cannot_be_rebuilt_is_a_note(finished_run, tmp_path, cache):
    copy = tmp_path / "copy"
    copy.mkdir()
    for file in finished_run(SCRIPTS[0]).iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    files = read_json(copy, "run.json")["files"]
    edit_json(copy, "run.json", files=files | {"model.safetensors": "0" * 64})
    with pytest.raises(InputError, match="not the file"):
        confident_mistakes(read_run(copy), cache=cache)
    found = compare.main([str(copy), "--cache", cache, "--out", str(tmp_path / "out")])
    assert found["mistakes"]["rows"] == [] and not (tmp_path / "out" / "heat.png").exists()
    assert sum("there are no heat maps of mistakes" in note for note in found["notes"]) == 1
