"""A grid's report in a real browser: on a screen, on a phone and on paper.

    python tests/report_browser.py [REPORT] [--axe FILE] [--shots FOLDER]

REPORT is a page (figures/demo/report.html). Drives Debian's Chromium (packages chromium,
chromium-driver and poppler-utils) with selenium, without a network. Checks at 1280 and 390 px, with
everything folded and unfolded, that the page does not scroll sideways, and with axe-core (the npm
package) that it is accessible, its contrasts included. Checks that all images appear, that each
link leads to something, that the keyboard reaches and opens everything, that nothing is requested
and that the console is empty. Then prints the page: every interval of every table must be in the
PDF's text, and every figure in the PDF. Keeps screenshots and the PDF. Exit status: 0 if all checks
pass, 1 if not, 2 if it could not begin.
"""

from __future__ import annotations

import argparse
import base64
import re
import shutil
import subprocess
import sys
from pathlib import Path
from urllib.parse import unquote, urlparse

from lab_browser import chromium

AXE = Path(".venv/tools/node_modules/axe-core/axe.min.js")
LIMIT = 4_000_000  # bytes of the demo's page
SCREENS = {1280: 900, 390: 844}  # width and height in px
INTERVAL = re.compile(r"[-+−]?\d[\d.,]* \[[-+−]?[\d.,]+, [-+−]?[\d.,]+\]")
OPEN = "for (const part of document.querySelectorAll('details')) part.open = arguments[0];"
WIDE = "return document.documentElement.scrollWidth - document.documentElement.clientWidth;"
# Which elements go beyond the right edge without being in a box that scrolls.
BEYOND = """
return [...document.querySelectorAll('main *')].filter(one => !one.closest('.scroll')
  && one.getBoundingClientRect().right > innerWidth + 1).map(one => one.outerHTML.slice(0, 100));
"""
BLANK = """
const done = arguments[0];
const images = [...document.images];
Promise.allSettled(images.map(one => { one.loading = 'eager'; return one.decode(); })).then(
  all => done(images.filter((one, i) => all[i].status !== 'fulfilled' || one.naturalWidth < 100)
    .map(one => one.alt)));
"""
UNTOLD = "return [...document.images].filter(one => one.alt.length < 30).map(one => one.alt);"
REQUESTS = """
return performance.getEntriesByType('resource').map(one => one.name)
  .filter(name => !name.startsWith('data:'));
"""
LINKS = "return [...document.querySelectorAll('a[href]')].map(one => one.href);"
# What the keyboard must reach, and what it does reach: numbers in the order of the page.
REACHABLE = """
window.wanted = [...document.querySelectorAll('a[href], summary, [tabindex="0"]')];
return window.wanted.length;
"""
FOCUSED = """
const one = document.activeElement, look = getComputedStyle(one);
return [window.wanted.indexOf(one), look.outlineStyle !== 'none' && look.outlineWidth !== '0px'];
"""
RUN_AXE = """
const done = arguments[0];
axe.run(document, {resultTypes: ['violations']}).then(found => done(found.violations.map(
  one => `${one.id} (${one.impact}): ${one.help}; ${one.nodes.length} times, such as `
    + one.nodes[0].html.slice(0, 150))), error => done([String(error)]));
"""
INTERVALS = """
return [...document.querySelectorAll('td')].map(one => one.textContent.trim())
  .filter(text => text.includes('['));
"""


def on_screens(browser: object, axe: str, shots: Path) -> list[str]:
    """Faults of widths, contrasts and accessibility, on every screen, folded and unfolded."""
    found = []
    for width, height in SCREENS.items():
        device = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 500}
        browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", device)
        for unfolded in (False, True):
            browser.execute_script(OPEN, unfolded)
            at = f"{width} px, {'unfolded' if unfolded else 'folded'}"
            if (pixels := browser.execute_script(WIDE)) > 0:
                found.append(f"{at}: the page scrolls sideways by {pixels} px")
            found += [f"{at}: beyond the edge: {one}" for one in browser.execute_script(BEYOND)]
            browser.execute_script(axe)
            found += [f"{at}: axe: {one}" for one in browser.execute_async_script(RUN_AXE)]
            blank = browser.execute_async_script(BLANK) if unfolded else []
            found += [f"{at}: not shown: {alt}" for alt in blank]
            browser.execute_script("scrollTo(0, 0);")
            browser.save_screenshot(str(shots / f"report-{width}-{at.split()[-1]}.png"))
    browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
    return found


def by_keyboard(browser: object) -> list[str]:
    """Faults of a walk through the page with the tabulator, and of opening a section by Enter."""
    from selenium.webdriver import ActionChains, Keys

    def press(*keys: str) -> None:
        ActionChains(browser).send_keys(*keys).perform()

    found, reached, unseen = [], set(), 0
    browser.execute_script(OPEN, True)
    n = browser.execute_script(REACHABLE)
    browser.execute_script("document.activeElement.blur(); scrollTo(0, 0);")
    for _ in range(n + 20):
        press(Keys.TAB)
        number, visible = browser.execute_script(FOCUSED)
        reached.add(number)
        unseen += number >= 0 and not visible
    if missed := set(range(n)) - reached:
        found.append(f"the keyboard does not reach {len(missed)} of {n} links, folds and tables")
    if unseen:
        found.append(f"{unseen} focused elements have no visible focus")
    browser.execute_script(OPEN, False)
    browser.execute_script("document.querySelector('details summary').focus();")
    press(Keys.ENTER)
    if not browser.execute_script("return document.querySelector('details').open;"):
        found.append("Enter does not open a folded section")
    return found


def by_links(browser: object, page: Path) -> list[str]:
    """Links that lead nowhere, and those within the page that do not unfold their section."""
    found = []
    for address in dict.fromkeys(browser.execute_script(LINKS)):
        parts = urlparse(address)
        if Path(unquote(parts.path)) != page:
            if parts.scheme != "file" or not Path(unquote(parts.path)).is_file():
                found.append(f"a link leads nowhere: {address}")
            continue
        browser.execute_script(OPEN, False)
        browser.execute_script("location.hash = ''; location.hash = arguments[0];", parts.fragment)
        top = browser.execute_script(
            "const one = document.getElementById(arguments[0]);"
            "return one && one.checkVisibility() && one.getBoundingClientRect().top;",
            parts.fragment,
        )
        if top is None or top is False:
            found.append(f"#{parts.fragment} is not shown when a link leads to it")
    return found


def on_paper(browser: object, file: Path) -> list[str]:
    """Print the page with everything folded; faults of the PDF."""
    browser.execute_script(OPEN, False)
    made = browser.execute_cdp_cmd("Page.printToPDF", {"preferCSSPageSize": True})
    file.write_bytes(base64.b64decode(made["data"]))
    raw = subprocess.run(["pdftotext", "-raw", file, "-"], capture_output=True, text=True)
    text = "".join(raw.stdout.split())
    cells = [one for cell in browser.execute_script(INTERVALS) for one in INTERVAL.findall(cell)]
    lost = [cell for cell in dict.fromkeys(cells) if "".join(cell.split()) not in text]
    found = [f"{len(lost)} of {len(cells)} intervals are not in the PDF: {lost[:3]}"] * bool(lost)
    listed = subprocess.run(["pdfimages", "-list", file], capture_output=True, text=True).stdout
    there = sum(" image " in line for line in listed.splitlines())
    if there < (n := browser.execute_script("return document.images.length;")):
        found.append(f"the PDF has {there} of {n} figures")
    print(f"PDF: {len(cells)} intervals, {there} images, {file.stat().st_size / 1e6:.1f} MB")
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("report", nargs="?", type=Path, default=Path("figures/demo/report.html"))
    parser.add_argument("--axe", type=Path, default=AXE)
    parser.add_argument("--shots", type=Path, default=Path("results/report_shots"))
    asked = parser.parse_args()
    tools = ("chromium", "chromedriver", "pdftotext", "pdfimages")
    missing = [name for name in tools if shutil.which(name) is None]
    missing += [str(path) for path in (asked.report, asked.axe) if not path.is_file()]
    if missing:
        print(f"Missing: {', '.join(missing)}")
        print("Debian: apt install chromium chromium-driver poppler-utils; npm: axe-core")
        return 2
    page = asked.report.resolve()
    asked.shots.mkdir(parents=True, exist_ok=True)
    found = []
    if (size := page.stat().st_size) > LIMIT:
        found.append(f"the page has {size:,} bytes, more than {LIMIT:,}")
    with chromium() as browser:
        browser.get(page.as_uri())
        found += on_screens(browser, asked.axe.read_text("utf-8"), asked.shots)
        found += [f"alt text: {alt!r}" for alt in browser.execute_script(UNTOLD)]
        found += by_keyboard(browser)
        found += by_links(browser, page)
        found += on_paper(browser, asked.shots / "report.pdf")
        found += [f"requested: {name}" for name in browser.execute_script(REQUESTS)]
        found += [f"browser's console: {line['message']}" for line in browser.get_log("browser")]
    print("\n".join(found) or f"All is well. Screenshots and PDF: {asked.shots}/")
    return bool(found)


if __name__ == "__main__":
    sys.exit(main())
