"""Locate the files that come with fvjax: experiments (`configs/`) and pretrained weights (`fvjax/pretrained/`).

In a checkout both are in the project's folder, in an installed package they are inside the package. Either way they
have the same names, from whichever folder a command is started.
"""

from __future__ import annotations

import sys
from pathlib import Path

PACKAGE = Path(__file__).resolve().parent
PRETRAINED = "fvjax/pretrained/"


def config_folder() -> Path:
    """Return the folder of the experiments: beside the package in a checkout, inside it after installing a wheel."""
    installed = PACKAGE / "_wheel" / "configs"
    return installed if installed.is_dir() else PACKAGE.parent / "configs"


def config_names() -> list[str]:
    """List the names of the experiments, as `--config=NAME` takes them."""
    shared = ("__init__", "paper", "facellm", "facellava")  # no experiments; but what several experiments share
    return sorted(file.stem for file in config_folder().glob("*.py") if file.stem not in shared)


def config_file(name: str) -> Path:
    """Return the file that `--config=NAME` means.

    A file of that name has priority. Otherwise `NAME`, `NAME.py` and `configs/NAME.py` mean experiments of the package.
    """
    path = Path(name)
    if path.is_file() or path.parent not in (Path(), Path("configs")):
        return path
    shipped = config_folder() / f"{path.name.removesuffix('.py')}.py"
    return shipped if shipped.is_file() else path


def importable(file: Path) -> None:
    """Make `from configs.paper import …` work in a config file: first with its own folder's modules, then ours."""
    folder = file.resolve().parent
    if (folder / "__init__.py").is_file() and str(folder.parent) not in sys.path:
        sys.path.insert(0, str(folder.parent))
    if str(config_folder().parent) not in sys.path:
        sys.path.append(str(config_folder().parent))


def weights(path: str) -> str:
    """Return the directory of a base; `fvjax/pretrained/NAME` means the package's, wherever that is installed."""
    if path.startswith(PRETRAINED) and not Path(path).is_dir():
        return str(PACKAGE / path.removeprefix("fvjax/"))
    return path
