"""Truth: the JSON Schema standard as `jsonschema` checks it, and the findings of runs with everything planted."""

import ast
import copy
import json
import math
from pathlib import Path
from types import SimpleNamespace

import jsonschema
import pandas as pd
import pytest

import stabilitylab
from stabilitylab import synthetic
from stabilitylab.analysis import analyze
from stabilitylab.detectors.drift import Own
from stabilitylab.run import Run
from stabilitylab.schema import FILE, FOREIGN, KINDS, SCHEMA, findings_schema
from stabilitylab.schema.__main__ import page, schema_text
from stabilitylab.telling.drift import tell_drift

TELLING = Path(stabilitylab.__file__).parent / "telling"
PAGE = Path(__file__).parents[1] / "docs" / "findings.md"
MANY = tuple(range(200, 1700, 120))

RUNS = {
    "quiet": {"steps": 700},
    "short": {"steps": 12},
    "leads": {"steps": 1800, "spikes": MANY, "heights": (5.0,), "lags": (0, 6, 6), "dips": (1010,), "rank": True},
    "follows": {"steps": 1800, "spikes": MANY, "heights": (5.0,), "lags": (6, 0, 0), "collapse_at": 900},
    "together": {"steps": 1800, "spikes": MANY, "heights": (5.0,), "lags": (0, 0, 0), "collapse_at": 900, "dead": 16},
    "mixed": {"steps": 1800, "spikes": MANY, "heights": (5.0,), "lags": (0, 9, -9), "accuracy_steps": (900,)},
    "broken": {"steps": 900, "spikes": (300,), "nonfinite": (400, 401), "dips": (860,), "diverge_at": 600},
    "drifting": {"steps": 1800, "degrade_at": 600, "degrade_by": 0.3, "taps": ("projection", "representation")},
    "coupled": {
        "steps": 1800, "spikes": MANY, "heights": (5.0,), "updates": True, "update_lead": 3, "adam": True,
        "adam_lead": 10, "loss_follow": 2, "dip_follow": 10, "rank": True, "rank_follow": 20,
    },
}  # fmt: skip


@pytest.fixture(scope="module")
def contents(tmp_path_factory):
    """What the analyses of these runs write."""
    folder = tmp_path_factory.mktemp("runs")
    found = {}
    for name, planted in RUNS.items():
        synthetic.write(folder / name, layers=3, **planted)
        if name == "broken":
            header = json.loads((folder / name / "run.json").read_text())
            header["self_check"] = {"mistake": "clipped", "sentence": "The gradients were clipped already."}
            header["disabled"] = {"knn": {"step": 120, "traceback": "ValueError: no neighbors\n"}}
            (folder / name / "run.json").write_text(json.dumps(header))
        saved = analyze(Run(folder / name), draws=200).save()
        found[name] = json.loads((saved / "findings.json").read_text(), parse_constant=refuse)
    return found


def refuse(constant):
    """JSON has no number that is not finite; readers of other languages fail at one."""
    raise AssertionError(f"{constant} is no JSON")


def test_the_schema_is_one_and_is_the_one_of_the_package_and_of_the_page():
    jsonschema.Draft202012Validator.check_schema(findings_schema())
    assert FILE.read_text() == schema_text()
    assert PAGE.read_text() == page(PAGE.read_text())


def test_what_the_analysis_writes_is_valid(contents):
    check = jsonschema.Draft202012Validator(findings_schema())
    for name, content in contents.items():
        wrong = [f"{name}: {list(each.path)}: {each.message}" for each in check.iter_errors(content)]
        assert wrong == []
    assert "inf" in json.dumps(contents["broken"])  # a spike that is not finite, as the documented string


def test_everything_told_is_declared_and_every_literal_kind_too(contents):
    for content in contents.values():
        for finding in content["findings"]:
            kind = KINDS[finding["kind"]]
            assert finding["verdict"] in kind.verdicts, (finding["kind"], finding["verdict"])
            assert set(finding["numbers"]) <= set(kind.numbers), finding["kind"]
            assert not kind.needs or finding["verdict"] == "not judged" or finding["numbers"]
    literal = {kind for path in TELLING.glob("*.py") for kind in kinds_in(path.read_text())}
    assert literal - set(KINDS) == set()
    assert set(KINDS) - literal == set()  # nothing is declared that nobody tells


def test_a_reach_that_is_unlimited_is_left_out():
    frame = pd.DataFrame({"bank": [0.5, 0.6]}, index=pd.Index([0, 10], name="step"))
    told = {}
    for reach in (0.25, math.inf):
        drifted = {"bank": (Own(0.1, 0.4, reach, 0, 10), None)}
        frames = {"knn.accuracy": frame}
        evidence = SimpleNamespace(frames=frames, drifted=drifted, of=lambda *_, **__: (), parameters={})
        (told[reach],) = tell_drift(evidence)
    assert told[0.25].numbers["reach"] == 0.25
    assert "reach" not in told[math.inf].numbers
    assert "any could have been missed" in told[math.inf].sentence
    json.dumps(told[math.inf].numbers, allow_nan=False)


def kinds_in(source: str) -> set[str]:
    """Return the kinds that a source writes out where it makes a finding."""
    calls = [each for each in ast.walk(ast.parse(source)) if isinstance(each, ast.Call) and each.args]
    made = [each.args[0] for each in calls if isinstance(each.func, ast.Name) and each.func.id == "Finding"]
    return {str(each.value) for each in made if isinstance(each, ast.Constant)}


def test_these_runs_have_much_to_tell(contents):
    told = {(each["kind"], each["verdict"]) for content in contents.values() for each in content["findings"]}
    wanted = {
        ("spikes", "spikes"), ("spikes", "none"), ("spikes", "not judged"), ("lead", "leads"), ("lead", "follows"),
        ("lead", "together"), ("dips", "dips"), ("dips", "none"), ("collapse", "dimensional"),
        ("collapse", "complete"), ("collapse", "none"), ("divergence", "diverged"), ("recording", "clipped"),
        ("where spikes begin", "first layer"), ("not judged", "not judged"),
    }  # fmt: skip
    assert wanted <= told


@pytest.mark.parametrize(
    ("where", "value"),
    [
        (("schema",), SCHEMA + 1),
        (("findings", 0, "verdict"), "perhaps"),
        (("findings", 0, "kind"), "rumor"),
        (("findings", 0, "numbers", "made_up"), 1),
        (("findings", 0, "events", 0, "height"), "infinite"),
        (("findings", 0, "events", 0, "start"), 1.5),
        (("episodes", 0, "more"), 1),
    ],
)
def test_the_schema_can_fail(contents, where, value):
    content = copy.deepcopy(contents["leads"])
    content["findings"].sort(key=lambda each: each["kind"] != "spikes")
    inner = content
    for each in where[:-1]:
        inner = inner[each]
    inner[where[-1]] = value
    assert not jsonschema.Draft202012Validator(findings_schema()).is_valid(content)


def test_a_kind_of_somebody_else_may_say_that_it_found_something(contents):
    content = copy.deepcopy(contents["quiet"])
    content["findings"][0] |= {"kind": "wobble", "verdict": FOREIGN, "numbers": {"events": 3}}
    assert jsonschema.Draft202012Validator(findings_schema()).is_valid(content)
