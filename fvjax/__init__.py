"""fvjax: face verification with multimodal language models, in pure JAX."""

import hashlib
import importlib
from pathlib import Path

__version__ = "0.1.0"
# What `fvjax.NAME` imports on first use, beside the functions below.
MODULES = ("api", "compare", "config", "data", "doctor", "evals", "export", "losses", "models", "plan", "verify")


def code_version() -> str:
    """The package version and a hash over the source files, so that a result names the code that made it."""
    root = Path(__file__).parent.parent
    digest = hashlib.sha256()
    for file in sorted([*root.glob("fvjax/**/*.py"), *root.glob("weights_convert/*.py")]):
        digest.update(file.relative_to(root).as_posix().encode() + b"\0" + file.read_bytes())
    return f"{__version__}+{digest.hexdigest()[:12]}"


def __getattr__(name: str):
    """Import what is asked for when it is asked for: reading data needs no jax."""
    if name == "load":
        from fvjax.api import load

        return load
    if name == "faces":
        from fvjax.data.alignment.faces import faces

        return faces
    if name in MODULES:
        return importlib.import_module(f"fvjax.{name}")
    raise AttributeError(f"module 'fvjax' has no attribute {name!r}; there are {', '.join(__dir__())}")


def __dir__() -> list[str]:
    return sorted(["__version__", "code_version", "faces", "load", *MODULES])
