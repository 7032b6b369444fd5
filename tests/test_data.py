"""The truth is the images themselves: photographs of scikit-image and scikit-learn, and pictures made with Pillow."""

import logging
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from pydantic import ValidationError
from skimage import data as photographs
from sklearn.datasets import load_digits, load_sample_image
from torchvision import datasets

from stabilitylab.errors import InputError
from stabilitylab.training.data import Data, open_dataset
from stabilitylab.training.decoding import UnreadableImageError, read_image
from stabilitylab.training.images import stratified


def save(path: Path, pixels: np.ndarray, **options) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, **options)
    return path


def patches(folder: Path, photograph: np.ndarray, num: int, suffix: str = "png") -> None:
    """Write pieces of a photograph of different sizes as image files."""
    for i in range(num):
        save(folder / f"{i:03}.{suffix}", photograph[i * 5 : i * 5 + 40 + i, i * 7 : i * 7 + 50])


@pytest.fixture
def folder(tmp_path):
    """Two classes, split in train and val: pieces of an astronaut and of a flower."""
    for split, num in (("train", 12), ("val", 4)):
        patches(tmp_path / split / "astronaut", photographs.astronaut(), num)
        patches(tmp_path / split / "flower", load_sample_image("flower.jpg"), num, "jpg")
    return tmp_path


def opened(path, **parameters):
    return open_dataset(Data(path=path, **({"batch_size": 2} | parameters)))


def names(images, root):
    return [str(Path(file).relative_to(root)) for file in images.files]


# The digits.


def test_the_digits_are_scikit_learns_each_once():
    dataset = open_dataset(Data())
    assert (len(dataset.train), len(dataset.held_out)) == (1438, 359)
    both = torch.cat([dataset.train.pixels, dataset.held_out.pixels])[:, 0].numpy()
    expected = np.rint(load_digits().images / 16 * 255)
    assert sorted(map(bytes, both)) == sorted(map(bytes, expected.astype(np.uint8)))
    assert (dataset.image_size, dataset.channels, dataset.unlabeled) == (8, 1, None)
    assert dataset.steps_per_epoch == 1438 // 256


def test_the_digits_keep_their_labels():
    by_pixels = {bytes(np.rint(i / 16 * 255).astype(np.uint8)): t for i, t in zip(*load_digits(return_X_y=True))}  # noqa: B905
    dataset = open_dataset(Data())
    for split in (dataset.train, dataset.held_out):
        assert [by_pixels[bytes(pixels.numpy().ravel())] for pixels in split.pixels] == split.labels.tolist()


def test_mean_and_deviation_are_those_of_the_training_images():
    for channels in (1, 3):
        dataset = open_dataset(Data(channels=channels))
        pixels = dataset.train.pixels.double() / 255
        assert dataset.mean == pytest.approx([pixels.mean().item()] * channels)
        assert dataset.std == pytest.approx([pixels.std(correction=0).item()] * channels)


# The split.


def test_a_split_holds_out_the_same_share_of_each_class():
    dataset = open_dataset(Data())
    share = dataset.held_out.labels.bincount() / (dataset.train.labels.bincount() + dataset.held_out.labels.bincount())
    assert (share - 0.2).abs().max() < 0.006  # of about 180 images of each class, at most one too many or too few


def test_a_split_is_always_the_same_and_follows_the_fraction():
    one, again, larger = (open_dataset(Data(held_out_fraction=share)) for share in (0.2, 0.2, 0.5))
    assert torch.equal(one.held_out.pixels, again.held_out.pixels)
    assert len(larger.held_out) == 898


def test_stratified_choices_are_proportional_and_leave_out_the_unlabeled():
    labels = torch.tensor([0] * 600 + [1] * 300 + [2] * 100 + [-1] * 500)
    chosen = stratified(labels, 1500, 50)
    assert labels[chosen].bincount().tolist() == [30, 15, 5]
    assert len(stratified(labels, 1500, 9999)) == 1000
    assert len(set(stratified(None, 70, 30))) == 30
    assert (np.diff(chosen) > 0).all()


def test_a_class_of_one_image_stays_in_training():
    chosen = stratified(torch.tensor([0] * 20 + [1]), 21, 4)
    assert 20 not in chosen


# Folders.


def test_train_and_val_of_class_folders(folder):
    dataset = opened(folder)
    assert (len(dataset.train), len(dataset.held_out)) == (24, 8)
    assert dataset.classes == ("astronaut", "flower")
    for split, root in ((dataset.train, folder / "train"), (dataset.held_out, folder / "val")):
        assert [dataset.classes[label] for label in split.labels] == [name.split("/")[0] for name in names(split, root)]
    assert (dataset.image_size, dataset.channels) == (224, 3)


@pytest.mark.parametrize("name", ["test", "valid", "Validation"])
def test_other_names_of_the_held_out_folder(folder, name):
    (folder / "val").rename(folder / name)
    assert len(opened(folder).held_out) == 8


def test_train_without_val_is_split(folder):
    shutil.rmtree(folder / "val")
    dataset = opened(folder, held_out_fraction=0.25)
    assert dataset.train.labels.bincount().tolist() == [9, 9]
    assert dataset.held_out.labels.bincount().tolist() == [3, 3]


def test_one_folder_of_class_folders_is_split_and_searched_in_depth(folder):
    (folder / "train" / "flower" / "more").mkdir()
    patches(folder / "train" / "flower" / "more", photographs.astronaut(), 3, "JPEG")
    dataset = opened(folder / "train")
    every = names(dataset.train, folder / "train") + names(dataset.held_out, folder / "train")
    assert len(every) == len(set(every)) == 27
    assert dataset.held_out.labels is not None
    assert opened(folder / "train").held_out.files == dataset.held_out.files


def test_a_flat_folder_has_no_labels_and_says_so(folder, caplog):
    dataset = opened(folder / "train" / "flower")
    assert dataset.train.labels is dataset.held_out.labels is None
    assert (len(dataset.train), len(dataset.held_out)) == (10, 2)
    assert "has no classes" in dataset.unlabeled
    assert "kNN monitor is not available" in caplog.text


def test_a_single_class_says_nothing_and_counts_as_none(folder):
    shutil.rmtree(folder / "train" / "flower")
    shutil.rmtree(folder / "val")
    assert opened(folder).unlabeled


def test_hidden_and_foreign_files_are_no_images(folder):
    for name in (".DS_Store", "._000.png", "notes.txt", "Thumbs.db"):
        (folder / "train" / "flower" / name).write_text("x")
    (folder / "train" / "__MACOSX").mkdir()
    (folder / "train" / ".git").mkdir()
    assert len(opened(folder).train) == 24


def test_loose_images_beside_class_folders_are_named(folder, caplog):
    save(folder / "train" / "cover.png", photographs.coffee())
    assert len(opened(folder).train) == 24
    assert "1 images beside the class folders are left out" in caplog.text
    assert "cover.png" in caplog.text


# What cannot be used is said with what was expected and what is there.


def error(path, **parameters):
    with pytest.raises(InputError) as caught:
        opened(path, **parameters)
    return str(caught.value)


def test_a_missing_folder(folder):
    text = error(folder / "trian" / "x")
    assert f"{folder / 'trian' / 'x'} does not exist" in text
    assert f"{folder} holds train, val" in text


def test_a_file_instead_of_a_folder(folder):
    assert "is a file; data.path is a folder" in error(folder / "train" / "flower" / "000.jpg")


def test_an_empty_folder(tmp_path):
    assert f"{tmp_path} holds no images: it is empty." in error(tmp_path)


def test_a_folder_of_something_else(tmp_path):
    for name in ("a.txt", "b.txt", "c.csv"):
        (tmp_path / name).touch()
    (tmp_path / "deep").mkdir()
    text = error(tmp_path)
    assert "it holds the folders deep and the files 2 x .txt, 1 x .csv" in text
    assert "Images end in avif, bmp" in text


def test_a_class_without_images(folder):
    (folder / "train" / "empty").mkdir()
    text = error(folder)
    assert f"Class folders of {folder / 'train'} without images: empty." in text
    assert "With images: astronaut (12), flower (12)" in text


def test_a_class_missing_in_val(folder):
    shutil.rmtree(folder / "val" / "flower")
    patches(folder / "val" / "coffee", photographs.coffee(), 2)
    text = error(folder)
    assert f"Class folders of {folder / 'train'} that are missing in {folder / 'val'}: flower." in text
    assert f"{folder / 'val'} holds astronaut, coffee" in text


def test_a_class_missing_in_train(folder):
    patches(folder / "val" / "coffee", photographs.coffee(), 2)
    assert f"Class folders of {folder / 'val'} that are missing in {folder / 'train'}: coffee." in error(folder)


def test_val_without_class_folders(folder):
    shutil.rmtree(folder / "val")
    patches(folder / "val", photographs.coffee(), 5)
    text = error(folder)
    assert "holds 5 images without class folders" in text
    assert "has the classes astronaut, flower" in text


def test_val_without_train(folder):
    shutil.rmtree(folder / "train")
    assert "holds 'val' but no 'train' folder beside it" in error(folder)


def test_a_data_set_one_folder_deeper(folder, tmp_path_factory):
    outer = tmp_path_factory.mktemp("outer")
    shutil.copytree(folder, outer / "photos")
    assert f"data.path is {outer / 'photos'}" in error(outer)


def test_fewer_images_than_a_batch(folder):
    text = error(folder, batch_size=64)
    assert "has 24 training images, fewer than one batch: data.batch_size is 64, and at most 24 is possible" in text


def test_a_format_that_contradicts_the_path(folder):
    assert "takes no data.path" in error(folder, format="digits")
    assert "data.format=stl10 needs data.path" in error(None, format="stl10")


@pytest.mark.parametrize("wrong", [{"channels": 2}, {"batch_size": 1}, {"image_size": 2}, {"workers": -1}])
def test_impossible_parameters_are_refused(wrong):
    with pytest.raises(ValidationError):
        Data(**wrong)


def test_every_parameter_has_a_sentence():
    assert all(field.description for field in Data.model_fields.values())


# Modes of images.

RED, WHITE = (255, 0, 0), (255, 255, 255)


def picture(mode: str) -> Image.Image:
    """Return a red image with one row of blue on top, as far as the mode has colors."""
    pixels = np.full((6, 4, 3), RED, np.uint8)
    pixels[0] = (0, 0, 255)
    return Image.fromarray(pixels).convert(mode)


@pytest.mark.parametrize(
    ("mode", "suffix"),
    [("RGB", "png"), ("P", "png"), ("P", "gif"), ("RGBA", "png"), ("CMYK", "tif"), ("YCbCr", "tif"), ("RGB", "webp")],
)
def test_color_modes_become_rgb_and_gray(tmp_path, mode, suffix):
    options = {"lossless": True} if suffix == "webp" else {}
    picture(mode).save(tmp_path / f"a.{suffix}", **options)
    color, gray = (read_image(tmp_path / f"a.{suffix}", channels, 4) for channels in (3, 1))
    assert (color.mode, gray.mode) == ("RGB", "L")
    np.testing.assert_allclose(np.asarray(color), np.asarray(picture("RGB")), atol=2)
    np.testing.assert_allclose(np.asarray(gray), np.asarray(picture("L")), atol=2)


def test_a_cmyk_jpeg(tmp_path):
    picture("CMYK").save(tmp_path / "a.jpg", quality=100)
    np.testing.assert_allclose(np.asarray(read_image(tmp_path / "a.jpg", 3, 4))[3], [RED] * 4, atol=30)


@pytest.mark.parametrize("mode", ["L", "1", "LA"])
def test_gray_modes_become_rgb_and_gray(tmp_path, mode):
    pixels = np.repeat(np.array([[0, 255]], np.uint8), 6, 0)
    Image.fromarray(pixels).convert(mode).save(tmp_path / "a.png")
    assert (np.asarray(read_image(tmp_path / "a.png", 1, 4)) == pixels).all()
    assert (np.asarray(read_image(tmp_path / "a.png", 3, 4)) == pixels[:, :, None]).all()


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_16_bits_are_scaled_not_cut(tmp_path, suffix):
    values = np.array([[0, 257, 32768, 65535]], np.uint16)
    Image.fromarray(values).save(tmp_path / f"a.{suffix}")
    assert np.asarray(read_image(tmp_path / f"a.{suffix}", 1, 4)).tolist() == [[0, 1, 128, 255]]
    assert read_image(tmp_path / f"a.{suffix}", 3, 4).mode == "RGB"


def test_floats_and_32_bits(tmp_path):
    Image.fromarray(np.array([[0, 0.5, 1, np.nan]], np.float32)).save(tmp_path / "f.tif")
    assert np.asarray(read_image(tmp_path / "f.tif", 1, 4)).tolist() == [[0, 128, 255, 0]]
    Image.fromarray(np.array([[0, 100, 200]], np.int32)).save(tmp_path / "i.tif")
    assert np.asarray(read_image(tmp_path / "i.tif", 1, 4)).tolist() == [[0, 100, 200]]


@pytest.mark.parametrize("mode", ["RGBA", "P", "LA"])
def test_transparent_parts_are_white(tmp_path, mode):
    pixels = np.zeros((2, 2, 4), np.uint8)
    pixels[0, :, 3] = 255  # black above, nothing below
    image = Image.fromarray(pixels)
    if mode == "P":
        image = Image.fromarray(np.array([[0, 0], [1, 1]], np.uint8)).convert("P")
        image.putpalette([0, 0, 0, 90, 90, 90])
        image.save(tmp_path / "a.png", transparency=1)
    else:
        image.convert(mode).save(tmp_path / "a.png")
    read = np.asarray(read_image(tmp_path / "a.png", 3, 4))
    assert (read[0] == 0).all()
    assert (read[1] == 255).all()


def test_exif_turns_the_image(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by a quarter, clockwise
    picture("RGB").save(tmp_path / "a.png", exif=exif)
    read = np.asarray(read_image(tmp_path / "a.png", 3, 4))
    assert read.shape == (4, 6, 3)
    assert (read[:, -1] == (0, 0, 255)).all()


def test_a_large_jpeg_is_decoded_as_small_as_is_enough(tmp_path):
    save(tmp_path / "a.jpg", photographs.astronaut(), quality=95)
    whole, small = (read_image(tmp_path / "a.jpg", 3, least) for least in (512, 60))
    assert (whole.size, small.size) == ((512, 512), (64, 64))
    shrunk = np.asarray(whole.resize((64, 64), Image.Resampling.BOX), float)
    assert np.abs(np.asarray(small, float) - shrunk).mean() < 2


def truncated_jpeg(path):
    save(path, photographs.astronaut())
    path.write_bytes(path.read_bytes()[:3000])


BROKEN = {
    "truncated": (truncated_jpeg, "truncated"),
    "text": (lambda path: path.write_text("not an image"), "cannot identify image file it"),
    "empty": (lambda path: path.touch(), "cannot identify image file it"),
    "missing": (lambda path: None, "No such file"),
    "folder": (lambda path: path.mkdir(), "Is a directory"),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_broken_images_say_why(tmp_path, kind):
    make, reason = BROKEN[kind]
    make(tmp_path / "a.jpg")
    with pytest.raises(UnreadableImageError, match=reason):
        read_image(tmp_path / "a.jpg", 3, 4)


def test_broken_images_are_told_once_and_limited(folder, caplog):
    broken = opened(folder, broken_limit=1).broken
    file = str(folder / "train" / "flower" / "000.jpg")
    with caplog.at_level(logging.WARNING):
        assert broken.add({file: "cut short"}) == ["train/flower/000.jpg"]
        assert broken.add({file: "cut short"}) == []
    assert caplog.text.count("train/flower/000.jpg: cut short") == 1
    with pytest.raises(InputError) as caught:
        broken.add({str(folder / "train" / "x.png"): "empty"})
    assert "2 images cannot be read, more than data.broken_limit=1" in str(caught.value)
    assert "train/flower/000.jpg (cut short), train/x.png (empty)" in str(caught.value)


# CIFAR, STL10 and ImageNet, in the formats of their files. torchvision compares them with the published checksums
# before it opens them; here, where the files are made, this comparison alone is left out.


@pytest.fixture
def unchecked(monkeypatch):
    for module in ("cifar", "stl10"):
        monkeypatch.setattr(f"torchvision.datasets.{module}.check_integrity", lambda *_: True)


def cifar(path: Path, name: str, rng) -> None:
    opened = datasets.CIFAR10 if name == "cifar10" else datasets.CIFAR100
    folder = path / opened.base_folder
    folder.mkdir()
    key = "labels" if name == "cifar10" else "fine_labels"
    for file, _ in opened.train_list + opened.test_list:
        pixels = rng.integers(0, 256, (20, 3072), dtype=np.uint8)
        (folder / file).write_bytes(pickle.dumps({"data": pixels, key: list(range(10)) * 2}))
    classes = {opened.meta["key"]: [f"class {i}" for i in range(10)]}
    (folder / opened.meta["filename"]).write_bytes(pickle.dumps(classes))


@pytest.mark.parametrize(("name", "num_train"), [("cifar10", 100), ("cifar100", 20)])
def test_cifar(tmp_path, unchecked, name, num_train):
    cifar(tmp_path, name, np.random.default_rng(0))
    dataset = opened(tmp_path)
    assert (dataset.name, len(dataset.train), len(dataset.held_out)) == (name, num_train, 20)
    assert dataset.train.labels.tolist() == list(range(10)) * (num_train // 10)
    assert dataset.classes[3] == "class 3"
    assert (dataset.image_size, dataset.channels) == (32, 3)
    theirs = (datasets.CIFAR10 if name == "cifar10" else datasets.CIFAR100)(tmp_path, train=False)[7][0]
    assert (dataset.held_out.pixels[7].permute(1, 2, 0).numpy() == np.asarray(theirs)).all()
    base = "cifar-10-batches-py" if name == "cifar10" else "cifar-100-python"
    assert len(opened(tmp_path / base).train) == num_train
    assert opened(tmp_path, channels=1).train.pixels.shape == (num_train, 1, 32, 32)


def test_stl10_trains_on_its_unlabeled_images_too(tmp_path, unchecked):
    folder = tmp_path / "stl10_binary"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for split, num in (("train", 10), ("test", 6), ("unlabeled", 30)):
        rng.integers(0, 256, (num, 3, 96, 96), dtype=np.uint8).tofile(folder / f"{split}_X.bin")
        (np.arange(num, dtype=np.uint8) % 10 + 1).tofile(folder / f"{split}_y.bin")
    (folder / "class_names.txt").write_text("\n".join(f"class {i}" for i in range(10)))
    dataset = opened(tmp_path)
    assert dataset.train.labels.tolist() == [*range(10), *[-1] * 30]
    assert (len(dataset.held_out), dataset.image_size) == (6, 96)
    assert (
        dataset.held_out.pixels[2].permute(1, 2, 0).numpy() == np.asarray(datasets.STL10(tmp_path, "test")[2][0])
    ).all()


def test_imagenet(tmp_path):
    classes = {"n01440764": ("tench",), "n01443537": ("goldfish", "carp")}
    torch.save((classes, ["n01440764"]), tmp_path / "meta.bin")
    for wnid in classes:
        patches(tmp_path / "train" / wnid, photographs.coffee(), 3, "JPEG")
        patches(tmp_path / "val" / wnid, photographs.coffee(), 2, "JPEG")
    dataset = opened(tmp_path)
    assert dataset.classes == ("tench", "goldfish")
    assert dataset.train.labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert (len(dataset.held_out), dataset.image_size) == (4, 224)
    assert dataset.mean == (0.485, 0.456, 0.406)


def test_files_that_are_not_the_published_ones(tmp_path):
    cifar(tmp_path, "cifar10", np.random.default_rng(0))
    text = error(tmp_path)
    assert f"{tmp_path} cannot be read as cifar10" in text
    assert "Expected the folder 'cifar-10-batches-py' with the published files, complete and unchanged" in text
    assert "it holds cifar-10-batches-py" in text


def test_imagenet_that_is_not_there(folder):
    text = error(folder, format="imagenet")
    assert "cannot be read as imagenet" in text
    assert "use data.format=folder" in text


def test_an_archive_that_is_not_unpacked(tmp_path):
    (tmp_path / "cifar-100-python.tar.gz").touch()
    assert "unpack it there (tar xzf cifar-100-python.tar.gz)" in error(tmp_path)


def test_two_known_data_sets_in_one_folder(tmp_path, unchecked):
    for name in ("cifar10", "cifar100"):
        cifar(tmp_path, name, np.random.default_rng(0))
    assert "holds cifar10 and cifar100: say which with data.format" in error(tmp_path)
    assert opened(tmp_path, format="cifar100").name == "cifar100"
