"""Correlations between attributes, and a graph convolution over them: FaceInsight (arXiv 2504.15624), equations 5 to 8.

The graph is built once from the labels of the training split, in numpy and float64. Row i has the attributes that are
likely where i is positive. The paper leaves the threshold tau, the number of layers and the non-linearity open; here
they are 0.4, 2 and LeakyReLU(0.2), as in ML-GCN (arXiv 1904.03582), but after every layer, as equation 8 says.
"""

from __future__ import annotations

from typing import Any, TypedDict

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike, NDArray

from fvjax import co_occurrence

KINDS = ("conditional", "lift", "identity", "random")


class Correlation(TypedDict):
    """P float64 [K, K] (equation 5), C int64 [K, K] with its diagonal (6) and C_hat float64 [K, K] (7)."""

    P: NDArray[np.float64]
    C: NDArray[np.int64]
    C_hat: NDArray[np.float64]


# ---- the graph -------------------------------------------------------------------------------------------------------


def correlation(labels: ArrayLike, tau: float, omega: float, labelled: ArrayLike | None = None) -> Correlation:
    """Compute the paper's graph from labels (equations 5 to 7).

    P[i, j] = m[i, j] / n[i, j]: of the images with i positive and j labelled, the share with j positive; 0 without any.
    C = (P >= tau). C_hat has 1 - omega on the diagonal, and omega divided evenly among a row's other edges; a row
    without any sums to 1 - omega.

    Args:
        labels: [N, K]: 1 is positive. Without `labelled`, either 1 and 0 or bool, all of it labelled, or -1, 0 and 1
            with 0 unlabelled: so they are read if any is -1.
        tau: at least this probability makes an edge.
        omega: the neighbours' weight, from 0 to 1.
        labelled: bool [N, K]; what is not labelled counts nowhere.
    Raises:
        ValueError: labels of another form, or tau or omega outside 0 to 1.
    """
    _check_share("omega", omega)
    _check_share("tau", tau)
    p = co_occurrence.conditional(labels, labelled)
    edges = (p >= tau).astype(np.int64)
    return {"P": p, "C": edges, "C_hat": weights(edges, omega)}


def adjacency(
    kind: str, labels: ArrayLike, *, tau: float, omega: float, labelled: ArrayLike | None = None, seed: int = 0
) -> Correlation:
    """Compute one of four graphs; a gain from the graph means something only against the last two.

    Args:
        kind: "conditional" is the paper's (:func:`correlation`). "lift" has an edge where i makes j at least twice
            as likely as it is overall and 50 images have both (:func:`fvjax.co_occurrence.lift_edges`). "identity" is
            C_hat = I. "random" is the paper's graph with its attributes permuted.
        seed: of the permutation.
    Raises:
        ValueError: an unknown kind, or as :func:`correlation`.
    """
    if kind not in KINDS:
        raise ValueError(f"graph {kind!r}: choose one of {', '.join(KINDS)}")
    paper = correlation(labels, tau, omega, labelled)
    p, size = paper["P"], len(paper["P"])
    if kind == "identity":
        return {"P": p, "C": np.eye(size, dtype=np.int64), "C_hat": np.eye(size)}
    if kind == "random":
        order = np.random.default_rng(seed).permutation(size)
        edges = paper["C"][order][:, order]
        return {"P": p, "C": edges, "C_hat": weights(edges, omega)}
    if kind == "lift":
        edges = co_occurrence.lift_edges(labels, labelled)
        return {"P": p, "C": edges, "C_hat": weights(edges, omega)}
    return paper


def weights(edges: ArrayLike, omega: float) -> NDArray[np.float64]:
    """Return C_hat of edges [K, K] (equation 7), whose diagonal does not matter."""
    others = np.array(edges, np.float64)
    np.fill_diagonal(others, 0.0)
    degree = others.sum(1, keepdims=True)
    shared = omega * np.divide(others, degree, out=np.zeros_like(others), where=degree > 0)
    return shared + (1.0 - omega) * np.eye(len(others))


def _check_share(name: str, value: float) -> None:
    if not 0.0 <= value <= 1.0:
        raise ValueError(f"{name} is {value}, expected a number from 0 to 1")


# ---- the convolution -------------------------------------------------------------------------------------------------


def _uniform(key: jax.Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> jax.Array:
    """Draw uniformly within ±1 / sqrt(columns), as ML-GCN does."""
    bound = shape[1] ** -0.5
    return jax.random.uniform(key, shape, dtype, -bound, bound)


class CorrelationGraph(nn.Module):
    """Two graph convolutions around the attributes' text features, which are added at the end (equation 8).

    Attributes:
        hidden: width between the two.
        slope: of the leaky ReLU after each.
    """

    hidden: int = 1024
    slope: float = 0.2

    @nn.compact
    def __call__(self, text: jax.Array, adjacency: jax.Array) -> jax.Array:
        """Return float32 [K, d] for text features [K, d] and C_hat [K, K]; computed in float32."""
        text, adjacency = text.astype(jnp.float32), jnp.asarray(adjacency, jnp.float32)
        width = text.shape[-1]
        x = self._convolve(text, adjacency, self.param("w0", _uniform, (width, self.hidden)))
        x = self._convolve(x, adjacency, self.param("w1", _uniform, (self.hidden, width)))
        return text + x

    def _convolve(self, x: jax.Array, adjacency: jax.Array, kernel: jax.Array) -> jax.Array:
        high = jax.lax.Precision.HIGHEST
        mixed = jnp.matmul(jnp.matmul(adjacency, x, precision=high), kernel, precision=high)
        return nn.leaky_relu(mixed, self.slope)
