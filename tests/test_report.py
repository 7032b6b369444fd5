"""Truth: planted runs, what HTML's own parser reads in the page, the literature behind each advice, WCAG's contrast."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import json
import re
from html.parser import HTMLParser
from itertools import pairwise

import numpy as np
import pytest
from matplotlib.colors import to_rgb
from PIL import Image

from stabilitylab import Run, analyze, plots, plugins
from stabilitylab.findings import Episode, Event, Finding
from stabilitylab.plots._style import DEPTH
from stabilitylab.report import curves, page, pictures, write
from stabilitylab.report.advice import ADVICE, advise
from stabilitylab.report.charts import NOT_FINITE, PLANTED
from stabilitylab.report.limits import LIMITS
from stabilitylab.report.numbers import numbers
from stabilitylab.report.pictures import stills
from stabilitylab.report.tables import EPISODES, episode_rows, planted_spans
from stabilitylab.report.verdict import tone, verdict
from stabilitylab.run import RunWriter
from stabilitylab.schema.kinds import KINDS
from stabilitylab.synthetic import synthesize
from stabilitylab.synthetic import write as synthetic_run

HOSTILE = (
    '"><img src=x onerror=alert(1)>$$x$$@step{0}',
    "</script><script>document.title='owned'</script>",
    "{{7*7}}%&",
)


class Read(HTMLParser):
    """What a browser would see: tags with their attributes, text, and addresses that would be fetched."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict]] = []
        self.text = ""
        self.inside: list[str] = []
        self.scripts: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        self.inside = [tag]
        if tag == "script":
            self.scripts.append("")

    def handle_endtag(self, tag):
        self.inside = []

    def handle_data(self, data):
        if self.inside == ["script"]:
            self.scripts[-1] += data
        elif self.inside != ["style"]:
            self.text += data

    def of(self, tag):
        return [attributes for name, attributes in self.tags if name == tag]


def hostile_run(folder, **planted):
    """Write a run whose names, labels and settings would be code where they are not escaped."""
    made = synthesize(steps=1500, layers=3, spikes=(400, 700, 1000), heights=(20.0,), lags=(0, 3, 3), length=2)
    to = dict(zip(made.layers["names"], HOSTILE, strict=True))
    of = {parameter: to[layer] for parameter, layer in made.layers["of"].items()}
    layers = {"names": list(to.values()), "of": of, "first": HOSTILE[0]}
    writer = RunWriter(folder, {"layers": layers, "config": {HOSTILE[1]: HOSTILE[1]}} | planted)
    for name, frame in made.series.items():
        writer.declare(name, list(frame.columns), **made.about.get(name, {}))
        writer.write(name, frame.index.to_numpy(), frame.to_numpy())
    writer.close("completed")
    return analyze(Run(folder))


@pytest.fixture(scope="module")
def rich(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "rich"
    spikes = tuple(range(300, 3900, 300))
    synthetic_run(folder, steps=4000, layers=4, spikes=spikes, heights=(20.0, 6.0, 6.0, 6.0), lags=(0, 4, 5, 6),
                  length=2, dips=(620, 1820), nonfinite=(3950,), collapse_at=2000)  # fmt: skip
    return analyze(Run(folder))


@pytest.fixture(scope="module")
def quiet(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "quiet"
    synthetic_run(folder, steps=400, layers=3)
    return analyze(Run(folder))


@pytest.fixture(scope="module")
def hostile(tmp_path_factory):
    """The page of the hostile run, with pictures that write its names."""
    planted = [{"kind": "x", "what": HOSTILE[1], "spans": [[700, 701]]}]
    analysis = hostile_run(tmp_path_factory.mktemp("runs") / "<b>run&", planted=planted)
    folder = tmp_path_factory.mktemp("pictures")
    drawn = {name: plots.picture(name, [analysis], folder / f"{name}.png") for name in ("lags", "layers")}
    return Read(page(analysis, drawn))


# ---- the page


def test_what_is_planted_is_told(rich):
    happened, order, cost = verdict(rich)
    assert "13 gradient spikes" in happened or "12 gradient spikes" in happened
    assert "not finite at 1 step, first at step 3,950" in happened
    assert "dimensional collapse of the projection (6 of 16 directions dead) from step 2,000" in happened
    assert re.search(r"patch_embed leads 3 of 3 later layers, most clearly blocks\.\d: lag \+[456] steps", order)
    assert "p < 0.001" in order
    assert "2 falls of the kNN accuracy" in happened
    assert re.search(r"deepest fall of the kNN accuracy costs (9|1\d)\.\d points", cost)
    assert "collapse of the representation" in cost  # which was not recorded


def test_a_quiet_run_is_told_as_quiet_and_gets_no_advice(quiet):
    happened, order, cost = verdict(quiet)
    assert happened.startswith("Nothing happened that the detectors can see: ")
    assert "no order in time" in order
    assert cost.startswith("No dip of the kNN accuracy")
    assert advise(quiet) == []
    read = Read(page(quiet, {}))
    assert "Nothing was found in this run that calls for a change." in read.text
    assert "2 later layers, none with enough events to judge" in read.text
    assert "couplings tested" not in read.text


def test_a_run_with_nothing_but_a_loss(tmp_path):
    writer = RunWriter(tmp_path / "run", {"layers": {"names": [], "of": {}, "first": ""}})
    writer.declare("training.loss", ["loss"])
    writer.write("training.loss", np.arange(80), np.linspace(2, 1, 80)[:, None])
    writer.close("completed")
    analysis = analyze(Run(tmp_path / "run"))
    happened, order, cost = verdict(analysis)
    assert order.startswith("Gradients were not recorded")
    assert cost.startswith("Not to be seen in this run: divergence of the loss, gradient spikes")
    read = Read(page(analysis))
    assert [each["id"] for each in read.of("div") if each.get("role") == "img"] == ["chart-0"]
    assert "between 1 and 2" in next(each for each in read.of("div") if each.get("id") == "chart-0")["aria-label"]
    assert "no gradient spike" not in happened.lower()
    assert "Nothing could be judged in this run, so nothing is advised." in read.text
    assert "Not judged." in read.text
    assert "couplings" not in {each["id"] for each in read.of("h2")}


def test_a_run_without_any_series_has_a_page_without_scripts(tmp_path):
    RunWriter(tmp_path / "run", {"layers": {"names": [], "of": {}, "first": ""}}).close("failed")
    read = Read(page(analyze(Run(tmp_path / "run"))))
    assert read.scripts == []
    assert "failed" in read.text


def test_names_are_text_and_never_markup(hostile):
    read = hostile
    assert not read.of("b") or all(not attributes for attributes in read.of("b"))
    assert all(each["src"].startswith("data:image/png;base64,") for each in read.of("img"))
    assert len(read.scripts) == 3  # numbers, Bokeh's, the page's
    assert not any(name.startswith("on") for _, attributes in read.tags for name in attributes)
    for name in HOSTILE:
        assert name in read.text
    assert "49%" not in read.text  # a name is no template


def test_the_policy_lets_the_own_scripts_run_and_nothing_be_fetched(rich):
    read = Read(page(rich, {}))
    policy = next(each["content"] for each in read.of("meta") if each.get("http-equiv") == "Content-Security-Policy")
    rules = dict(each.strip().split(" ", 1) for each in policy.split(";"))
    hashes = [base64.b64encode(hashlib.sha256(each.encode()).digest()).decode() for each in read.scripts[1:]]
    assert rules["default-src"] == "'none'"
    assert rules["script-src"] == " ".join(f"'sha256-{each}'" for each in hashes)
    assert rules["img-src"] == "data:"
    assert read.of("link") == read.of("iframe") == []
    assert not any(attributes.get("src", "data:")[:5] != "data:" for _, attributes in read.tags)
    assert json.loads(read.scripts[0])["roots"]


def test_headings_are_in_order_and_figures_have_words(hostile):
    read = hostile
    depths = [int(tag[1]) for tag, _ in read.tags if re.fullmatch("h[1-6]", tag)]
    assert depths[0] == 1
    assert depths.count(1) == 1
    assert all(after <= before + 1 for before, after in pairwise(depths))
    assert read.of("html")[0]["lang"] == "en"
    assert all(each["alt"].strip() for each in read.of("img"))
    assert len(read.of("img")) == 2
    assert all(each["aria-label"] for _, each in read.tags if each.get("role") == "img")
    identifiers = [each["id"] for _, each in read.tags if "id" in each]
    assert len(identifiers) == len(set(identifiers))
    links = [each["href"][1:] for each in read.of("a") if each["href"].startswith("#finding")]
    assert links
    assert set(links) <= set(identifiers)


def test_every_episode_has_a_row_with_its_window(rich):
    rows = episode_rows(rich)
    assert [each.number for each in rows] == list(range(1, len(rich.episodes) + 1))
    assert all(row.low <= each.start and each.stop <= row.high for row, each in zip(rows, rich.episodes, strict=True))
    assert any("dip +" in row.cells[-1] for row in rows)


def test_of_too_many_episodes_the_clearest_are_shown(rich):
    events = [
        Event(at, at, at, at, "spike", "gradients.norm", "patch_embed", 5.0, float(at % 97)) for at in range(2000)
    ]
    many = dataclasses.replace(rich, episodes=tuple(Episode(e.start, e.stop, (e,), ("patch_embed",)) for e in events))
    rows = episode_rows(many)
    assert len(rows) == EPISODES
    assert min(row.low + 50 for row in rows if row.low) % 97 >= 70
    assert f"The {EPISODES} clearest of\n2,000 are shown" in Read(page(many, {})).text


def test_the_page_does_not_know_what_kinds_of_finding_there_are(rich):
    new = Finding("tides", "The moon did it.", "ebb", {"depth": {"a": 1.5, "b": float("nan")}}, "looking", {"days": 28})
    read = Read(page(dataclasses.replace(rich, findings=(*rich.findings, new)), {}))
    for text in ("tides", "The moon did it.", "ebb", "depth.a", "1.5", "nan", "looking", "days", "stated no limits"):
        assert text in read.text
    assert "Tides: ebb" in verdict(dataclasses.replace(rich, findings=(new,)))[0]


def test_numbers_are_flattened_and_long_ones_summed_up():
    assert dict(numbers({"a": {"b": 1, "c": [1, 2]}, "d": None, "e": True})) == {
        "a.b": "1", "a.c": "1, 2", "d": "none", "e": "yes",
    }  # fmt: skip
    assert dict(numbers({"of": {str(each): each for each in range(150)}})) == {"of": "150 values, 0 to 149"}


def test_writing_leaves_one_file_that_is_whole(rich, tmp_path):
    path = write(rich, tmp_path / "there" / "report.html", {})
    assert [each.name for each in path.parent.iterdir()] == ["report.html"]
    assert path.read_text(encoding="utf-8").rstrip().endswith("</html>")
    assert path.stat().st_size < 2.5e6


def test_pictures_that_no_chart_shows_are_drawn_where_the_run_has_their_series(quiet, monkeypatch):
    others = [each for each in plugins.names("plots") if each not in ("spectrum", "updates")]
    monkeypatch.setattr(pictures, "INTERACTIVE", others)
    found, left_out = stills(quiet, None)
    assert [each.name for each in found] == ["spectrum"]  # updates were not recorded
    assert left_out == []
    assert found[0].caption == plots.caption("spectrum")


def test_pictures_are_bounded_and_what_is_left_out_is_named(rich, tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (700, 700, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "noise.png")
    Image.fromarray(noise[:20, :20]).save(tmp_path / "small.png")
    files = {"layers": "noise.png", "spectrum": "small.png", "knn": "small.png"}
    found, left_out = stills(rich, {name: tmp_path / file for name, file in files.items()})
    assert [(each.name, each.width, each.height) for each in found] == [("spectrum", 20, 20)]  # knn: a chart shows it
    assert left_out == ["layers"]


# ---- thinning


def test_every_spike_outside_and_every_value_inside_the_windows_is_drawn():
    rng = np.random.default_rng(0)
    steps = np.arange(300_000) * 3
    values = rng.standard_normal(len(steps))
    spikes = rng.choice(len(steps), 100, replace=False)
    values[spikes] = 50 + rng.random(100)
    windows = np.array([(90_000, 93_000), (600_000, 600_300)])
    rows = curves.rows_to_draw(steps, values, windows)
    assert len(rows) <= curves.OVERVIEW + curves.DETAIL
    assert set(spikes) <= set(rows) or max(values) == values[rows].max()
    for low, high in windows:
        inside = np.flatnonzero((steps >= low) & (steps <= high))
        assert set(inside) <= set(rows)
    assert (np.diff(rows) > 0).all()


def test_windows_share_the_room_they_have():
    steps = np.arange(1_000_000)
    starts = np.arange(5_000, 995_000, 2_000)
    windows = np.stack([starts, starts + np.where(np.arange(len(starts)) % 2, 5, 500)], axis=1)
    rows = curves.rows_to_draw(steps, np.zeros(len(steps)), windows)
    assert len(rows) <= curves.OVERVIEW + curves.DETAIL
    kept = [int(((rows >= low) & (rows <= high)).sum()) for low, high in windows]
    assert min(kept[1::2]) == 6  # small windows whole
    assert 35 <= min(kept[::2]) <= max(kept[::2]) <= 60


def test_a_frozen_first_layer_is_not_drawn(tmp_path):
    made = synthesize(steps=300, layers=5)
    frame = made.series["gradients.norm"].copy()
    frame.iloc[:, 0] = 0.0
    synthetic_run(tmp_path / "run", dataclasses.replace(made, series=dict(made.series) | {"gradients.norm": frame}))
    titles = [each.title for each in curves.panels(analyze(Run(tmp_path / "run")), np.empty((0, 2)))]
    assert titles[:3] == ["Gradient of blocks.0", "Gradient of blocks.2", "Gradient of blocks.3"]


def test_what_was_planted_is_marked_and_told(rich):
    entry = {"kind": "gradient", "what": "the gradient of patch_embed times 30", "spans": [[600, 600], [3000, 3009]]}
    run = Run(rich.run.path)
    run.header["planted"] = [entry, "not sound"]
    seen = Finding("planted", "", "some found", {"found": 1})
    planted = dataclasses.replace(rich, run=run, findings=(*rich.findings, seen))
    assert planted_spans(run) == [(600, 600), (3000, 3009)]
    assert [row.number for row in episode_rows(planted) if "(planted)" in row.cells[0]] == [2, 10]
    assert verdict(planted)[0].startswith("2 disturbances planted on purpose, 1 of them found again; ")
    assert not any("(planted)" in row.cells[0] for row in episode_rows(rich))


# ---- what to try next


def names_of(analysis, **config):
    run = Run(analysis.run.path)
    run.header["config"] = config
    return {each.name for each, _ in advise(dataclasses.replace(analysis, run=run))}


def test_advice_is_tied_to_evidence_and_never_advises_what_is_done(rich):
    given = names_of(rich)
    assert {"freeze the patch projection", "convolutional stem", "lower learning rate", "clip", "DirectCLR"} <= given
    assert not {"projector", "prediction head", "bfloat16", "normalize queries and keys", "more seeds"} & given
    frozen = names_of(rich, model={"patch_projection": "frozen", "stem": "patchify"})
    assert frozen == given - {"freeze the patch projection"}
    conv = names_of(rich, model={"stem": "convolutional"})
    assert not {"freeze the patch projection", "convolutional stem"} & conv
    assert "smaller batch" in names_of(rich, data={"batch_size": 4096}) - given
    assert "smaller batch" not in names_of(rich, data={"batch_size": 256})
    assert "bfloat16" in names_of(rich, train={"precision": "fp16"})
    assert "longer warm-up" in names_of(rich, schedule={"warmup_steps": 1500})
    assert "DirectCLR" not in names_of(rich, method={"name": "directclr"})
    assert "clip" not in names_of(rich, stabilize={"clip": "zclip"})


def test_collapse_calls_for_what_the_method_lacks(rich):
    complete = Finding("collapse", "", "complete", {"tap": "representation"})
    partial = Finding("collapse", "", "dimensional", {"tap": "representation", "dead": 3, "measurable": 16})
    alone = dataclasses.replace(rich, episodes=(), events=(), findings=(complete,))
    assert names_of(alone) == {"prediction head"}  # no layer of the run is one
    assert names_of(alone, method={"predictor_layers": 2}) == set()
    assert names_of(alone, method={"predictor_layers": 0, "batch_norm": False}) == {
        "prediction head", "BatchNorm in the heads",
    }  # fmt: skip
    dimensional = dataclasses.replace(alone, findings=(partial,))
    assert names_of(dimensional) == {"projector", "weaker augmentation"}
    assert names_of(dimensional, method={"projector_layers": 3}) == {"weaker augmentation"}


def test_configurations_of_any_shape_do_no_harm(rich):
    strange = {"optimizer": 3}, {"model": None, "data": {"batch_size": "many"}}, {"optimizer": {"betas": ["a", None]}}
    for config in strange:
        assert "lower learning rate" in names_of(rich, **config)


def test_every_advice_has_its_source_or_needs_none():
    assert len({each.name for each in ADVICE}) == len(ADVICE)
    for each in ADVICE:
        assert each.source is None or re.fullmatch(r"https://arxiv\.org/abs/\d{4}\.\d{4,5}", each.source[1])


# ---- limits


def test_every_kind_of_finding_has_its_limits_and_a_tone():
    assert set(LIMITS) == set(KINDS)
    tones = {each: tone(each) for kind in KINDS.values() for each in kind.verdicts}
    assert {each for each in tones if tones[each] == "quiet"} == {"none", "together", "acted", "never acted"}
    assert {"not judged", "too few events", "inconclusive"} <= {each for each in tones if tones[each] == "undecided"}
    assert {"spikes", "leads", "dips", "diverged", "complete"} <= {each for each in tones if tones[each] == "found"}


# ---- colors


def luminance(color):
    parts = np.array(to_rgb(color))
    linear = np.where(parts <= 0.04045, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4)
    return float(linear @ (0.2126, 0.7152, 0.0722))


def contrast(one, other):
    bright, dark = sorted((luminance(one), luminance(other)), reverse=True)
    return (bright + 0.05) / (dark + 0.05)


def test_text_and_lines_stand_out_on_both_grounds(quiet):
    style = re.search(r"<style>(.*?)</style>", page(quiet, {}), re.DOTALL).group(1)
    light, dark = (dict(re.findall(r"--([a-z-]+): (#[0-9a-f]{6})", block)) for block in style.split("@media", 2)[:2])
    assert set(light) == set(dark)
    for theme in (light, dark):
        for name in ("ink", "soft", "link"):
            assert min(contrast(theme[name], theme["paper"]), contrast(theme[name], theme["pale"])) >= 4.5, name
        for name in ("found", "quiet", "undecided"):
            assert contrast(theme[name], theme[f"{name}-paper"]) >= 4.5, name
        for line in (*DEPTH, curves.LOSS, curves.KNN, curves.RANK, PLANTED, NOT_FINITE):
            assert contrast(line, theme["paper"]) >= 3, line  # WCAG's limit for what is not text
