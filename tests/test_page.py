"""comparison.html: its content, without a browser; and in Chromium, with --slow."""

import importlib.util
import json
import re
import shutil
from base64 import b64decode, b64encode
from collections import Counter
from hashlib import sha256
from html.parser import HTMLParser
from io import BytesIO
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

import common.figures
import compare
from common.compare import page as page_module
from common.compare import photos as photos_module
from common.compare.experiments import group_runs
from common.compare.page import changed_rows, confusion_matrices, page_content, render
from common.compare.photos import Photos, choose_rows, read_photos
from common.compare.questions import ScoredExperiment, questions
from common.data.crop import crop_image
from common.finished_run import find_runs
from common.metrics import METRICS
from common.stats import format_score, format_share
from tests import helpers
from tests.helpers import SAMPLE, read_json, read_predictions

HOSTILE = [
    "</script><script>window.hacked=1</script>",
    '"onmouseover="window.hacked=1"',
    "'><img/src=x/onerror=window.hacked=1>",
    "<svg/onload=window.hacked=1>",
    "javascript:window.hacked=1",
    "{{7*7}}<!--<script>",
]


class Page(HTMLParser):
    """The elements of an HTML page: their names, attributes and texts, and the rows of its tables."""

    def __init__(self, path):
        super().__init__()
        self.elements, self.texts, self.rows, self.inside = [], [], [], ["", None]
        self.feed(Path(path).read_text(encoding="utf-8"))
        self.data = json.loads(self.content("script", "application/json"))

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        self.inside = [tag, dict(attributes).get("type")]
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th") and self.rows:
            self.rows[-1].append("")

    def handle_endtag(self, tag):
        self.inside = ["", None]
        if tag == "table":
            self.rows.append([])

    def handle_data(self, data):
        self.texts.append((tuple(self.inside), data))
        if self.rows and self.rows[-1]:
            self.rows[-1][-1] += data

    def content(self, tag, kind=None):
        return "".join(text for inside, text in self.texts if inside == (tag, kind))

    @property
    def text(self):
        return " ".join(" ".join(text for (tag, _), text in self.texts if tag not in ("script", "style")).split())

    @property
    def cells(self):
        """The rows of all tables, with single spaces."""
        return [[" ".join(cell.split()) for cell in row] for row in self.rows if row]

    def attribute(self, tag, name):
        return [attributes[name] for element, attributes in self.elements if element == tag and name in attributes]


@pytest.fixture(scope="module")
def runs(finished_run):
    """One model on whole images and on crops, with two seeds each; 130 val rows."""
    return {
        (variant, seed): finished_run("train_custom_cnn", f"{options} --seed {seed}".strip())
        for variant, options in (("full", ""), ("crop", "--crop"))
        for seed in (0, 1)
    }


@pytest.fixture(scope="module")
def out(runs, cache, tmp_path_factory):
    """The output folder of a comparison of `runs`."""
    out = tmp_path_factory.mktemp("comparison")
    compare.main([*map(str, runs.values()), "--out", str(out), "--cache", cache])
    return out


@pytest.fixture
def page(out):
    return Page(out / "comparison.html")


@pytest.fixture(scope="module")
def predictions(runs):
    """What predictions.csv says: the label of each image, and its predictions by variant, one for each seed."""
    labels, predicted = {}, {}
    for (variant, _), folder in runs.items():
        for row in read_predictions(folder):
            labels[row["image_id"]] = row["label"]
            predicted.setdefault((variant, row["image_id"]), []).append(row["prediction"])
    return labels, predicted


@pytest.fixture
def write_runs(tmp_path):
    """A function that writes runs of custom_cnn on full images and crops without data, with random predictions."""

    def write_runs(classes, rows, seeds=1, scripts=("train_custom_cnn",), variants=("", "--crop"), folder="runs"):
        rng = np.random.default_rng(0)
        labels = [classes[i % len(classes)] for i in range(rows)]
        products = [f"{classes[i % len(classes)]} {i // 2}" for i in range(rows)]
        for script in scripts:
            for variant in variants:
                for seed in range(seeds):
                    predicted = [label if rng.random() < 0.5 else str(rng.choice(classes)) for label in labels]
                    name = tmp_path / folder / f"{script}{variant.replace(' ', '')}-{seed}"
                    options = f"{variant} --seed {seed}".strip()
                    helpers.write_run(name, script, options, predicted, labels, products, classes=classes)
        return tmp_path / folder

    return write_runs


def compared(folder, out):
    """The parsed page of a comparison of the runs in `folder`."""
    compare.main([str(folder), "--out", str(out)])
    return Page(out / "comparison.html")


def scored(folder):
    return [ScoredExperiment(experiment) for experiment in group_runs(find_runs([str(folder)])[0])]


# Numbers -------------------------------------------------------------------------------------------------------------


def test_the_page_has_the_sentences_and_notes(out, page):
    found = read_json(out, "comparison.json")
    assert found["questions"] and found["notes"]
    for text in [*(question["sentence"] for question in found["questions"]), *found["notes"]]:
        assert " ".join(text.split()) in page.text


def test_scores_are_those_of_the_json_file(out, page):
    found = read_json(out, "comparison.json")
    for experiment in [*found["experiments"], *found["baselines"]]:
        row = next(row for row in page.cells if row[0] == experiment["name"] and len(row) > len(METRICS))
        for name in METRICS:
            assert format_score(experiment[name]["value"], experiment[name]["interval"]) in row
        unseen = experiment["unseen_products"]["accuracy"]
        assert row[3] == format_score(unseen["value"], unseen["interval"])
    assert "accuracy on 15 rows of products not in train" in page.text


def test_tables_are_those_of_the_markdown_file(out, page):
    """Their rows, in the same rounding; the table of scores has one more column."""
    lines = (out / "comparison.md").read_text().partition("## Differences")[2].splitlines()
    rows = [[cell.strip() for cell in line.strip("| ").split(" | ")] for line in lines if line.startswith("| ")]
    rows = [row for row in rows if not re.fullmatch("-+", row[0]) and row[0] != "image"]
    assert len(rows) > 30
    for row in rows:
        assert any(found[: len(row)] == row for found in page.cells), row


def test_predictions_are_those_of_the_runs(page, predictions):
    labels, predicted = predictions
    data, classes = page.data, page.data["classes"]
    assert [experiment["name"] for experiment in data["experiments"]] == ["custom_cnn full", "custom_cnn crop"]
    assert {image_id: classes[label] for image_id, label in data["rows"]} == labels and len(data["rows"]) == 130
    for experiment in data["experiments"]:
        variant = experiment["name"].split()[1]
        for i, (image_id, _) in enumerate(data["rows"]):
            assert [classes[seed[i]] for seed in experiment["predictions"]] == predicted[variant, image_id]


def test_cells_of_the_confusion_matrix_are_means_over_the_seeds(page, predictions):
    labels, predicted = predictions
    pairs, rows = Counter(), Counter()
    for image_id, label in labels.items():
        pairs.update((label, name) for name in predicted["crop", image_id])
        rows.update((label, name) for name in set(predicted["crop", image_id]))
    cells = page.data["experiments"][1]["cells"]
    names = page.data["classes"]
    assert {(names[i], names[j]): float(text) for i, j, text, *_ in cells} == {k: n / 2 for k, n in pairs.items()}
    assert {(names[i], names[j]): number for i, j, *_, number in cells} == rows


def changes(predictions):
    """The images that the crop fixed and those that it broke: at least one more of two seeds is right, or wrong."""
    labels, predicted = predictions
    right = {key: sum(name == labels[key[1]] for name in names) for key, names in predicted.items()}
    change = {image_id: right["crop", image_id] - right["full", image_id] for image_id in labels}
    return {i for i in change if change[i] > 0}, {i for i in change if change[i] < 0}


def test_photos_that_a_change_fixed_or_broke(page, predictions):
    fixed, broken = changes(predictions)
    (question,) = page.data["questions"]
    assert fixed and broken
    assert {page.data["rows"][i][0] for i in question["fixed"]} == fixed
    assert {page.data["rows"][i][0] for i in question["broken"]} == broken
    assert f"{len(fixed)} fixed , {len(broken)} broken" in page.text


def test_a_change_of_less_than_half_of_the_seeds_is_counted_apart(tmp_path):
    """Of three seeds, rows 0, 1, 2 and 3 have 0 to 3 right before, and all right after the change."""
    labels = [f"{'ab'[i % 2]}" for i in range(40)]
    for seed in range(3):
        before = ["ba"[i % 2] if i < 3 and seed >= i else label for i, label in enumerate(labels)]
        for options, predicted in (("", before), ("--crop", labels)):
            folder = tmp_path / f"{options}{seed}"
            line = f"{options} --seed {seed}"
            helpers.write_run(folder, "train_custom_cnn", line, predicted, labels, range(40), classes=["a", "b"])
    (question,) = questions(scored(tmp_path))
    fixed, broken, change = changed_rows(question)
    assert fixed == [0, 1] and broken == [] and change[:4] == pytest.approx([1, 2 / 3, 1 / 3, 0])


def test_settings_and_commands(out, page, runs):
    info = read_json(runs["crop", 0], "run.json")
    assert ["fingerprint", info["data_fingerprint"][:16]] in page.cells
    assert any(row[0] == "custom_cnn crop" and row[-1] == f"python {info['command']}" for row in page.cells)


# Photos --------------------------------------------------------------------------------------------------------------


def decoded(url):
    start, _, encoded = url.partition(",")
    assert start == "data:image/webp;base64"
    return Image.open(BytesIO(b64decode(encoded)))


def difference_from_sample(photo, image_id):
    """The mean difference of a photo from the crop of the sample's photo with this id, in [0, 255]."""
    rows = {row["image_id"]: row for row in pq.read_table(SAMPLE / "val-00000-of-00001.parquet").to_pylist()}
    image = Image.open(BytesIO(rows[image_id]["image"]["bytes"]))
    crop, _ = crop_image(image, rows[image_id]["bbox"], size=32, margin=0.1)
    return np.abs(np.asarray(photo.resize((32, 32)), float) - np.asarray(crop, float)).mean()


def test_each_row_has_its_photo(page):
    for i in range(0, 130, 13):
        photo = decoded(page.data["photos"][i])
        assert max(photo.size) == photos_module.SIDE
        assert difference_from_sample(photo, page.data["rows"][i][0]) < 12, i
    assert difference_from_sample(photo, page.data["rows"][0][0]) > 24, "photos differ"


def test_photos_of_folds(finished_run, cache):
    """Each fold has its own val rows; they are put together in the order of the experiment's rows."""
    folds = [finished_run("train_custom_cnn", f"--crop --split-by product_id:{i}/2") for i in (1, 2)]
    (experiment,) = group_runs(find_runs(list(map(str, folds)))[0])
    in_val = pq.read_table(SAMPLE / "val-00000-of-00001.parquet", columns=["image_id"])["image_id"].to_pylist()
    rows = np.flatnonzero(experiment.ids["image_id"].isin(in_val))[::13].tolist()
    photos = read_photos([experiment], rows, cache=cache)
    assert sorted(photos) == rows and len({experiment.splits[0, row] for row in rows}) == 2
    for row, photo in photos.items():
        assert difference_from_sample(photo, experiment.ids["image_id"][row]) < 12


def test_without_data_there_are_no_photos(write_runs, tmp_path):
    page = compared(write_runs(["a", "b"], 40), tmp_path / "out")
    assert "This page has no photos, because the data was not available:" in page.text and "--data missing" in page.text
    assert not any(page.data["photos"]) and "data:image" not in (tmp_path / "out" / "comparison.html").read_text()
    assert not page.attribute("img", "data-photo") and len(page.data["rows"]) == 40


@pytest.fixture
def noise(monkeypatch):
    """Replaces all photos by noise, which no format compresses well."""
    rng = np.random.default_rng(0)
    side = photos_module.SIDE

    def read(experiments, rows, **source):
        return {row: Image.fromarray(rng.integers(0, 256, (side, side, 3), dtype=np.uint8)) for row in rows}

    monkeypatch.setattr(photos_module, "read_photos", read)


LARGE = {  # scripts, variants and seeds
    "2 runs": (["train_custom_cnn"], ["", "--crop"], 1),
    "72 runs": (
        ["train_resnet", "train_custom_cnn", "train_custom_vit"],
        ["", "--crop", "--crop --augment", "--crop --augment strong"],
        6,
    ),
}


@pytest.mark.parametrize("size", ["2 runs", pytest.param("72 runs", marks=pytest.mark.slow)])
def test_a_large_study_fits_into_five_megabytes(write_runs, tmp_path, monkeypatch, noise, size):
    """Of 600 rows, the 500 that most runs classify wrongly are shown."""
    monkeypatch.setattr(common.figures, "save_figure", lambda *_: None)
    scripts, variants, seeds = LARGE[size]
    folder = write_runs([f"category_{i:02}" for i in range(30)], 600, seeds, scripts, variants)
    page = compared(folder, tmp_path / "out")
    assert (tmp_path / "out" / "comparison.html").stat().st_size <= 5_000_000
    assert "photos of 500 of the 600 val rows" in page.text
    experiments = scored(folder)
    wrong = (~np.concatenate([one.correct for one in experiments])).mean(0)
    shown = [int(image_id) for image_id, _ in page.data["rows"]]
    assert len(experiments) == len(scripts) * len(variants)
    assert len(shown) == len(set(shown)) == 500 and all(page.data["photos"])
    assert wrong[shown].min() >= np.delete(wrong, shown).max()
    counts = [sum(float(text) for *_, text, _, _ in one["cells"]) for one in page.data["experiments"]]
    assert counts == pytest.approx([600] * len(experiments), abs=5), "counts, which are rounded, are those of all rows"
    fixed, broken, _ = changed_rows(questions(experiments)[0])
    assert f"{len(fixed)} fixed , {len(broken)} broken" in page.text
    assert len(page.data["questions"][0]["fixed"]) <= len(fixed)


def test_possible_label_errors_are_shown_first(write_runs, monkeypatch):
    monkeypatch.setattr(photos_module, "MAX_PHOTOS", 10)
    experiments = scored(write_runs(["a", "b"], 40))
    right = np.concatenate([one.correct for one in experiments]).mean(0)
    best = int(right.argmax())
    assert best not in choose_rows(experiments) and best in choose_rows(experiments, [best])
    assert len(choose_rows(experiments, [best])) == 10


def test_a_possible_label_error_has_its_photo(tmp_path, noise):
    """Both runs predict that row 7, labelled b, is an a."""
    labels = ["ab"[i % 2] for i in range(40)]
    for seed in (0, 1):
        predicted = ["a" if i == 7 else label for i, label in enumerate(labels)]
        helpers.write_run(
            tmp_path / "runs" / str(seed), "train_custom_cnn", f"--seed {seed}", predicted, labels, range(40),
            classes=["a", "b"],
        )  # fmt: skip
    page = compared(tmp_path / "runs", tmp_path / "out")
    assert "labelled b predicted a, weight 0.90 0007" in page.text
    photos = [values["data-photo"] for _, values in page.elements if values.get("alt") == "Photo labelled b"]
    assert photos == ["7"] and page.data["rows"][7][0] == "0007"


def test_the_matrix_has_the_classes_with_most_errors(write_runs, tmp_path, monkeypatch):
    monkeypatch.setattr(page_module, "MAX_CLASSES", 3)
    folder = write_runs([f"c{i}" for i in range(6)], 60)
    _, shown, matrices = confusion_matrices(scored(folder))
    assert len(shown) == 3 and all({i, j} <= set(shown) for cells in matrices for i, j, *_ in cells)
    assert "The matrix shows the 3 of 6 classes with the most errors." in compared(folder, tmp_path / "out").text


# Heat maps, and answering only some photos ----------------------------------------------------------------------------


def test_confident_mistakes_have_a_photo_and_a_heat_map(out, page):
    mistakes = read_json(out, "comparison.json")["mistakes"]["rows"]
    section = page.text.rpartition("Confident mistakes The wrong predictions of")[2].partition("Calibration")[0]
    assert len(mistakes) > 3
    for mistake in mistakes:
        words = f"predicted {mistake['prediction']} {mistake['probability']:.0%}"
        words += f" {format_share(mistake['on_product'], 2)} of the heat is on the product"
        assert words in section and mistake["image_id"] in section
    photo, heat = [decoded(url) for url in page.attribute("img", "src")][:2]
    assert photo.size == heat.size == (32, 32)
    assert (
        difference_from_sample(photo, mistakes[0]["image_id"])
        < 20
        < difference_from_sample(heat, mistakes[0]["image_id"])
    )


def test_accuracy_by_share_answered_is_drawn_and_a_table(write_runs, tmp_path):
    folder = write_runs(["a", "b"], 40)
    comparison = compare.main([str(folder), "--out", str(tmp_path / "out")])
    experiments = scored(folder)
    scores = {"0.5": {"value": 0.9, "interval": [0.8, 1]}, "1": {"value": 0.7, "interval": [0.6, 0.8]}}
    for experiment in comparison["experiments"]:
        curve = {"0.2": None} | scores
        experiment["risk_coverage"] = {"accuracy_of_answered": curve, "answered_at_error": {"0.01": None, "0.1": 0.55}}
    content = page_content(experiments, [], questions(experiments), comparison, Photos(list(range(40)), {}))
    (tmp_path / "page.html").write_text(render(content))
    page = Page(tmp_path / "page.html")
    assert ["50.00,10.00", "100.00,30.00"] in [points.split() for points in page.attribute("polyline", "points")]
    assert "100 % answered custom_cnn full too few products 0.700 [0.600, 0.800]" in page.text
    assert "1 % wrong 10 % wrong custom_cnn full too few products 0.550" in page.text


# Hostile names -------------------------------------------------------------------------------------------------------


def test_names_from_data_are_texts(write_runs, tmp_path):
    """As categories, product ids and the name of a folder; the page has the elements and scripts of the template."""
    plain = compared(write_runs([f"c{i}" for i in range(6)], 60), tmp_path / "plain")
    name = "<img src=x onerror=alert(1)>"
    hostile = compared(write_runs(sorted(HOSTILE), 60, folder=f"runs {name}"), tmp_path / "hostile")
    assert sorted(hostile.data["classes"]) == sorted(HOSTILE)
    kinds = [Counter(tag for tag, _ in page.elements) for page in (plain, hostile)]
    assert kinds[0] == kinds[1]
    known = {name for _, attributes in plain.elements for name in attributes}
    assert {name for _, attributes in hostile.elements for name in attributes} == known
    assert not any(name.startswith("on") for name in known)
    assert all(url.startswith(("#", "data:")) for url in hostile.attribute("a", "href"))
    assert all(any(text in cell for row in hostile.cells for cell in row) for text in HOSTILE)


def test_marks_that_reorder_text_are_escaped(write_runs, tmp_path):
    page = compared(write_runs(["a\u202eb", "c"], 40), tmp_path / "out")
    assert page.data["classes"] == ["a\\u202eb", "c"] and "\u202e" not in page.text


def test_only_the_script_of_the_page_may_run(page):
    (policy,) = [
        attributes["content"] for tag, attributes in page.elements if tag == "meta" and "http-equiv" in attributes
    ]
    rules = dict(rule.split(" ", 1) for rule in policy.split("; "))
    assert rules["default-src"] == "'none'" and rules["img-src"] == "data:" and rules["base-uri"] == "'none'"
    for tag in ("script", "style"):
        digest = b64encode(sha256(page.content(tag).encode()).digest()).decode()
        assert rules[f"{tag}-src"] == f"'sha256-{digest}'"
    assert not page.attribute("script", "src") and not page.attribute("link", "rel").count("stylesheet")


def test_the_script_sets_no_html():
    script = (Path(page_module.__file__).parent / "page.js").read_text()
    assert not re.search(r"innerHTML|outerHTML|insertAdjacent|document\.write|\beval\b|Function\(", script)


def test_a_page_of_other_origin_is_kept(runs, tmp_path):
    (tmp_path / "comparison.html").write_text("mine")
    message = helpers.error_message("compare", [str(runs["full", 0]), "--out", str(tmp_path)])
    assert "comparison.html" in message and (tmp_path / "comparison.html").read_text() == "mine"


# In a browser --------------------------------------------------------------------------------------------------------

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
PACKAGES = ("playwright", "axe_playwright_python")
LACKING = [name for name in PACKAGES if not importlib.util.find_spec(name)] + ["chromium"] * (not CHROMIUM)


@pytest.fixture(scope="module")
def browser():
    if LACKING:
        pytest.skip(
            f"the browser tests need {', '.join(LACKING)}: pip install -e '.[browser]', apt-get install chromium"
        )
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM)
        yield browser
        browser.close()


@pytest.fixture
def show(browser):
    """A function that opens a page, and fails in the end if it made a request or wrote to the console."""
    seen, contexts = [], []

    def show(path, width=1280, **options):
        contexts.append(browser.new_context(viewport={"width": width, "height": 800}, **options))
        tab = contexts[-1].new_page()
        tab.on("console", lambda message: seen.append(f"console: {message.text}"))
        tab.on("pageerror", lambda error: seen.append(f"error: {error}"))
        tab.on("dialog", lambda dialog: seen.append(f"dialog: {dialog.message}") or dialog.dismiss())
        tab.on("request", lambda request: request.url.startswith("data:") or seen.append(request.url))
        tab.goto(f"file://{path}")
        return tab

    yield show
    for context in contexts:
        context.close()
    assert [text for text in seen if not text.startswith("file://")] == [] and len(seen) == len(contexts)


@pytest.fixture
def tab(show, out):
    return show(out / "comparison.html")


def photo_ids(element):
    return element.locator(".photos .id").all_inner_texts()


def focused(tab):
    return tab.evaluate("document.activeElement.innerText")


@pytest.mark.slow
def test_a_column_sorts_the_table(tab, out):
    found = read_json(out, "comparison.json")
    names = {e["name"]: e["accuracy"]["value"] for e in [*found["experiments"], *found["baselines"]]}
    header = tab.locator("#scores th", has=tab.get_by_role("button", name="accuracy", exact=True))
    for order, sign in (("descending", -1), ("ascending", 1)):
        header.get_by_role("button").press("Enter")
        shown = tab.locator("#scores tbody th").all_inner_texts()
        assert header.get_attribute("aria-sort") == order and set(shown) == set(names)
        values = [sign * names[name] for name in shown]
        assert values == sorted(values)
    tab.get_by_role("button", name="seeds", exact=True).click()
    assert header.get_attribute("aria-sort") is None and tab.locator("[aria-sort]").count() == 1
    assert not tab.locator("#scores tbody tr").last.locator("td").first.inner_text(), "rows without a value are last"


@pytest.mark.slow
@pytest.mark.parametrize("variant", ["full", "crop"])
def test_a_cell_shows_exactly_its_photos(tab, predictions, variant):
    labels, predicted = predictions
    tab.get_by_label("Experiment", exact=True).select_option(f"custom_cnn {variant}")
    cells = tab.locator("#matrix button")
    assert cells.count() == len({(labels[i], name) for v, i in predicted if v == variant for name in predicted[v, i]})
    for number in range(0, cells.count(), 7):
        cell = cells.nth(number)
        true, name = cell.get_attribute("title").split(" predicted as ")
        seeds = {i: predicted[variant, i].count(name) for i in labels if labels[i] == true}
        cell.click()
        gallery = tab.locator("#cell-photos")
        assert f"custom_cnn {variant}: {true} predicted as {name}" == focused(tab)
        shown = gallery.locator("li").all_inner_texts()
        assert sorted(photo_ids(gallery)) == sorted(i for i, count in seeds.items() if count)
        for text in shown:
            assert f"predicted by {seeds[text.split()[-1]]} of 2 seeds" in text
        assert float(cell.inner_text()) == sum(seeds.values()) / 2
        assert gallery.locator("img").count() == len(shown)
        assert gallery.locator("img").first.evaluate("image => image.complete && image.naturalWidth > 0")
    tab.keyboard.press("Escape")
    assert gallery.is_hidden() and cell.evaluate("cell => cell === document.activeElement")


@pytest.mark.slow
def test_the_matrix_is_one_stop_in_which_arrows_move(tab):
    tab.get_by_label("Experiment", exact=True).focus()
    tab.keyboard.press("Tab")
    first = tab.locator("#matrix button").first
    assert first.evaluate("cell => cell === document.activeElement")
    row = first.locator("xpath=ancestor::tr").locator("button")
    tab.keyboard.press("ArrowRight")
    assert row.nth(1).evaluate("cell => cell === document.activeElement")
    tab.keyboard.press("ArrowLeft")
    tab.keyboard.press("ArrowLeft")
    assert first.evaluate("cell => cell === document.activeElement")
    tab.keyboard.press("ArrowDown")
    below = tab.evaluate(
        "[document.activeElement.closest('tr').rowIndex, document.activeElement.closest('td').cellIndex]"
    )
    assert below[0] > 1 and below[1] == first.evaluate("cell => cell.closest('td').cellIndex")
    tab.keyboard.press("Enter")
    assert tab.locator("#cell-photos").is_visible() and " predicted as " in focused(tab)
    tab.keyboard.press("Escape")
    tab.keyboard.press("Tab")
    assert not tab.evaluate("!!document.activeElement.closest('#matrix')")


@pytest.mark.slow
def test_a_question_is_opened_by_keyboard_and_shows_what_changed(tab, predictions):
    labels, predicted = predictions
    tab.get_by_label("Experiment", exact=True).focus()
    for _ in range(3):
        tab.keyboard.press("Tab")
        if "crop vs. full" in focused(tab):
            break
    tab.keyboard.press("Enter")
    for kind, expected in zip(("fixed", "broken"), changes(predictions), strict=True):
        host = tab.locator(f".photos-of[data-kind={kind}]")
        host.locator("li").first.wait_for()
        assert sorted(photo_ids(host)) == sorted(expected)
        for text in host.locator("li").all_inner_texts():
            image_id = text.split()[-1]
            for variant in ("full", "crop"):
                right = predicted[variant, image_id].count(labels[image_id])
                assert f"{variant}: {right} of 2 right" in text


@pytest.mark.slow
def test_a_class_shows_all_its_photos(tab, predictions):
    labels, _ = predictions
    tab.get_by_role("button", name="Show all photos of bed", exact=True).click()
    gallery = tab.locator("#class-photos")
    assert sorted(photo_ids(gallery)) == sorted(i for i, label in labels.items() if label == "bed")
    gallery.get_by_role("button", name="Close").click()
    assert gallery.is_hidden() and focused(tab).startswith("Show all")


def open_everything(tab):
    """Opens each kind of photos, as a reader would."""
    tab.locator("#matrix button").last.click()
    for summary in tab.locator("summary").all():
        summary.click()
    tab.locator(".class-photos").first.click()
    tab.wait_for_timeout(200)


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 360])
def test_axe_finds_nothing_serious(show, out, scheme, width):
    from axe_playwright_python.sync_playwright import Axe

    tab = show(out / "comparison.html", width, color_scheme=scheme)
    open_everything(tab)
    result = Axe().run(tab).response
    found = [(rule["impact"], rule["id"]) for rule in result["violations"]]
    assert [rule for rule in found if rule[0] in ("serious", "critical")] == [], found
    assert {"color-contrast", "select-name", "image-alt", "heading-order"} <= {rule["id"] for rule in result["passes"]}


@pytest.mark.slow
def test_a_narrow_screen_scrolls_in_one_direction(show, out):
    tab = show(out / "comparison.html", 360)
    open_everything(tab)
    assert tab.evaluate("document.documentElement.scrollWidth") == 360
    assert tab.evaluate("document.querySelector('#scores').offsetWidth") > 360, "wide tables scroll in their own box"


@pytest.mark.slow
def test_names_from_data_run_nothing(show, rows, parquet, cache, tmp_path):
    """Categories of a real data set, trained and compared; and the policy would stop a script that got in."""
    names = dict(zip(sorted({row["category"].lower() for row in rows["train"]}), HOSTILE * 9, strict=False))
    hostile = {split: [row | {"category": names[row["category"].lower()]} for row in rows[split]] for split in rows}
    data = parquet(hostile, "<img src=x onerror=window.hacked=1>")
    folders = []
    for options in ("", "--crop"):
        folders.append(tmp_path / f"run{options}")
        line = f"--epochs 1 --batch-size 16 --cache {cache} {helpers.SMALL['train_custom_cnn']} {options}"
        helpers.main("train_custom_cnn", [*line.split(), "--data", data, "--out", str(folders[-1])])
    out = tmp_path / "out"
    compare.main([*map(str, folders), "--data", data, "--cache", cache, "--out", str(out)])
    assert len(set(Page(out / "comparison.html").data["classes"]) & set(HOSTILE)) > 2
    tab = show(out / "comparison.html")
    open_everything(tab)
    for name in tab.locator("#matrix button").all()[:5]:
        name.hover()
    assert tab.evaluate("window.hacked") is None
    assert tab.locator("img[src^='data:']").count() > 0 and tab.locator("img:not([src^='data:'])").count() == 0


@pytest.mark.slow
def test_the_policy_stops_scripts_and_requests(browser, out):
    page = browser.new_page()
    failures = []
    page.on("requestfailed", lambda request: failures.append((request.url, request.failure)))
    page.goto(f"file://{out}/comparison.html")
    page.evaluate(
        """() => {
            const script = document.createElement("script");
            script.textContent = "window.hacked = 1";
            const image = document.createElement("img");
            image.setAttribute("onerror", "window.hacked = 2");
            image.src = "https://example.org/x.png";
            document.body.append(script, image);
        }"""
    )
    page.wait_for_timeout(300)
    assert page.evaluate("window.hacked") is None and failures == [("https://example.org/x.png", "csp")]
    page.close()
