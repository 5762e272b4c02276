"""Open a report in a real browser without network, and operate it.

python -m tests.report.browse report.html /usr/bin/chromium profile-folder
"""

import sys
from pathlib import Path

from playwright.sync_api import Page, sync_playwright

FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


def text(page: Page, place: str) -> str:
    return page.locator(place).inner_text()


def pixels(page: Page) -> str:
    return page.evaluate("document.getElementById('token-canvas').toDataURL()")


def check_tokens(page: Page) -> None:
    canvas = page.locator("#token-canvas")
    canvas.scroll_into_view_if_needed()
    before, picture = text(page, "#token-info"), pixels(page)
    canvas.hover(position={"x": 40, "y": 30})
    first = text(page, "#token-info")
    assert first != before
    assert "Layer 1, level 1, row" in first
    assert pixels(page) != picture
    canvas.hover(position={"x": 150, "y": 100})
    assert text(page, "#token-info") != first
    # Layers switch by the keyboard alone.
    page.locator("input[name=token-layer]").first.focus()
    page.keyboard.press("ArrowRight")
    assert page.locator("input[name=token-layer]").nth(1).is_checked()
    assert "Layer 2" in text(page, "#token-info")
    assert text(page, "#token-count").startswith("Layer 2 works on")
    # So do tokens.
    canvas.focus()
    here = text(page, "#token-info")
    page.keyboard.press("ArrowDown")
    assert text(page, "#token-info") != here


def check_runs(page: Page) -> None:
    shown = page.locator(".of-run.shown")
    assert shown.count() == 1
    counts = text(page, "#token-count")
    page.locator("input[name=run]").nth(1).check()
    assert page.locator(".of-run.shown").get_attribute("data-run") == "1"
    page.wait_for_function(
        "document.querySelectorAll('.of-run.shown .js-plotly-plot').length === 5"
    )
    assert text(page, "#token-count") != counts
    pairs = page.locator("#pairs svg").count()
    assert pairs > 0
    page.locator("input[name=which]").nth(1).check()
    assert page.locator("#pairs svg").count() == 2 * 2


def check_widths(page: Page) -> None:
    for width in (1400, 400):
        page.set_viewport_size({"width": width, "height": 900})
        page.wait_for_timeout(500)
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        chart = page.locator("#training .js-plotly-plot .cartesianlayer").first.bounding_box()
        assert chart is not None and chart["height"] > 150, chart


def main() -> None:
    file, chromium, folder = sys.argv[1:]
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch_persistent_context(
            str(Path(folder) / "profile"), executable_path=chromium, headless=True, args=FLAGS,
            offline=True, viewport={"width": 1400, "height": 900},
        )  # fmt: skip
        page = browser.new_page()
        complaints: list[str] = []
        requests: list[str] = []
        page.on("console", lambda message: complaints.append(message.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("request", lambda request: requests.append(request.url))
        page.goto(Path(file).resolve().as_uri())
        page.wait_for_selector("#training .js-plotly-plot .scatterlayer")
        page.locator("#token-count", has_text="works on").wait_for()  # its image is drawn
        check_tokens(page)
        check_runs(page)
        check_widths(page)
        page.pdf(path=str(Path(folder) / "report.pdf"))
        others = [url for url in requests if not url.startswith(("data:", "blob:"))]
        assert others == [Path(file).resolve().as_uri()], others
        assert not complaints, complaints
        assert (Path(folder) / "report.pdf").stat().st_size > 20_000
        browser.close()


if __name__ == "__main__":
    main()
