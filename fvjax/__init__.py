"""fvjax: face verification with multimodal language models, in pure JAX."""

import hashlib
from pathlib import Path

__version__ = "0.1.0"


def code_version() -> str:
    """The package version and a hash over the source files, so that a result names the code that made it."""
    root = Path(__file__).parent.parent
    digest = hashlib.sha256()
    for file in sorted([*root.glob("fvjax/**/*.py"), *root.glob("weights_convert/*.py")]):
        digest.update(file.relative_to(root).as_posix().encode() + b"\0" + file.read_bytes())
    return f"{__version__}+{digest.hexdigest()[:12]}"


def __getattr__(name: str):
    if name == "load":  # here and not above: reading data needs no jax
        from fvjax.api import load

        return load
    if name == "faces":
        from fvjax.data.alignment.faces import faces

        return faces
    raise AttributeError(f"module 'fvjax' has no attribute {name!r}")
