"""Test `fvjax reproduce`: its plan, what it starts, resumes and skips, and the table beside the published one.

Runs are replaced by a stand-in that writes the files of a finished run; one row is run for real by hand.
"""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from fvjax import reproduce
from fvjax.evals import pair_scores, paired
from fvjax.reproduction import estimates, execution, plans, published, runs, tables
from fvjax.reproduction.estimates import Gpus
from fvjax.reproduction.published import PAPER, SCALES, SMALL
from fvjax.reproduction.runs import Progress, Run
from tests.test_compare import judged

ROWS = {row.name: row for row in SMALL.rows}
H100 = "NVIDIA H100 80GB HBM3"


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    monkeypatch.setattr(tables, "BOOTSTRAP", 100)
    monkeypatch.setattr(estimates, "state_bytes", lambda config: 1_000_000)
    monkeypatch.setattr(estimates, "find_gpus", lambda: None)


def run_of(name: str, workdir: Path, seed: int = 0, *settings: str) -> Run:
    return runs.plan([ROWS[name]], seed + 1, workdir, settings)[seed]


def begin(run: Run, step: int = 0, images_per_s: float = 0.0) -> None:
    """Write what a run has left that was stopped after `step` steps."""
    (run.workdir / "checkpoints" / str(step)).mkdir(parents=True)
    (run.workdir / "config.json").write_text(run.config.to_json())
    if images_per_s:
        lines = [{"step": n, "images_per_s": images_per_s * (100 if n < 2 else 1)} for n in range(20)]
        (run.workdir / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def finish(run: Run, quality: float = 1.0, benchmarks: tuple[str, ...] = ("synthetic",), **results: Any) -> None:
    """Write what a finished run leaves; better with `quality`."""
    run.workdir.mkdir(parents=True, exist_ok=True)
    (run.workdir / "config.json").write_text(run.config.to_json())
    entries = {}
    for number, benchmark in enumerate(benchmarks):
        scores = judged(quality, 10 * run.seed + number)
        scores.write(pair_scores.file_of(run.workdir, benchmark))
        entries[benchmark] = {"data_hash": scores.data_hash, "n_pairs": 240}
    found = {"benchmarks": entries, "base_hash": "", "seconds": 90.0, **results}
    (run.workdir / "results.json").write_text(json.dumps(found))


# ---- the runs


def test_a_row_is_repeated_with_other_seeds_if_they_change_anything(tmp_path):
    rows = [ROWS[name] for name in ("vit_frozen", "vit_lora", "mllm_frozen")]
    found = runs.plan(rows, 2, tmp_path, [])
    expected = [("vit_frozen", 0), ("vit_lora", 0), ("vit_lora", 1), ("mllm_frozen", 0), ("mllm_frozen", 1)]
    assert [(run.row.name, run.seed) for run in found] == expected, "the MLLM's decoder is random"
    assert [run.config.seed for run in found] == [0, 0, 1, 0, 1]
    assert found[2].command[1:] == [
        "-m",
        "fvjax.main",
        "--config=quickstart:vit_lora",
        "--config.seed=1",
        f"--workdir={tmp_path}/vit_lora/seed1",
        f"--config.data.synthetic.dir={tmp_path}/faces",
    ]


def test_settings_go_to_every_run_and_mistakes_in_them_are_named(tmp_path):
    run = run_of("vit_lora", tmp_path, 0, "--config.batch_size=16", "--config.optimizer.lr=0.5")
    assert (run.config.batch_size, run.config.optimizer.lr) == (16, 0.5)
    assert {"--config.batch_size=16", "--config.optimizer.lr=0.5"} < set(run.command)
    with pytest.raises(ValueError, match="batch_siz"):
        run_of("vit_lora", tmp_path, 0, "--config.batch_siz=16")
    with pytest.raises(ValueError, match=r"--config=quickstart:vit_lora: .*epochs"):
        run_of("vit_lora", tmp_path, 0, "--config.epochs=many")


def test_how_far_a_run_is(tmp_path):
    run = run_of("vit_lora", tmp_path)
    assert run.progress() == (Progress.NEW, "")
    begin(run, 144)
    assert (run.progress(), run.saved_step()) == ((Progress.BEGUN, ""), 144)
    finish(run, failed={"synthetic": "broken"})
    assert run.progress() == (Progress.BEGUN, ""), "a benchmark could not be evaluated"
    finish(run)
    assert run.progress() == (Progress.FINISHED, "")
    other = run_of("vit_lora", tmp_path, 0, "--config.epochs=2")
    progress, problem = other.progress()
    assert progress is Progress.BLOCKED
    assert "is of another config (epochs: 5 there, 2 now)" in problem
    gone = run_of("small_real", tmp_path)
    finish(gone)
    assert gone.progress() == (Progress.FINISHED, ""), "what a finished run was made of may be gone"
    (gone.workdir / "results.json").write_text("{")
    with pytest.raises(ValueError, match=r"small_real.*results.json: not JSON"):
        gone.progress()
    shutil.rmtree(gone.workdir)
    progress, problem = gone.progress()
    assert progress is Progress.BLOCKED
    assert re.search(r"config.data.train: data/cfp324 is not there. .*fvjax.data.prepare folder", problem)
    assert len(problem.splitlines()) == 3


# ---- estimates


def test_the_time_left_is_by_this_runs_own_steps(tmp_path):
    """5 epochs of at most 200 * 12 // 32 = 75 steps; a step of 32 images at 16 images/s takes 2 s."""
    run = run_of("resnet", tmp_path)
    begin(run, 72, images_per_s=16)
    found = estimates.time_left(run, [], None)
    assert estimates.most_steps(run.config) == 375
    assert found.seconds == (375 - 72) * 2
    assert found.basis == "steps 72 to 375 at 2 s, as the last ones"
    finish(run)
    assert estimates.time_left(run, [], None) == estimates.Estimate(0.0, "took 90 s")


def test_the_last_steps_tell_how_fast_a_run_is(tmp_path, monkeypatch):
    monkeypatch.setattr(estimates, "RECENT", 3)
    run = run_of("resnet", tmp_path)
    begin(run, 72, images_per_s=16)
    assert estimates.step_seconds(run) == 2, "its first two steps were faster"


def test_the_time_of_a_new_run_is_by_other_seeds_or_a_measurement(tmp_path):
    run, other = (run_of("resnet", tmp_path, seed) for seed in (0, 1))
    assert estimates.time_left(run, [other], None).seconds == ROWS["resnet"].seconds
    assert "measured on" in estimates.time_left(run, [other], None).basis
    begin(other, 10, images_per_s=64)
    assert estimates.time_left(run, [other], None) == estimates.Estimate(
        187.5, "375 steps at 0.5 s, as those of seed 1"
    )
    finish(other)
    assert estimates.time_left(run, [other], None) == estimates.Estimate(90.0, "as seed 1 took")


def paper_run(name: str, workdir: Path) -> Run:
    (row,) = (row for row in PAPER.rows if row.name == name)
    return runs.plan([row], 1, workdir, [])[0]


@pytest.fixture
def stores(monkeypatch):
    """Put stores of made-up sizes in place of those that are not here."""

    class Faces:
        def __init__(self, path, split):
            self.manifest = {"benchmarks": {name: {"pairs": 1000} for name in ("lfw", "ff", "fp")}}
            self.count = 160_000 if split == "train" else 300

        def __len__(self):
            return self.count

    monkeypatch.setattr(estimates, "Store", Faces)


def test_the_least_time_on_gpus(tmp_path, monkeypatch, stores):
    """989 TFLOP at a peak of 989 TFLOP/s each."""
    monkeypatch.setattr(estimates.programs.Planner, "model_flops", lambda _: 989e12)
    gpus, train = Gpus(H100, 4), paper_run("vit_lora", tmp_path)
    found = estimates.time_left(train, [], gpus)
    assert found.seconds == 15 * (160_000 // 1600) / 4
    assert found.basis.startswith(f"at least: 1,500 steps of 989 TFLOP at the peak of 4 {H100}")
    frozen = estimates.time_left(paper_run("vit_frozen", tmp_path), [], gpus)
    assert frozen.seconds == 3 * 3 / 4, "three benchmarks of 300 pictures, 128 at a time"
    pairs = estimates.time_left(paper_run("pair_frozen", tmp_path), [], gpus)
    assert pairs.seconds == 3 * 16 / 4, "three benchmarks of 1,000 pairs, 64 at a time"
    for other, told in ((None, "no GPU here"), (Gpus("NVIDIA T4", 1), "NVIDIA T4: its peak is not known")):
        found = estimates.time_left(train, [], other)
        assert found.seconds is None
        assert told in found.basis


def test_gpus_are_those_that_the_driver_lists(monkeypatch):
    monkeypatch.undo()
    listed = f"{H100}\n{H100}\nNVIDIA T4\n"
    monkeypatch.setattr(estimates.shutil, "which", lambda name: f"/bin/{name}")
    monkeypatch.setattr(estimates.subprocess, "run", lambda *_, **__: SimpleNamespace(stdout=listed))
    assert estimates.find_gpus() == Gpus(H100, 2)

    def broken(*_, **__):
        raise subprocess.CalledProcessError(9, "nvidia-smi")

    monkeypatch.setattr(estimates.subprocess, "run", broken)
    assert estimates.find_gpus() is None
    monkeypatch.setattr(estimates.shutil, "which", lambda name: None)
    assert estimates.find_gpus() is None


def test_the_disk_that_a_run_needs(tmp_path, stores):
    assert estimates.disk(run_of("vit_lora", tmp_path)) == 3_000_000, "two checkpoints, and one being written"
    assert estimates.disk(run_of("vit_frozen", tmp_path)) == 0
    assert estimates.disk(paper_run("pair_frozen", tmp_path)) == 300 * 256 * 2048 * 2, "visual tokens of a store"
    some = [run_of(name, tmp_path) for name in ("vit_lora", "resnet")]
    assert estimates.faces_on_disk(some) == estimates.BYTES_PER_FACE * (200 * 12 + 120 * 6), "which they share"


def test_a_checkpoint_is_what_trains_and_its_optimizer(tmp_path, monkeypatch):
    monkeypatch.undo()
    ends = {"qkv": 128 + 384, "proj": 128 + 128, "fc1": 128 + 512, "fc2": 512 + 128}
    adapters = 4 * 8 * sum(ends.values())  # four layers, rank 8
    assert estimates.state_bytes(run_of("vit_lora", tmp_path).config) == pytest.approx(4 * 3 * adapters, abs=64)


def test_the_plan_names_what_is_missing_once_and_sums_up(tmp_path, monkeypatch):
    chosen = [ROWS[name] for name in ("resnet", "vit_lora", "small_real")]
    found = runs.plan(chosen, 2, tmp_path, [])
    finish(found[0])
    begin(found[1], 72, images_per_s=16)
    planned = plans.examine(found, None)
    assert [one.progress for one in planned] == [
        Progress.FINISHED,
        Progress.BEGUN,
        *[Progress.NEW] * 2,
        *[Progress.BLOCKED] * 2,
    ]
    assert [one.is_due for one in planned] == [False, True, True, True, False, False]
    lines = plans.remarks(planned, tmp_path)
    assert sum("data/cfp324 is not there" in line for line in lines) == 1, "not for each seed"
    seconds = 2 * (375 - 72) + 2 * ROWS["vit_lora"].seconds
    assert f"3 of 6 runs to do, one after the other: about {round(seconds / 60)} min" in lines
    assert lines[-1].startswith("disk: about 53 MB at most, "), "three checkpoints of 1 MB for each run, and the faces"
    monkeypatch.setattr(plans.shutil, "disk_usage", lambda _: SimpleNamespace(free=1e6))
    assert plans.remarks(planned, tmp_path)[-1].endswith("NOT ENOUGH")


# ---- starting runs


def child(code: str) -> list[str]:
    return [sys.executable, "-c", code]


def test_the_exit_code_and_the_last_line_of_an_error(capfd):
    code = "import sys; print('out'); print('first', file=sys.stderr); sys.exit('fvjax: error: no such file')"
    assert execution.execute(child(code)) == (1, "no such file", False)
    out, err = capfd.readouterr()
    assert out == "out\n"
    assert err == "first\nfvjax: error: no such file\n", "everything is shown"
    assert execution.execute(child("import os; os.kill(os.getpid(), 9)"))[0] == -signal.SIGKILL


def test_a_request_to_stop_is_passed_on_to_the_run():
    """The run asks this process to stop, gets the request itself, and ends as if it had saved."""
    code = (
        "import os, signal, sys, time\n"
        "signal.signal(signal.SIGTERM, lambda *_: sys.exit(75))\n"
        "os.kill(os.getppid(), signal.SIGTERM)\n"
        "time.sleep(60)\n"
    )
    before = signal.getsignal(signal.SIGTERM)
    code_and_request = execution.execute(child(code))[::2]
    assert code_and_request == (75, True)
    assert signal.getsignal(signal.SIGTERM) is before


def test_no_run_starts_after_a_request_to_stop(tmp_path, monkeypatch):
    """A run that is asked before it listens dies of the signal instead of saving: that is a stop, too."""
    row = published.SCALES["small"].rows[0]
    first, second = runs.plan([row], 2, tmp_path, [])
    ask = "import os, signal, time\nos.kill(os.getppid(), signal.SIGTERM)\ntime.sleep(60)\n"
    commands = {0: child(ask), 1: child(f"open({str(tmp_path / 'second')!r}, 'w')")}
    monkeypatch.setattr(runs.Run, "command", property(lambda self: commands[self.seed]))
    with pytest.raises(execution.Stopped, match=r"seed 0 was stopped$"):
        execution.run_all([first, second], lambda _: None)
    assert not (tmp_path / "second").exists()


# ---- the command


class Runs:
    """Stands in for the processes of runs: notes their commands, and leaves the files of a finished run.

    Attributes:
        codes: exit code of a row, 0 if it is not named; a row that fails leaves no results.
    """

    def __init__(self, workdir: Path, rows: dict[str, published.Row]):
        self.workdir, self.rows = workdir, rows
        self.started: list[tuple[str, int]] = []
        self.codes: dict[str, int] = {}

    def execute(self, command: list[str]) -> tuple[int, str, bool]:
        (place,) = (Path(part.removeprefix("--workdir=")) for part in command if part.startswith("--workdir="))
        name, seed = place.parent.name, int(place.name.removeprefix("seed"))
        self.started.append((name, seed))
        run = runs.plan([self.rows[name]], seed + 1, self.workdir, [])[seed]
        assert run.command == command
        code = self.codes.get(name, 0)
        if code:
            begin(run)
            return code, "out of memory" if code == 1 else "saved", False
        finish(run, {"vit_lora": 2.0}.get(name, 1.0))
        return 0, "", False


@pytest.fixture
def started(tmp_path, monkeypatch) -> Runs:
    stand_in = Runs(tmp_path / "all", ROWS)
    monkeypatch.setattr(execution, "execute", stand_in.execute)
    return stand_in


def call(capsys, *arguments: str) -> tuple[int, str, str]:
    code = reproduce.main([*arguments])
    return code, *capsys.readouterr()


def test_rows_run_and_are_not_repeated_and_a_failed_one_costs_the_others_nothing(started, capsys):
    given = ["--yes", "--seeds=2", "--rows=vit_frozen,resnet", "--rows=vit_lora", f"--workdir={started.workdir}"]
    started.codes["resnet"] = 1
    code, out, err = call(capsys, *given)
    assert code == 1
    everything = [("resnet", 0), ("resnet", 1), ("vit_frozen", 0), ("vit_lora", 0), ("vit_lora", 1)]
    assert started.started == everything
    assert "resnet, seed 1 failed: exit code 1: out of memory" in err
    assert "resnet: not run: seed 0: exit code 1: out of memory" in out
    saved = json.loads((started.workdir / "reproduction.json").read_text())
    assert {name: entry["status"] for name, entry in saved["rows"].items()} == {
        "resnet": "not run",
        "vit_frozen": "finished",
        "vit_lora": "finished",
    }
    started.started.clear()
    started.codes.clear()
    code, out, _ = call(capsys, *given)
    assert (code, started.started) == (0, [("resnet", 0), ("resnet", 1)]), "the same command does the rest"
    assert "2 of 5 runs to do" in out
    assert "not run" not in (started.workdir / "table.txt").read_text()
    started.started.clear()
    assert call(capsys, *given)[0] == 0
    assert started.started == []


def test_the_table_has_the_mean_and_spread_over_seeds(started, capsys):
    code, out, _ = call(capsys, "--yes", "--seeds=2", "--rows=vit_lora", f"--workdir={started.workdir}")
    assert code == 0
    saved = json.loads((started.workdir / "reproduction.json").read_text())
    both = paired.resample([judged(2.0, 0), judged(2.0, 10)], bootstrap=100)
    entry = saved["rows"]["vit_lora"]
    assert entry["seeds"] == [0, 1]
    assert entry["benchmarks"]["synthetic"] == {figure: paired.summary(both, figure) for figure in paired.FIGURES}
    its = paired.summary(both, "accuracy@best_threshold")
    cells = [f"{100 * its['mean']:.2f}", f"{100 * its['std_over_seeds']:.2f}"]
    low, high = (f"{100 * edge:.2f}" for edge in its["ci95"])
    printed = [line.split() for line in out.splitlines()]
    at = printed.index(["vit_lora", "synthetic", cells[0], "±", cells[1], low, "to", high, "vit_lora"])
    assert printed[at + 1] == ["(2", "seeds)"]
    markdown = (started.workdir / "table.md").read_text()
    last = f"{low} to {high} | 2 | InternViT-300M + LoRA |"
    assert f"| tiny InternViT + LoRA | synthetic | {cells[0]} | {cells[1]} | {last}" in markdown


def test_a_small_scale_says_that_it_is_not_comparable(started, capsys):
    _, out, _ = call(capsys, "--yes", "--rows=vit_frozen", f"--workdir={started.workdir}")
    for text in (out, *((started.workdir / name).read_text() for name in ("table.txt", "table.md"))):
        assert "NOT COMPARABLE with the published figures" in text
        assert "99.02" in text, "the published table stands below"
    assert json.loads((started.workdir / "reproduction.json").read_text())["comparable"] is False


def test_a_plan_starts_and_writes_nothing(started, capsys):
    code, out, _ = call(capsys, "--plan", "--rows=resnet", f"--workdir={started.workdir}")
    assert code == 0
    assert "1 of 1 runs to do, one after the other: about 77 s" in out
    assert started.started == []
    assert not started.workdir.exists()


def test_without_a_terminal_nobody_is_asked(started, capsys, monkeypatch):
    given = ["--rows=resnet", f"--workdir={started.workdir}"]
    code, _, err = call(capsys, *given)
    assert code == 2
    assert "add --yes" in err
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(isatty=lambda: True))
    for answer, expected in (("n", []), ("", []), ("y", [("resnet", 0)])):
        monkeypatch.setattr("builtins.input", lambda _, answer=answer: answer)
        assert call(capsys, *given)[0] == 0
        assert started.started == expected


def test_a_run_that_was_asked_to_stop_stops_all(started, capsys):
    started.codes["resnet"] = 75
    code, _, err = call(capsys, "--yes", "--rows=resnet,vit_lora", f"--workdir={started.workdir}")
    assert code == 75
    assert started.started == [("resnet", 0)]
    assert err == "fvjax: resnet, seed 0 was stopped and has saved; the same command goes on from there\n"


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--rows=resnet,vitlora"], "--rows=vitlora: the rows of --scale=small are resnet, vit_frozen, "),
        (["--scale=paper", "--rows=resnet"], "the rows of --scale=paper are resnet50_infonce, "),
        (["--seeds=0"], "--seeds=0: at least 1"),
        (["--seeds=3", "--config.seed=7"], "--config.seed=7: every run has its own; use --seeds and --workdir"),
        (["--config.data.synthetic.dir=x"], "--config.data.synthetic.dir=x: every run has its own"),
        (["--scale=paper", "--yes"], "no row can run; the lines above say what each of them lacks"),
        (["--rows=resnet", "--config.lr=1"], "config.lr: there is no such key"),
        (["--rows=resnet", "--config.batch_size", "3"], "see python -m fvjax.reproduce --help"),
    ],
)
def test_mistakes_are_one_line(started, capsys, arguments, told):
    try:
        code = reproduce.main([*arguments, f"--workdir={started.workdir}"])
    except SystemExit as end:
        code = end.code
    err = capsys.readouterr().err
    assert code == 2
    assert told in err
    assert err.count("\n") == 1
    assert started.started == []


# ---- beside the published figures


def outcome(row: published.Row, workdir: Path, quality: float, seeds: int = 1, **more: Any) -> tables.Outcome:
    """Return the outcome of a row whose runs are finished, on the three benchmarks of the paper."""
    found = []
    for seed in range(seeds):
        one = run_of("vit_lora", workdir, seed)
        one = dataclasses.replace(one, workdir=workdir / row.name / f"seed{seed}")
        finish(one, quality, tuple(published.BENCHMARKS))
        found.append(one.workdir)
    return tables.Outcome(row, tuple(found), **{"reasons": (), **more})


def test_figures_stand_beside_the_published_ones_with_their_difference(tmp_path):
    by_name = {row.name: row for row in PAPER.rows}
    done = outcome(by_name["vit_lora"], tmp_path, 1.0, 2, reasons=("seed 2: exit code 1",))
    lacking = tables.Outcome(by_name["resnet50_infonce"], (), ("seed 0: data/ms1m is not there\ndata/lfw is not",))
    found = tables.report("paper", [lacking, done], [])
    assert (found["comparable"], found["figure"]) == (True, "accuracy@far=1e-3")
    assert [entry["status"] for entry in found["rows"].values()] == ["not run", "incomplete"]
    lines = tables.cells(found)
    assert lines[:2] == [
        ("ResNet-50, InfoNCE", "LFW", "not run", "", "", "0", "99.55", ""),
        ("ResNet-50, InfoNCE", "CFP-FF", "not run", "", "", "0", "99.59", ""),
    ]
    its = found["rows"]["vit_lora"]["benchmarks"]["cfp_fp"]["accuracy@far=1e-3"]
    row, benchmark, here, spread, _, seeds, theirs, difference = lines[-1]
    assert (row, benchmark, seeds, theirs) == ("InternViT-300M + LoRA", "CFP-FP", "2", "87.07")
    assert (here, spread) == (f"{100 * its['mean']:.2f}", f"{100 * its['std_over_seeds']:.2f}")
    assert float(difference) == pytest.approx(100 * its["mean"] - 87.07, abs=0.0051)
    text = tables.as_text(found, 80)
    assert max(map(len, text.splitlines())) <= 80
    assert f"{theirs} ({difference})" in text
    assert "resnet50_infonce: not run: seed 0: data/ms1m is not there" in text
    assert "vit_lora: not run: seed 2: exit code 1" in text
    assert "computed with the reference's code" in " ".join(text.split())


def test_other_settings_than_the_published_ones_are_said(tmp_path):
    found = tables.report("paper", [outcome(PAPER.rows[2], tmp_path, 1.0)], ["--config.batch_size=200"])
    assert found["comparable"] is False
    assert "Not the published settings: --config.batch_size=200." in tables.as_markdown(found)


def test_scores_that_are_gone_are_a_reason_and_not_an_error(tmp_path):
    done = outcome(PAPER.rows[2], tmp_path, 1.0)
    pair_scores.file_of(done.workdirs[0], "cfp_fp").unlink()
    (entry,) = tables.report("paper", [done], [])["rows"].values()
    assert entry["status"] == "not run"
    assert "cfp_fp.npz is missing" in entry["reasons"][0]


def test_the_published_figures_are_those_of_the_documentation():
    page = Path("docs/from_ms1m_to_the_table.md").read_text()
    table = re.findall(r"^\| (.+?) \| ([\d.]+) \| ([\d.]+) \| ([\d.]+) \|$", page, re.MULTILINE)
    assert table == [cells[1:] for cells in tables.published_cells()]
    for row in PAPER.rows:
        docstring = Path(f"configs/{row.config}.py").read_text().replace("\n", " ")
        told = re.search(r"LFW ([\d.]+),\s+CFP-FF\s+([\d.]+),\s+CFP-FP\s+([\d.]+\d)", docstring)
        assert told is not None, row.config
        assert tuple(map(float, told.groups())) == tuple(row.published.values())


def test_every_row_has_a_config_and_small_ones_a_counterpart(tmp_path):
    for scale in SCALES.values():
        assert len({row.name for row in scale.rows}) == len(scale.rows)
        for run in runs.plan(scale.rows, 1, tmp_path, []):
            assert run.config.eval.benchmarks or run.config.data.synthetic.identities
    assert {row.counterpart for row in SMALL.rows} <= set(published.titles())
    assert PAPER.is_published
    assert not SMALL.is_published
