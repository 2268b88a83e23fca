"""Array types used in signatures: names say what the axes are."""

from jaxtyping import Array, Float, Int, PRNGKeyArray, UInt8

Faces = UInt8[Array, "n 112 112 3"]  # RGB, as decoded
Pixels = Float[Array, "n h w 3"]  # normalised network input
Embeddings = Float[Array, "n d"]
Labels = Int[Array, "n"]
Keys = PRNGKeyArray  # one key per image, shape [n]
