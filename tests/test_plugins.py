"""Truth: a package made for the test, whose plugins must be found with no other edit."""

from __future__ import annotations

import importlib
import subprocess
import sys
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest
from torch import nn

from stabilitylab import Recorder, Run, plugins
from stabilitylab.errors import InputError


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "foreign_probes"
    monkeypatch.delitem(sys.modules, "foreign_probes", raising=False)
    folder.mkdir()
    (folder / "__init__.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    points = [EntryPoint("ours", "stabilitylab_probes", "x"), EntryPoint("theirs", "foreign_probes", "x")]
    monkeypatch.setattr(plugins, "entry_points", lambda group: points if group == "stabilitylab.probes" else [])
    plugins.names.cache_clear()
    yield folder
    plugins.names.cache_clear()


def add(package: Path, name: str, text: str = "") -> None:
    (package / f"{name}.py").write_text(text)
    importlib.invalidate_caches()
    sys.path_importer_cache.clear()
    plugins.names.cache_clear()


def test_a_new_file_is_found_and_private_ones_are_not(package: Path) -> None:
    add(package, "mine", "class Probe: pass")
    add(package, "_private")
    found = plugins.names("probes")
    assert {"mine", "gradients", "knn"} <= set(found)
    assert "_private" not in found
    assert plugins.load("probes", "mine").__name__ == "Probe"


def test_two_plugins_of_one_name_are_an_error_that_names_both(package: Path) -> None:
    add(package, "knn", "class Probe: pass")
    with pytest.raises(InputError, match=r"named 'knn': foreign_probes\.knn, stabilitylab_probes\.knn"):
        plugins.names("probes")


def test_a_module_without_its_class_is_named(package: Path) -> None:
    add(package, "empty")
    with pytest.raises(InputError, match=r"foreign_probes\.empty is in a package of probes but defines no Probe"):
        plugins.load("probes", "empty")


def test_unknown_names_and_kinds() -> None:
    with pytest.raises(InputError, match="no probe is named 'gradient'; did you mean gradients"):
        plugins.load("probes", "gradient")
    with pytest.raises(InputError, match="no plugins of kind 'things'"):
        plugins.names("things")


def test_listing_imports_no_plugin() -> None:
    code = (
        "import sys; from stabilitylab import plugins; [plugins.names(kind) for kind in plugins.GROUPS]; "
        "print([m for m in sys.modules if m.startswith(('stabilitylab_probes', 'stabilitylab.detectors', 'torch'))])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_a_plugin_that_cannot_be_imported_is_named_and_left_out(package: Path, tmp_path: Path) -> None:
    add(package, "broken", "import nothing_of_that_name")
    with pytest.raises(InputError, match=r"the probe 'broken' \(foreign_probes\.broken\) cannot be imported: Module"):
        plugins.load("probes", "broken")
    with Recorder(tmp_path / "r", nn.Linear(2, 1)) as recorder:
        recorder.step(1.0)
    assert "cannot be imported" in Run(tmp_path / "r").header["left_out"]["broken"]
    with pytest.raises(InputError, match="cannot be imported"):
        Recorder(tmp_path / "s", nn.Linear(2, 1), probes={"broken": {}})
