"""Array types for signatures; the axis names say what the axes are."""

from jaxtyping import Array, Float, Int, PRNGKeyArray, UInt8

Images = UInt8[Array, "n h w 3"]  # RGB, as decoded
Pixels = Float[Array, "n h w 3"]  # normalised network input
Embeddings = Float[Array, "n d"]
Labels = Int[Array, "n"]
Keys = PRNGKeyArray  # one key per image, shape [n]
