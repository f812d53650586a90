"""The forward process, and the three quantities a network may predict.

    z_t = alpha x0 + sigma eps                              (alpha^2 + sigma^2 = 1)
    v   = alpha eps - sigma x0

Any one of eps, x0 and v, together with z_t, gives the other two:

    from eps   x0 = (z_t - sigma eps) / alpha
    from x0    eps = (z_t - alpha x0) / sigma
    from v     x0 = alpha z_t - sigma v,   eps = sigma z_t + alpha v

Alpha and sigma are always scalars or one number per row, [] or [B].

Source: Imagen, arXiv 2205.11487, section 2; v from arXiv 2202.00512, appendix D.
"""

from jaxtyping import Array, Float

from imagen_booth.errors import InputError


def add_noise(
    x0: Float[Array, " B *dims"],
    eps: Float[Array, " B *dims"],
    alpha: Float[Array, "..."],
    sigma: Float[Array, "..."],
) -> Float[Array, " B *dims"]:
    """The noisy picture z_t = alpha x0 + sigma eps.

    Args:
      x0: Pictures in [-1, 1].
      eps: Standard normal noise.
      alpha, sigma: Scales of picture and noise, [] or [B].
    """
    return _rows(alpha, x0) * x0 + _rows(sigma, x0) * eps


def convert(
    prediction: Float[Array, " B *dims"],
    kind: str,
    xt: Float[Array, " B *dims"],
    alpha: Float[Array, "..."],
    sigma: Float[Array, "..."],
) -> tuple[Float[Array, " B *dims"], Float[Array, " B *dims"]]:
    """The picture and the noise that a prediction at xt implies.

    Args:
      prediction: The network's output.
      kind: What it predicts: 'eps', 'x0' or 'v'.
      xt: z_t.
      alpha, sigma: Scales of picture and noise in z_t.

    Returns:
      (x0, eps), with alpha x0 + sigma eps = xt.

    Raises:
      InputError: The kind is not one of these.
    """
    alpha, sigma = _rows(alpha, xt), _rows(sigma, xt)
    if kind == "eps":
        return (xt - sigma * prediction) / alpha, prediction
    if kind == "x0":
        return prediction, (xt - alpha * prediction) / sigma
    if kind == "v":
        return alpha * xt - sigma * prediction, sigma * xt + alpha * prediction
    raise _unknown(kind)


def target(
    kind: str,
    x0: Float[Array, " B *dims"],
    eps: Float[Array, " B *dims"],
    alpha: Float[Array, "..."],
    sigma: Float[Array, "..."],
) -> Float[Array, " B *dims"]:
    """The training target of a network that predicts `kind`.

    Args:
      kind: 'eps', 'x0' or 'v'.
      x0, eps: The picture and the noise in z_t.
      alpha, sigma: Their scales, [] or [B].

    Raises:
      InputError: The kind is not one of these.
    """
    if kind == "eps":
        return eps
    if kind == "x0":
        return x0
    if kind == "v":
        return _rows(alpha, x0) * eps - _rows(sigma, x0) * x0
    raise _unknown(kind)


def _rows(scale: Array, like: Array) -> Array:
    """One number per row, reshaped to broadcast over a batch of pictures."""
    return scale.reshape(scale.shape + (1,) * (like.ndim - scale.ndim))


def _unknown(kind: str) -> InputError:
    return InputError(f"The prediction is '{kind}'. Use 'eps', 'x0' or 'v'.")
