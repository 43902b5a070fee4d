"""Images drawn anew: turned, scaled, sheared and moved a little, so that no two epochs are alike.

def augment(key, batch):
    return batch._replace(inputs=random_affine(key, batch.inputs, degrees=10, shift=2))

run = train.make_run(model, config, optimizer, data, ..., augment=augment)
"""

import math

import jax
import jax.numpy as jnp
from jax import Array
from jax.scipy.ndimage import map_coordinates

from jaxnn.checks import check_floating, check_key
from jaxnn.numerics import widen
from jaxnn.settings import check_number


def random_affine(
    key: Array,
    images: Array,
    *,
    degrees: float = 0.0,
    scale: float = 0.0,
    shear: float = 0.0,
    shift: float = 0.0,
) -> Array:
    """Return every image under an affine map of its own, drawn from the key.

        out(p) = image(M (p - t)),   M = [[cos a, -sin a], [sin a, cos a]] [[1, 0], [h, 1]] / z

    with positions p counted from the middle, in rows and columns, between which values are
    interpolated linearly; outside the image they are 0. Drawn uniformly, each from its range:
    the angle a, the zoom z, the shear h and the shift t of rows and of columns.

    Args:
        key: of `jax.random`.
        images: (N, H, W, C), floating.
        degrees: a is at most so large, either way.
        scale: z is from 1 - scale to 1 + scale; in [0, 1).
        shear: h is at most so large, either way: columns moved per row.
        shift: t is at most so many pixels, either way.

    Returns:
        (N, H, W, C), of the dtype of the images.

    Raises:
        TypeError: the key is none of `jax.random`, the images are not floating, or a setting is no
            number.
        ValueError: the images are not (N, H, W, C), or a setting is negative, not finite, or, of
            scale, 1 or more.
    """
    check_key("random_affine: key", key)
    check_floating("random_affine: images", images)
    if images.ndim != 4:
        raise ValueError(
            f"random_affine: images have shape {images.shape}; they must be (N, H, W, C): "
            "flat ones need a reshape first"
        )
    for name, value in {"degrees": degrees, "shear": shear, "shift": shift}.items():
        check_number(name, value, "finite and at least 0", lambda v: 0 <= v < math.inf)
    check_number("scale", scale, "in [0, 1), a share of the size", lambda v: 0 <= v < 1)
    n, height, width, _ = images.shape
    wide = widen(images)
    ranges = jnp.array([math.radians(degrees), scale, shear, shift, shift], wide.dtype)
    a, zoom, h, *t = ranges[:, None] * jax.random.uniform(key, (5, n), wide.dtype, -1, 1)
    cos, sin = jnp.cos(a) / (1 + zoom), jnp.sin(a) / (1 + zoom)
    middle = jnp.array([height - 1, width - 1], wide.dtype).reshape(2, 1, 1) / 2
    rows, columns = jnp.indices((height, width), wide.dtype) - middle

    def one(image: Array, cos: Array, sin: Array, h: Array, down: Array, right: Array) -> Array:
        y = rows - down
        x = columns - right + h * y
        at = jnp.stack([cos * y - sin * x, sin * y + cos * x]) + middle
        channels = [
            map_coordinates(channel, list(at), order=1) for channel in jnp.moveaxis(image, -1, 0)
        ]
        return jnp.stack(channels, -1)

    return jax.vmap(one)(wide, cos, sin, h, *t).astype(images.dtype)
