"""report.html in a real browser: Chromium, headless, from file://, on a desktop and on a phone, light and dark."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest

from diffpolicy_spec.eval.report import write_reports
from diffpolicy_spec.eval.results import video_path
from diffpolicy_spec.eval.store import Store

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
SEEDS = (100000, 100001)

pytestmark = pytest.mark.skipif(
    CHROMIUM is None, reason="there is no chromium on this machine (apt-get install chromium)"
)


def film(path, shade):
    import imageio.v2 as imageio

    path.parent.mkdir(parents=True, exist_ok=True)
    with imageio.get_writer(path, fps=20, codec="libx264") as writer:
        for i in range(30):
            frame = np.full((96, 96, 3), shade, np.uint8)
            frame[40:56, 2 * i : 2 * i + 16] = 255
            writer.append_data(frame)


@pytest.fixture(scope="module")
def page_file(tmp_path_factory):
    """A report with two tasks, real time, and films of two samplers; long names where they may be long."""
    sys.path.insert(0, str(BENCHMARKS))
    try:
        from report_store import ENVIRONMENT, make_store
    finally:
        sys.path.remove(str(BENCHMARKS))
    folder = tmp_path_factory.mktemp("browser")
    long = {**ENVIRONMENT, "processor": "processor-" + "x" * 120}
    make_store(folder / "store", "lift", 40, chunks=5, hz=(10, 50), environment=long)
    make_store(folder / "store", "pusht_mujoco_keypoints", 20, chunks=3, graded=True, metrics=True)
    shades = {"ddpm100": 60, "speculative": 120}
    for cell in Store.open(folder / "store").cells().values():
        if cell.title in shades and cell.task == "lift":
            for seed in SEEDS:
                film(folder / video_path(cell, seed), shades[cell.title] + seed % 2 * 30)
    write_reports([folder], folder)
    return folder / "report.html"


@pytest.fixture(scope="module")
def browser():
    playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright (extra dev)")
    with playwright.sync_playwright() as started:
        opened = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.fixture
def visit(browser, page_file):
    """Opens the page; afterwards nothing may have gone wrong and nothing may have been asked of a network."""
    contexts, wrong, asked = [], [], []

    def open_page(width, scheme="light", javascript=True):
        context = browser.new_context(
            viewport={"width": width, "height": 800}, color_scheme=scheme, java_script_enabled=javascript
        )
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda m: wrong.append(m.text) if m.type in ("error", "warning") else None)
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("requestfailed", lambda r: wrong.append(f"failed: {r.url[:80]}"))
        page.on("request", lambda r: asked.append(r.url))
        page.goto(page_file.as_uri())
        page.wait_for_load_state("load")
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert wrong == []
    assert [url[:80] for url in asked if not url.startswith("data:") and url != page_file.as_uri()] == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 768, 360])
def test_page_fits_its_screen(visit, width, scheme):
    page = visit(width, scheme)
    inner, scroll = page.evaluate("[document.documentElement.clientWidth, document.documentElement.scrollWidth]")
    assert scroll <= inner <= width
    boxes = page.evaluate(
        """() => [...document.querySelectorAll('main svg, main video, main table')]
             .filter((e) => !e.closest('details:not([open])')).map((e) => {
               const b = e.getBoundingClientRect(); return [e.tagName, b.width, b.height]; })"""
    )
    assert len(boxes) > 15
    assert all(w > 100 and h > 60 for _, w, h in boxes), boxes
    wide = page.evaluate(
        """() => [...document.querySelectorAll('main *')].filter((e) => !e.closest('.scroll, pre'))
             .filter((e) => e.getBoundingClientRect().right > document.documentElement.clientWidth + 1)
             .map((e) => e.outerHTML.slice(0, 80))"""
    )
    assert wide == []


def test_text_of_pictures_is_readable_on_a_phone(visit):
    """At 360 px the smallest text of a picture is 8 px high or more, and stands inside its picture."""
    page = visit(360)
    sizes = page.evaluate(
        """() => [...document.querySelectorAll('svg text')].map((t) => {
             const s = t.closest('svg'), k = s.getBoundingClientRect().width / s.viewBox.baseVal.width;
             return k * parseFloat(getComputedStyle(t).fontSize); })"""
    )
    assert min(sizes) >= 8
    outside = page.evaluate(
        """() => [...document.querySelectorAll('svg text')].filter((t) => {
             const a = t.getBoundingClientRect(), b = t.closest('svg').getBoundingClientRect();
             return a.left < b.left - 2 || a.right > b.right + 2 || a.top < b.top - 2 || a.bottom > b.bottom + 2; })
             .map((t) => t.textContent)"""
    )
    assert outside == []


def test_pictures_and_controls_have_names(visit):
    page = visit(1280)
    unnamed = page.evaluate(
        """() => [...document.querySelectorAll('svg, video, img, .scroll')]
             .filter((e) => !(e.getAttribute('aria-label') || e.alt)).map((e) => e.outerHTML.slice(0, 80))"""
    )
    assert unnamed == []
    for name in ("Task", "Seed", "Left", "Right", "Speed"):
        assert page.get_by_label(name, exact=True).count() == 1, name
    assert page.evaluate("document.documentElement.lang") == "en"
    assert [h.inner_text() for h in page.locator("h1").all()] == ["Diffusion Policy samplers, evaluated"]


def test_contrast_of_text(visit):
    """WCAG AA, 4.5 to 1, of plain and soft text and of the badges, in both schemes."""
    script = """() => {
      const light = (c) => { const v = c.match(/[\\d.]+/g).slice(0, 3).map((x) => x / 255)
          .map((x) => x <= 0.03928 ? x / 12.92 : ((x + 0.055) / 1.055) ** 2.4);
        return 0.2126 * v[0] + 0.7152 * v[1] + 0.0722 * v[2]; };
      const back = (e) => { for (; e; e = e.parentElement) { const c = getComputedStyle(e).backgroundColor;
          if (c !== 'rgba(0, 0, 0, 0)') return c; } return 'rgb(255, 255, 255)'; };
      return ['.soft', 'p', 'td', 'th', 'figcaption', '.badge', 'a', 'button', 'footer'].map((q) => {
        const e = document.querySelector(q), a = light(getComputedStyle(e).color), b = light(back(e));
        return [q, (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05)]; }); }"""
    for scheme in ("light", "dark"):
        low = [(q, round(c, 2)) for q, c in visit(1280, scheme).evaluate(script) if c < 4.5]
        assert low == [], scheme


def test_two_samplers_play_side_by_side(visit):
    page = visit(1280)
    playing = "[document.getElementById('film-a'), document.getElementById('film-b')].map((v) => v.currentTime)"
    page.wait_for_function(f"() => {playing.replace('currentTime', 'readyState')}.every((s) => s >= 1)")
    sizes = page.evaluate(playing.replace("currentTime", "videoWidth"))
    assert sizes == [96, 96]
    assert page.locator("#film-text-a").inner_text().startswith("ddpm100: ")
    assert page.locator("#film-text-b").inner_text().startswith("speculative: ")
    assert [o.inner_text() for o in page.locator("#film-seed option").all()] == [str(s) for s in SEEDS]
    page.get_by_role("button", name="Play both").click()
    page.wait_for_function(f"() => {playing}.every((t) => t > 0.1)")
    page.get_by_role("button", name="Pause both").click()
    before = page.locator("#film-a").get_attribute("src")
    page.get_by_label("Seed", exact=True).select_option(str(SEEDS[1]))
    assert page.locator("#film-a").get_attribute("src") != before
    page.get_by_label("Left", exact=True).select_option("speculative")
    assert page.locator("#film-a").get_attribute("src") == page.locator("#film-b").get_attribute("src")


def test_without_javascript_everything_but_the_videos_is_there(visit):
    page = visit(1280, javascript=False)
    assert page.locator("main svg").count() > 8
    assert page.locator("noscript").count() == 1
