"""Test what a run writes and prints: every documented file and field, and every figure by its value.

The run has 3 epochs of 4 steps of 8 faces (4 pairs), in two parts each, with adapters on a frozen tower. Validation and
the benchmark "alpha" follow each epoch. The first start runs to the end. Then the files are set to the state after a
kill in the third epoch, and a second start resumes from step 8.
"""

import contextlib
import hashlib
import io
import json
import math
import re
import shutil
import struct
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from PIL import Image
from tensorboardX.proto import event_pb2
from tensorboardX.record_writer import masked_crc32c

import fvjax
from fvjax import api, console, pretrain, trees
from fvjax.config import base, benchmark, typed
from fvjax.data import images, stores
from fvjax.evals import folds, pair_scores
from fvjax.models import encoder
from fvjax.tasks.benchmarks import ACCURACIES
from fvjax.training.checkpoint import Checkpoints
from tests.test_bad_input import Commands
from tests.test_images import smooth_face
from weights_convert import internvit
from weights_convert.write import write_original

STEPS, PER_EPOCH, FACES = 12, 4, 8
WIDTH, DEPTH, MLP, TOKENS, RANK = 16, 2, 32, 17, 2
SIZES = {
    "image_size": 112,
    "patch_size": 28,
    "hidden_size": WIDTH,
    "num_hidden_layers": DEPTH,
    "num_attention_heads": 2,
}
TOWER = {**pretrain.CONFIG, **SIZES, "intermediate_size": MLP}
FASTER = 1e9  # the second start's clock runs slower by this factor, so that rates are large whole numbers


def write_faces(path: Path, split: str, people: list[str], each: int, seed: int) -> stores.Store:
    names = [name for name in people for _ in range(1 if name == "single" else each)]
    records = [(images.encode(smooth_face(seed + i)), name, f"{name}/{i}.jpg") for i, name in enumerate(names)]
    return stores.write(path, records, split=split, sources=["here"])


def add_pairs(faces: stores.Store, name: str, people: int, each: int, folds: int, **info) -> None:
    """Pair each person's first image with their second, and with the next person's third image in the same fold."""
    rows = []
    for fold in range(folds):
        mine = range(fold, people, folds)
        for i, p in enumerate(mine):
            rows += [(each * p, each * p + 1, fold), (each * p, each * mine[(i + 1) % len(mine)] + 2, fold)]
    a, b, fold = np.array(rows).T
    labels = faces.labels
    pairs = stores.Pairs(a, b, labels[a] == labels[b], fold, labels[a], labels[b])
    stores.write_pairs(faces.path, name, pairs, **info)


def experiment(folder: Path):
    """Return the config: 12 people in alpha, two of whom are trained on; 10 in beta, which has other names."""
    people = [f"p{i}" for i in range(8)]
    train = write_faces(folder / "train", "train", [*people, "single"], 4, 0)
    write_faces(folder / "val", "val", people, 5, 100)
    add_pairs(write_faces(folder / "a", "test", [*people[:2], *(f"q{i}" for i in range(10))], 3, 200), "all", 12, 3, 2)
    lost = {"policy": "drop", "failure_to_acquire": 3, "pairs_dropped": 4}
    add_pairs(write_faces(folder / "b", "test", [*people, "r", "s"], 3, 300), "all", 9, 3, 3, **lost)
    tower = encoder.build("vision_transformer", internvit.model_config(TOWER, "TOWER"), "mean")
    params = {f"params/{n}": np.asarray(x) for n, x in trees.flatten(tower.init(jax.random.key(0))["params"]).items()}
    write_original(folder / "tower", params, TOWER)

    c = base()
    c.name, c.seed, c.epochs, c.batch_size, c.accumulation = "tiny", 3, STEPS // PER_EPOCH, FACES, 2
    c.model.kind, c.model.pooling, c.init_from = "vision_transformer", "mean", str(folder / "tower")
    sizes = {"image_size": 112, "patch_size": 28, "width": WIDTH, "depth": DEPTH, "heads": 2, "mlp_dim": MLP}
    c.model.vision_transformer.update(sizes)
    c.lora.update({"rank": RANK, "alpha": 4.0, "targets": ("blocks/mlp/fc[12]",), "count": 2 * DEPTH})
    c.trainable = (("lora/.*", "adapter"), (".*", "frozen"))
    c.optimizer.lr = 0.1
    c.data.update({"train": str(train.path), "val": str(folder / "val"), "val_pairs": 40, "names": "here"})
    for name, naming in (("alpha", "here"), ("beta", "elsewhere")):
        c.eval.benchmarks[name] = benchmark(str(folder / name[0]), "all", naming)
    c.eval.update({"batch_size": 8, "every_epochs": 1, "during": ("alpha",), "baselines": True, "bootstrap": 20})
    c.checkpoint.update({"every_steps": 100, "every_minutes": 1.0, "keep": 4})
    c.log.state_hash_every = 4
    return c


class Start:
    """One start of the command: what it printed and drew, and when it ran.

    Args:
        seconds_a_line: how long a line of metrics.jsonl takes by time.monotonic, which decides when to save; 0: the
            real time.
        clock: used in place of time.perf_counter.
    """

    def __init__(self, config, workdir: Path, mode: str = "train", seconds_a_line: int = 0, clock=None):
        self.figures, self.before = {}, time.time()
        real = FigureCanvasAgg.print_png

        def draw(canvas, path):
            self.figures[Path(path).name] = canvas.figure
            real(canvas, path)

        with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(io.StringIO()) as out:
            patch.setattr(console.console, "width", 200)  # so that no name is wrapped
            patch.setattr(FigureCanvasAgg, "print_png", draw)
            if seconds_a_line:
                patch.setattr(time, "monotonic", clock_of_lines(workdir / "metrics.jsonl", seconds_a_line))
            if clock:
                patch.setattr(time, "perf_counter", clock)
            assert Commands(patch, None).main(config, workdir, mode) == 0
        self.after, self.out = time.time(), out.getvalue()


def clock_of_lines(file: Path, seconds: int, real=time.monotonic):
    def clock() -> float:
        ours = sys._getframe(1).f_globals["__name__"].startswith("fvjax")
        return (len(file.read_text().splitlines()) * seconds if file.exists() else 0) if ours else real()

    return clock


def fast_clock(real=time.perf_counter) -> float:
    """Slow down fvjax's clock, so that everything seems fast to it. Other modules see the real time."""
    ours = sys._getframe(1).f_globals["__name__"].startswith("fvjax")
    return real() / FASTER if ours else real()


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> SimpleNamespace:
    folder = tmp_path_factory.mktemp("run_files")
    config, workdir = experiment(folder), folder / "run"
    first = Start(config, workdir, seconds_a_line=59)
    first.steps = sorted(int(p.name) for p in (workdir / "checkpoints").iterdir())
    kept = {name: (workdir / name).read_text() for name in ("metrics.jsonl", "evaluations.jsonl", "validation.json")}
    (workdir / "results.json").unlink()
    shutil.rmtree(workdir / "checkpoints" / "12")
    known = json.loads(kept["validation.json"])
    (workdir / "validation.json").write_text(json.dumps({step: known[step] for step in ("4", "8")}))
    (workdir / "metrics.jsonl").write_text(kept["metrics.jsonl"].rpartition('"loss"')[0])  # cut short in the last line
    second = Start(config, workdir, seconds_a_line=61, clock=fast_clock)
    return SimpleNamespace(folder=folder, config=config, dir=workdir, first=first, second=second, before=kept)


def lines(text: str | Path) -> list[dict]:
    text = text.read_text() if isinstance(text, Path) else text
    return [json.loads(line) for line in text.splitlines()]


def results(workdir: Path) -> dict:
    return json.loads((workdir / "results.json").read_text())


# ---- the files of a run


def test_every_documented_file_is_there_and_no_other(run):
    documented = {"config.json", "metrics.jsonl", "evaluations.jsonl", "results.json", "validation.json"}
    documented |= {"before_training.json", "roc.png", "det.png", "first_batch.png", "scores", "checkpoints", "tb"}
    (told,) = re.findall(r"^    runs/NAME/  (.*)$", Path("README.md").read_text(), re.MULTILINE)
    assert documented - {name.rstrip("/") for name in told.split()} == {"validation.json", "before_training.json"}
    assert {p.name for p in run.dir.iterdir()} == documented
    assert json.loads((run.dir / "config.json").read_text()) == json.loads(typed(run.config).to_json())
    for name in ("roc.png", "det.png"):
        with Image.open(run.dir / name) as picture:
            assert (picture.format, picture.size) == ("PNG", (1050, 750))
    assert all(p.name.isdigit() for p in (run.dir / "checkpoints").iterdir())


def test_checkpoints_are_named_by_the_steps_done_and_say_what_they_hang_on(run):
    """A checkpoint is written after each epoch, and when a minute has passed since the last one.

    In the first start, at most 59 seconds pass before an epoch ends; in the second start, 61 pass two steps before the
    last.
    """
    assert run.first.steps == [4, 8, 12]
    assert sorted(int(p.name) for p in (run.dir / "checkpoints").iterdir()) == [4, 8, 11, 12]
    checkpoints = Checkpoints(run.dir, run.config.checkpoint, read_only=True)
    state = checkpoints.manager.restore(8, args=ocp.args.Composite(state=ocp.args.PyTreeRestore()))["state"]
    assert int(state["step"]) == 8
    meta = checkpoints.meta(8)
    assert meta["base_hash"] == results(run.dir)["base_hash"]
    assert meta["train_data_hash"] == results(run.dir)["train_data_hash"] == manifest(run, "train")["data_hash"]
    assert meta["plan"] == [3, 4], "the seed, and pairs a step"
    accuracies = {line["step"]: line["validation"]["accuracy@best_threshold"] for line in evaluations(run)}
    assert lines(run.dir / "validation.json") == [{str(step): value for step, value in accuracies.items()}]


def manifest(run, name: str) -> dict:
    return json.loads((run.folder / name / "manifest.json").read_text())


def test_a_stores_manifest_counts_its_faces_people_and_pairs(run):
    train, beta = manifest(run, "train"), manifest(run, "b")
    assert train["counts"] == {"images": 33, "identities": 9, "rejected": 0}
    assert (train["split"], train["single_image_identities"], train["sources"]) == ("train", 1, ["here"])
    (shard,) = train["shards"]
    assert (shard["records"], shard["bytes"]) == (33, (run.folder / "train" / shard["file"]).stat().st_size)
    assert train["identities"] == [*(f"p{i}" for i in range(8)), "single"]
    entry = beta["benchmarks"]["all"]
    assert (entry["pairs"], entry["genuine"], entry["impostor"], entry["fold_sizes"]) == (18, 9, 9, [6, 6, 6])
    assert (entry["policy"], entry["failure_to_acquire"], entry["pairs_dropped"]) == ("drop", 3, 4)
    assert entry["identities"] == "named"
    assert entry["hash"] == hashlib.sha256((run.folder / "b" / "pairs_all.csv").read_bytes()).hexdigest()


# ---- steps: metrics.jsonl, TensorBoard, rates


def test_metrics_has_one_line_a_step_from_the_start_that_did_it(run):
    found = lines(run.dir / "metrics.jsonl")
    assert [line["step"] for line in found] == list(range(STEPS))
    for line in found:
        hashes = {"state_hash", "batch_hash"} if line["step"] in (3, 7, 11) else set()
        assert set(line) == {"step", "loss", "lr", "grad_norm", "images_per_s"} | hashes
        assert line["lr"] == pytest.approx(0.1 * (1 + math.cos(math.pi * (line["step"] // PER_EPOCH) / 3)) / 2)
    before = lines(run.before["metrics.jsonl"])
    assert found[:8] == before[:8], "what the first start had saved"
    assert [line["images_per_s"] > 1e7 for line in found] == [False] * 8 + [True] * 4, "the second start's clock"
    assert [line["loss"] for line in found] == [line["loss"] for line in before]
    assert [line.get("state_hash") for line in found] == [line.get("state_hash") for line in before]


def events(file: Path) -> list:
    """Return TensorBoard's events of a file, checking TFRecord's framing and checksums."""
    data, out = file.read_bytes(), []
    while data:
        (length,) = struct.unpack("<Q", data[:8])
        assert masked_crc32c(data[:8]) == struct.unpack("<I", data[8:12])[0]
        record = data[12 : 12 + length]
        assert masked_crc32c(record) == struct.unpack("<I", data[12 + length : 16 + length])[0]
        out.append(event_pb2.Event.FromString(record))
        data = data[16 + length :]
    return out


def wall_times(start: list) -> dict[int, float]:
    """Return when each step of a start was reported."""
    return {e.step: e.wall_time for e in start if [value.tag for value in e.summary.value] == ["loss"]}


def starts_of(run) -> list[list]:
    """Return the events of each start."""
    files = sorted((run.dir / "tb").iterdir(), key=lambda p: p.stat().st_mtime_ns)
    assert all("tfevents" in file.name for file in files), "else TensorBoard does not see them"
    return [events(file) for file in files]


def test_tensorboard_shows_the_figures_of_metrics_at_their_steps(run):
    first, second = starts_of(run)
    shown: dict[tuple[str, int], float] = {}
    for event in [*first, *second]:
        if event.HasField("session_log"):  # how TensorBoard treats the events of an interrupted start
            assert event.session_log.status == event_pb2.SessionLog.START
            shown = {(tag, step): value for (tag, step), value in shown.items() if step < event.step}
        for value in event.summary.value:
            assert (value.tag, event.step) not in shown
            if value.HasField("simple_value"):
                shown[value.tag, event.step] = value.simple_value
    assert [[e.step for e in start if e.HasField("session_log")] for start in (first, second)] == [[0], [8]]
    written = {
        (tag, line["step"]): value
        for line in lines(run.dir / "metrics.jsonl")
        for tag, value in line.items()
        if tag not in ("step", "state_hash", "batch_hash")
    }
    before = json.loads((run.dir / "before_training.json").read_text())
    figures = {(f"{name}/{key}", 0): before[name][key]["mean"] for name in before for key in ACCURACIES}
    for line in lines(run.dir / "evaluations.jsonl"):  # after so many steps, so at the one before
        measured = {name: its for name, its in line.items() if isinstance(its, dict)}
        figures |= {(f"{name}/{key}", line["step"] - 1): its[key] for name, its in measured.items() for key in its}
    final = results(run.dir)["benchmarks"]
    figures |= {(f"{name}/{key}", STEPS - 1): final[name][key]["mean"] for name in final for key in ACCURACIES}
    written |= {(re.sub("[@=]", "_", f"eval/{tag}"), step): value for (tag, step), value in figures.items()}
    assert shown == {key: pytest.approx(value, rel=1e-6) for key, value in written.items()}  # float32 there
    for start, began in zip((first, second), (run.first, run.second)):
        assert all(began.before <= event.wall_time <= began.after for event in start)


def test_images_per_second_are_images_by_the_clock(run):
    """Check the rates against the wall times of TensorBoard's events.

    Saves and evaluations follow every fourth step and are not part of the rates. Within an epoch a step may be logged
    late, but not all steps together.
    """
    ratios, found = [], lines(run.before["metrics.jsonl"])
    wall = wall_times(starts_of(run)[0])
    for epoch in range(3):
        steps = range(PER_EPOCH * epoch + 1, PER_EPOCH * (epoch + 1))
        told = sum(FACES / found[step]["images_per_s"] for step in steps)
        ratios.append(told / (wall[steps[-1]] - wall[steps[0] - 1]))
    assert np.median(ratios) == pytest.approx(1, abs=0.25), ratios


EPOCH = r"epoch (\d+)/(\d+) loss ([\d.]+) (\d+) images/s (\d+) GFLOP/s, (\d+) s since start"


def test_the_line_of_an_epoch_is_its_last_steps(run):
    for start, text, epochs in ((run.first, run.before["metrics.jsonl"], (1, 2, 3)), (run.second, None, (3,))):
        found = lines(text or run.dir / "metrics.jsonl")
        told = re.findall(EPOCH, start.out)
        assert [(int(epoch), int(of)) for epoch, of, *_ in told] == [(epoch, 3) for epoch in epochs]
        for epoch, _, loss, rate, *_ in told:
            line = found[PER_EPOCH * int(epoch) - 1]
            assert loss == f"{line['loss']:.4f}"
            assert rate == f"{line['images_per_s']:.0f}"


def test_gflops_are_those_of_a_plain_step_in_its_time(run):
    """Count by hand, forward and backward.

    Only the adapters' own gradients are needed, and accumulation's second forward pass does not count. 112 pixels are
    not resized, and patches are embedded in the forward pass only.
    """
    ((*_, rate, gflops, _),) = re.findall(EPOCH, run.second.out)
    products = TOKENS * WIDTH * (3 * WIDTH + WIDTH + MLP + MLP)  # qkv, proj, fc1, fc2
    attention = 2 * TOKENS**2 * WIDTH
    adapters = 2 * TOKENS * RANK * (WIDTH + MLP)
    layer = 2 * products + 3 * attention + 3 * adapters  # a frozen product twice, one of two variables three times
    similarities = 3 * FACES**2 * WIDTH
    flops = 2 * (FACES * (37632 * WIDTH + DEPTH * layer) + similarities)
    assert float(gflops) * 1e9 / float(rate) * FACES == pytest.approx(flops, rel=1e-5)


# ---- evaluations while it trains, seconds


def evaluations(run) -> list[dict]:
    return lines(run.dir / "evaluations.jsonl")


def test_evaluations_has_each_epochs_figures_once(run):
    found = evaluations(run)
    assert [(line["step"], line["epoch"]) for line in found] == [(4, 1.0), (8, 2.0), (12, 3.0)]
    assert found[:2] == lines(run.before["evaluations.jsonl"])[:2], "those of the first start stay"
    kinds = {"accuracy@best_threshold", "accuracy@far=1e-3"}
    for line in found:
        measured = {"validation"} if line["step"] == STEPS else {"validation", "alpha"}  # at the end all are in results
        assert set(line) == {"step", "epoch", "seconds", *measured}
        assert all(set(line[name]) == kinds for name in measured)
        told = ", ".join(f"{name} {100 * line[name]['accuracy@best_threshold']:.2f}% best threshold" for name in line
                         if name in measured)  # fmt: skip
        out = run.second.out if line["step"] == STEPS else run.first.out
        assert f"evaluation at step {line['step']}: {told}\n" in out


def test_seconds_are_of_all_starts_by_the_clock(run):
    wall = wall_times(starts_of(run)[0])
    first = lines(run.before["evaluations.jsonl"])
    for line in first:
        step, known = line["step"], line["seconds"]
        assert wall[step - 1] - run.first.before - 1 < known < wall.get(step, run.first.after) - run.first.before + 0.1
    (*_, told) = re.findall(EPOCH, run.first.out)[1]
    assert float(told) == pytest.approx(wall[7] - run.first.before, abs=1.5)
    (told,) = re.findall(r"Trained to step 12, (\d+) s since start", run.first.out)
    assert wall[11] - run.first.before - 1.5 < float(told) < run.first.after - run.first.before + 1
    # the second start took almost no time by its clock and continues from the checkpoint's time
    saved = Checkpoints(run.dir, run.config.checkpoint, read_only=True).meta(8)["seconds"]
    assert wall[7] - run.first.before - 1 < saved <= first[1]["seconds"]
    assert evaluations(run)[2]["seconds"] == results(run.dir)["seconds"] == saved
    assert "Trained to step 12, 0 s since start" in run.second.out


# ---- lines about the run


def test_the_first_lines_say_what_trains_and_on_what(run):
    blocks = DEPTH * (4 * WIDTH + 2 * WIDTH)  # two layer norms, two layer scales
    blocks += DEPTH * (WIDTH * 3 * WIDTH + 3 * WIDTH + WIDTH**2 + WIDTH + 2 * WIDTH * MLP + MLP + WIDTH)
    frozen = blocks + 28 * 28 * 3 * WIDTH + WIDTH + TOKENS * WIDTH + WIDTH  # patches, positions, CLS
    adapters = DEPTH * 2 * RANK * (WIDTH + MLP)
    for start in (run.first, run.second):
        told = (
            f"tiny: {frozen + adapters:,} parameters, {adapters:,} train; mesh {{'data': 1, 'fsdp': 1, 'tensor': 1}} on"
        )
        assert told in start.out
        told = "33 images, 9 identities (1 with one image, never drawn); 4 pairs a step, 4 steps an epoch, 3 epochs\n"
        assert told in start.out
        assert f"Everything about this run is in {run.dir} " in start.out
    assert "Restored" not in run.first.out
    assert f"Restored step 8 of {run.dir}\n" in run.second.out


# ---- results.json

FIGURES: dict[str, set] = {
    "accuracy@best_threshold": {"mean", "std", "ci95", "threshold"},
    "accuracy@far=1e-3": {"mean", "std", "ci95", "threshold"},
    "tar@far=1e-1": {"value", "ci95", "impostors_above"},
    "tar@far=1e-2": {"value", "ci95", "impostors_above"},
    "tar@far=1e-3": {"value", "ci95", "impostors_above"},
    **{
        f"tar@far={far}": {"value", "ci95", "impostors_above", "impostors", "needed"}
        for far in ("1e-4", "1e-5", "1e-6")
    },
    "auc": {"value", "ci95"},
    "eer": {"value", "ci95"},
}
ENTRY = {
    *FIGURES,
    "n_pairs",
    "n_genuine",
    "n_impostor",
    "n_folds",
    "intervals",
    "failure_to_acquire",
    "policy",
    "identities",
    "identity_disjoint",
    "data_hash",
}
ENTRY |= {"identities_seen_in_training"}


def test_results_has_the_documented_fields(run):
    found = results(run.dir)
    assert set(found) == {
        *("benchmarks", "pools", "baselines", "validation", "step", "config_hash", "base_hash", "train_data_hash"),
        *("code_version", "dtype", "flip_sum", "seconds", "evaluation"),
    }
    assert list(found["benchmarks"]) == ["alpha", "beta"]
    for name, entry in found["benchmarks"].items():
        assert set(entry) == ENTRY | {"before_training"}
        assert set(entry["before_training"]) == ENTRY
        for one in (entry, entry["before_training"], entry["identity_disjoint"] or entry):
            for key, fields in FIGURES.items():
                assert set(one[key]) == fields, (name, key)
            assert "bootstrap over identities" in one["intervals"]
            assert "20 resamples, seed 3" in one["intervals"]
    assert set(found["baselines"]) == {"raw pixels, cosine", "colour histogram, cosine"}
    assert all(set(entries) == {"alpha", "beta"} for entries in found["baselines"].values())
    assert (found["pools"], found["dtype"], found["flip_sum"]) == ({}, "float32", False)
    assert found["code_version"] == fvjax.code_version()
    assert found["config_hash"] == typed(run.config).hash()


def test_results_say_which_pairs_and_people_and_data(run):
    found = results(run.dir)["benchmarks"]
    sizes = ("n_pairs", "n_genuine", "n_impostor", "n_folds", "failure_to_acquire", "identities_seen_in_training")
    assert [found["alpha"][key] for key in sizes] == [24, 12, 12, 2, 0, 2]
    assert [found["beta"][key] for key in sizes] == [18, 9, 9, 3, 3, None]
    assert [found[name]["policy"] for name in found] == ["fail", "drop"]
    assert [found[name]["data_hash"] for name in found] == [manifest(run, name)["data_hash"] for name in ("a", "b")]
    # p0 and p1, the first of each fold, were trained on: their own pairs and two impostor pairs each are left out
    disjoint = found["alpha"]["identity_disjoint"]
    assert [disjoint[key] for key in sizes[:4]] == [18, 10, 8, 2]
    assert found["beta"]["identity_disjoint"] is None
    assert found["alpha"]["before_training"]["data_hash"] == found["alpha"]["data_hash"]
    validation = results(run.dir)["validation"]
    assert [validation[key] for key in sizes] == [40, 20, 20, 10, 0, 8]
    assert validation["policy"] == "drawn from config.data.val"
    assert validation["data_hash"] == manifest(run, "val")["data_hash"]


def test_the_saved_scores_give_the_figures_of_results(run):
    for name, letter in (("alpha", "a"), ("beta", "b")):
        saved, entry = pair_scores.read(run.dir / "scores" / f"{name}.npz"), results(run.dir)["benchmarks"][name]
        assert saved.data_hash == entry["data_hash"]
        assert saved.pairs_hash == manifest(run, letter)["benchmarks"]["all"]["hash"]
        again = folds.verification(saved.scores, saved.same, np.bincount(saved.fold).tolist(), bootstrap=0)
        for key in ("accuracy@best_threshold", "accuracy@far=1e-3"):
            assert again[key]["mean"] == entry[key]["mean"]
        assert again["auc"]["value"] == entry["auc"]["value"]


def measured(run, letter: str, embed, keep=None) -> dict:
    """Return a benchmark's metrics for an embedding function, with cosines by the textbook."""
    faces = stores.Store(run.folder / letter, "test")
    pairs = stores.read_pairs(faces.path, "all")
    x = np.asarray(embed(np.stack([faces.image(i) for i in range(len(faces))])), np.float64)
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    rows = np.arange(len(pairs.a)) if keep is None else np.flatnonzero(keep(faces, pairs))
    scores = (x[pairs.a] * x[pairs.b]).sum(1)[rows]
    return folds.verification(scores, pairs.same[rows], np.bincount(pairs.fold[rows]).tolist(), bootstrap=0)


def assert_figures(entry: dict, expected: dict) -> None:
    for key in ("accuracy@best_threshold", "accuracy@far=1e-3", "auc", "eer"):
        for field in {"mean", "std", "threshold", "value"} & set(entry[key]):
            assert entry[key][field] == pytest.approx(expected[key][field], abs=2e-5), (key, field)


def test_results_are_of_the_checkpoint_the_base_and_the_baselines(run):
    """Compute each row again from the store's faces, with the model that the row names."""
    found = results(run.dir)
    trained, untrained = api.load_workdir(run.dir).embed, fvjax.load(run.folder / "tower", "vit").embed
    rows = [(entry, trained) for entry in (found["benchmarks"],)]
    rows.append(({name: entry["before_training"] for name, entry in found["benchmarks"].items()}, untrained))

    def pixels(faces):
        flat = faces.reshape(len(faces), -1).astype(float)
        return flat - flat.mean(1, keepdims=True)

    def histogram(faces):
        cells = [np.histogramdd(face.reshape(-1, 3), 8, [(0, 256)] * 3)[0].ravel() for face in faces]
        return np.stack(cells)

    rows.append((found["baselines"]["raw pixels, cosine"], pixels))
    rows.append((found["baselines"]["colour histogram, cosine"], histogram))
    for entries, embed in rows:
        for name in ("alpha", "beta"):
            assert_figures(entries[name], measured(run, name[0], embed))

    def unseen(faces, pairs):
        people = {i for i, name in enumerate(faces.identities) if name in ("p0", "p1")}
        return [a not in people and b not in people for a, b in zip(pairs.identity_a, pairs.identity_b)]

    assert_figures(found["benchmarks"]["alpha"]["identity_disjoint"], measured(run, "a", trained, unseen))


def test_the_best_validated_step_is_what_is_evaluated(run, tmp_path):
    accuracies = {line["step"]: line["validation"]["accuracy@best_threshold"] for line in evaluations(run)}
    found = results(run.dir)
    best = max(accuracies, key=lambda step: (accuracies[step], step))
    assert found["step"] == best
    assert found["validation"]["accuracy@best_threshold"]["mean"] == pytest.approx(accuracies[best])
    told = f"Step {best} had the best validation score: it is what is evaluated" in run.second.out
    assert told == (best != STEPS)

    # the file names another checkpoint; its results were measured when it was the newest
    other = 4 if best != 4 else 8
    again = shutil.copytree(run.dir, tmp_path / "again")
    (again / "validation.json").write_text(json.dumps({**{step: 0.5 for step in accuracies}, other: 0.9}))
    out = Start(run.config, again, "eval").out
    assert f"Step {other} had the best validation score: it is what is evaluated" in out
    now, then = results(again), evaluations(run)[other // PER_EPOCH - 1]
    assert now["step"] == other
    for key in ("accuracy@best_threshold", "accuracy@far=1e-3"):
        assert now["benchmarks"]["alpha"][key]["mean"] == pytest.approx(then["alpha"][key])
        assert now["validation"][key]["mean"] == pytest.approx(then["validation"][key])
    assert now["benchmarks"]["alpha"]["auc"] != found["benchmarks"]["alpha"]["auc"], "the two steps can be told apart"
    assert now["benchmarks"]["alpha"]["before_training"] == found["benchmarks"]["alpha"]["before_training"]
    assert evaluations(SimpleNamespace(dir=again)) == evaluations(run), "an evaluation alone adds no line"
    opened = api.load_workdir(again).run
    assert opened is not None
    assert opened.step == other, "programs get the step that was evaluated"


# ---- the table and the plots


def percent(figure: dict) -> str:
    low, high = (100 * edge for edge in figure["ci95"])
    return f"{low:.1f}–{high:.1f}"


def test_the_table_shows_the_results(run):
    """Check every row and cell in order, because people compare columns."""
    found = results(run.dir)
    rows = [("validation", "tiny (ids seen)", found["validation"])]
    for name, entry in found["benchmarks"].items():
        rows += [
            (name, row, found["baselines"][row][name]) for row in ("raw pixels, cosine", "colour histogram, cosine")
        ]
        rows.append((name, "tiny, before training", entry["before_training"]))
        rows.append((name, "tiny (2 ids seen)" if name == "alpha" else "tiny", entry))
        if name == "alpha":
            rows.append((name, "tiny, unseen ids only", entry["identity_disjoint"]))
    expected = []
    for name, row, entry in rows:
        both = [entry[key] for key in ("accuracy@best_threshold", "accuracy@far=1e-3")]
        tars = [entry[f"tar@far={far}"] for far in ("1e-1", "1e-2", "1e-3")]
        areas = [entry["auc"], entry["eer"]]
        above = [f"{100 * x['mean']:.2f} ± {100 * x['std']:.2f}" for x in both]
        above += [f"{100 * x['value']:.2f} ({x['impostors_above']})" for x in tars]
        above += [f"{100 * x['value']:.2f}" for x in areas]
        lost = ["3 FTA"] if entry.get("failure_to_acquire") else []
        below = [percent(x) for x in (*both, *tars, *areas)] if name != "validation" else []
        expected += [" ".join([name, str(entry["n_pairs"]), *above]), " ".join([row, *lost, *below])]
    shown = run.second.out[run.second.out.index("Face verification (%)") :].splitlines()
    rule = next(i for i, line in enumerate(shown) if "──" in line)
    assert [" ".join(line.split()) for line in shown[rule + 1 : rule + 1 + len(expected)]] == expected
    heads = [" ".join(line.split()) for line in shown[rule - 2 : rule]]
    assert heads == [
        "benchmark pairs 2/3/10-fold 2/3/10-fold TAR TAR TAR AUC EER",
        "model best @FAR 1e-3 @FAR 1e-1 @FAR 1e-2 @FAR 1e-3",
    ]


def test_the_plots_show_the_evaluated_benchmarks(run):
    found = results(run.dir)["benchmarks"]
    assert set(run.second.figures) == {"roc.png", "det.png"}
    for file, kind in (("roc.png", "ROC"), ("det.png", "DET")):
        (axes,) = run.second.figures[file].axes
        assert axes.get_title().startswith(kind)
        curves = [line for line in axes.get_lines() if "pairs: AUC" in str(line.get_label())]
        for (name, entry), line in zip(found.items(), curves, strict=True):
            auc, eer = (100 * entry[key]["value"] for key in ("auc", "eer"))
            assert line.get_label() == f"{name}, {entry['n_pairs']} pairs: AUC {auc:.2f}%, EER {eer:.2f}%"
            x, y = (np.asarray(data) for data in line.get_data())
            at = np.flatnonzero(x <= 0.1 + 1e-9)
            expected = entry["tar@far=1e-1"]["value"] if kind == "ROC" else 1 - entry["tar@far=1e-1"]["value"]
            if len(at):  # otherwise one impostor pair exceeds it
                floor = 0 if kind == "ROC" else 0.5 / entry["n_genuine"]
                assert y[at[-1]] == pytest.approx(max(expected, floor))
