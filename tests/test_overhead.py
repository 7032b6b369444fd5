"""Truth: planted block times, a probe that sleeps for a known time, and packages of probes written for the test."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from stabilitylab import InputError, plugins
from stabilitylab.cli import main
from stabilitylab.listing import list_probes
from stabilitylab.stats.interval import Interval
from stabilitylab.training.config import resolve
from stabilitylab.training.costs import Block, Cost, Times, advice, cost_of, total
from stabilitylab.training.data import open_dataset
from stabilitylab.training.distributed import process_group
from stabilitylab.training.loop import prepare
from stabilitylab.training.overhead import Overhead, measure

TINY = {
    "data.batch_size": 16,
    "data.held_out_images": 40,
    "data.bank_images": 40,
    "model.dim": 16,
    "model.depth": 1,
    "model.heads": 2,
    "method.hidden": 16,
    "method.dim": 8,
    "train.device": "cpu",
}


def only(*names: str) -> dict[str, Any]:
    return {f"probes.{each}": False for each in plugins.names("probes") if each not in names}


def measured(folder: Path, steps: int, settings: dict[str, Any], progress: Any = lambda done, total: None) -> Overhead:
    config = resolve("digits", TINY | settings)
    with process_group("cpu") as ranks:
        return measure(prepare(config, open_dataset(config.data), ranks), steps, folder, progress)


# ---- from block times to costs


def blocks(line: float, step: float = 1.0, flush: float = 0.0, number: int = 12) -> Times:
    """Return blocks on a machine that becomes slower: the steps around them alike."""
    speed = np.linspace(1, 3, number)
    return Times([Block((step + line) * each, line * each, flush, each) for each in speed])


def test_planted_costs_are_found_whatever_the_speed_of_the_machine() -> None:
    flat = [Block(1.0, 0.001, 0.004, 1.0)] * 12
    alone = Times(flat)
    probe = Times([Block(1.201, 0.201, 0.104, 1.0)] * 12)
    found = cost_of(10, probe, None, alone, 50)
    assert found.measurement == pytest.approx((200, 200, 200))
    assert found.step == pytest.approx((22, 22, 22))  # 200 ms over 10 steps, and 100 ms of writing over 50
    assert found.part == pytest.approx((0.022, 0.022, 0.022))
    assert found.whole == pytest.approx((0.0221, 0.0221, 0.0221))  # with the recorder itself
    assert cost_of(1, blocks(0.5), None, blocks(0.0), 50).part == pytest.approx((0.5, 0.5, 0.5))


def test_what_a_probe_does_at_every_step_is_not_divided_by_its_schedule() -> None:
    found = cost_of(10, blocks(0.5), blocks(0.1), blocks(0.0), 50)
    assert found.part == pytest.approx((0.14, 0.14, 0.14))
    assert found.whole == pytest.approx((0.14, 0.14, 0.14))


def test_writing_is_not_more_frequent_than_measuring() -> None:
    found = cost_of(200, blocks(0.0, flush=1.0), None, blocks(0.0), 50)
    assert found.step.value == pytest.approx(5)


def test_noise_is_not_taken_for_a_cost() -> None:
    rng = np.random.default_rng(0)
    seen = 0
    for _ in range(300):
        noisy = Times([Block(step, 0.0, 0.0, off) for step, off in rng.lognormal(0, 0.5, (12, 2))])
        seen += cost_of(1, noisy, None, blocks(0.0), 50).whole.differs_from_zero
    assert seen / 300 < 0.07  # 3.9 % is what the interval promises; three standard errors more


def cost(part: float, every: int = 1) -> Cost:
    interval = Interval(part, part, part)
    return Cost(every, interval, interval, interval, interval, np.full(12, part))


def test_the_sum_and_the_advice() -> None:
    costs = {"heavy": cost(0.16, 10), "light": cost(0.01), "fixed": cost(0.01)}
    assert total(list(costs.values())) == pytest.approx((0.18, 0.18, 0.18))
    assert advice(costs, {"fixed"}, 0.0) == {"heavy": 80}  # 0.02 + 0.01 + 0.01
    assert advice(costs, {"fixed"}, 0.0, limit=0.5) == {}
    assert advice(costs, {"fixed"}, 0.06) == {}  # out of reach


# ---- with real training steps


def test_a_probe_that_sleeps_costs_what_it_sleeps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kind = plugins.load("probes", "gradients")
    honest = kind.measure

    def sleep(self: Any, step: Any) -> Any:
        time.sleep(0.05)
        return honest(self, step)

    monkeypatch.setattr(kind, "measure", sleep)
    found = measured(tmp_path, 6, only("gradients", "training") | {"probes.gradients.every": 5})
    assert (found.pairs, found.block, found.stopped) == (6, 1, "")
    assert set(found.probes) == {"gradients", "training"}
    slow = found.probes["gradients"]
    assert slow.measurement.low > 49  # never less than it sleeps; more on a busy machine
    assert slow.step.low > 9
    assert slow.part.differs_from_zero
    assert found.probes["training"].measurement.value < slow.measurement.value / 2
    assert found.step is not None
    assert found.total is not None
    assert found.total.value > slow.part.value / 2
    assert found.bytes_per_step["gradients"] > 0
    assert len(list(tmp_path.iterdir())) >= 4  # the runs are the caller's to remove


def test_probes_that_cannot_measure_or_fail_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: Any, parameters: Any, target: Any) -> None:
        raise InputError("there is nothing to see")

    def fail(self: Any, step: Any) -> None:
        raise ZeroDivisionError("nothing to divide")

    monkeypatch.setattr(plugins.load("probes", "updates"), "__init__", refuse)
    monkeypatch.setattr(plugins.load("probes", "spectrum"), "measure", fail)
    with pytest.warns(UserWarning, match="'spectrum' failed"):
        found = measured(tmp_path, 1, only("updates", "spectrum", "training"))
    assert found.left_out == {"updates": "there is nothing to see"}
    assert found.failed == {"spectrum": "ZeroDivisionError: nothing to divide"}
    assert list(found.probes) == ["training"]


def test_an_interruption_leaves_what_was_measured(tmp_path: Path) -> None:
    def interrupt(done: int, total: int) -> None:
        if done >= total // 2:
            os.kill(os.getpid(), signal.SIGINT)

    found = measured(tmp_path, 8, only("gradients", "training"), interrupt)
    assert (found.stopped, found.signal) == ("interrupted", signal.SIGINT)
    assert found.pairs >= 3
    assert set(found.probes) == {"gradients", "training"}
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_an_interruption_before_anything_was_measured_says_so(tmp_path: Path) -> None:
    found = measured(tmp_path, 8, only("training"), lambda done, total: os.kill(os.getpid(), signal.SIGINT))
    assert (found.stopped, found.pairs, found.probes, found.total) == ("interrupted", 0, {}, None)


def test_a_loss_that_is_not_finite_ends_it(tmp_path: Path) -> None:
    found = measured(tmp_path, 8, only("training") | {"optimizer.lr": 1e30, "schedule.warmup_steps": 0})
    assert found.stopped.startswith("the loss was nan after")
    assert found.signal is None


# ---- the commands


def cli(*words: str) -> tuple[int, str]:
    result = CliRunner().invoke(main, list(words))
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exc_info
    return result.exit_code, result.stdout


@pytest.mark.parametrize("as_json", [True, False])
def test_overhead_prints_and_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, as_json: bool
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    settings = TINY | only("gradients", "training")
    words = [word for name, value in settings.items() for word in ("--set", f"{name}={json.dumps(value)}")]
    code, output = cli("overhead", *words, "--steps", "2", *(["--json"] if as_json else []))
    assert code == 0
    assert list(tmp_path.iterdir()) == []
    if as_json:
        told = json.loads(output)
        assert set(told["probes"]) == {"gradients", "training"}
        assert told["probes"]["gradients"]["part"]["low"] is None  # of two blocks no interval
        assert told["probes"]["gradients"]["measurement"]["value"] > 0
        assert told["bytes_per_step"]["gradients"] >= 0
    else:
        assert "gradients" in output
        assert "not distinguishable from 0" in output
        assert "Recorder(budget=0.05)" in output or "out of reach" in output
        assert max(map(len, output.splitlines())) <= 110


def test_errors_are_those_of_train() -> None:
    for words in (["--set", "probes.nn=3"], ["--data", "/nowhere"], ["--preset", "none"]):
        results = [CliRunner().invoke(main, [name, *words]) for name in ("train", "overhead")]
        assert [each.exit_code for each in results] == [1, 1]
        assert results[0].stderr == results[1].stderr


def test_every_probe_is_listed_with_what_it_needs() -> None:
    listed = {entry.name: entry for entry in list_probes()}
    assert list(listed) == list(plugins.names("probes"))
    assert listed["knn"].needs == ("held-out images with labels",)
    assert listed["spectrum"].needs == ("held-out images",)
    assert listed["gradients"].needs == ()
    assert listed["adam"].needs == ("an Adam-like optimizer",)
    assert listed["stabilizers"].needs == ("an optimizer with stabilizers",)
    assert listed["method"].needs == ("a model with diagnostics",)
    assert listed["method"].outputs == ("diagnostics.NAME",)
    assert {"gradients.norm", "gradients.max"} <= set(listed["gradients"].series)
    assert listed["updates"].distribution.startswith("stabilitylab ")
    for entry in listed.values():
        assert entry.error == ""
        assert entry.records
        assert all(series.startswith(f"{entry.name}.") for series in entry.series)
        assert entry.every == plugins.load("probes", entry.name).Parameters().every


FOREIGN = {
    "mine.py": '''"""The sum of a foreign output. With a second sentence."""

from stabilitylab import InputError, probe


class Probe(probe.Probe):
    cost = "nothing"

    def __init__(self, parameters, target):
        super().__init__(parameters, target)
        if not isinstance(getattr(target.optimizer, "defaults", {}).get("betas"), tuple):
            raise InputError("no betas")
        if target.teacher is None or (target.inputs is None and target.held_out is None):
            raise InputError("no teacher, or nothing to show")
        self.labels = {"mine.sum": ["sum"]}

    def measure(self, step):
        return {"mine.sum": step.outputs["key"].sum().reshape(1)} if "key" in step.outputs else None
''',
    "broken.py": "import a_module_that_is_not_there\n",
    "empty.py": "",
    "crashing.py": '''from stabilitylab import probe


class Probe(probe.Probe):
    """Falls over. Always."""

    def __init__(self, parameters, target):
        raise RuntimeError("[no] luck")
''',
    "_private.py": "raise SystemExit",
}


def test_foreign_probes_are_listed_and_a_broken_one_says_why(tmp_path: Path) -> None:
    for name, text in FOREIGN.items():
        (tmp_path / "foreign_probes").mkdir(exist_ok=True)
        (tmp_path / "foreign_probes" / name).write_text(text)
    (tmp_path / "foreign_probes/__init__.py").write_text("")
    about = tmp_path / "foreign-1.2.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: foreign\nVersion: 1.2\n")
    (about / "entry_points.txt").write_text("[stabilitylab.probes]\nforeign = foreign_probes\n")
    command = [sys.executable, "-m", "stabilitylab", "probes"]
    where = {**os.environ, "PYTHONPATH": str(tmp_path)}
    done = subprocess.run([*command, "--json"], capture_output=True, text=True, check=True, env=where)
    listed = {entry["name"]: entry for entry in json.loads(done.stdout)}
    assert listed["mine"] == {
        "name": "mine",
        "module": "foreign_probes.mine",
        "distribution": "foreign 1.2",
        "records": "The sum of a foreign output",
        "series": {"mine.sum": 1},
        "every": 1,
        "needs": ["inputs or held-out images", "an Adam-like optimizer", "a momentum encoder"],
        "outputs": ["key"],
        "cost": "nothing",
        "error": "",
    }
    assert "No module named 'a_module_that_is_not_there'" in listed["broken"]["error"]
    assert "defines no Probe" in listed["empty"]["error"]
    assert listed["crashing"]["error"] == "the trial on a tiny model failed: RuntimeError: [no] luck"
    assert "_private" not in listed
    assert listed["gradients"]["error"] == ""
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=where)
    assert "from foreign 1.2: broken, crashing, empty, mine" in done.stdout
    assert "[no] luck" in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 110
