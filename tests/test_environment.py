"""Test that commands work, or end with one line, in other people's terminals, locales, homes and environments."""

import ast
import io
import os
import pwd
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path

import jax
import pytest
from rich.table import Table

from fvjax import cli, console, errors, runtime, startup
from fvjax.__main__ import COMMANDS
from fvjax.config import base, benchmark
from fvjax.data import describe, prepare

PROGRAM = "import os, sys; from fvjax import startup\ndef main():\n    {}\nstartup.run(main)"


def process(body: str, *arguments: str, **settings: str) -> tuple[int, str, str]:
    """Run a command whose main function is `body`; return its exit code, output and errors."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("LC_", "LANG", "PYTHONUTF8"))} | settings
    command = [sys.executable, "-c", PROGRAM.format(body), *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, timeout=60)
    return done.returncode, done.stdout.decode(), done.stderr.decode()


# ---- terminals and locales


def test_characters_that_the_output_lacks_are_escaped():
    for encoding, shown in (("ascii", r"Zo\xeb \xb1 \u6797"), ("utf-8", "Zoë ± 林")):
        assert process("print('Zoë ± 林'); return 1", PYTHONIOENCODING=encoding) == (1, f"{shown}\n", ""), encoding


def test_file_names_are_utf8_in_every_locale(tmp_path):
    body = "open(sys.argv[1], 'w').write('Zo\\xeb'); print(ascii(sys.argv[1]), ascii(open(sys.argv[1]).read()))"
    settings = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    code, out, err = process(body, str(tmp_path / "Zoë.txt"), **settings)
    assert (code, err) == (0, "")
    assert r"Zo\xeb.txt" in out
    assert out.split()[1] == r"'Zo\xeb'"
    assert (tmp_path / "Zoë.txt").read_bytes() == "Zoë".encode()


def test_a_reader_that_is_gone_ends_a_command_quietly():
    """Neither a traceback nor an error about a file, also where a handler of user errors is around the output."""
    body = "\n    try:\n        [print(i) for i in range(10**6)]\n    except OSError as error:\n        sys.exit(2)"
    command = [sys.executable, "-c", PROGRAM.format(body)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as running:
        assert running.stdout
        assert running.stderr
        assert running.stdout.readline() == b"0\n"
        running.stdout.close()
        assert running.stderr.read() == b""
        assert running.wait(60) == startup.READER_GONE


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
def test_output_that_goes_nowhere():
    for redirection, expected in ((">&-", (0, "")), ("2>&-", (0, "")), (">/dev/full", (2, "No space left on device"))):
        command = f'exec {sys.executable} -c "$PROGRAM" {redirection}'
        settings = os.environ | {"PROGRAM": PROGRAM.format("print('x' * 9)")}
        done = subprocess.run(["bash", "-c", command], env=settings, capture_output=True, text=True, timeout=60)
        assert done.returncode == expected[0], (redirection, done.stderr)
        wanted = f"fvjax: error: standard output: {expected[1]}\n" if expected[1] else ""
        assert done.stderr == wanted, redirection


def test_ctrl_c_is_one_line():
    # A background job of a shell, as this test may be, ignores the signal until it asks for it.
    asks = "import signal, time; signal.signal(signal.SIGINT, signal.default_int_handler)"
    code, _, err = process(f"{asks}; os.kill(os.getpid(), {int(signal.SIGINT)}); time.sleep(9)")
    assert (code, err) == (startup.INTERRUPTED, "fvjax: interrupted\n")


def test_names_with_brackets_are_printed_as_they_are(capsys):
    name = "x[/a]b run[lr] [bold]y :smile:"
    console.say(f"Everything is in {name}")
    assert f"Everything is in {name}" in capsys.readouterr().out
    assert list(console.progress([1, 2], f"{name}: lfw", 2)) == [1, 2]


TABLE = (("benchmark", "accuracy (best)", "TAR @ FAR 1e-3"), ("lfw", "99.43 ± 0.25", "98.12 (97.4–98.7)"))


@pytest.mark.parametrize(("width", "kind"), [(20, "xterm"), (20, "dumb"), (80, "dumb")])
def test_a_narrow_terminal_loses_no_figure(monkeypatch, width, kind):
    """rich cuts what does not fit into a cell; lines that are too long are left to the terminal instead."""
    settings = {"TERM": kind, "COLUMNS": str(width)}
    narrow = partial(console.make_console, file=io.StringIO(), force_terminal=True, _environ=settings)
    monkeypatch.setattr(console, "make_console", narrow)
    monkeypatch.setattr(console, "console", narrow())
    heads, figures = TABLE
    table = Table(*heads, title="Face verification (%)")
    table.add_row(*figures)
    console.say(table)
    console.say("Everything about this run is in /a/folder/whose/name/is/long (results.json)")
    assert list(console.progress([1, 2], "lfw", 2)) == [1, 2]
    printed = narrow.keywords["file"].getvalue()
    words = [word for text in (*heads, *figures) for word in text.split()]
    assert [word for word in words if word not in printed] == []
    assert "/a/folder/whose/name/is/long" in printed, "a path can be copied"
    assert "…" not in printed.partition("Everything")[0]


def test_wrong_arguments_are_one_line(capsys):
    for main, argv in ((prepare.main, ["folder"]), (prepare.main, ["nothing"]), (describe.main, ["--no-such-flag"])):
        with pytest.raises(SystemExit) as end:
            main(argv)
        err = capsys.readouterr().err
        assert end.value.code == 2
        assert err.startswith("fvjax: error: ")
        assert err.count("\n") == 1
        assert "--help" in err


# ---- homes


@pytest.mark.parametrize(
    ("argument", "expected"),
    [
        ("~", "/home/zoe"),
        ("~/a b", "/home/zoe/a b"),
        ("--dst=~/x", "/home/zoe/x"),
        ("--dst=~", "/home/zoe"),
        ("--config.data.train=~/stores/[x]", "/home/zoe/stores/[x]"),
        ("--config=~/c.py:row", "/home/zoe/c.py:row"),
        ("a~/b", None),
        ("--dst=/x/~/y", None),
        ("~nobody-of-this-name/x", None),
        ("what is ~/x?", None),
        ("--", None),
    ],
)
def test_tilde(monkeypatch, argument, expected):
    monkeypatch.setenv("HOME", "/home/zoe")
    flag = argument.partition("~")[0] if argument.startswith("-") else ""
    assert startup.expand_home(argument) == (argument if expected is None else flag + expected)


def test_a_home_that_nobody_knows(monkeypatch):
    monkeypatch.delenv("HOME")
    monkeypatch.setattr(pwd, "getpwuid", lambda _: {}[0])
    for argument in ("--dst=~/x", "~/x"):
        with pytest.raises(errors.Environment, match=rf"{argument}: the home directory is not known; set HOME"):
            startup.expand_home(argument)
    assert startup.expand_home("--dst=x") == "--dst=x"
    with pytest.raises(RuntimeError) as home:
        Path.home()
    assert "Set HOME" in str(errors.of_environment(home.value))


def test_homes_in_a_config_file():
    config = base()
    config.data.train, config.data.val, config.name = "~/stores/[x]", "a~/b", "~x"
    config.eval.benchmarks.lfw = benchmark("~/lfw", "lfw")
    config.rows = {"row": {"init_from": "~/weights"}}
    cli.expand_homes(config)
    home = os.path.expanduser("~")
    assert (config.data.train, config.data.val, config.name) == (f"{home}/stores/[x]", "a~/b", "~x")
    assert config.eval.benchmarks.lfw.store == f"{home}/lfw"
    assert config.rows.row.init_from == f"{home}/weights"


def test_paths_mean_the_same_after_a_config_file_has_changed_the_directory(tmp_path):
    """The store below HOME is found, and so is the work directory where the command was started."""
    for folder in ("home/store", "elsewhere", "run"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "run/mine").touch()
    (tmp_path / "config.py").write_text(
        "import os\nfrom fvjax.config import base\n\n\ndef get_config():\n    os.chdir('elsewhere')\n"
        "    c = base()\n    c.epochs, c.data.train = 1, '~/store'\n    return c\n"
    )
    command = [sys.executable, "-m", "fvjax.main", "--config=config.py", "--workdir=run"]
    settings = os.environ | {"HOME": str(tmp_path / "home"), "PYTHONPATH": os.getcwd()}
    done = subprocess.run(command, cwd=tmp_path, env=settings, capture_output=True, text=True, timeout=300)
    problem = f"{tmp_path}/run is not empty and has no config.json; choose another --workdir"
    assert (done.returncode, done.stdout, done.stderr) == (2, "", f"fvjax: error: {problem}\n")


def test_a_directory_that_is_gone(tmp_path):
    (tmp_path / "gone").mkdir()
    command = 'cd "$0" && rmdir "$0" && exec "$1" -c "$PROGRAM"'
    settings = os.environ | {"PROGRAM": PROGRAM.format("print('ran')"), "PYTHONPATH": os.getcwd()}
    arguments = ["bash", "-c", command, str(tmp_path / "gone"), sys.executable]
    done = subprocess.run(arguments, env=settings, capture_output=True, text=True, timeout=60)
    problem = "the current directory is not there any more; change to another one"
    assert (done.returncode, done.stdout, done.stderr.splitlines()[-1]) == (2, "", f"fvjax: error: {problem}")
    assert "Traceback" not in done.stderr


# ---- settings of jax


def test_leftover_settings_of_jax_are_ignored_aloud(monkeypatch, capsys):
    for name, value in (
        ("JAX_ENABLE_X64", "1"),
        ("JAX_NUMPY_RANK_PROMOTION", "raise"),
        ("JAX_DEFAULT_PRNG_IMPL", "rbg"),
    ):
        before = getattr(jax.config, name.lower())
        try:
            monkeypatch.setenv(name, value)
            jax.config.update(name.lower(), value == "1" or value)
            startup.ignore_jax_settings()
            assert getattr(jax.config, name.lower()) == startup.JAX_SETTINGS[name]
        finally:
            jax.config.update(name.lower(), before)
        assert name not in os.environ  # of the processes that this one starts
        assert capsys.readouterr().err.startswith(f"fvjax: {name}={value} is ignored")
    for name, value in (("JAX_ENABLE_X64", "0"), ("JAX_ENABLE_X64", "False"), ("JAX_THREEFRY_PARTITIONABLE", "1")):
        monkeypatch.setenv(name, value)
        startup.ignore_jax_settings()
        assert capsys.readouterr().err == ""


def test_a_device_that_is_not_there_is_one_line(monkeypatch):
    monkeypatch.setenv("JAX_PLATFORMS", "cuda")
    expected = "JAX_PLATFORMS=cuda: jax finds no such device here; unset JAX_PLATFORMS or set JAX_PLATFORMS=cpu"
    unknown = RuntimeError("Unable to initialize backend 'cuda': Unknown backend\n(set JAX_PLATFORMS='' to choose)")
    for error in (unknown, AssertionError()):

        def absent(error=error):
            raise error

        monkeypatch.setattr(jax, "default_backend", absent)
        with pytest.raises(ValueError, match=expected):
            runtime.backend()
        with pytest.raises(ValueError, match=expected):
            runtime.keep_programs()
    for error in (RuntimeError("x"), AssertionError("x")):
        assert errors.of_environment(error) is None
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    assert errors.of_environment(AssertionError()) is None


def test_an_error_that_is_ours_keeps_its_traceback():
    for raised in ("RuntimeError('ours')", "AssertionError('ours')", "AssertionError()"):
        code, _, err = process(f"raise {raised}", JAX_PLATFORMS="cpu")
        assert code == 1
        assert "Traceback" in err
    code, _, err = process("raise RuntimeError('Unable to initialize backend X')", JAX_PLATFORMS="cuda")
    assert code == 2
    assert err.startswith("fvjax: error: JAX_PLATFORMS=cuda: ")
    assert err.count("\n") == 1


# ---- all commands


def test_every_command_starts_and_ends_in_the_same_way():
    files = [Path(f"{module.replace('.', '/')}.py") for module, _ in COMMANDS.values()]
    files = [file if file.exists() else file.with_suffix("") / "__main__.py" for file in files]
    for file in [*files, Path("fvjax/__main__.py"), Path("launch/stage.py")]:
        last = ast.parse(file.read_text()).body[-1]
        assert isinstance(last, ast.If), file
        assert ast.unparse(last.body[-1]).startswith(("startup.run(main)", "cli.start(main, ")), file
