"""Test planned and profiled figures by hand arithmetic, each with its unit and in its cell. Nothing is compiled."""

import functools
import json
import os
import re
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec
from rich.console import Console

from fvjax import plan
from fvjax.config import base, typed
from fvjax.parallel import sharding
from fvjax.planning import devices, estimate, flops, hlo, memory, programs
from fvjax.training import profiling
from tests.parts import bounds_of, task_of, verdict_of
from tests.test_train import tiny_vit

GIB = 2**30


def made_up(n: int) -> dict:
    """Return what `plan.plan` might return for n devices. All numbers are different."""
    sizes = {
        "base": 0.5 * GIB,
        "trained": 0.25 * GIB,
        "optimizer": 0.125 * GIB,
        "gradients": GIB / 16,
        "batch": GIB / 32,
        "kept": 18 * GIB / n,
        "working set": 40 * GIB / n,
        "similarities": 2 * GIB,
    }
    kinds = (("all-reduce", 6_000_000, 24), ("all-gather", 5_000_000, 3), ("all-reduce", 1_000_000, 1))
    everyone = tuple(range(n))
    collectives = [
        {"kind": kind, "size": size, "group": everyone, "times": times, "sent": size * times * hlo.share(kind, n)}
        for kind, size, times in kinds
    ]
    return {
        "devices": n,
        "mesh": {"data": n // 2, "fsdp": 2, "tensor": 1},
        "images": 1536,
        "parameters": 305_978_368,
        "trained": 1_966_080,
        "remat": "dots",
        "bytes": sizes,
        "model_flops": 2_398_500_000_000_000,
        "device_flops": 2_500_000_000_000_000 / n,
        "bytes_moved": 29_729_600_000_000 / n,
        "collectives": collectives,
    }


def flag(monkeypatch, **values) -> None:
    for name, value in values.items():
        monkeypatch.setattr(plan, name, SimpleNamespace(value=value))


@pytest.fixture
def flags(monkeypatch):
    flag(monkeypatch, KIND="h100", PER_NODE=2, NETWORK=25.0, DECODE=6000.0, STEPS=0, IMAGES=5_822_653)


def config(**changes):
    c = tiny_vit()
    c.name, c.epochs, c.batch_size, c.dtype, c.accumulation, c.attention = "lora", 20, 1536, "bfloat16", 1, "xla"
    c.data.workers = 4
    c.update_from_flattened_dict(changes)
    return c


def table_of(text: str) -> dict[str, list[str]]:
    """Return label -> cells of a printed table."""
    rows = [[cell.strip() for cell in re.split("[│┃]", line)[1:-1]] for line in text.splitlines() if line[:1] in "│┃"]
    assert len({row[0] for row in rows}) == len(rows)
    return {label: cells for label, *cells in rows}


def test_every_cell_of_a_plan_has_its_figure_in_its_unit(flags, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setattr(plan, "plan", lambda config, n, gib: made_up(n) if gib == 79 else None)
    out = plan.run(config(), [2, 4])
    text = capsys.readouterr().out
    title = "lora: 305,978,368 parameters, 1,966,080 train; h100, attention xla, accumulation 1"
    assert title in " ".join(text.split())
    # by hand: bytes of 4 devices are 0.5 + 0.25 + 0.125 + 1/16 + 1/32 + 4.5 + 10 + 2 GiB, then 10 more
    seconds = {
        "compute": [1250 / 989, 625 / 989],
        "memory bandwidth": [14864.8 / 3350, 7432.4 / 3350],
        # 2 devices: 2 x (145e6 x 2 x 1/2 + 15e6 x 1/2); 4 devices: two in each of two nodes
        "NVLink": [(145e6 + 7.5e6) / 450e9] * 2,
        "network": [0, (145e6 + 7.5e6) / 25e9],
        "input": [1536 / (1 * 4 * 6000), 1536 / (2 * 4 * 6000)],
    }
    longest = seconds["memory bandwidth"]
    assert table_of(text) == {
        "": ["2", "4"],
        "data x fsdp x tensor": ["1 x 2 x 1", "2 x 2 x 1"],
        "images a step": ["1,536", "1,536"],
        "remat": ["dots", "dots"],
        "of each device, GiB": ["", ""],
        "base": ["0.500", "0.500"],
        "trained": ["0.250", "0.250"],
        "optimizer": ["0.125", "0.125"],
        "gradients": ["0.062", "0.062"],
        "batch": ["0.031", "0.031"],
        "kept": ["9.000", "4.500"],
        "working set": ["20.000", "10.000"],
        "similarities": ["2.000", "2.000"],
        "altogether, of 79": ["32.0 to 52.0", "17.5 to 27.5"],
        "so it": ["fits", "fits"],
        "model TFLOP a step": ["2,398.5", "2,398.5"],
        "of a device": ["1,199.25", "599.62"],
        "with recomputation": ["1,250.00", "625.00"],
        "GB moved in memory": ["14,865", "7,432"],
        "MB sent by all-reduce": ["145.00 in 25", "217.50 in 25"],
        "MB sent by all-gather": ["7.50 in 3", "11.25 in 3"],
        "least seconds a step": ["", ""],
        **{name: [f"{value:.3g}" for value in values] for name, values in seconds.items()},
        "bound by": ["memory bandwidth"] * 2,
        "images/s at most": ["346", "692"],
        "steps an epoch, at most": ["3,790", "3,790"],  # 5,822,653 / 1,536 images
        "hours of 20 epochs, at least": [f"{20 * 3790 * each / 3600:,.1f}" for each in longest],
    }
    assert [one["bounds"] for one in out] == [
        {name: pytest.approx(values[i]) for name, values in seconds.items()} for i in (0, 1)
    ]
    assert [(one["name"], one["device_kind"], one["verdict"]) for one in out] == [("lora", "h100", "fits")] * 2
    for one, n in zip(out, (2, 4)):
        assert {key: one[key] for key in made_up(n)} == made_up(n)
        assert set(one) - set(made_up(n)) == {"name", "device_kind", "bounds", "verdict"}
        json.dumps(one)


def test_a_count_that_cannot_be_is_told_and_leaves_no_column(flags, monkeypatch, capsys):
    def refuse(config, n, gib):
        if n == 3:
            raise ValueError("does not divide")
        return made_up(n)

    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setattr(plan, "plan", refuse)
    flag(monkeypatch, IMAGES=0)
    assert [one["devices"] for one in plan.run(config(), [2, 3, 4])] == [2, 4]
    text = capsys.readouterr().out
    assert "3 devices: does not divide\n" in text
    table = table_of(text)
    assert table[""] == ["2", "4"]
    assert table["images/s at most"] == ["346", "692"]
    assert "steps an epoch, at most" not in table, "it is not known"
    with pytest.raises(ValueError, match="3 devices: does not divide"):
        plan.run(config(), [3])


def test_steps_of_an_epoch_are_told_or_follow_from_images_or_pairs(flags, monkeypatch):
    def steps(**changes) -> int:
        c = config(**changes)
        return plan.steps_per_epoch(task_of(c), c.batch_size)

    assert steps() == 3790
    flag(monkeypatch, STEPS=7)
    assert steps() == 7
    assert steps(**{"task": "pair_answer", "data.pairs_per_epoch": 100_000}) == 130  # of 768 pairs
    per_epoch = {"steps an epoch, at most": "2,400", "hours of 3 epochs, at least": "3.0"}
    assert plan.duration(steps=0, epochs=3, per_epoch=2400, seconds=1.5) == per_epoch
    assert plan.duration(0, 3, 7, 1.5)["hours of 3 epochs, at least"] == "0.0"
    assert plan.duration(0, 3, 0, 1.5) == plan.duration(0, 0, 7, 1.5) == {}, "not known, or nothing trains"
    assert plan.duration(4800, 0, 7, 1.5) == {"hours of 4,800 steps, at least": "2.0"}


def test_devices_are_their_datasheets():
    """The figures are FLOP/s in bfloat16, bytes/s of memory, GiB for a program, bytes/s of NVLink in one direction."""
    assert {kind: tuple(device) for kind, device in devices.DEVICES.items()} == {
        "h200": (989e12, 4.8e12, 139, 450e9),
        "h100": (989e12, 3.35e12, 79, 450e9),
        "a100-80gb": (312e12, 2.039e12, 79, 300e9),
        "a100-40gb": (312e12, 1.555e12, 39, 300e9),
    }


def test_bounds_in_float32_without_workers_and_with_kept_faces():
    machine = devices.Machine(devices.DEVICES["a100-40gb"], 4, 50e9, 5000)
    found = made_up(8) | {"collectives": []}
    for dtype, times in (("bfloat16", 1), ("float32", 2)):
        seconds = bounds_of(typed(config(dtype=dtype, **{"data.workers": 0})), found, machine)
        assert seconds == {
            "compute": pytest.approx(times * 312.5 / 312),
            "memory bandwidth": pytest.approx(3716.2 / 1555),
            "NVLink": 0,
            "network": 0,
            "input": pytest.approx(1536 / (2 * 1 * 5000)),  # two nodes; without workers the process itself decodes
        }
    for cache in ("host", "device"):
        assert bounds_of(typed(config(**{"data.cache": cache, "data.workers": 0})), found, machine)["input"] == 0
    # three devices on a node of four are one node, five are two
    for count, nodes in ((3, 1), (4, 1), (5, 2)):
        found["devices"] = count
        assert bounds_of(typed(config()), found, machine)["input"] == pytest.approx(1536 / (nodes * 4 * 5000))


def test_it_fits_up_to_nine_tenths_of_the_device_by_the_upper_end():
    device = devices.Device(1, 1, 100, 1)

    def verdict(kept: float, working: float, **changes):
        found = {"bytes": {"kept": kept * GIB, "working set": working * GIB}, "remat": "none"}
        return verdict_of(typed(config(**changes)), found, device)

    assert verdict(70, 10) == "fits"
    assert verdict(70.1, 10) == "may not fit; try config.remat=full"
    assert verdict(90, 10).startswith("may not"), "all of the device by the lower end is not more than it"
    assert verdict(90.1, 10) == "does not fit; try config.remat=full"
    assert verdict(91, 0, attention="cudnn", epochs=0, trainable=((".*", "frozen"),)).endswith(
        "try a smaller batch or more devices"
    )
    assert verdict(91, 0, **{"model.kind": "iresnet"}).endswith("try a smaller batch or more devices")


# ---- the counts from which the figures follow

HLO = """HloModule step

%add (a: f32[], b: f32[]) -> f32[] {
  ROOT %r = f32[] add(%a, %b)
}

%inner (p: (s32[], f32[4])) -> (s32[], f32[4]) {
  %ag = bf16[8,16]{1,0} all-gather(%x), replica_groups={{0,1},{2,3}}, dimensions={0}
}

%outer (p: (s32[], f32[4])) -> (s32[], f32[4]) {
  %w = (s32[], f32[4]) while(%t), condition=%c, body=%inner, backend_config={"known_trip_count":{"n":"3"}}
  %cp = u8[10]{0} collective-permute(%y), source_target_pairs={{0,1},{1,0}}
}

%called (p: f32[4]) -> f32[4] {
  %one = f32[5]{0} all-reduce(%p), replica_groups={{0},{1},{2},{3}}, to_apply=%add
  %rs = f16[6]{0} reduce-scatter(%p), replica_groups={}, to_apply=%add
}

ENTRY %main (x: f32[4]) -> f32[4] {
  %two = (f32[3]{0}, s64[2,5]{1,0}) all-reduce(%a, %b), replica_groups={{0,1,2,3}}, to_apply=%add
  %half = f32[100]{0} all-reduce(%c), replica_groups={{0,1,2,3}}, to_apply=%add.clone_promoted
  %w = (s32[], f32[4]) while(%t), condition=%c, body=%outer, backend_config={"known_trip_count":{"n":"5"}}
  %c1 = f32[4]{0} call(%x), to_apply=%called
  ROOT %c2 = f32[4]{0} call(%x), to_apply=%called
}
"""


def test_collectives_are_counted_in_bytes_times_the_trips_of_their_loops():
    everyone = (0, 1, 2, 3)
    assert hlo.collectives(HLO, 4) == [
        hlo.Collective("all-reduce", 3 * 4 + 10 * 8, everyone, 1),
        hlo.Collective("all-reduce", 200, everyone, 1),  # bfloat16 that a CPU adds in float32
        hlo.Collective("collective-permute", 10, (0, 1), 5),
        hlo.Collective("all-gather", 256, (0, 1), 15),
        hlo.Collective("reduce-scatter", 12, everyone, 1),
        hlo.Collective("reduce-scatter", 12, everyone, 1),
    ]
    assert [one.sent for one in hlo.collectives(HLO, 4)] == [138, 300, 50, 15 * 128, 36, 36]


def shaped(*shape: int, dtype=jnp.float32) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, dtype)


def convolve(stride: int, x, kernel):
    numbers = ("NHWC", "HWIO", "NHWC")
    return jax.lax.conv_general_dilated(x, kernel, (stride, stride), "SAME", dimension_numbers=numbers)


@pytest.mark.parametrize(
    ("fn", "shapes", "expected"),
    [
        (jnp.matmul, ((7, 3), (3, 5)), 2 * 7 * 3 * 5),
        (lambda a, b: jnp.einsum("bij,bjk->bik", a, b), ((4, 7, 3), (4, 3, 5)), 2 * 4 * 7 * 3 * 5),
        (lambda a, b: jnp.tanh(a @ b).sum(), ((7, 3), (3, 5)), 2 * 7 * 3 * 5),
        (jax.grad(lambda a, b: jnp.square(a @ b).sum(), (0, 1)), ((7, 3), (3, 5)), 3 * 2 * 7 * 3 * 5),
        (lambda a, b: jax.lax.scan(lambda x, w: (x @ w, None), a, b)[0], ((2, 3), (5, 3, 3)), 5 * 2 * 2 * 3 * 3),
        # 3x3 kernels of 4 channels to 6 over 8x8 places, padded; with stride 2 over 4x4 places
        (
            functools.partial(convolve, 1),
            ((1, 8, 8, 4), (3, 3, 4, 6)),
            2 * 64 * 9 * 4 * 6,
        ),
        (
            functools.partial(convolve, 2),
            ((1, 8, 8, 4), (3, 3, 4, 6)),
            2 * 16 * 9 * 4 * 6,
        ),
        # its gradients of image and kernel: the zeros that the stride inserts do not count
        (
            jax.grad(lambda x, k: jnp.square(convolve(2, x, k)).sum(), (0, 1)),
            ((1, 8, 8, 4), (3, 3, 4, 6)),
            3 * 2 * 16 * 9 * 4 * 6,
        ),
    ],
)
def test_flops_are_two_a_multiply_add_and_loops_count_every_turn(fn, shapes, expected):
    assert flops.count(fn, *(shaped(*shape) for shape in shapes)) == expected


@pytest.mark.parametrize(
    ("fn", "shapes", "alive", "moved"),
    [
        # a product reads 24 + 60 bytes and writes 40; it is the result
        (lambda a, b: a @ b, ((2, 3), (3, 5)), (40,), 124),
        # its maximum reads 40 more and writes 4; the tanh between them takes no memory
        (lambda a, b: jnp.tanh(a @ b).max(), ((2, 3), (3, 5)), (44,), 168),
        # two products in sequence, 2x5 and 2x7 float32, both in memory at once
        (lambda a, b, c: (a @ b) @ c, ((2, 3), (3, 5), (5, 7)), (40 + 56,), 124 + 40 + 140 + 56),
        # five iterations of a product of 2x3 by 3x3; each result replaces the last one
        (lambda a, b: jax.lax.scan(lambda x, w: (x @ w, None), a, b)[0], ((2, 3), (5, 3, 3)), (24, 24), 5 * 84),
        # each iteration's input is kept beside the carry: 5 x 2x3, read once for their maximum
        (
            lambda a, b: jax.lax.scan(lambda x, w: (x @ w, x), a, b)[1].max(0),
            ((2, 3), (5, 3, 3)),
            (120, 24),
            5 * 84 + 144,
        ),
    ],
)
def test_bytes_kept_and_moved_by_hand(fn, shapes, alive, moved):
    found = memory.estimate(fn, *(shaped(*shape) for shape in shapes))
    assert found == memory.Estimate(alive, moved)
    half = memory.estimate(fn, *(shaped(*shape, dtype=jnp.bfloat16) for shape in shapes))
    assert half == memory.Estimate(tuple(size // 2 for size in alive), moved // 2)


def test_remat_tells_what_each_choice_needs_in_gib(monkeypatch):
    """The choice is the largest that fits in nine tenths of the device."""
    upper = {"none": (30, 10), "dots": (20, 8), "full": (10, 4)}  # GiB kept, GiB of the working set

    def sizes(planner):
        kept, working = upper[planner.config.remat]
        return {"kept": kept * GIB, "working set": working * GIB}, 0

    monkeypatch.setattr(programs.Planner, "sizes", sizes)
    lora, mesh = typed(config()), sharding.one_device()
    told = "none needs 40.0 to 50.0 GiB"
    assert programs.Planner(lora, mesh).remat_that_fits(int(50 / 0.9 * GIB) + 1) == (
        "none",
        f"remat: none ({told}; a device has 55.6)",
    )
    told += ", dots needs 28.0 to 36.0 GiB"
    assert programs.Planner(lora, mesh).remat_that_fits(40 * GIB) == (
        "dots",
        f"remat: dots ({told}; a device has 40.0)",
    )
    told += ", full needs 14.0 to 18.0 GiB"
    assert programs.Planner(lora, mesh).remat_that_fits(20 * GIB) == (
        "full",
        f"remat: full ({told}; a device has 20.0)",
    )
    choice, why = programs.Planner(lora, mesh).remat_that_fits(19 * GIB)
    assert choice == "full"
    assert why.startswith(f"remat: full ({told}, which may be too much: raise config.accumulation")
    assert why.endswith("; a device has 19.0)")
    resnet = programs.Planner(typed(config(**{"model.kind": "iresnet"})), mesh).remat_that_fits(1)
    assert resnet[0] == "none", "it has no layers to compute again"


def test_a_devices_memory_is_its_allocators_or_its_share_of_the_machines(monkeypatch):
    devices = [SimpleNamespace(memory_stats=lambda n=n: {"bytes_limit": n}) for n in (7 * GIB, 5 * GIB)]
    monkeypatch.setattr(jax, "local_devices", lambda: devices)
    assert programs.device_memory() == 5 * GIB
    devices[:] = [SimpleNamespace(memory_stats=lambda: None)] * 4
    monkeypatch.setattr(os, "sysconf", {"SC_PAGE_SIZE": 4096, "SC_PHYS_PAGES": 10_000}.__getitem__)
    assert programs.device_memory() == 10_240_000


@pytest.mark.parametrize("told", [True, False])
def test_several_processes_take_what_fits_the_smallest(monkeypatch, told):
    monkeypatch.setattr(programs, "device_memory", lambda: 11)
    monkeypatch.setattr(programs.Planner, "remat_that_fits", lambda planner, limit: ("none", f"why, of {limit}"))
    monkeypatch.setattr(programs.distributed, "exchange", lambda mine: [mine, "full" if told else "none", "dots"])
    said = []
    monkeypatch.setattr(programs, "say", said.append)
    assert programs.Planner(typed(config()), sharding.one_device()).choose_remat() == ("full" if told else "dots")
    assert said == ["why, of 11"]


def test_what_lives_where_is_told_in_mib():
    mesh = sharding.make_mesh({"data": 2, "fsdp": 4, "tensor": 1}, jax.devices())

    def leaf(shape, *spec, dtype=jnp.float32):
        return jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(mesh, PartitionSpec(*spec)))

    frozen = {
        "a": leaf((1024, 1024), "fsdp", dtype=jnp.float16),
        "b": leaf((2048, 1024), "fsdp", dtype=jnp.float16),
        "c": leaf((1024, 256)),
    }
    trained = {"d": leaf((1024, 512), None, "fsdp")}
    console = Console(width=150)
    with console.capture() as out:
        console.print(sharding.table({"frozen": frozen, "trainable": trained}))
    rows = [line.split() for line in out.get().splitlines()]
    assert rows == [
        ["part", "arrays", "e.g.", "split", "over", "MiB", "MiB", "a", "device"],
        ["frozen", "2", "b", "fsdp", "6.0", "1.5"],
        ["frozen", "1", "c", "nothing", "1.0", "1.0"],
        ["trainable", "1", "d", "fsdp", "2.0", "0.5"],
        ["together", "3.0"],
    ]


def test_bytes_of_a_device_are_its_shards():
    mesh = sharding.make_mesh({"data": 2, "fsdp": 4, "tensor": 1}, jax.devices())
    placed = {"a": NamedSharding(mesh, PartitionSpec("fsdp")), "b": NamedSharding(mesh, PartitionSpec())}
    shapes = {"a": shaped(8, 3), "b": shaped(5, dtype=jnp.float16)}
    assert programs.bytes_per_device(shapes, placed) == 2 * 3 * 4 + 5 * 2


# ---- the profile


def test_the_traced_steps_are_those_from_the_third_on(tmp_path, monkeypatch):
    calls = []
    monkeypatch.setattr(jax.profiler, "start_trace", lambda folder, **options: calls.append(("start", folder)))
    monkeypatch.setattr(jax.profiler, "stop_trace", lambda: calls.append("stop"))
    monkeypatch.setattr(profiling, "operations", lambda file: [file.name])
    monkeypatch.setattr(profiling, "table", lambda *given: given)
    compiled = SimpleNamespace(as_text=lambda: "text")
    jitted = SimpleNamespace(lower=lambda *args: SimpleNamespace(compile=lambda: compiled))
    for name, age in (("old", 1), ("new", 2)):
        (tmp_path / f"profile/{name}").mkdir(parents=True)
        file = tmp_path / f"profile/{name}/{name}.xplane.pb"
        file.touch()
        os.utime(file, (age, age))
    trace, step, tables = profiling.Trace(tmp_path, 3, 10), jitted, {}
    for number in range(10, 18):
        step = trace.before(number, step)
        calls.append(number)
        if (told := trace.after(number + 1, {})) is not None:
            tables[number] = told
    assert calls == [10, 11, ("start", tmp_path / "profile"), 12, 13, 14, "stop", 15, 16, 17]
    assert step is compiled
    assert tables == {14: (["new.xplane.pb"], "text", 3, str(tmp_path / "profile"))}
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    other, count = profiling.Trace(tmp_path, 3, 10), len(calls)
    assert all(other.before(number, jitted) is jitted for number in range(10, 18))
    assert len(calls) == count, "one process traces"


def test_the_profile_lists_the_modules_that_took_longest_first():
    text = "".join(
        f'  %op.{i} = f32[4]{{0}} add(%a), metadata={{op_name="jit(step)/jvp(Net)/m{i}/add"}}\n' for i in range(20)
    )
    order = np.random.default_rng(0).permutation(20)
    ops, now = [], 0.0
    for i in order:  # m1 takes 2 ms a step, m2 takes 3 ms, …; each in two of four steps
        for _ in range(2):
            ops.append(profiling.Op(f"op.{i}", now, now + (i + 1) * 2e6))
            now += (i + 1) * 2e6
    console = Console(width=150)
    with console.capture() as out:
        console.print(profiling.table(ops, text, 4, "here"))
    first, heads, *rows = out.get().splitlines()
    assert heads.split() == ["module", "pass", "operations", "ms", "a", "step", "share"]
    assert first.startswith("4 steps in here: 210.0 ms a step, no operation of the step on the first device for 0.0%")
    expected = [[f"m{i}", "forward", "0", f"{i + 1:.2f}", f"{(i + 1) / 210:.1%}"] for i in range(19, 4, -1)]
    assert [row.split() for row in rows] == expected, "fifteen of twenty"


def test_a_config_without_epochs_is_planned_as_a_batch_of_its_evaluation():
    c = base()
    c.epochs, c.eval.batch_size, c.batch_size, c.accumulation = 0, 48, 2048, 8
    one, _ = estimate.without_files(typed(c))
    assert (one.batch_size, one.accumulation) == (48, 1)
    c.task, c.model.kind = "pair_answer", "vlm"
    assert estimate.without_files(typed(c))[0].batch_size == 96, "a pair has two images"
