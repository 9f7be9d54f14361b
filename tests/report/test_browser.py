"""The page in a real browser: nothing on the console, and controls that do what they say."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from saefeat.config import STEERING_METHODS
from saefeat.report import write_report

webdriver = pytest.importorskip(
    "selenium.webdriver", reason="selenium is not installed (pip install -e '.[dev]')"
)
CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
pytestmark = pytest.mark.skipif(
    not CHROMIUM or not DRIVER,
    reason="no chromium and chromedriver (apt-get install chromium chromium-driver)",
)
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
WIDE, NARROW = (1280, 900), (390, 844)


class Page:
    """A page in the browser, by what a reader sees and does."""

    def __init__(self, driver: Any) -> None:
        self.driver = driver

    def run(self, script: str, *arguments: Any) -> Any:
        return self.driver.execute_script(script, *arguments)

    def open(self, path: Path, size: tuple[int, int] = WIDE) -> Page:
        width, height = size
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
        self.driver.get_log("browser")
        self.driver.get(path.as_uri())
        self.wait("'ready' in document.body.dataset")
        for section in self.run(
            "return [...document.querySelectorAll('main > section')].map((s) => s.id)"
        ):
            self.show(section)
        return self

    def show(self, section: str) -> None:
        """Scroll to a section and wait until it is drawn."""
        self.run(
            "document.getElementById(arguments[0]).scrollIntoView({ behavior: 'instant' })", section
        )
        self.wait(
            f"[...document.querySelectorAll('#{section} .heat')]"
            ".every((heat) => heat.querySelector('td'))"
        )

    def wait(self, condition: str) -> None:
        from selenium.webdriver.support.ui import WebDriverWait

        wait = WebDriverWait(self.driver, 20, poll_frequency=0.02)
        wait.until(lambda _: self.run(f"return Boolean({condition})"))

    def texts(self, selector: str) -> list[str]:
        """The text of each element that is shown."""
        return self.run(
            "return [...document.querySelectorAll(arguments[0])].filter((e) => e.checkVisibility())"
            ".map((e) => (e.innerText ?? e.textContent).trim())",
            selector,
        )

    def text(self, selector: str) -> str:
        return " ".join(self.texts(selector))

    def count(self, selector: str) -> int:
        return len(self.texts(selector))

    def choose(self, name: str, value: str) -> None:
        """Click the radio button of that name and value."""
        self.run(
            "[...document.querySelectorAll(`input[name='${arguments[0]}']`)]"
            ".find((input) => input.value === arguments[1]).click()",
            name,
            value,
        )

    def select(self, name: str, value: str) -> None:
        from selenium.webdriver.support.ui import Select

        box = Select(self.driver.find_element("id", name))
        box.select_by_index([option.get_property("value") for option in box.options].index(value))

    def type(self, selector: str, keys: str) -> None:
        self.driver.find_element("css selector", selector).send_keys(keys)

    def search(self, words: str) -> None:
        self.driver.find_element("id", "search").clear()
        self.type("#search", words)

    def prefer(self, scheme: str) -> None:
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})

    def console(self) -> list[Any]:
        return self.driver.get_log("browser")


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('profile')}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    yield driver
    driver.quit()


@pytest.fixture
def open_page(driver: Any, run: Path) -> Callable[..., Page]:
    """open_page(size): the report of the run, freshly written."""
    return lambda size=WIDE: Page(driver).open(write_report(run), size)


@pytest.fixture
def page(open_page: Callable[..., Page]) -> Page:
    return open_page()


@pytest.mark.parametrize("size", [WIDE, NARROW])
def test_the_page_loads_without_console_messages(open_page: Callable[..., Page], size: Any) -> None:
    page = open_page(size)
    assert page.console() == []
    loaded = page.run("return performance.getEntriesByType('resource').map((entry) => entry.name)")
    assert [name for name in loaded if not name.startswith("data:")] == []
    assert page.count(".heat table") == 5
    assert page.count("#entropy-plots figure") == 3
    assert page.count("#frontier path.mark") > 10


@pytest.mark.parametrize("width", [390, 320])
def test_a_narrow_page_does_not_scroll_sideways(open_page: Callable[..., Page], width: int) -> None:
    page = open_page((width, 844))
    page.search("a")
    assert page.run("return document.documentElement.scrollWidth") <= width
    outside = page.run(
        "return [...document.querySelectorAll('main *, header *, nav .find *')]"
        ".filter((e) => e.checkVisibility() && !e.closest('.heat, .scroll, .frontier, .pills')"
        " && e.getBoundingClientRect().right > innerWidth + 1)"
        ".map((e) => e.parentElement.outerHTML.slice(0, 200))"
    )
    assert outside == []


def test_markup_of_the_corpus_is_shown_as_text_and_not_interpreted(page: Page, evil: str) -> None:
    foreign = "img:not([src^='data:image/svg']), main script, header script"  # drawings are ours
    assert page.run(f'return document.querySelectorAll("{foreign}").length') == 0
    assert evil in page.texts(".token")
    assert evil in page.text("#samples .passage") and evil in page.text("#errors .passage")
    assert evil in page.texts("#confusion-heat tbody th")
    page.choose(
        "label", str(page.run("return [...document.querySelectorAll('.pills label')].length - 1"))
    )
    assert page.text("#features-title").startswith(evil)
    page.search("<b>x</b>")
    assert page.count("#feature-list > li") > 0
    assert page.run("return document.querySelectorAll('main b b, main i b').length") == 0
    assert page.console() == []


def test_a_label_shows_its_features_with_all_that_is_known_of_them(page: Page) -> None:
    assert page.text("#features-title").startswith("de")
    assert page.count("#feature-list > li") == 4
    card = page.texts("#feature-list > li")[0]
    for words in (
        "entropy",
        "fires on",
        "probability by label",
        "activation",
        "promotes",
        "␣Tag",
        "with 2.50 in de",
    ):
        assert words in card, words
    assert page.count("#feature-list .chart svg rect") == 12
    page.choose("label", "1")
    assert page.text("#features-title").startswith("ar")
    assert (
        page.run(
            "return getComputedStyle(document.querySelector('#feature-list .passage')).direction"
        )
        == "rtl"
    )
    page.choose("label", "3")
    assert page.count("#feature-list > li") == 0
    assert page.text("#features-none") == "sae-lape chose no unit for this label."


def test_a_method_changes_the_features_and_where_they_are(page: Page) -> None:
    assert page.texts("#where-heat thead th") == ["mlp_out@3", "mlp_out@12"]
    page.choose("method", "1")
    assert page.texts("#where-heat thead th") == ["mlp_act@3"]
    assert "lape" in page.text("#features-title") and page.count("#feature-list > li") == 2
    assert page.run("return document.getElementById('feature-method').value") == "1"
    page.select("feature-method", "0")
    assert page.texts("#where-heat thead th") == ["mlp_out@3", "mlp_out@12"]
    page.run("document.querySelectorAll('#where-heat tbody th button')[2].click()")
    assert page.text("#features-title").startswith("ja")


@pytest.mark.parametrize(
    ("words", "features", "first"),
    [
        ("mlp_out@3:2", 1, "mlp_out@3:2"),
        ("ja", 6, "mlp_"),
        ("␣tag", 10, "mlp_out@"),
        ("بالعالم", 4, "mlp_out@"),
        ("nowhere at all", 0, ""),
    ],
)
def test_the_search_finds_names_labels_tokens_and_passages(
    page: Page, words: str, features: int, first: str
) -> None:
    page.search(words)
    noun = "feature" if features == 1 else "features"
    assert page.texts("#hits a")[0] == f"{features} {noun}"
    assert page.count("#feature-list > li") == min(features, 12)
    if features:
        assert page.texts("#feature-list .name b")[0].startswith(first)
    else:
        assert page.count("#features-none") == 1


def test_the_search_filters_samples_and_errors_too_and_ends_with_escape(page: Page) -> None:
    page.search("number 7")
    assert page.texts("#hits a")[1] == "8 samples"
    assert page.count("#sample-list > li") == 8
    page.search("text 0")
    assert page.texts("#hits a")[2] == "1 error"
    page.type("#search", "\ue00c")
    assert page.count("#hits") == 0
    assert page.text("#features-title").startswith("de") and page.count("#feature-list > li") == 4


def test_a_label_of_a_found_feature_leads_to_it(page: Page) -> None:
    page.search("世界")
    page.run("document.querySelector('button.of').click()")
    assert page.text("#features-title").startswith("ja")
    assert page.run("return document.getElementById('search').value") == ""


def test_selectors_of_the_confusion_matrix_change_its_numbers(page: Page) -> None:
    diagonal = "#confusion-heat tbody tr:first-child td:nth-child(2)"
    assert page.text(diagonal) == "10"
    page.select("confusion-length", "10")
    assert page.text(diagonal) == "8"
    page.select("confusion-head", "a new head")
    assert page.text(diagonal) == ""


def test_a_cell_shows_its_values_to_the_pointer_and_the_keyboard(page: Page) -> None:
    page.run("document.querySelector('#overlap-heat tbody td:nth-child(3)').click()")
    assert page.text("#overlap-heat-readout").startswith(
        "de and ar: 2 units in both, 4 and 4 owned (Jaccard 33.3 %)"
    )
    page.run("document.getElementById('overlap-heat').focus()")
    page.driver.switch_to.active_element.send_keys("\ue012")  # left
    assert page.text("#overlap-heat-readout") == "de owns 4 units"


def test_overlap_is_shown_as_a_share_or_a_number(page: Page) -> None:
    cell = "#overlap-heat tbody tr:first-child td:nth-child(3)"
    assert page.text(cell) == "33"
    page.choose("overlap", "both")
    assert page.text(cell) == "2"


def test_overlap_of_chosen_units_follows_the_method_and_the_measure(page: Page) -> None:
    cells = "#sets-heat tbody tr:first-child td"
    assert page.texts(cells)[:2] == ["4", "33"]  # units of the first label; Jaccard in per cent
    assert page.text("#sets-chance").startswith("Random sets")
    page.choose("overlap", "both")
    assert page.texts(cells)[:2] == ["4", "2"]
    page.select("sets-method", "1")
    assert page.texts(cells)[:2] == ["2", "1"]
    page.choose("overlap", "jaccard")


def test_selectors_of_the_perplexity_matrix_change_it(page: Page) -> None:
    cell = "#matrix-heat tbody tr:first-child td:nth-child(2)"
    assert page.text(cell) == "+0.50"
    assert "on 3 of 4 rows" in page.text("#matrix-verdict")
    page.select("matrix-measure", "perplexity_mean")
    assert page.text(cell) == "+64.9"
    page.select("matrix-intervention", "1")
    assert page.text(cell) == "0.0"
    assert page.text("#matrix-verdict").startswith("ablate random: on 0 of 4 rows")


def test_errors_are_filtered_by_length_label_and_who_is_right(page: Page) -> None:
    assert page.count("#error-list > li") == 1
    assert page.text("#error-list .judged.yes") == "fastText de"
    page.choose("error-kind", "ours")
    assert page.text("#error-list .judged.yes") == "linear de"
    page.select("error-length", "all")
    assert page.count("#error-list > li") == 2
    assert page.text("#errors .segments label:nth-child(2)") == "only linear right 2"
    page.select("error-label", "ja")
    assert page.count("#error-list > li") == 0


def test_the_steering_table_shows_the_chosen_measure(page: Page) -> None:
    head = ["label", "none", "random", "diffmean", "neurons", "features", "setting in use"]
    assert page.texts("#steering-table thead th") == head
    page.choose("measure", "perplexity")
    assert page.texts("#steering-table thead th")[1] == "own text"
    assert page.texts("#steering-table tbody tr:first-child td")[:2] == [
        "10.0\n14.0 in context",
        "10.0",
    ]
    page.choose("measure", "score_in_context")
    assert page.texts("#steering-table thead th") == head
    page.choose("measure", "forcing")
    assert page.texts("#steering-table tbody tr:last-child td")[-2] == "100.0 %"


def test_the_frontier_is_of_the_chosen_label_and_its_marks_show_their_values(page: Page) -> None:
    marks = "#frontier svg[role=group] path.mark"
    assert page.count(marks) == 1 + 4 * 3
    page.select("frontier-label", "de")
    assert page.count(marks) == 1 + 4 * 3 - 1  # one perplexity was not measured
    page.run("document.querySelector('#frontier path.mark.features').focus()")
    assert page.text("#frontier-readout").startswith(
        "features, strength 1: forcing 40.0 %, perplexity 2.00 times own"
    )


def test_each_method_has_a_colour_and_shape_of_its_own(
    run: Path, open_page: Callable[..., Page]
) -> None:
    path = run / "steering" / "metrics.json"
    metrics = json.loads(path.read_text(encoding="utf-8"))
    for name in ("rows", "summary"):  # every method has what the difference of means has
        own = [row for row in metrics[name] if row["method"] == "diffmean"]
        rest = STEERING_METHODS.keys() - {row["method"] for row in metrics[name]}
        metrics[name] += [{**row, "method": method} for method in sorted(rest) for row in own]
    path.write_text(json.dumps(metrics), encoding="utf-8")
    looks = open_page().run(
        "return [...document.querySelectorAll('#frontier .keys path.mark')].map((mark) =>"
        " [getComputedStyle(mark).fill, mark.getAttribute('d')])"
    )
    fills = [fill for fill, _ in looks]
    assert len(looks) == len({tuple(look) for look in looks}) == len(STEERING_METHODS)
    assert len(set(fills)) == len(fills) - 1  # the unsteered model and random units are grey
    assert "rgb(0, 0, 0)" not in fills


def test_samples_stand_beside_their_twins_and_are_filtered(page: Page) -> None:
    assert page.text("#sample-count") == "120 samples"
    assert page.count("#sample-list > li") == 12
    page.run("document.getElementById('samples-more').click()")
    assert page.count("#sample-list > li") == 24
    page.select("sample-label", "ar")
    page.select("sample-method", "random")
    assert page.text("#sample-count") == "15 samples"
    first = page.texts("#sample-list > li:first-child .side")
    assert len(first) == 2 and "number 0" in first[0] and "same as ever" in first[1]
    assert page.text("#sample-list > li:first-child .judged.yes") == "judged ar"


def test_light_and_dark_are_switched_and_follow_the_reader(page: Page) -> None:
    paper = "return getComputedStyle(document.body).backgroundColor"
    page.prefer("light")
    light = page.run(paper)
    page.run("document.getElementById('theme').click()")
    dark = page.run(paper)
    page.run("document.getElementById('theme').click()")
    assert light != dark and page.run(paper) == light
    page.run("document.documentElement.style.colorScheme = ''")
    page.prefer("dark")
    assert page.run(paper) == dark


def test_every_control_is_reached_by_keys_and_has_a_name(page: Page) -> None:
    nameless = page.run(
        "return [...document.querySelectorAll('select, input, button, [tabindex]')]"
        ".filter((e) => !e.ariaLabel && !e.closest('label') && !e.innerText?.trim())"
        ".map((e) => e.outerHTML.slice(0, 80))"
    )
    assert nameless == []
    assert page.run(
        "return [...document.querySelectorAll('[tabindex]')].every((e) => e.tabIndex === 0)"
    )
    page.run("document.querySelector('input[name=label]').focus()")
    page.driver.switch_to.active_element.send_keys("\ue014")  # right
    assert page.text("#features-title").startswith("ar")


def test_missing_optional_parts_of_a_run_are_named_without_console_messages(
    driver: Any, run: Path
) -> None:
    for path in run.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
    page = Page(driver).open(write_report(run))
    assert page.console() == []
    assert page.count(".absent") >= 10
    page.search("anything")
    assert page.console() == []
