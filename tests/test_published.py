"""Truth: the documented names and shapes of MoCo v3's checkpoints, written out here, and weights put into them."""

from __future__ import annotations

import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import load_file
from test_training import TINY, go
from torch import Tensor, nn

from stabilitylab.errors import InputError
from stabilitylab.methods import Images
from stabilitylab.models import vit
from stabilitylab.models.published import load_moco_v3
from stabilitylab.plugins import load
from stabilitylab.training.config import resolve
from stabilitylab.training.data import open_dataset
from stabilitylab.training.distributed import process_group
from stabilitylab.training.loop import prepare
from stabilitylab.training.weights import find

DIM, DEPTH, PATCH, SIZE, HIDDEN, OUT = 384, 2, 4, 8, 64, 32
MODEL = vit.Model(dim=DIM, depth=DEPTH, heads=12, patch_size=PATCH)


def batch_norm(width: int, affine: bool = True) -> dict[str, tuple[int, ...]]:
    own = {"weight": (width,), "bias": (width,)} if affine else {}
    return {**own, "running_mean": (width,), "running_var": (width,), "num_batches_tracked": ()}


def encoder() -> dict[str, tuple[int, ...]]:
    tokens = 1 + (SIZE // PATCH) ** 2
    shapes: dict[str, tuple[int, ...]] = {
        "cls_token": (1, 1, DIM), "pos_embed": (1, tokens, DIM),
        "patch_embed.proj.weight": (DIM, 1, PATCH, PATCH), "patch_embed.proj.bias": (DIM,),
        "norm.weight": (DIM,), "norm.bias": (DIM,),
    }  # fmt: skip
    for block in range(DEPTH):
        for name, (out, width) in {"attn.qkv": (3 * DIM, DIM), "attn.proj": (DIM, DIM), "mlp.fc1": (4 * DIM, DIM),
                                   "mlp.fc2": (DIM, 4 * DIM)}.items():  # fmt: skip
            shapes |= {f"blocks.{block}.{name}.weight": (out, width), f"blocks.{block}.{name}.bias": (out,)}
        for norm in ("norm1", "norm2"):
            shapes |= {f"blocks.{block}.{norm}.weight": (DIM,), f"blocks.{block}.{norm}.bias": (DIM,)}
    for linear, (out, width), affine in (
        (0, (HIDDEN, DIM), True),
        (3, (HIDDEN, HIDDEN), True),
        (6, (OUT, HIDDEN), False),
    ):
        shapes[f"head.{linear}.weight"] = (out, width)
        shapes |= {f"head.{linear + 1}.{name}": shape for name, shape in batch_norm(out, affine).items()}
    return shapes


def published() -> dict[str, Any]:
    shapes = {f"{which}_encoder.{name}": shape for which in ("base", "momentum") for name, shape in encoder().items()}
    for linear, (out, width), affine in ((0, (HIDDEN, OUT), True), (3, (OUT, HIDDEN), False)):
        shapes[f"predictor.{linear}.weight"] = (out, width)
        shapes |= {f"predictor.{linear + 1}.{name}": shape for name, shape in batch_norm(out, affine).items()}
    generator = torch.Generator().manual_seed(0)
    state = {f"module.{name}": torch.randn(shape, generator=generator) if shape else torch.tensor(7)
             for name, shape in shapes.items()}  # fmt: skip
    return {
        "epoch": 300,
        "arch": "vit_small",
        "state_dict": state,
        "optimizer": {"state": {}},
        "scaler": {"scale": 1.0},
    }


def method(name: str = "moco_v3", **changes: Any) -> Any:
    torch.manual_seed(1)
    kind = load("methods", name)
    own = {"hidden": HIDDEN, "dim": OUT} if name != "supervised" else {}
    return kind(kind.Config(**own), lambda: vit.build(MODEL.model_copy(update=changes), SIZE, 1), Images(100, 10))


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("published") / "vit-s-300ep.pth.tar"
    torch.save(published(), path)
    return path


def test_every_key_has_its_place(file: Path) -> None:
    ours = method()
    load_moco_v3(ours, file)
    given, found = published()["state_dict"], ours.state_dict()
    assert len(given) == len(found)
    places = {
        "base_encoder.head.0.weight": "projector.0.weight",
        "base_encoder.head.7.running_var": "projector.7.running_var",
        "base_encoder.blocks.1.attn.qkv.weight": "backbone.blocks.1.attn.qkv.weight",
        "momentum_encoder.pos_embed": "momentum_backbone.pos_embed",
        "predictor.3.weight": "predictor.3.weight",
        "momentum_encoder.head.4.num_batches_tracked": "momentum_projector.4.num_batches_tracked",
    }
    for theirs, name in places.items():
        assert torch.equal(found[name], given[f"module.{theirs}"]), name
    total = sum(float(each.double().sum()) for each in given.values())
    assert sum(float(each.double().sum()) for each in found.values()) == pytest.approx(total)


def test_another_method_takes_the_base_encoder(file: Path) -> None:
    given = published()["state_dict"]
    for name in ("supervised", "byol"):
        ours = method(name)
        head = ours.projector.state_dict()
        load_moco_v3(ours, file)
        for part in ("backbone", "momentum_backbone") if name == "byol" else ("backbone",):
            for key, value in getattr(ours, part).state_dict().items():
                assert torch.equal(value, given[f"module.base_encoder.{key}"]), key
        assert all(torch.equal(head[key], value) for key, value in ours.projector.state_dict().items())


def edit(change: Callable[[dict[str, Tensor]], Any]) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        content = published()
        change(content["state_dict"])
        torch.save(content, path)

    return write


class Evil:
    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return print, ("unpickled",)


def half(path: Path) -> None:
    torch.save(published(), path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


WRONG: dict[str, tuple[Callable[[Path], Any], str]] = {
    "a missing one": (edit(lambda s: s.pop("module.base_encoder.norm.bias")), "is missing backbone.norm.bias"),
    "one too many": (edit(lambda s: s.update({"module.base_encoder.head.9.weight": torch.zeros(1)})),
                     "the method has no place for projector.9.weight"),
    "a stranger": (edit(lambda s: s.update({"module.queue": torch.zeros(1)})), "'module.queue', which is no name of"),
    "another shape": (edit(lambda s: s.update({"module.base_encoder.norm.bias": torch.zeros(768)})),
                      r"backbone.norm.bias is \(768,\) there and \(384,\) here"),
    "code": (lambda path: torch.save({"state_dict": Evil()}, path), "cannot be read as a checkpoint of tensors"),
    "no weights": (lambda path: torch.save({"epoch": 3}, path), "holds no state_dict of tensors"),
    "a number": (lambda path: torch.save(3, path), "holds no state_dict of tensors"),
    "half a file": (half, "cannot be read as a checkpoint"),
    "nothing": (lambda path: path.write_bytes(b""), "cannot be read as a checkpoint"),
    "text": (lambda path: path.write_text("{}"), "cannot be read as a checkpoint"),
    "a plain pickle": (lambda path: path.write_bytes(pickle.dumps([1] * 9)), "cannot be read|no state_dict"),
}  # fmt: skip


@pytest.mark.parametrize("what", WRONG)
def test_what_does_not_fit_is_named_and_nothing_is_loaded(
    tmp_path: Path, what: str, capsys: pytest.CaptureFixture[str]
) -> None:
    write, message = WRONG[what]
    path = tmp_path / "x.pth.tar"
    write(path)
    ours = method()
    before = {name: each.clone() for name, each in ours.state_dict().items()}
    with pytest.raises(InputError, match=message) as caught:
        load_moco_v3(ours, path)
    assert "\n" not in str(caught.value)
    assert "unpickled" not in capsys.readouterr().out
    assert all(torch.equal(before[name], each) for name, each in ours.state_dict().items())


# ---- as the start of a training


def start(initial: Path, **settings: Any) -> nn.Module:
    small = {"data.batch_size": 32, "train.steps": 4, "schedule.warmup_steps": 1, "train.device": "cpu"}
    given = {name.replace("__", "."): value for name, value in settings.items()}
    config = resolve("digits", small, {"train.initial": str(initial)}, given)
    with process_group("cpu") as ranks:
        return prepare(config, open_dataset(config.data), ranks).method


def test_a_training_starts_from_a_run_a_checkpoint_or_a_published_file(tmp_path: Path, file: Path) -> None:
    go(tmp_path / "r", train__steps=4, checkpoint__every=2)
    sizes = {"model__dim": 32, "model__depth": 2}
    for path, step in ((tmp_path / "r", "00000004"), (tmp_path / "r/checkpoints/00000002", "00000002")):
        weights = load_file(tmp_path / "r/checkpoints" / step / "backbone.safetensors")
        assert find(path).step == int(step)
        for method_name in ("supervised", "moco_v3"):
            started: Any = start(path, method__name=method_name, **sizes)
            for part in ("backbone", "momentum_backbone") if method_name == "moco_v3" else ("backbone",):
                assert all(torch.equal(weights[k], v) for k, v in getattr(started, part).state_dict().items())
    fine = {"method__name": "supervised", "optimizer__layer_decay": 0.65, "model__drop_path": 0.1}
    vit_s = {"model__dim": DIM, "model__depth": DEPTH, "model__heads": 12}
    tuned: Any = start(file, **fine, **vit_s)
    assert torch.equal(tuned.backbone.norm.bias, published()["state_dict"]["module.base_encoder.norm.bias"])
    given = {"train__steps": 4, "train__initial": str(tmp_path / "r"), "checkpoint__every": 2, **fine}
    outcome, run = go(tmp_path / "tuned", **given)
    assert outcome.status == "completed"
    assert run.config["train"]["initial"] == str(tmp_path / "r")
    shutil.rmtree(tmp_path / "tuned/checkpoints/00000004")
    shutil.rmtree(tmp_path / "r")  # what goes on needs it no more
    assert go(tmp_path / "tuned", resume=True, **given)[0].status == "completed"


def test_where_a_training_started_is_said_in_full(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    assert resolve("digits", {"train.initial": "a"}).train.initial == tmp_path / "a"


def test_no_such_start_is_said(tmp_path: Path) -> None:
    go(tmp_path / "r", train__steps=2, schedule__warmup_steps=1)
    with pytest.raises(InputError, match=r"attn.proj.bias is \(32,\) there and \(64,\) here"):
        start(tmp_path / "r", model__dim=64)
    with pytest.raises(InputError, match=r"blocks\.2.* is not there and"):
        start(tmp_path / "r", model__dim=32, model__depth=3)
    with pytest.raises(InputError, match="holds no weights; expected a run with checkpoints"):
        start(tmp_path)
    (tmp_path / "r/checkpoints/00000002/backbone.safetensors").write_bytes(b"torn")
    with pytest.raises(InputError, match=r"is damaged: backbone\.safetensors cannot be read"):
        start(tmp_path / "r", model__dim=32, model__depth=2)


def test_the_backbone_loads_into_a_plain_timm_model(tmp_path: Path) -> None:
    go(tmp_path / "r", checkpoint__keep=1)
    assert [path.name for path in (tmp_path / "r/checkpoints").iterdir()] == ["00000024"]
    folder = tmp_path / "r/checkpoints/00000024"
    model = timm.models.VisionTransformer(**json.loads((folder / "backbone.json").read_text()))
    model.load_state_dict(load_file(folder / "backbone.safetensors"))
    images = torch.randn(2, 1, 8, 8)
    config = resolve("digits", TINY)
    with process_group("cpu") as ranks:
        setup = prepare(config, open_dataset(config.data), ranks)
    setup.method.load_state_dict(load_file(folder / "model.safetensors"))
    encode: Any = setup.method.eval().encode
    torch.testing.assert_close(model.eval()(images), encode(images)["representation"], rtol=1e-4, atol=1e-5)
    assert not list(folder.parent.glob(".*"))
