"""How every command starts and ends, whatever terminal, locale, home or leftover setting it meets: see :func:`run`."""

from __future__ import annotations

import argparse
import functools
import io
import os
import sys
from collections.abc import Callable
from typing import Any, NoReturn, ParamSpec

from fvjax import errors

INTERRUPTED = 130  # as a shell reports Ctrl-C
READER_GONE = 141  # as a shell reports SIGPIPE: `… | head` has read enough
# Settings of jax that change types or random numbers for every program, and the values that fvjax is written for.
JAX_SETTINGS: dict[str, Any] = {
    "JAX_ENABLE_X64": False,
    "JAX_NUMPY_DTYPE_PROMOTION": "standard",
    "JAX_NUMPY_RANK_PROMOTION": "allow",
    "JAX_DEFAULT_PRNG_IMPL": "threefry2x32",
    "JAX_THREEFRY_PARTITIONABLE": True,
}
SWITCH = {False: ("0", "false", "f", "no", "n", "off", ""), True: ("1", "true", "t", "yes", "y", "on")}

P = ParamSpec("P")


def run(main: Callable[[], Any]) -> NoReturn:
    """Call a command's main function, and end this process with the exit code that it returns.

    - File names and files are UTF-8 in every locale. Characters that the output cannot show are escaped.
    - `~` at the beginning of an argument or a flag's value is the home directory, which shells leave to programs.
    - Leftover settings of jax that change what is computed are ignored, and that is said.
    - A missing device or home is one line and exit code 2. Ctrl-C gives 130; a closed pipe, as of `| head`, 141.
    """
    _use_utf8()
    try:
        _open_streams()
        _check_directory()
        sys.argv[1:] = [expand_home(argument) for argument in sys.argv[1:]]
        ignore_jax_settings()
        code = main()
    except SystemExit as end:
        code = end.code
    except KeyboardInterrupt:
        print("fvjax: interrupted", file=sys.stderr)
        code = INTERRUPTED
    except errors.Environment as error:
        code = _fail(str(error))
    except (RuntimeError, AssertionError) as error:
        if (problem := errors.of_environment(error)) is None:
            raise
        code = _fail(problem)
    sys.stdout.flush()  # not left to the end of Python, which would report a closed pipe with a traceback
    sys.exit(code)


def errors_in_one_line(command: Callable[P, int]) -> Callable[P, int]:
    """Make a user's error that leaves a command one line on standard error, and exit code 2."""

    @functools.wraps(command)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> int:
        try:
            return command(*args, **kwargs)
        except (ValueError, OSError) as error:
            print("fvjax: error:", *errors.line(error).splitlines(), file=sys.stderr)
            return 2

    return wrapped


def expand_home(argument: str) -> str:
    """Return a command line argument with its leading `~`, or that of the value of `--flag=~/…`, expanded.

    Raises errors.Environment if nobody knows the home directory.
    """
    flag, equals, value = argument.partition("=") if argument.startswith("-") else ("", "", argument)
    if value.partition("/")[0] != "~" and not (equals and value.startswith("~")):
        return argument
    expanded = os.path.expanduser(value)
    if expanded.partition("/")[0] == "~":
        raise errors.Environment(f"{argument}: the home directory is not known; set HOME, or write the path out")
    return flag + equals + expanded


def ignore_jax_settings() -> None:
    """Undo environment variables that change types or random numbers in every program that uses jax, and say so."""
    for name, expected in JAX_SETTINGS.items():
        value = os.environ.pop(name, None)
        if value is None or value.lower() in SWITCH.get(expected, (expected,)):
            continue
        print(f"fvjax: {name}={value} is ignored: fvjax chooses its types and random numbers itself", file=sys.stderr)
        if "jax" in sys.modules:  # it has read the variable already
            sys.modules["jax"].config.update(name.lower(), expected)


class Parser(argparse.ArgumentParser):
    """Reports wrong arguments in one line with exit code 2; --help has the usage."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"fvjax: error: {' '.join(message.split())}; see {self.prog} --help\n")


class _Output(io.TextIOWrapper):
    """Standard output: escapes what its encoding lacks, and ends the process in good order if nobody reads it.

    SystemExit passes the handlers of user errors, which would take a closed pipe for a problem with a file.
    """

    def write(self, text: str, /) -> int:
        try:
            return super().write(text)
        except OSError as error:
            self._give_up(error)

    def flush(self) -> None:
        try:
            super().flush()
        except OSError as error:
            self._give_up(error)

    def _give_up(self, error: OSError) -> NoReturn:
        os.dup2(os.open(os.devnull, os.O_WRONLY), self.fileno())  # else Python complains when it flushes at its end
        if isinstance(error, BrokenPipeError):
            sys.exit(READER_GONE)
        sys.exit(_fail(f"standard output: {error.strerror}"))


def _use_utf8() -> None:
    """Restart this process once in Python's UTF-8 mode if the locale would make file names anything else."""
    if sys.getfilesystemencoding() != "utf-8" and os.environ.get("PYTHONUTF8") != "1":
        os.environ["PYTHONUTF8"] = "1"
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def _check_directory() -> None:
    """Raise errors.Environment if the current directory has been removed: relative paths mean nothing there."""
    try:
        os.getcwd()
    except FileNotFoundError:
        raise errors.Environment("the current directory is not there any more; change to another one") from None


def _open_streams() -> None:
    """Make standard output an :class:`_Output`; a stream that the caller has closed goes nowhere."""
    if isinstance(sys.stdout, io.TextIOWrapper) and not isinstance(sys.stdout, _Output):
        buffered = sys.stdout.line_buffering
        settings: dict[str, Any] = {"encoding": sys.stdout.encoding, "errors": "backslashreplace"}
        sys.stdout = _Output(sys.stdout.buffer, line_buffering=buffered, **settings)
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115 - it lives as long as the process


def _fail(text: str) -> int:
    """Print an error in one line and return the exit code of user errors."""
    print(f"fvjax: error: {' '.join(text.split())}", file=sys.stderr)
    return 2
