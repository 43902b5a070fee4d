"""Augmentation, by what it does to a blob of light: how far it goes, and how it turns."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxnn.augment import random_affine

N, HEIGHT, WIDTH = 40, 31, 27
KEY = jax.random.key(0)
ROW, COLUMN = 6.0, -4.0  # of the blob, from the middle


def blobs():
    """Images (N, H, W, 2): a blob off the middle, and the same with half the light."""
    y = np.arange(HEIGHT)[:, None] - (HEIGHT - 1) / 2
    x = np.arange(WIDTH) - (WIDTH - 1) / 2
    blob = np.exp(-((y - ROW) ** 2 + (x - COLUMN) ** 2) / 4).astype(np.float32)
    return np.broadcast_to(np.stack([blob, blob / 2], -1), (N, HEIGHT, WIDTH, 2))


def light(images):
    """How much each image has of it, and where its middle is: (N,), rows (N,), columns (N,)."""
    first = np.asarray(images)[..., 0]
    total = first.sum((1, 2))
    rows = (first.sum(2) * (np.arange(HEIGHT) - (HEIGHT - 1) / 2)).sum(1) / total
    columns = (first.sum(1) * (np.arange(WIDTH) - (WIDTH - 1) / 2)).sum(1) / total
    return total, rows, columns


def assert_fills(values, least, most):
    """Within the range, and over most of it: 40 uniform draws leave a tenth at an end in 2%."""
    slack = 0.1 * (most - least)
    assert least - 1e-2 <= values.min() <= least + slack
    assert most - slack <= values.max() <= most + 1e-2


def test_without_a_setting_images_stay_as_they_are():
    images = jax.random.uniform(KEY, (3, 5, 4, 2))
    np.testing.assert_array_equal(random_affine(KEY, images), images)


def test_shift_moves_either_way_along_both_axes():
    images = random_affine(KEY, blobs(), shift=3)
    total, rows, columns = light(images)
    np.testing.assert_allclose(total, light(blobs())[0], rtol=1e-3)
    assert_fills(rows - ROW, -3, 3)
    assert_fills(columns - COLUMN, -3, 3)
    assert abs(np.corrcoef(rows, columns)[0, 1]) < 0.5
    np.testing.assert_allclose(images[..., 1], images[..., 0] / 2, rtol=1e-5, atol=1e-7)


def test_degrees_turn_about_the_middle():
    _, rows, columns = light(random_affine(KEY, blobs(), degrees=40))
    np.testing.assert_allclose(np.hypot(rows, columns), np.hypot(ROW, COLUMN), atol=0.05)
    turned = np.arctan2(rows, columns) - np.arctan2(ROW, COLUMN)
    assert_fills(np.degrees(turned), -40, 40)


def test_scale_zooms_about_the_middle():
    total, rows, columns = light(random_affine(KEY, blobs(), scale=0.3))
    np.testing.assert_allclose(rows / columns, ROW / COLUMN, rtol=0.02)
    assert_fills(rows / ROW, 0.7, 1.3)
    np.testing.assert_allclose(total / light(blobs())[0], (rows / ROW) ** 2, rtol=0.05)


def test_shear_moves_columns_by_their_row():
    _, rows, columns = light(random_affine(KEY, blobs(), shear=0.4))
    np.testing.assert_allclose(rows, ROW, atol=0.05)
    assert_fills((columns - COLUMN) / ROW, -0.4, 0.4)


def test_what_comes_from_outside_is_dark():
    images = random_affine(KEY, jnp.ones((N, 5, 4, 1)), shift=30)
    dark = np.asarray(images.sum((1, 2, 3)) == 0)
    assert 20 <= dark.sum() < N


def test_the_key_decides_jitted_or_not_and_16_bits_stay():
    def one(key, images):
        return random_affine(key, images, degrees=10, scale=0.1, shear=0.1, shift=2)

    images = jnp.asarray(blobs())
    first = one(KEY, images)
    chex.assert_trees_all_close(jax.jit(one)(KEY, images), first, atol=1e-4)
    assert jnp.abs(one(jax.random.key(1), images) - first).max() > 0.1
    assert jnp.abs(first[0] - first[1]).max() > 0.1
    narrow = one(KEY, images.astype(jnp.bfloat16))
    assert narrow.dtype == jnp.bfloat16
    chex.assert_trees_all_close(narrow.astype(jnp.float32), first, atol=0.01)


@pytest.mark.parametrize(
    ("images", "settings", "error", "message"),
    [
        (np.ones((2, 9), np.float32), {}, ValueError, r"shape \(2, 9\).*\(N, H, W, C\).*reshape"),
        (np.ones((2, 3, 3, 1), np.uint8), {}, TypeError, "dtype uint8; it must be floating"),
        (blobs(), {"degrees": -1}, ValueError, "degrees is -1; it must be finite and at least 0"),
        (blobs(), {"shift": np.nan}, ValueError, "shift is nan"),
        (blobs(), {"shear": "0"}, TypeError, "shear is '0'"),
        (blobs(), {"scale": 1}, ValueError, r"scale is 1; it must be in \[0, 1\)"),
    ],
)
def test_what_cannot_be_augmented_is_refused(images, settings, error, message):
    with pytest.raises(error, match=message):
        random_affine(KEY, images, **settings)


def test_the_key_is_one():
    with pytest.raises(TypeError, match="random_affine: key"):
        random_affine(0, blobs())
