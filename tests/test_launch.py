"""Test launch/: copies on a node's disk, slurm.sh without Slurm (tests/slurm has one), the Kubernetes manifest."""

import filecmp
import os
import re
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from fvjax.data import images, stores
from tests.test_images import smooth_face

CONFIG = "--config=configs/small_real.py"


def stage(tmp_path: Path, *flags: str, code: str = ""):
    """Run launch.stage, or `code` in its place, with a node's disk in tmp_path."""
    (tmp_path / "node").mkdir(exist_ok=True)
    command = [sys.executable, *(["-c", code] if code else ["-m", "launch.stage"]), *flags]
    env = os.environ | {"SLURM_TMPDIR": str(tmp_path / "node")}
    return subprocess.run(command, env=env, capture_output=True, text=True)


@pytest.fixture
def flags(tmp_path) -> list[str]:
    """Return flags of small_real for new stores: training data with a validation store inside, and LFW, but no CFP."""
    records = [(images.encode(smooth_face(i)), f"{i // 2}", f"{i}.jpg") for i in range(6)]
    for where, split in (("ms1m", "train"), ("ms1m/val", "val"), ("lfw", "test")):
        stores.write(tmp_path / "data" / where.replace("/", "_"), records, split=split, sources=["here"])
    (tmp_path / "data/ms1m_val").rename(tmp_path / "data/ms1m/val")
    wanted = {"data.train": "ms1m", "data.val": "ms1m/val", "eval.benchmarks.lfw.store": "lfw"}
    wanted |= {f"eval.benchmarks.{cfp}.store": "no_cfp" for cfp in ("cfp_ff", "cfp_fp")}
    return [f"--config.{key}={tmp_path / 'data' / where}" for key, where in wanted.items()]


def test_stores_of_the_config_are_copied_and_named(tmp_path, flags):
    done = stage(tmp_path, CONFIG, *flags)
    assert done.returncode == 0, done.stderr
    node = tmp_path / "node"
    expected = {flag.replace(f"{tmp_path}", f"{node}{tmp_path}") for flag in flags if "cfp" not in flag}
    assert set(done.stdout.splitlines()) == expected
    there = node / tmp_path.relative_to("/") / "data"
    for name in ("ms1m", "lfw"):
        files = [p.relative_to(tmp_path / "data" / name) for p in (tmp_path / "data" / name).rglob("*") if p.is_file()]
        assert filecmp.cmpfiles(tmp_path / "data" / name, there / name, files, shallow=False)[0] == files
    assert len(stores.Store(there / "ms1m/val", "val")) == 6
    assert sorted(p.name for p in there.iterdir()) == ["lfw", "ms1m"], "nothing else is left"
    made = {p: p.stat().st_mtime_ns for p in there.rglob("*")}
    again = stage(tmp_path, CONFIG, *flags)
    assert (again.returncode, again.stdout) == (0, done.stdout)
    assert {p: p.stat().st_mtime_ns for p in there.rglob("*")} == made, "what is there is not copied again"


def test_nothing_is_copied_that_is_not_read(tmp_path, flags):
    done = stage(tmp_path, CONFIG, *flags, "--config.epochs=0")  # evaluates only
    assert [line.partition("=")[0] for line in done.stdout.splitlines()] == ["--config.eval.benchmarks.lfw.store"]
    done = stage(tmp_path, "--config=configs/quickstart.py")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_a_damaged_store_is_named_and_not_copied(tmp_path, flags):
    shard = next((tmp_path / "data/ms1m").glob("*.array_record*"))
    os.truncate(shard, shard.stat().st_size - 1)
    done = stage(tmp_path, CONFIG, *flags)
    assert done.returncode == 2
    size = shard.stat().st_size + 1
    assert done.stderr == f"fvjax: error: {shard}: missing or not {size} bytes as written; prepare the store again\n"
    assert not list((tmp_path / "node").rglob("ms1m"))


def test_a_full_disk_is_named_and_leaves_no_part(tmp_path, flags):
    code = """
import resource
resource.setrlimit(resource.RLIMIT_FSIZE, (5000, 5000))
import launch.stage
launch.stage.main()
"""
    done = stage(tmp_path, CONFIG, *flags, code=code)
    assert done.returncode == 2
    where = re.escape(str(tmp_path / "node"))
    told = rf"fvjax: error: \[Errno 27\] File too large: .*{where}.*; files may not grow so large here .*\n"
    assert re.fullmatch(told, done.stderr), done.stderr
    assert not [p for p in (tmp_path / "node").rglob("*") if p.is_file()]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_asked_to_end_it_says_so_to_the_scheduler(tmp_path, flags, number):
    code = f"""
import os, shutil
def copytree(src, dst):
    os.mkdir(dst)
    os.kill(os.getpid(), {int(number)})
shutil.copytree = copytree
import launch.stage
launch.stage.main()
"""
    done = stage(tmp_path, CONFIG, *flags, code=code)
    assert (done.returncode, done.stdout) == (75, "")
    assert not [p for p in (tmp_path / "node").rglob("*") if p.name in ("ms1m", "lfw")]


@pytest.fixture
def slurm(tmp_path):
    """Return a function that runs launch/slurm.sh with stand-ins for Slurm's programs, which log into `calls`."""
    srun = """
case "$*" in
*launch.stage*) [[ -z $SAID ]] || printf '%s\\n' "$SAID" "$SAID"; exit ${STAGE:-0} ;; # as two nodes
*) exit ${CODE:-0} ;;
esac"""
    for name, body in {"sbatch": "", "scontrol": "", "srun": srun}.items():
        program = tmp_path / "bin" / name
        program.parent.mkdir(exist_ok=True)
        program.write_text(f'#!/bin/bash\necho {name} "$@" >>"$CALLS"\n{body}\n')
        program.chmod(program.stat().st_mode | stat.S_IXUSR)

    def call(*args: str, **env: str) -> tuple[int, list[str], str]:
        calls = tmp_path / "calls"
        calls.write_text("")
        env = {"PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}", "CALLS": str(calls)} | env
        kept = {k: v for k, v in os.environ.items() if not k.startswith("SLURM")}
        done = subprocess.run(["launch/slurm.sh", *args], env=kept | env, capture_output=True, text=True)
        return done.returncode, calls.read_text().splitlines(), done.stderr

    return call


JOB = {"SLURM_JOB_ID": "7", "SLURM_NNODES": "2", "SLURM_CPUS_ON_NODE": "24"}
MAIN = "python -m fvjax.main --config=configs/quickstart.py:vit_lora --workdir=runs/quickstart-7"


def test_sizes_go_to_sbatch_and_settings_to_main(slurm):
    code, calls, err = slurm("--nodes=4", "--gpus-per-node=4", "configs/vit_lora.py", "--config.seed=1")
    assert (code, err) == (0, "")
    assert calls == ["sbatch --nodes=4 --gpus-per-node=4 launch/slurm.sh configs/vit_lora.py --config.seed=1"]


@pytest.mark.parametrize("args", [(), ("--nodes=2",), ("configs/none.py",), ("--nodes=2", "configs/none.py:row")])
def test_a_config_that_is_not_there_never_reaches_the_queue(slurm, args):
    code, calls, err = slurm(*args)
    assert (code, calls) == (2, [])
    assert err.startswith("launch/slurm.sh: error: usage: ")


def test_one_process_for_each_gpu_of_a_job(slurm):
    code, calls, err = slurm("configs/quickstart.py:vit_lora", "--config.seed=1", SLURM_GPUS_ON_NODE="4", **JOB)
    assert (code, err) == (0, "")
    tasks = "--ntasks=8 --ntasks-per-node=4 --cpu-bind=none --overcommit"
    assert calls == [f"srun {tasks} --kill-on-bad-exit=0 --wait=90 {MAIN} --config.seed=1"]
    _, _, err = slurm("configs/quickstart.py", SLURM_GPUS_ON_NODE="4", **JOB | {"SLURM_CPUS_ON_NODE": "4"})
    assert err == "launch/slurm.sh: 4 CPUs for 4 GPUs will be slow; add --cpus-per-gpu=6\n"


@pytest.mark.parametrize("code", [0, 1, 2, 75, 137])
def test_only_saved_runs_are_queued_again(slurm, code):
    got, calls, _ = slurm("configs/quickstart.py:vit_lora", CODE=str(code), **JOB)
    assert got == code
    requeue = ["scontrol requeue 7"] if code == 75 else []
    assert calls == [f"srun --kill-on-bad-exit=0 --wait=90 {MAIN}", *requeue]


STAGE = f"srun --ntasks=2 --ntasks-per-node=1 {MAIN.replace('fvjax.main', 'launch.stage')}"


@pytest.mark.parametrize("said", ["--config.data.train=/disk/my data", ""])
def test_main_reads_the_copies(slurm, said):
    code, calls, err = slurm("configs/quickstart.py:vit_lora", SLURM_TMPDIR="/disk", SAID=said, **JOB)
    assert (code, err) == (0, "")
    assert calls == [STAGE, f"srun --kill-on-bad-exit=0 --wait=90 {MAIN} {said}".rstrip()]


@pytest.mark.parametrize("code", [2, 75])
def test_without_copies_there_is_no_run(slurm, code):
    got, calls, _ = slurm("configs/quickstart.py:vit_lora", SLURM_TMPDIR="/disk", STAGE=str(code), **JOB)
    assert got == code
    assert calls == [STAGE, *(["scontrol requeue 7"] if code == 75 else [])]


def test_sbatch_options_within_a_job_are_refused(slurm):
    code, calls, err = slurm("--nodes=4", "configs/quickstart.py", **JOB)
    assert (code, calls) == (2, [])
    assert err == "launch/slurm.sh: error: --nodes=4 is for sbatch, but this is a job already\n"


def test_the_manifest_agrees_with_itself():
    spec = yaml.safe_load(Path("launch/jobset.yaml").read_text())
    name, (job,) = spec["metadata"]["name"], spec["spec"]["replicatedJobs"]
    inner = job["template"]["spec"]
    (main,) = inner["template"]["spec"]["containers"]
    args = dict(arg.removeprefix("--").split("=", 1) for arg in main["args"])
    host, port = args["coordinator"].split(":")
    assert host == f"{name}-{job['name']}-0-0.{spec['spec']['network']['subdomain']}"
    assert [{"containerPort": int(port)}] == main["ports"]
    assert int(args["processes"]) == inner["parallelism"] == inner["completions"]
    assert args["process"] == "$(JOB_COMPLETION_INDEX)"
    assert inner["completionMode"] == "Indexed"
    assert Path(args["config"]).exists()
    mounts = {m["name"]: m["mountPath"] for m in main["volumeMounts"]}
    assert args["workdir"].startswith(mounts["runs"])
    assert set(mounts) == {v["name"] for v in inner["template"]["spec"]["volumes"]}
    policy = inner["podFailurePolicy"]["rules"]
    assert [(rule["action"], rule.get("onExitCodes", {}).get("values")) for rule in policy] == [
        ("FailJob", [2]),
        ("Ignore", [75]),
        ("Ignore", None),
    ]
    assert all(rule["onExitCodes"]["containerName"] == main["name"] for rule in policy[:2])
    (rule,) = spec["spec"]["failurePolicy"]["rules"]
    assert (rule["action"], rule["onJobFailureReasons"]) == ("FailJobSet", ["PodFailurePolicy"])
    assert re.fullmatch(r"[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?", rule["name"])
    assert inner["template"]["spec"]["restartPolicy"] == "Never", "what podFailurePolicy wants"
