"""The report in a real browser: it renders, reacts to the pointer, makes no request, and is readable."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from gptkit.report.comparison import comparison_page
from gptkit.report.page import write_report
from tests.report.test_comparison import THREE
from tests.report.test_page import EVIL, RECORD, make

webdriver = pytest.importorskip("selenium.webdriver")

pytestmark = [pytest.mark.browser, pytest.mark.slow]

CONTRAST = 4.5  # WCAG 2, level AA, of text
READABLE = """
const channel = (part) => (part /= 255) <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4;
const numbers = (color) => color.match(/[\\d.]+/g).map(Number);
const light = ([r, g, b]) => 0.2126 * channel(r) + 0.7152 * channel(g) + 0.0722 * channel(b);
const background = (element) => {
  for (let at = element; at; at = at.parentElement) {
    const color = numbers(getComputedStyle(at).backgroundColor);
    if (color.length === 3 || color[3] > 0) return color;
  }
  return [255, 255, 255];
};
document.querySelectorAll("details").forEach((one) => { one.open = true; });
const found = {};
for (const element of document.querySelectorAll("body *")) {
  const own = [...element.childNodes].some((node) => node.nodeType === 3 && node.textContent.trim());
  if (!own || element.closest("script, title, desc") || !element.getClientRects().length) continue;
  const style = getComputedStyle(element);
  const inks = element.closest("svg") ? style.fill : style.color;
  const [one, other] = [light(numbers(inks)), light(background(element))].sort((a, b) => b - a);
  const ratio = (one + 0.05) / (other + 0.05);
  const name = element.tagName + "." + (element.getAttribute("class") || "");
  found[name] = Math.min(found[name] || 99, ratio);
}
return found;
"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """One browser for all of these tests: it takes seconds to start."""
    programs = [shutil.which("chromium") or shutil.which("chromium-browser"), shutil.which("chromedriver")]
    if not all(programs):
        pytest.skip("no Chromium and chromedriver here: apt-get install chromium chromium-driver")
    options = webdriver.ChromeOptions()
    for flag in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-background-networking"):
        options.add_argument(flag)
    options.binary_location = programs[0]
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SE_OFFLINE", "true")  # no driver is looked for elsewhere
        driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(programs[1]))
    try:
        yield driver
    finally:
        driver.quit()


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report of a run with every section, long names and a hostile sample."""
    run = make(tmp_path_factory.mktemp("runs") / ("long" * 30), RECORD | {"command": "gptkit " + "x" * 300})
    run.experiment_file.write_text(
        f"name = {json.dumps(EVIL)}\n[model]\nn_layer = 2\n[sampling]\nprompt = {json.dumps('p' * 200)}\n"
    )
    run.write_sample(10, "w" * 500)
    run.write_sample(20, EVIL)
    return write_report(run)


def look(browser: Any, page: Path, *, width: int = 1100, dark: bool = False) -> None:
    """Opens the page on a screen of that width, in a mode."""
    size = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": width < 500}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [scheme]})
    browser.get(page.as_uri())


def test_it_opens_without_requests_and_without_an_error(browser: Any, page: Path) -> None:
    browser.get("about:blank")
    browser.get_log("performance")
    browser.get_log("browser")
    look(browser, page)
    messages = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    asked = [
        message["params"]["request"]["url"]
        for message in messages
        if message["method"] == "Network.requestWillBeSent"
    ]
    assert asked == [page.as_uri()]
    assert browser.get_log("browser") == []
    assert browser.execute_script("return document.querySelectorAll('svg.chart path.line').length") == 2
    drawn = browser.execute_script(
        "const box = document.querySelector('#loss path.line').getBoundingClientRect();"
        "return [box.width, box.height]"
    )
    assert min(drawn) > 100


def test_the_policy_forbids_foreign_content(browser: Any, page: Path) -> None:
    look(browser, page)
    blocked = browser.execute_async_script(
        "const done = arguments[0];"
        "document.addEventListener('securitypolicyviolation', (event) => done(event.effectiveDirective));"
        "const script = document.createElement('script'); script.textContent = 'window.ran = 1';"
        "document.body.append(script); setTimeout(() => done('nothing'), 2000);"
    )
    assert blocked.startswith("script-src")
    assert browser.execute_script("return window.ran") is None
    browser.get_log("browser")


def test_the_pointer_shows_the_nearest_recorded_value(browser: Any, page: Path) -> None:
    look(browser, page)
    legend = "return [...document.querySelectorAll('#loss .legend li')].map((one) => one.innerText.trim())"
    last = ["train loss 2.0000 step 20", "val loss 2.1000 step 20"]
    assert browser.execute_script(legend) == last
    browser.execute_script("document.querySelector('#loss').scrollIntoView()")
    box = browser.execute_script(
        "const box = document.querySelector('#loss .plot').getBoundingClientRect();"
        "return [box.left, box.top, box.width, box.height]"
    )
    x_from, x_to = json.loads(
        browser.execute_script("return document.querySelector('#loss script.points').textContent")
    )["x"]

    def point_at(step: float) -> list[str]:
        x = box[0] + box[2] * (step - x_from) / (x_to - x_from)
        where = {"type": "mouseMoved", "x": x, "y": box[1] + box[3] / 2}
        browser.execute_cdp_cmd("Input.dispatchMouseEvent", where)
        shown: list[str] = browser.execute_script(legend)
        return shown

    assert point_at(11.2) == ["train loss 2.9000 step 11", "val loss 3.1000 step 10"]
    assert point_at(6.8) == ["train loss 3.3000 step 7", "val loss 3.6000 step 5"]
    assert browser.execute_script("return document.querySelectorAll('#loss .here circle').length") == 2
    browser.execute_cdp_cmd("Input.dispatchMouseEvent", {"type": "mouseMoved", "x": 2, "y": 2})
    assert browser.execute_script(legend) == last
    browser.execute_script("document.querySelector('#loss .plot').focus()")
    for key in ("Home", "ArrowRight"):
        browser.execute_cdp_cmd("Input.dispatchKeyEvent", {"type": "keyDown", "key": key})
    assert browser.execute_script(legend)[0] == "train loss 3.8000 step 2"


def test_a_sample_is_shown_as_text(browser: Any, page: Path) -> None:
    look(browser, page)
    text = browser.execute_script("return document.querySelector('details.sample[open] pre').textContent")
    assert text.startswith("</script><script>alert(1)</script>\"'><img src=x onerror=alert(1)>")
    assert browser.execute_script("return document.images.length") == 0
    assert browser.execute_script("return document.querySelectorAll('details.sample[open]').length") == 1


def test_it_fits_a_phone(browser: Any, page: Path) -> None:
    look(browser, page, width=375)
    for opened in (False, True):
        browser.execute_script(
            "document.querySelectorAll('details').forEach((one) => { if (arguments[0]) one.open = true; })",
            opened,
        )
        widths = browser.execute_script("return [document.documentElement.scrollWidth, innerWidth]")
        assert widths == [375, 375]
    size = browser.execute_script("return getComputedStyle(document.querySelector('.axes text')).fontSize")
    assert float(size.removesuffix("px")) >= 12


def test_it_can_be_read_in_the_light_and_in_the_dark(browser: Any, page: Path) -> None:
    grounds = []
    for dark in (False, True):
        look(browser, page, dark=dark)
        grounds.append(browser.execute_script("return getComputedStyle(document.body).backgroundColor"))
        ratios = browser.execute_script(READABLE)
        assert len(ratios) > 15
        assert {name: ratio for name, ratio in ratios.items() if ratio < CONTRAST} == {}
    assert grounds[0] != grounds[1]


def test_without_its_script_the_curves_still_show(browser: Any, page: Path) -> None:
    browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": True})
    try:
        look(browser, page)
    finally:
        browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": False})
    assert (
        browser.execute_script("return document.querySelector('#loss .plot').hasAttribute('tabindex')")
        is False
    )
    height = browser.execute_script(
        "return document.querySelector('#loss path.line').getBoundingClientRect().height"
    )
    assert height > 100
    shown = browser.execute_script("return document.querySelector('#loss .legend').innerText")
    assert "train loss 2.0000 step 20" in shown


def test_a_page_of_several_runs_changes_its_axis_without_a_reload(
    browser: Any, tmp_path_factory: pytest.TempPathFactory
) -> None:
    page = tmp_path_factory.mktemp("compared") / "compared.html"
    page.write_bytes(comparison_page(THREE))
    look(browser, page, width=375)
    browser.get_log("performance")
    shown = (
        "return [...document.querySelectorAll('figure')].filter((one) => one.getClientRects().length)"
        ".map((one) => one.id)"
    )
    assert browser.execute_script(shown) == ["val-by-step", "train-by-step"]
    browser.execute_script("document.querySelector('input[value=seconds]').click()")
    assert browser.execute_script(shown) == ["val-by-seconds", "train-by-seconds"]
    assert "requestWillBeSent" not in str(browser.get_log("performance"))
    assert browser.get_log("browser") == []
    assert browser.execute_script("return document.documentElement.scrollWidth") == 375
    for dark in (False, True):
        look(browser, page, dark=dark)
        assert {name for name, ratio in browser.execute_script(READABLE).items() if ratio < CONTRAST} == set()
