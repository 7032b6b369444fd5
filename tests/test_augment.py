"""The truth is torchvision: its functions for fixed parameters, its random transforms for the distributions."""

import math

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from scipy import stats
from skimage import data as photographs
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F

from stabilitylab.training.augment import Augment, blur, blur_kernel_size, crop, draw, recolor
from stabilitylab.training.colors import BRIGHTNESS, CONTRAST, HUE, SATURATION, jitter, normalized, shift_hue, to_gray
from stabilitylab.training.crops import ATTEMPTS, apply_along_axes, crop_boxes, crop_matrices
from stabilitylab.training.randomness import permutation, uniforms

ORDER = np.tile([BRIGHTNESS, CONTRAST, SATURATION, HUE], (64, 1))


@pytest.fixture
def images():
    """Pictures with saturated, gray, black and white pixels among them."""
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(64, 3, 20, 20, generator=generator)
    images[:8] = images[:8].round()
    images[8:16] = images[8:16, :1]
    return images


@pytest.fixture(scope="module")
def astronaut():
    return F.resize(torch.from_numpy(photographs.astronaut()).permute(2, 0, 1).float() / 255, [32], antialias=True)


def factors(**given):
    columns = {"brightness": 1.0, "contrast": 1.0, "saturation": 1.0, "hue": 0.0} | given
    return np.stack([np.broadcast_to(column, 64) for column in columns.values()], 1)


# Fixed parameters: equal to torchvision's functions up to rounding in float32.


@pytest.mark.parametrize("name", ["brightness", "contrast", "saturation"])
def test_each_blend_equals_torchvision(images, name):
    values = np.linspace(0, 2, 64)
    ours = jitter(images, factors(**{name: values}), ORDER)
    theirs = torch.stack([getattr(F, f"adjust_{name}")(*pair) for pair in zip(images, values, strict=True)])
    torch.testing.assert_close(ours, theirs, atol=2e-6, rtol=0)


def test_hue_equals_torchvision(images):
    turns = torch.linspace(-0.5, 0.5, 64)
    theirs = torch.stack([F.adjust_hue(image, float(turn)) for image, turn in zip(images, turns, strict=True)])
    torch.testing.assert_close(shift_hue(images, turns), theirs, atol=5e-6, rtol=0)


def test_each_image_has_its_own_order_and_factors(images):
    rng = np.random.default_rng(0)
    order = np.argsort(rng.random((64, 4)), 1)
    values = np.concatenate([rng.uniform(0.2, 1.8, (64, 3)), rng.uniform(-0.5, 0.5, (64, 1))], 1)
    functions = (F.adjust_brightness, F.adjust_contrast, F.adjust_saturation, F.adjust_hue)
    theirs = images.clone()
    for row in range(64):
        for operation in order[row]:
            theirs[row] = functions[operation](theirs[row], values[row, operation])
    assert len({tuple(row) for row in order}) > 20
    torch.testing.assert_close(jitter(images, values, order), theirs, atol=1e-5, rtol=0)


def test_neutral_factors_change_nothing(images):
    assert torch.equal(jitter(images, factors(), ORDER), images)


def test_one_channel_knows_brightness_and_contrast_only(images):
    gray = images[:, :1]
    assert torch.equal(jitter(gray, factors(saturation=0.0, hue=0.4), ORDER), gray)
    theirs = torch.stack([F.adjust_contrast(image, 1.5) for image in gray])
    torch.testing.assert_close(jitter(gray, factors(contrast=1.5), ORDER), theirs, atol=2e-6, rtol=0)
    assert to_gray(gray) is gray


def test_gray_equals_torchvision(images):
    torch.testing.assert_close(to_gray(images), F.rgb_to_grayscale(images), atol=1e-6, rtol=0)


@pytest.mark.parametrize(("size", "kernel"), [(4, 3), (8, 3), (32, 3), (64, 7), (96, 9), (224, 23)])
def test_blur_equals_torchvision(size, kernel):
    images = torch.rand(3, 2, size, size, generator=torch.Generator().manual_seed(0))
    sigmas = [0.1, 0.8, 2.0]
    assert blur_kernel_size(size) == kernel
    theirs = torch.stack([F.gaussian_blur(i, [kernel, kernel], [s, s]) for i, s in zip(images, sigmas, strict=True)])
    torch.testing.assert_close(blur(images, torch.tensor(sigmas)), theirs, atol=2e-6, rtol=0)


@pytest.mark.parametrize("threshold", [0.0, 0.3, 1.0])
def test_solarize_equals_torchvision(images, threshold):
    augment = Augment(
        jitter_probability=0, gray_probability=0, blur_probability=(0, 0), solarize_probability=(1, 1),
        solarize_threshold=threshold,
    )  # fmt: skip
    ours = recolor(images, draw(augment, 0, 0, 1, 64), augment)
    assert torch.equal(ours, F.solarize(images, threshold))


@pytest.mark.parametrize("size", [5, 20, 33])
def test_crops_equal_torchvision_larger_and_smaller(size):
    images = torch.rand(6, 3, 30, 24, generator=torch.Generator().manual_seed(0))
    boxes = [(0, 0, 30, 24), (3, 5, 20, 12), (29, 23, 1, 1), (10, 0, 7, 24), (28, 1, 2, 3), (0, 4, 30, 20)]
    mirrored = torch.tensor([False, True, False, True, True, False])
    top, left, height, width = torch.tensor(boxes).unbind(1)
    rows = crop_matrices(top, height, 30, size, torch.zeros(6, dtype=torch.bool))
    columns = crop_matrices(left, width, 24, size, mirrored)
    theirs = [F.resized_crop(i, *box, size=[size, size], antialias=True) for i, box in zip(images, boxes, strict=True)]
    theirs = torch.stack([F.horizontal_flip(i) if m else i for i, m in zip(theirs, mirrored, strict=True)])
    torch.testing.assert_close(apply_along_axes(images, rows, columns), theirs, atol=2e-6, rtol=0)


def test_the_whole_image_is_its_own_crop(images):
    whole = Augment(crop_scale=(1, 1), crop_ratio=(1, 1), flip_probability=0)
    torch.testing.assert_close(crop(images, draw(whole, 0, 0, 0, 64), whole, 20), images, atol=1e-6, rtol=0)


def test_normalized_equals_torchvision(images):
    mean, std = [0.5, 0.4, 0.3], [0.2, 0.3, 0.4]
    theirs = F.normalize(images, mean, std)
    torch.testing.assert_close(normalized(images.clone(), mean, std), theirs, atol=1e-6, rtol=0)


# Random parameters: distributed as torchvision's. Explicit seeds, so these tests do not flicker; the level of each
# Kolmogorov-Smirnov test is 0.001.


def same_distribution(ours, theirs):
    return stats.ks_2samp(np.asarray(ours, float), np.asarray(theirs, float)).pvalue > 0.001


def torchvision_boxes(height, width, scale, ratio, num):
    transform = v2.RandomResizedCrop(8, scale=scale, ratio=ratio)
    with torch.random.fork_rng():
        torch.manual_seed(1)
        drawn = [transform.make_params([torch.empty(1, height, width)]) for _ in range(num)]
    return np.array([[box["top"], box["left"], box["height"], box["width"]] for box in drawn])


@pytest.mark.parametrize(
    ("height", "width", "scale", "ratio"),
    [
        (8, 8, (0.08, 1.0), (3 / 4, 4 / 3)),
        (32, 32, (0.2, 1.0), (3 / 4, 4 / 3)),
        (40, 90, (0.5, 1.0), (3 / 4, 4 / 3)),  # many boxes do not fit at first, some not at all
        (7, 100, (0.9, 1.0), (0.5, 2.0)),  # none fits: the central box
        (100, 7, (0.9, 1.0), (0.5, 2.0)),
    ],
)
def test_boxes_are_distributed_as_torchvisions(height, width, scale, ratio):
    num = 4000
    ours = crop_boxes(uniforms((5,), (num, 2 * ATTEMPTS + 2)), height, width, scale, ratio)
    theirs = torchvision_boxes(height, width, scale, ratio, num)
    for column in range(4):
        assert same_distribution(ours[:, column], theirs[:, column])
    assert same_distribution(ours[:, 2] * ours[:, 3], theirs[:, 2] * theirs[:, 3])
    assert (ours >= 0).all()
    assert (ours[:, 0] + ours[:, 2] <= height).all()
    assert (ours[:, 1] + ours[:, 3] <= width).all()


def test_boxes_of_images_of_different_sizes_are_each_in_their_own():
    drawn = uniforms((0,), (3, 2 * ATTEMPTS + 2))
    heights, widths = np.array([8, 500, 30]), np.array([90, 20, 30])
    together = crop_boxes(drawn, heights, widths, (0.08, 1), (0.75, 4 / 3))
    for row in range(3):
        alone = crop_boxes(drawn[row : row + 1], heights[row], widths[row], (0.08, 1), (0.75, 4 / 3))
        assert (alone[0] == together[row]).all()


@pytest.mark.parametrize("view", [0, 1])
@pytest.mark.parametrize("channels", [1, 3])
def test_views_are_distributed_as_torchvisions(astronaut, view, channels):
    """Of many views of one photograph, mean, spread, quantiles and color of each."""
    num, size = 500, 24
    image = astronaut if channels == 3 else astronaut[1:2]
    augment = Augment()
    drawn = draw(augment, 3, 0, view, num)
    ours = recolor(crop(image.expand(num, -1, -1, -1).contiguous(), drawn, augment, size), drawn, augment)
    color = [v2.RandomApply([v2.ColorJitter(0.4, 0.4, 0.2, 0.1)], p=0.8), v2.RandomGrayscale(0.2)]
    transform = v2.Compose(
        [v2.RandomResizedCrop(size, scale=(0.08, 1), antialias=True)]
        + (color if channels == 3 else [v2.RandomApply([v2.ColorJitter(0.4, 0.4)], p=0.8)])
        + [v2.RandomApply([v2.GaussianBlur(blur_kernel_size(size), (0.1, 2.0))], p=(1.0, 0.1)[view])]
        + [v2.RandomSolarize(0.5, p=(0.0, 0.2)[view]), v2.RandomHorizontalFlip()]
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        theirs = torch.stack([transform(image) for _ in range(num)])
    assert ours.min() >= -1e-6  # a crop is a weighted mean with weights that sum to 1 up to rounding
    assert ours.max() <= 1 + 1e-6
    quantiles = torch.tensor([0.1, 0.5, 0.9])
    for measured in (
        lambda x: x.mean((2, 3)),  # per channel
        lambda x: x.std((2, 3)),
        lambda x: x.flatten(1).quantile(quantiles, 1).T,
        lambda x: (x.amax(1) - x.amin(1)).mean((1, 2))[:, None],  # how colorful
        lambda x: (x[..., 1:] - x[..., :-1]).abs().mean((1, 2, 3))[:, None],  # how sharp
        lambda x: (x[..., :8].mean((1, 2, 3)) - x[..., -8:].mean((1, 2, 3)))[:, None],  # left against right
    ):
        for column_ours, column_theirs in zip(measured(ours).T, measured(theirs).T, strict=True):
            assert same_distribution(column_ours, column_theirs)


def test_a_different_distribution_is_noticed(astronaut):
    """The test above can fail: the first view's blur alone sets the two views apart."""
    augment = Augment(solarize_probability=(0, 0))
    sharpness = []
    for view in (0, 1):
        drawn = draw(augment, 3, 0, view, 500)
        views = recolor(crop(astronaut.expand(500, -1, -1, -1).contiguous(), drawn, augment, 24), drawn, augment)
        sharpness.append((views[..., 1:] - views[..., :-1]).abs().mean((1, 2, 3)))
    assert not same_distribution(*sharpness)


def test_what_is_drawn_is_as_stated():
    augment = Augment()
    num = 20_000
    first, second = (draw(augment, 0, 0, view, num) for view in (0, 1))
    tolerance = 4 * math.sqrt(0.25 / num)  # four standard errors of a share
    assert first.blur.all()
    assert not first.solarize.any()
    for drawn, share in ((first.flip, 0.5), (first.gray, 0.2), (second.blur, 0.1), (second.solarize, 0.2)):
        assert abs(drawn.mean() - share) < tolerance
    jittered = (first.factors != (1, 1, 1, 0)).any(1)
    assert abs(jittered.mean() - 0.8) < tolerance
    for column, (low, high) in enumerate([(0.6, 1.4), (0.6, 1.4), (0.8, 1.2), (-0.1, 0.1)]):
        assert stats.kstest(first.factors[jittered, column], stats.uniform(low, high - low).cdf).pvalue > 0.001
    assert stats.kstest(first.sigma, stats.uniform(0.1, 1.9).cdf).pvalue > 0.001
    counts = np.unique(first.order @ [64, 16, 4, 1], return_counts=True)[1]
    assert len(counts) == 24
    assert stats.chisquare(counts).pvalue > 0.001


def test_factors_are_never_negative():
    drawn = draw(Augment(brightness=3.0, jitter_probability=1), 0, 0, 0, 1000)
    assert drawn.factors[:, 0].min() >= 0
    assert drawn.factors[:, 0].max() > 3.5


# Randomness without state.


def test_a_draw_is_a_function_of_seed_step_and_view():
    augment = Augment()
    again, reference = draw(augment, 1, 7, 0, 16), draw(augment, 1, 7, 0, 16)
    assert all((a == b).all() for a, b in zip(again, reference, strict=True))
    for other in (draw(augment, 2, 7, 0, 16), draw(augment, 1, 8, 0, 16), draw(augment, 1, 7, 1, 16)):
        assert not (other.crop == reference.crop).any()


def test_the_first_rows_do_not_depend_on_the_number_of_rows():
    augment = Augment()
    few, many = draw(augment, 0, 0, 0, 3), draw(augment, 0, 0, 0, 300)
    assert all((a == b).all() for a, b in zip(few, many.rows(0, 3), strict=True))


def test_the_global_generators_are_left_alone(images):
    torch_state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].copy()
    drawn = draw(Augment(), 0, 0, 1, 64)
    recolor(crop(images, drawn, Augment(), 20), drawn, Augment())
    assert torch.equal(torch.get_rng_state(), torch_state)
    assert (np.random.get_state()[1] == numpy_state).all()


def test_the_input_is_left_as_it_is(images):
    before = images.clone()
    recolor(images, draw(Augment(), 0, 0, 1, 64), Augment())
    assert torch.equal(images, before)


def test_uniforms_are_uniform_and_keys_independent():
    assert stats.kstest(uniforms((0, 1), (10_000,)), "uniform").pvalue > 0.001
    streams = [uniforms(key, (1000,)) for key in ((0,), (0, 0), (1,), (2**32,), (0, 1), (2**32 + 1,))]
    correlations = np.corrcoef(streams)
    assert np.abs(correlations - np.eye(6)).max() < 0.15


def test_the_streams_never_change():
    """Splits and orders of old runs depend on these numbers."""
    assert permutation((0,), 8).tolist() == [2, 0, 1, 4, 5, 6, 7, 3]
    assert uniforms((3, 1, 4), (2,)).tolist() == [0.6704279194091722, 0.09744982612941189]


def test_a_permutation_holds_each_number_once():
    assert sorted(permutation((9,), 1000)) == list(range(1000))


# Parameters.


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"crop_scale": (0.5, 0.1)}, "smallest value 0.5 is above the largest 0.1"),
        ({"crop_scale": (0.0, 1.0)}, "greater than 0"),
        ({"blur_probability": (1.0, 1.5)}, "less than or equal to 1"),
        ({"hue": 0.7}, "less than or equal to 0.5"),
        ({"brightness": -1}, "greater than or equal to 0"),
        ({"blur_radius": 1}, "Extra inputs are not permitted"),
    ],
)
def test_impossible_parameters_are_refused(wrong, words):
    with pytest.raises(ValidationError, match=words):
        Augment(**wrong)


def test_every_parameter_has_a_sentence():
    assert all(field.description for field in Augment.model_fields.values())
