"""Files that come with fvjax: experiments (`configs/`) and pretrained weights (`fvjax/pretrained/`).

In a checkout both lie in the project's folder; an installed package has them inside. Either way they are found from
whatever folder a command is started in, and by the same names.
"""

from __future__ import annotations

import sys
from pathlib import Path

PACKAGE = Path(__file__).resolve().parent
PRETRAINED = "fvjax/pretrained/"


def config_folder() -> Path:
    """The folder of the experiments: beside the package in a checkout, inside it where a wheel was installed."""
    installed = PACKAGE / "_wheel" / "configs"
    return installed if installed.is_dir() else PACKAGE.parent / "configs"


def config_names() -> list[str]:
    """Names of the experiments, as `--config=NAME` takes them."""
    shared = ("__init__", "paper")  # paper: what several of them have in common
    return sorted(file.stem for file in config_folder().glob("*.py") if file.stem not in shared)


def config_file(name: str) -> Path:
    """The file that `--config=NAME` means.

    A file of that name comes first. Otherwise `NAME`, `NAME.py` and `configs/NAME.py` are experiments of the package.
    """
    given = Path(name)
    if given.is_file() or given.parent not in (Path(), Path("configs")):
        return given
    ours = config_folder() / f"{given.name.removesuffix('.py')}.py"
    return ours if ours.is_file() else given


def importable(file: Path) -> None:
    """Let a config file say `from configs.paper import …`: its own folder's modules first, then the package's."""
    folder = file.resolve().parent
    if (folder / "__init__.py").is_file() and str(folder.parent) not in sys.path:
        sys.path.insert(0, str(folder.parent))
    if str(config_folder().parent) not in sys.path:
        sys.path.append(str(config_folder().parent))


def weights(path: str) -> str:
    """The directory of a base: as given, but `fvjax/pretrained/NAME` is the package's, wherever that is installed."""
    if path.startswith(PRETRAINED) and not Path(path).is_dir():
        return str(PACKAGE / path.removeprefix("fvjax/"))
    return path
