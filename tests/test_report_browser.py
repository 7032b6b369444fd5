"""Truth: what Chromium draws, fetches and complains of, and what the detectors' planted episodes are."""

from __future__ import annotations

import re

import pytest
from chromium import Chromium, needed
from test_report import HOSTILE, hostile_run

from stabilitylab.report import write

ROOT = "document.documentElement"
WINDOW = f"[Number({ROOT}.dataset.low), Number({ROOT}.dataset.high)]"
TOOLTIP = """(() => {
  const words = [];
  const walk = (node) => {
    if (node.shadowRoot) walk(node.shadowRoot);
    node.childNodes.forEach(walk);
    if (String(node.className).includes('tooltip-row')) words.push(node.textContent);
  };
  walk(document.body);
  return words.join(' ');
})()"""


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    needed()
    browser = Chromium(tmp_path_factory.mktemp("chromium"))
    yield browser
    browser.close()


@pytest.fixture(scope="module")
def shown(tmp_path_factory):
    """A run with hostile names: what holds for it holds for others."""
    analysis = hostile_run(
        tmp_path_factory.mktemp("runs") / "<b>run&", planted=[{"kind": "x", "what": "y", "spans": [[700, 701]]}]
    )
    return analysis, write(analysis, pictures={})


def test_it_is_drawn_asks_for_nothing_and_complains_of_nothing(browser, shown):
    _, path = shown
    browser.open(path)
    assert browser.requests == [path.resolve().as_uri()]
    assert browser.complaints == []
    assert browser.ask("document.title").startswith("<b>run&")
    canvases = browser.ask("""(() => {
      const found = [];
      for (const plot of document.querySelectorAll('.plot')) {
        const inside = plot.querySelector('*').shadowRoot.querySelector('.bk-Canvas').shadowRoot;
        const canvas = inside.querySelector('canvas');
        const pixels = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height).data;
        found.push([canvas.width, canvas.height, pixels.some((value) => value > 0)]);
      }
      return found;
    })()""")
    assert len(canvases) == 5  # three layers, the loss and the accuracy
    assert all(width > 600 and height >= 100 and drawn for width, height, drawn in canvases)


def test_an_episode_in_the_address_or_a_click_on_its_row_shows_its_steps(browser, shown):
    analysis, path = shown
    browser.open(path, "#episode-2")
    episode = analysis.episodes[1]
    low, high = browser.ask(WINDOW)
    assert low < episode.start <= episode.stop < high < low + 400
    assert browser.ask("document.querySelector('tr[aria-current]').dataset.key") == "episode-2"
    browser.ask("document.querySelector('tr[data-key=episode-1] td').click()")
    browser.wait(f"Number({ROOT}.dataset.low) < {low}")
    assert browser.ask(WINDOW)[0] < analysis.episodes[0].start < browser.ask(WINDOW)[1]
    assert browser.ask("document.querySelectorAll('tr[aria-current]').length") == 1
    browser.ask("document.querySelector('button[data-do=whole]').click()")
    assert browser.ask(WINDOW)[0] <= 0
    assert browser.ask("document.getElementById('window').textContent") == "steps 0 to 1,499"
    assert browser.complaints == []


def test_dragging_zooms_every_chart_and_the_pointer_names_layer_step_and_value(browser, shown):
    _, path = shown
    browser.open(path)
    left, top, width = browser.ask("""(() => {
      const box = document.getElementById('chart-0').getBoundingClientRect();
      return [box.left, box.top, box.width];
    })()""")
    at = [left + width * part for part in (0.4, 0.5, 0.6)]
    browser.point("mouseMoved", at[0], top + 60)
    browser.point("mousePressed", at[0], top + 60, button="left", clickCount=1)
    for x in at:
        browser.point("mouseMoved", x, top + 60, button="left", buttons=1)
    browser.point("mouseReleased", at[2], top + 60, button="left", clickCount=1)
    browser.wait(f"Number({ROOT}.dataset.high) < 1400")
    low, high = browser.ask(WINDOW)
    assert 400 < low < 700 < high < 1000
    browser.point("mouseMoved", at[1] + 5, top + 70)
    browser.wait(f"/step: *[0-9]/.test({TOOLTIP})")
    said = browser.ask(TOOLTIP)
    assert HOSTILE[0] in said
    step = int(re.search(r"step: *([\d,]+)", said).group(1).replace(",", ""))
    assert low < step < high
    assert re.search(r"times its own level: *\d", said)
    assert browser.complaints == []


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_a_narrow_page_does_not_scroll_sideways_and_follows_the_scheme(browser, shown, dark):
    _, path = shown
    for width in (1600, 390)[dark:]:
        browser.open(path, width=width, dark=dark)
        assert browser.ask(f"{ROOT}.scrollWidth <= {ROOT}.clientWidth")
        reasons = "[...document.querySelectorAll('.reasons')].map(each => each.parentElement)"
        assert browser.ask(f"{reasons}.length") > 0
        assert browser.ask(f"{reasons}.every(each => each.scrollWidth <= each.clientWidth)")
    ground = browser.ask("getComputedStyle(document.body).backgroundColor")
    assert ground == ("rgb(22, 24, 28)" if dark else "rgb(255, 255, 255)")
    axes = browser.ask(
        "getComputedStyle(document.querySelector('.plot')).getPropertyValue('--bk-axis-label-text-color')"
    )
    assert axes.strip() == ("#e4e4e4" if dark else "#222222")


def test_the_browser_tests_can_fail(browser, tmp_path):
    page = tmp_path / "page.html"
    page.write_text("<img src='https://example.org/x.png'><script>undefined.x</script>")
    browser.open(page)
    browser.wait("true")
    assert "https://example.org/x.png" in browser.requests
    assert any("TypeError" in each for each in browser.complaints)
