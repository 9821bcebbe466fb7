"""The sign convention of the whole project, in one place: rectified flow from data (sigma = 0) to noise (sigma = 1).

x_t = (1 - sigma) x_0 + sigma eps,   v = eps - x_0,   x_0 = x_t - sigma v       (method: Qwen-Image, 2508.02324)
"""

from torch import Tensor


def per_sample(sigma: Tensor, like: Tensor) -> Tensor:
    """(B,) -> (B, 1, ...), so that it multiplies `like` (B, ...) sample by sample."""
    return sigma.reshape(-1, *[1] * (like.ndim - 1)).to(like)


def interpolate(x_0: Tensor, eps: Tensor, sigma: Tensor) -> Tensor:
    """The noisy sample x_t at sigma (B,) in [0, 1]."""
    s = per_sample(sigma, x_0)
    return (1 - s) * x_0 + s * eps


def velocity(x_0: Tensor, eps: Tensor) -> Tensor:
    """The velocity that the transformer predicts; constant along the path."""
    return eps - x_0


def clean(x_t: Tensor, sigma: Tensor, v: Tensor) -> Tensor:
    """The one-step estimate of x_0 from x_t and a velocity."""
    return x_t - per_sample(sigma, x_t) * v
