"""The truth is an invariance: a batch is the same however the run was cut into attempts, workers and ranks."""

import itertools
import logging
import multiprocessing
import random

import numpy as np
import pytest
import torch
from PIL import Image
from skimage import data as photographs
from torchvision.transforms import v2

from stabilitylab.errors import InputError
from stabilitylab.training.augment import Augment
from stabilitylab.training.batches import batches
from stabilitylab.training.data import Data, open_dataset
from stabilitylab.training.decoding import read_image
from stabilitylab.training.fixed_images import fixed_images


@pytest.fixture
def folder(tmp_path):
    """Two classes of 12 pieces of photographs each, of different sizes, and of 3 held-out ones."""
    for split, num in (("train", 12), ("val", 3)):
        for name in ("astronaut", "coffee"):
            (tmp_path / split / name).mkdir(parents=True)
            pixels = getattr(photographs, name)()
            for i in range(num):
                piece = pixels[i * 5 : i * 5 + 40 + i, i * 7 : i * 7 + 50]
                Image.fromarray(piece).save(tmp_path / split / name / f"{i:02}.png")
    return tmp_path


def files(folder, **parameters):
    return open_dataset(Data(path=folder, **({"batch_size": 8, "image_size": 16, "workers": 0} | parameters)))


@pytest.fixture(params=["memory", "files"])
def dataset(request, folder):
    return files(folder) if request.param == "files" else open_dataset(Data(batch_size=128))


def same(one, other):
    """Whether two batches are the same bit for bit."""
    return (
        one.step == other.step
        and torch.equal(one.indices, other.indices)
        and torch.equal(one.labels, other.labels)
        and all(torch.equal(*pair) for pair in zip(one.views, other.views, strict=True))
    )


def all_same(ones, others):
    return all(same(*pair) for pair in zip(ones, others, strict=True))


def test_shapes_and_types(dataset):
    batch = next(batches(dataset, Augment(), seed=0, steps=1))
    size = dataset.data.batch_size
    assert batch.step == 0
    assert batch.broken == []
    assert batch.indices.dtype == batch.labels.dtype == torch.int64
    for view in batch.views:
        assert view.shape == (size, dataset.channels, dataset.image_size, dataset.image_size)
        assert view.dtype == torch.float32
        assert view.isfinite().all()
    assert not torch.equal(*batch.views)
    assert torch.equal(batch.labels, dataset.train.labels[batch.indices])


def test_an_epoch_sees_each_image_once_and_the_next_in_another_order(dataset):
    per_epoch = dataset.steps_per_epoch
    steps = list(batches(dataset, Augment(), seed=0, steps=2 * per_epoch))
    first, second = (torch.cat([batch.indices for batch in steps[i : i + per_epoch]]) for i in (0, per_epoch))
    for epoch in (first, second):
        assert len(epoch.unique()) == len(epoch) == per_epoch * dataset.data.batch_size
    assert not torch.equal(first, second)


def test_same_seed_same_bits_other_seed_others(dataset):
    one, again, other = (list(batches(dataset, Augment(), seed=seed, steps=3)) for seed in (4, 4, 5))
    assert all_same(one, again)
    assert not any(torch.equal(a.indices, b.indices) for a, b in zip(one, other, strict=True))


def test_resuming_equals_going_on(dataset):
    whole = list(batches(dataset, Augment(), seed=0, steps=14))
    assert all_same(whole[9:], batches(dataset, Augment(), seed=0, first_step=9, steps=14))


def test_workers_change_nothing(folder):
    alone, helped = (batches(files(folder, workers=num), Augment(), seed=0, first_step=2, steps=7) for num in (0, 2))
    assert all_same(alone, helped)


def test_workers_can_be_left_in_the_middle(folder):
    stream = batches(files(folder, workers=2), Augment(), seed=0, steps=1000)
    assert [batch.step for batch in itertools.islice(stream, 2)] == [0, 1]
    assert len(multiprocessing.active_children()) == 2
    stream.close()
    assert not multiprocessing.active_children()


@pytest.mark.parametrize("world", [2, 4])
def test_the_ranks_together_see_the_batch_of_one_process(dataset, world):
    whole = list(batches(dataset, Augment(), seed=0, steps=4))
    ranks = [list(batches(dataset, Augment(), seed=0, steps=4, rank=rank, world=world)) for rank in range(world)]
    for step, batch in enumerate(whole):
        parts = [rank[step] for rank in ranks]
        assert torch.equal(torch.cat([part.indices for part in parts]), batch.indices)
        assert torch.equal(torch.cat([part.labels for part in parts]), batch.labels)
        for view in (0, 1):
            together = torch.cat([part.views[view] for part in parts])
            # A matrix product may round otherwise where its batch has another size.
            torch.testing.assert_close(together, batch.views[view], atol=1e-5, rtol=0)


def test_a_batch_that_cannot_be_divided(dataset):
    with pytest.raises(InputError, match=f"data.batch_size={dataset.data.batch_size} cannot be divided among 3 proc"):
        batches(dataset, Augment(), seed=0, steps=1, world=3)


@pytest.mark.parametrize("workers", [0, 2])
def test_the_global_generators_are_neither_used_nor_disturbed(folder, workers):
    for opened in (files(folder, workers=workers), open_dataset(Data())):
        torch.manual_seed(0)
        reference = list(batches(opened, Augment(), seed=0, steps=3))
        torch.manual_seed(1)
        states = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()
        assert all_same(batches(opened, Augment(), seed=0, steps=3), reference)
        fixed_images(opened, "bank")
        assert torch.equal(torch.get_rng_state(), states[0])
        assert (np.random.get_state()[1] == states[1]).all()
        assert random.getstate() == states[2]


def test_without_augmentation_the_views_are_the_images():
    dataset = open_dataset(Data(batch_size=32))
    plain = Augment(
        crop_scale=(1, 1), crop_ratio=(1, 1), flip_probability=0, jitter_probability=0, gray_probability=0,
        blur_probability=(0, 0), solarize_probability=(0, 0),
    )  # fmt: skip
    batch = next(batches(dataset, plain, seed=0, steps=1))
    images = v2.functional.normalize(dataset.train.pixels[batch.indices] / 255, dataset.mean, dataset.std)
    for view in batch.views:
        torch.testing.assert_close(view, images, atol=1e-5, rtol=0)


def test_both_ways_of_cutting_agree(folder, tmp_path):
    """A folder of images of one size gives the views that the same images give in memory."""
    digits = open_dataset(Data(batch_size=8))
    rows = torch.arange(40)
    for row in rows:
        path = tmp_path / "digits" / str(int(digits.train.labels[row]))
        path.mkdir(parents=True, exist_ok=True)
        Image.fromarray(digits.train.pixels[row, 0].numpy()).save(path / f"{row:02}.png")
    dataset = open_dataset(Data(path=tmp_path / "digits", batch_size=8, image_size=8, channels=1, workers=0))
    pixels = [np.asarray(read_image(file, 1, 8)) for file in dataset.train.files]
    in_memory = type(dataset.train)(torch.from_numpy(np.stack(pixels))[:, None], (), dataset.train.labels)
    twin = type(dataset)(**(vars(dataset) | {"train": in_memory}))
    augment = Augment(solarize_probability=(0, 0))  # which tells 127 from 128, and one of the ways rounds
    for one, other in zip(*(batches(x, augment, seed=0, steps=3) for x in (dataset, twin)), strict=True):
        assert torch.equal(one.indices, other.indices)
        for ours, theirs in zip(one.views, other.views, strict=True):
            # 8-bit steps of the cut, times the strongest brightness and contrast, over the standard deviation.
            assert (ours - theirs).abs().max() < 1.5 / 255 * 1.4**2 / dataset.std[0]


# Broken images.


def damage(folder, *numbers):
    for number in numbers:
        (folder / "train" / "coffee" / f"{number:02}.png").write_text("no image")


@pytest.mark.parametrize("workers", [0, 2])
def test_a_broken_image_is_named_once_and_replaced_by_the_next(folder, workers, caplog):
    whole = list(batches(files(folder), Augment(), seed=0, steps=9))
    damage(folder, 3)
    dataset = files(folder, workers=workers)
    bad = next(i for i, file in enumerate(dataset.train.files) if file.endswith("coffee/03.png"))
    caplog.set_level(logging.WARNING)
    seen = list(batches(dataset, Augment(), seed=0, steps=9))
    assert [name for batch in seen for name in batch.broken] == ["train/coffee/03.png"]
    assert caplog.text.count("train/coffee/03.png: cannot identify image file it") == 1
    for batch, sound in zip(seen, whole, strict=True):
        row = (sound.indices == bad).nonzero().flatten()
        expected = sound.indices.clone()
        expected[row] = sound.indices[(row + 1) % 8]
        assert torch.equal(batch.indices, expected)
        assert torch.equal(batch.labels, dataset.train.labels[expected])
        others = sound.indices != bad
        for view in (0, 1):
            torch.testing.assert_close(batch.views[view][others], sound.views[view][others], atol=1e-5, rtol=0)


def test_broken_images_and_ranks(folder):
    damage(folder, 1, 2, 3, 7)
    whole = list(batches(files(folder), Augment(), seed=0, steps=3))
    ranks = [batches(files(folder), Augment(), seed=0, steps=3, rank=rank, world=4) for rank in range(4)]
    for batch, *parts in zip(whole, *ranks, strict=True):
        assert torch.equal(torch.cat([part.indices for part in parts]), batch.indices)


@pytest.mark.parametrize("workers", [0, 2])
def test_too_many_broken_images_are_an_error(folder, workers):
    damage(folder, 1, 2, 3)
    with pytest.raises(InputError) as caught:
        list(batches(files(folder, broken_limit=2, workers=workers), Augment(), seed=0, steps=3))
    text = str(caught.value)
    assert text.startswith("3 images cannot be read, more than data.broken_limit=2: ")
    assert all(f"train/coffee/0{number}.png (cannot identify image file it)" in text for number in (1, 2, 3))
    assert not multiprocessing.active_children()


@pytest.mark.parametrize("workers", [0, 2])
def test_a_batch_without_any_readable_image_is_an_error(folder, workers):
    for file in (folder / "train").rglob("*.png"):
        file.write_text("no image")
    with pytest.raises(InputError, match="None of the 8 images of step 0 can be read"):
        list(batches(files(folder, broken_limit=100, workers=workers), Augment(), seed=0, steps=1))


# The fixed images.


def test_fixed_digits_are_the_digits_themselves():
    dataset = open_dataset(Data(bank_images=500))
    bank, held_out = fixed_images(dataset, "bank"), fixed_images(dataset, "held_out")
    assert bank.labels.bincount().tolist() == pytest.approx([50] * 10, abs=2)
    assert len(held_out.images) == 359
    expected = v2.functional.normalize(dataset.held_out.pixels / 255, dataset.mean, dataset.std)
    torch.testing.assert_close(held_out.images, expected, atol=1e-6, rtol=0)
    assert torch.equal(bank.labels, dataset.train.labels[bank.indices])


def test_fixed_images_in_memory_are_resized():
    held_out = fixed_images(open_dataset(Data(image_size=16, channels=3)), "held_out")
    assert held_out.images.shape == (359, 3, 16, 16)


@pytest.mark.parametrize("workers", [0, 2])
def test_fixed_files_are_resized_and_cut_as_published(folder, workers):
    dataset = files(folder, image_size=28, workers=workers)
    held_out = fixed_images(dataset, "held_out")
    published = v2.Compose([v2.Resize(32), v2.CenterCrop(28), v2.PILToTensor(), v2.ToDtype(torch.float32, scale=True)])
    normalize = v2.Normalize(dataset.mean, dataset.std)
    for image, file in zip(held_out.images, dataset.held_out.files, strict=True):
        expected = normalize(published(Image.open(file)))
        # The published center falls between two pixels for most sizes, and is rounded there.
        assert (image - expected).abs().mean() < 0.15
    assert torch.equal(held_out.labels, dataset.held_out.labels)
    assert torch.equal(held_out.images, fixed_images(dataset, "held_out").images)


def test_a_very_long_image_is_no_trouble(tmp_path):
    for i in range(10):
        Image.fromarray(np.full((2, 30_000, 3), 10 * i, np.uint8)).save(tmp_path / f"{i}.png")
    dataset = files(tmp_path, batch_size=4, image_size=32)
    assert fixed_images(dataset, "held_out").images.shape == (2, 3, 32, 32)
    assert next(batches(dataset, Augment(), seed=0, steps=1)).labels is None


def test_a_broken_fixed_image_is_left_out(folder):
    (folder / "val" / "coffee" / "01.png").write_bytes(b"")
    dataset = files(folder)
    held_out = fixed_images(dataset, "held_out")
    assert held_out.broken == ["val/coffee/01.png"]
    assert held_out.indices.tolist() == [0, 1, 2, 3, 5]
    assert len(held_out.images) == len(held_out.labels) == 5


def test_no_readable_fixed_image_is_an_error(folder):
    for file in (folder / "val").rglob("*.png"):
        file.write_text("no image")
    with pytest.raises(InputError, match=r"None of the 6 held-out images of .* can be read"):
        fixed_images(files(folder), "held_out")
