"""The truth is the images themselves: photographs of scikit-image and scikit-learn."""

import shutil

import numpy as np
import pytest
import torch
from image_folders import error, names, opened, patches, save
from pydantic import ValidationError
from skimage import data as photographs
from sklearn.datasets import load_digits

from stabilitylab.training.data import Data, open_dataset
from stabilitylab.training.images import stratified


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
