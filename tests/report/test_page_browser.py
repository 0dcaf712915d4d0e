"""The report page in a real browser: without scripts, sorted, light and dark, on paper, on a phone, never online."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import runs
from pages import poisoned, reference, store

from effbench.report import page
from effbench.results import Results
from effbench.runs import run_file

playwright = pytest.importorskip(
    "playwright.sync_api", reason="playwright is not installed: pip install effbench[test]"
)

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
QUIETLY = (
    "--headless --no-sandbox --disable-gpu --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync"
)
WIDE, PHONE = {"width": 1200, "height": 900}, {"width": 360, "height": 740}

SORT_COLUMN = """(heading) => {
    const table = document.querySelector("table.sortable");
    const at = [...table.tHead.rows[0].cells].findIndex((cell) => cell.textContent.startsWith(heading));
    return [...table.tBodies[0].rows].map((row) => row.cells[at].textContent);
}"""

LOW_CONTRAST = """() => {
    const parse = (text) => {
        const parts = text.match(/[\\d.]+/g).map(Number);
        return { rgb: parts.slice(0, 3), alpha: parts.length > 3 ? parts[3] : 1 };
    };
    const luminance = ({ rgb }) => {
        const [r, g, b] = rgb.map((v) => v / 255).map((v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4));
        return 0.2126 * r + 0.7152 * g + 0.0722 * b;
    };
    const behind = (element) => {
        for (let at = element; at; at = at.parentElement) {
            const back = parse(getComputedStyle(at).backgroundColor);
            if (back.alpha === 1) return back;
        }
        throw new Error("no background");
    };
    const found = { checked: 0, drawn: 0, low: [] };
    for (const details of document.querySelectorAll("details")) details.open = true;
    for (const element of document.body.querySelectorAll("*")) {
        const own = [...element.childNodes].some((node) => node.nodeType === 3 && node.data.trim());
        if (!own || !element.getClientRects().length) continue;
        const drawn = element.closest("svg") !== null;
        const text = parse(getComputedStyle(element)[drawn ? "fill" : "color"]);
        const [low, high] = [luminance(text), luminance(behind(element))].sort((a, b) => a - b);
        const contrast = (high + 0.05) / (low + 0.05);
        found.checked += 1;
        found.drawn += drawn;
        if (contrast < 4.5) found.low.push([element.tagName, element.textContent.slice(0, 30), contrast]);
    }
    return found;
}"""


@pytest.fixture(scope="module")
def browser() -> Iterator[playwright.Browser]:
    path = next(filter(None, map(shutil.which, BROWSERS)), None)
    if path is None:
        reason = f"no browser found ({', '.join(BROWSERS)}): apt-get install chromium"
        if os.environ.get("EFFBENCH_REQUIRE_BROWSER") == "1":
            pytest.fail(reason)
        pytest.skip(reason)
    with playwright.sync_playwright() as driver:
        found = driver.chromium.launch(executable_path=path, args=QUIETLY.split())
        yield found
        found.close()


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Pages on disk: one run, several in unlike conditions, and one that means harm."""
    folder = tmp_path_factory.mktemp("pages")
    g2 = reference("g2_groups")
    times = {f"scale=x1,groups={n}": 1e-3 * n for n in (1, 2, 4)}
    other = Results(runs.run_of(times, facts={"run.threads": 2, "cpu.governor": "powersave"}))
    harm = Results(run_file.load(store(poisoned(other.run), folder / "harm")))
    pages = {"one": [g2], "several": [g2, reference("compare"), other], "harm": [harm]}
    written = {}
    for name, results in pages.items():
        written[name] = folder / f"{name}.html"
        written[name].write_text(page.html(results), encoding="utf-8")
    return written


@contextmanager
def opened(browser: playwright.Browser, file: Path, **options: object) -> Iterator[playwright.Page]:
    """The page, which must stay silent and offline while it is open."""
    context = browser.new_context(**{"viewport": WIDE, "color_scheme": "light", **options})
    sheet = context.new_page()
    said: list[str] = []
    asked: list[str] = []
    sheet.on("console", lambda message: said.append(message.text))
    sheet.on("pageerror", lambda error: said.append(str(error)))
    sheet.on("dialog", lambda dialog: said.append(f"dialog {dialog.message}"))
    sheet.on("request", lambda request: asked.append(request.url))
    sheet.goto(file.as_uri())
    try:
        yield sheet
        assert said == []
        assert asked == [file.as_uri()]
    finally:
        context.close()


@pytest.mark.parametrize("name", ["several", "harm"])
def test_a_page_is_whole_with_scripts_off(browser: playwright.Browser, files: dict[str, Path], name: str) -> None:
    with opened(browser, files[name], java_script_enabled=False) as sheet:
        assert sheet.locator("table tbody tr").count() > 3
        assert sheet.locator("th button").count() == 0
        assert sheet.locator("h1").is_visible()
        assert all(figure.is_visible() for figure in sheet.locator("figure svg").all())
        sheet.locator("summary").first.click()
        assert sheet.locator("details").first.get_attribute("open") is not None


def test_harm_stays_text(browser: playwright.Browser, files: dict[str, Path]) -> None:
    with opened(browser, files["harm"]) as sheet:
        assert sheet.locator("script").count() == 1 and sheet.locator("img").count() == 0
        assert "<img src=x onerror=alert(2)>" in sheet.locator("h1").inner_text()


def test_columns_sort_by_number_with_the_mouse(browser: playwright.Browser, files: dict[str, Path]) -> None:
    results = reference("g2_groups")
    times = [cell.latency.point for cell in results.cells if cell.latency]
    with opened(browser, files["one"]) as sheet:
        heading = sheet.locator("table.sortable").first.locator("th").filter(has_text="latency")
        before = sheet.evaluate(SORT_COLUMN, "latency")
        by_time = [text for _, text in sorted(zip(times, before, strict=True))]
        assert by_time == before and sorted(before) != before  # as texts they would stand otherwise
        heading.locator("button").click()
        assert heading.get_attribute("aria-sort") == "ascending"
        heading.locator("button").click()
        assert heading.get_attribute("aria-sort") == "descending"
        assert sheet.evaluate(SORT_COLUMN, "latency") == by_time[::-1]
        heading.locator("button").click()
        assert heading.get_attribute("aria-sort") is None
        assert sheet.evaluate(SORT_COLUMN, "latency") == before


def test_columns_sort_from_the_keyboard_and_one_at_a_time(browser: playwright.Browser, files: dict[str, Path]) -> None:
    with opened(browser, files["one"]) as sheet:
        sheet.keyboard.press("Tab")
        assert sheet.evaluate("document.activeElement.className") == "skip"
        for _ in range(30):
            sheet.keyboard.press("Tab")
            if sheet.evaluate("document.activeElement.textContent.startsWith('time ratio')"):
                break
        sheet.keyboard.press("Enter")
        assert sheet.evaluate("document.activeElement.parentElement.ariaSort") == "ascending"
        ratios = sheet.evaluate(SORT_COLUMN, "time ratio")
        assert ratios[:3] == ["reference"] * 3 and ratios[3:] == sorted(ratios[3:])
        sheet.keyboard.press("Space")
        assert sheet.evaluate("document.activeElement.parentElement.ariaSort") == "descending"
        assert sheet.evaluate(SORT_COLUMN, "time ratio")[-3:] == ["reference"] * 3
        sheet.keyboard.press("Tab")
        sheet.keyboard.press("Enter")
        assert sheet.locator("[aria-sort]").count() == 1


def test_missing_values_stay_last_both_ways(browser: playwright.Browser, files: dict[str, Path]) -> None:
    with opened(browser, files["one"]) as sheet:
        button = sheet.locator("table.sortable").first.locator("th").filter(has_text="flags").locator("button")
        for _ in range(2):
            button.click()
            flags = sheet.evaluate(SORT_COLUMN, "flags")
            assert [text == "–" for text in flags] == [False, False] + [True] * 10
        assert flags[0].startswith("32")


def test_light_and_dark_differ_and_both_can_be_read(browser: playwright.Browser, files: dict[str, Path]) -> None:
    pictures = []
    for scheme in ("light", "dark"):
        with opened(browser, files["several"], color_scheme=scheme) as sheet:
            pictures.append(sheet.screenshot())
            found = sheet.evaluate(LOW_CONTRAST)
            assert found["low"] == [] and found["checked"] > 100 and found["drawn"] > 20
    assert pictures[0] != pictures[1]


@pytest.mark.parametrize("name", ["several", "harm"])
def test_a_phone_scrolls_tables_and_never_the_page(
    browser: playwright.Browser, files: dict[str, Path], name: str
) -> None:
    with opened(browser, files[name], viewport=PHONE) as sheet:
        sheet.evaluate("for (const item of document.querySelectorAll('details')) item.open = true")
        assert sheet.evaluate("document.documentElement.scrollWidth") == PHONE["width"]
        wide = "[...document.querySelectorAll('.scroll')].filter((item) => item.scrollWidth > item.clientWidth).length"
        assert sheet.evaluate(wide) > 0
        cut = """[...document.body.querySelectorAll('p, li, dd, h1, h2, h3, pre')]
            .filter((item) => !item.closest('.scroll') && item.scrollWidth > item.clientWidth + 1).length"""
        assert sheet.evaluate(cut) == 0


@pytest.mark.parametrize("scripts", [True, False], ids=["scripts", "no scripts"])
def test_a_page_prints_whole_and_light(browser: playwright.Browser, files: dict[str, Path], scripts: bool) -> None:
    with opened(browser, files["one"], color_scheme="dark", java_script_enabled=scripts) as sheet:
        document = sheet.pdf(prefer_css_page_size=True)
        assert document.startswith(b"%PDF")
        pages = len(re.findall(rb"/Type\s*/Page\b", document))
        # Two of them are the environment, which is folded up on the screen.
        assert 4 <= pages <= 6
        sheet.emulate_media(media="print", color_scheme="dark")
        if scripts:
            paper = "getComputedStyle(document.documentElement).backgroundColor"
            assert sheet.evaluate(paper) == "rgb(255, 255, 255)"
            room = sheet.evaluate("document.querySelector('details').open")
            assert room is False, "what printing opened is closed again"
