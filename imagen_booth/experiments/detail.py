"""How near the truth the finest details of an enlarged picture are.

The band is that of the discrete Laplacian, 4 x minus its four neighbours: a wave of w
radians a pixel along a row or column passes with gain 2 - 2 cos w, so that shades go
and edges and texture stay.  Values are grey levels of 255; borders are left out.
"""

import numpy as np


def laplacian(picture: np.ndarray) -> np.ndarray:
    """The high-frequency band, f64 [H - 2, W - 2, 3] of uint8 [H, W, 3]."""
    x = picture.astype(np.float64)
    sides = x[:-2, 1:-1] + x[2:, 1:-1] + x[1:-1, :-2] + x[1:-1, 2:]
    return 4 * x[1:-1, 1:-1] - sides


def error(picture: np.ndarray, truth: np.ndarray) -> float:
    """Root mean square of the difference of both pictures' bands; lower is better."""
    return rms(laplacian(picture) - laplacian(truth))


def amount(picture: np.ndarray, truth: np.ndarray) -> float:
    """The band's strength over that of the truth: below 1 blurred, above 1 invented."""
    return rms(laplacian(picture)) / max(rms(laplacian(truth)), 1e-9)


def rms(values: np.ndarray) -> float:
    """Root mean square."""
    return float(np.sqrt(np.mean(np.square(values))))
