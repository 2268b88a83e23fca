"""What the commands that take a config share: its flag, --help, and errors in one line with exit code 2."""

from __future__ import annotations

import difflib
import os
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from absl import app, flags
from ml_collections import ConfigDict, config_flags

from fvjax import config_errors, errors, shipped, startup
from fvjax.parallel import distributed

CONFIG = config_flags.DEFINE_config_file("config", help_string="the experiment: configs/NAME.py", lock_config=True)
SAVED = shipped.PACKAGE / "saved_config.py"  # a config file whose row is a run's config.json
NAMED = flags.Error | LookupError | AttributeError | ValueError | errors.Environment  # their text says what is wrong
TRACEBACK = flags.DEFINE_bool("traceback", False, "show where an error came from")


def fail(text: str) -> None:
    """Print an error and end this process, and with it the other processes of the run; exit code 2."""
    for line in text.splitlines():
        print(f"fvjax: error: {line}", file=sys.stderr)
    distributed.leave(2, text)


def parse(argv: list[str], about: str, holders: Sequence[flags.FlagHolder]) -> list[str]:
    """Parse flags; every problem is one line and exit code 2. --help prints `about` and the flags of `holders`."""
    if {"--help", "-h", "-help"} & set(argv):
        print(help_text(about, holders))
        sys.exit(0)
    started_in = Path.cwd()
    try:
        arguments = find_config(argv)
        check_config(arguments)
        rest = flags.FLAGS(arguments)
        if CONFIG.value is None:
            fail(f"--config=NAME is missing; there are {', '.join(shipped.config_names())}, or give a file of your own")
        config: Any = CONFIG.value
        config.to_dict()  # a config that could not be loaded complains at its first use
        expand_homes(config)
        return rest
    except Exception as error:  # a config file is Python: anything can be wrong in it
        if "--traceback" in argv:
            raise
        file = next((arg[9:].partition(":")[0] for arg in argv if arg.startswith("--config=")), "")
        if file and not shipped.config_file(file).is_file():
            names = shipped.config_names()
            near = difflib.get_close_matches(Path(file).stem, names, 3)
            hint = f"did you mean {', '.join(near)}? " if near else ""
            fail(f"--config={file}: no such file; {hint}there are {', '.join(names)}")
        kind = "" if isinstance(error, NAMED) else f"{type(error).__name__}: "
        text = str(error.args[0] if error.args else error).replace("\\n", " ").replace("\\'", "'")
        fail(kind + " ".join(text.split()).lstrip("'\""))
        raise  # not reached
    finally:
        os.chdir(started_in)  # which a config file may have left: relative paths are those of the command


def expand_homes(config: Any) -> None:
    """Expand `~/` at the beginning of every text of a config, in place, as in the arguments of a command."""
    for key, value in config.items():
        if isinstance(value, ConfigDict):
            expand_homes(value)
        elif isinstance(value, str) and value.startswith("~"):
            config[key] = startup.expand_home(value)


def check_config(arguments: Sequence[str]) -> None:
    """Raise ValueError in one line if the file of `--config=FILE:ROW` or a `--config.KEY=…` has a mistake.

    ml_collections finds the same mistakes later, with all keys of the config in its messages.
    """
    for i, argument in enumerate(arguments):
        flag, equals, value = argument.partition("=")
        if flag in ("--config", "-config") and (equals or i + 1 < len(arguments)):
            file, _, row = (value if equals else arguments[i + 1]).partition(":")
            if Path(file).is_file():
                config_errors.check_overrides(arguments, config_errors.load(Path(file), row))


def help_text(about: str, holders: Sequence[flags.FlagHolder]) -> str:
    """Return what a command's --help prints: what it is for, then its own flags and none of absl's."""
    lines = [about.strip(), "", "flags:"]
    for flag in (flags.FLAGS[holder.name] for holder in holders):
        default = "" if flag.default in (None, False, 0, []) else f" (default: {flag.default})"
        lines.append(f"  --[no]{flag.name}" if flag.boolean else f"  --{flag.name}=…")
        lines.append(f"        {' '.join(flag.help.split())}{default}")
    return "\n".join(lines)


def find_config(argv: list[str]) -> list[str]:
    """Return the arguments with the file that `--config=NAME[:ROW]` means (see `shipped.config_file`).

    A run's config.json is accepted too. With --mode=eval and --workdir=RUN alone, it is that run's.
    """
    out = list(argv)
    if not any(argument.partition("=")[0] in ("--config", "-config") for argument in argv) and "--mode=eval" in argv:
        workdirs = [argument.partition("=")[2] for argument in argv if argument.startswith("--workdir=")]
        saved = Path(workdirs[-1]) / "config.json" if workdirs else None
        if saved is not None and saved.is_file():
            return [*out, f"--config={SAVED}:{saved}"]
    for i, argument in enumerate(argv):
        flag, equals, value = argument.partition("=")
        if flag not in ("--config", "-config") or (not equals and i + 1 == len(argv)):
            continue
        name, colon, row = (value if equals else argv[i + 1]).partition(":")
        if name.endswith(".json"):
            name, colon, row = str(SAVED), ":", name
        file = shipped.config_file(name)
        shipped.importable(file)
        if equals:
            out[i] = f"{flag}={file}{colon}{row}"
        else:
            out[i + 1] = f"{file}{colon}{row}"
    return out


def start(main: Callable[[list[str]], None], about: str, holders: Sequence[flags.FlagHolder]) -> None:
    """Run the main function of a command that takes a config, see :func:`parse`; ends this process."""
    startup.run(partial(app.run, main, flags_parser=partial(parse, about=about, holders=holders)))


def use_huge_pages() -> None:
    """Restart this process once with glibc set to take memory in huge pages.

    XLA's CPU backend takes gigabytes of scratch memory anew in every step, and page faults of small pages cost time
    (measured in benchmarks/README.md, as is why freed memory is not kept). glibc reads its tunables at start only.
    """
    if sys.platform == "linux" and "GLIBC_TUNABLES" not in os.environ:
        os.environ["GLIBC_TUNABLES"] = "glibc.malloc.hugetlb=1"
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])
