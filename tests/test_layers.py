"""Truth: the names that timm, torchvision and torch give their parameters, and the import table of the design."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest
import timm
import torchvision
from torch import nn

import stabilitylab
from stabilitylab.errors import InputError
from stabilitylab.layers import layers_of

PACKAGE = Path(stabilitylab.__file__).parent


def layers(model: nn.Module, first: str | None = None):
    return layers_of([name for name, _ in model.named_parameters()], first)


def test_vit_in_depth_order_whatever_the_order_of_registration() -> None:
    found = layers(timm.create_model("vit_tiny_patch16_224", depth=3))
    assert found.names == ("patch_embed", "tokens", "blocks.0", "blocks.1", "blocks.2", "norm", "head")
    assert found.first == "patch_embed"
    assert found.parameters("patch_embed") == ["patch_embed.proj.weight", "patch_embed.proj.bias"]
    assert set(found.parameters("tokens")) == {"cls_token", "pos_embed"}


@pytest.mark.parametrize(
    ("model", "first", "last", "count"),
    [
        (timm.create_model("resnet18"), "conv1", "fc", 11),
        (timm.create_model("regnety_002"), "stem", "head", 1 + 13 + 1),
        (torchvision.models.vit_b_32(), "conv_proj", "heads", 2 + 12 + 2),
        (nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1)), "0", "2", 2),
    ],
    ids=["resnet", "regnet", "torchvision-vit", "sequential"],
)
def test_other_models(model: nn.Module, first: str, last: str, count: int) -> None:
    found = layers(model)
    assert (found.first, found.names[0], found.names[-1]) == (first, first, last)
    assert len(found.names) == count


def test_wrappers_do_not_change_names() -> None:
    plain = [name for name, _ in timm.create_model("vit_tiny_patch16_224", depth=2).named_parameters()]
    for prefix in ("module.", "_orig_mod.", "backbone.", "module.backbone."):
        wrapped = layers_of([prefix + name for name in plain])
        assert wrapped.names == layers_of(plain).names
        assert set(wrapped.of) == {prefix + name for name in plain}


def test_a_container_stays_where_its_content_would_be_ambiguous() -> None:
    assert layers_of(["backbone.norm.weight", "norm.weight"]).names == ("backbone", "norm")


def test_the_first_layer_can_be_named() -> None:
    model = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1))
    assert layers(model, first="1").first == "1"
    with pytest.raises(InputError, match="no layer is named 'x'; the layers are 0, 1"):
        layers(model, first="x")
    with pytest.raises(InputError, match="no parameters"):
        layers_of([])


# ---- who may import whom

LEVELS = [
    {"__main__"},
    {"cli"},
    {"evaluation"},
    {"training", "adapters", "listing", "report", "compare"},
    {"recorder", "methods", "models", "plots"},
    {"recording", "mirrors", "analysis", "synthetic", "importing", "measures", "conditions", "pooling"},
    {"telling"},
    {"couplings", "detection"},
    {"signals"},
    {"episodes", "calibration", "trials", "leads", "sampling", "second_opinion"},
    {"detectors", "probe"},
    {"target"},
    {"norms", "run", "layers", "plugins", "stats", "held_out"},
    {"disk"},
    {"findings", "schema", "parameters", "phrasing", "settings"},
    {"errors", "__init__"},
]
TORCH = {
    "norms",
    "held_out",
    "target",
    "probe",
    "recorder",
    "recording",
    "methods",
    "models",
    "training",
    "evaluation",
    "adapters",
    "listing",
}
ADAPTED = {"accelerate", "lightning", "pytorch_lightning", "transformers"}


def imports(path: Path) -> set[str]:
    """Return the modules that a file imports when it is loaded, TYPE_CHECKING blocks and functions left out."""
    found: set[str] = set()
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.Import):
            found |= {name.name for name in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {f"{node.module}.{name.name}" for name in node.names}
    return found


def level(part: str) -> int:
    return next(depth for depth, names in enumerate(LEVELS) if part in names)


def violations(name: str, imported: set[str]) -> list[str]:
    part = name.split(".")[0]
    wrong = []
    for module in imported:
        words = module.split(".")
        if words[0] in {"torch", "torchvision", "timm"} and part not in TORCH:
            wrong.append(f"{name} imports {module}")
        if words[0] == "stabilitylab_probes":
            wrong.append(f"{name} imports a probe")
        if part != "adapters" and (words[0] in ADAPTED or words[:2] == ["stabilitylab", "adapters"]):
            wrong.append(f"{name} imports {module}, which nothing but an adapter may")
        if (
            words[0] == "stabilitylab"
            and len(words) > 1
            and words[1] != "__version__"
            and level(words[1]) < level(part)
        ):
            wrong.append(f"{name} imports {module}, which is above it")
    return wrong


def modules() -> dict[str, Path]:
    return {".".join(path.relative_to(PACKAGE).with_suffix("").parts): path for path in PACKAGE.rglob("*.py")}


def test_imports_point_down_and_torch_stays_where_it_belongs() -> None:
    assert [each for name, path in modules().items() for each in violations(name, imports(path))] == []


def test_the_import_test_can_fail() -> None:
    assert violations("stats.robust", {"torch.nn"})
    assert violations("run", {"stabilitylab.analysis.analyze"})
    assert violations("recorder", {"stabilitylab_probes.knn"})
    assert violations("cli", {"stabilitylab.adapters.lightning"})
    assert violations("recorder", {"transformers.Trainer"})
    assert not violations("analysis", {"stabilitylab.run.Run", "numpy"})
    assert not violations("adapters.lightning", {"stabilitylab.recorder.Recorder", "lightning.pytorch.Callback"})


@pytest.mark.parametrize("module", ["stabilitylab", "stabilitylab.cli", "stabilitylab.run", "stabilitylab.analysis"])
def test_importing_loads_no_torch(module: str) -> None:
    code = f"import sys, {module}; print([name for name in ('torch', 'timm', 'torchvision') if name in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_importing_loads_no_library_that_is_adapted() -> None:
    code = f"""
import sys
from stabilitylab import *
import stabilitylab.cli, stabilitylab.adapters
print([name for name in sys.modules if name.split(".")[0] in {ADAPTED} or name.startswith("stabilitylab.adapters.")])
"""
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
