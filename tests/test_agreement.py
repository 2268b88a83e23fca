"""Test what several processes exchange and which data each of them holds, by simulating one process at a time.

jax's key-value store, the clock and the other processes are simulated here. tests/test_processes.py has real ones.
"""

import json
import random
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from jax._src.distributed import global_state
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from fvjax import main, runtime
from fvjax.config import base, typed
from fvjax.data import images, pipeline, stores
from fvjax.data.pairs import PairPlan
from fvjax.parallel import distributed, sharding
from fvjax.training import agreement, feed, preemption
from tests.test_images import smooth_face


class KeyValues:
    """jax's key-value store as one process sees it: after a barrier, the values of all processes are known."""

    def __init__(self, me: int, said: list[list[str]]):
        self.me, self.said, self.values, self.barriers = me, list(said), {}, []

    def key_value_set(self, key, value, allow_overwrite=False):
        assert allow_overwrite or key not in self.values, f"{key} is said a second time"
        self.values[key] = value

    def wait_at_barrier(self, name, timeout_in_ms):
        assert timeout_in_ms == 30 * 60 * 1000
        assert name not in self.barriers, "every round has its own barrier"
        self.barriers.append(name)
        others = self.said.pop(0)
        assert self.values[f"{name}/{self.me:06}"] == others[self.me], "this process says its own"
        self.values |= {f"{name}/{i:06}": text for i, text in enumerate(others)}

    def key_value_dir_get(self, name):
        found = [(key, value) for key, value in self.values.items() if key.startswith(f"{name}/")]
        random.Random(len(found)).shuffle(found)  # jax promises no order
        return found


@pytest.fixture
def process(monkeypatch):
    """Return a function process(me, said) that makes this process number `me`.

    `said` has the texts of all processes, for each round.
    """

    def become(me, said) -> KeyValues:
        values = KeyValues(me, said)
        monkeypatch.setattr(distributed, "_store", values)
        monkeypatch.setattr(distributed, "_me", me)
        return values

    return become


def said(facts: list[dict], problems=None) -> list[str]:
    problems = problems or [""] * len(facts)
    return [json.dumps({"problem": problem, "facts": one}) for problem, one in zip(problems, facts)]


DISAGREEMENTS = {
    "a value of the last": ([{"a": 1}, {"a": 1}, {"a": 2}], "process 2 has a = 2, process 0 has 1"),
    "a value of the one in between": ([{"a": 1}, {"a": 2}, {"a": 1}], "process 1 has a = 2, process 0 has 1"),
    "a value of the first": ([{"a": 3}, {"a": 1}, {"a": 1}], "process 1 has a = 1, process 0 has 3"),
    "only the first has it": ([{"a": 1, "b": 2}, {"a": 1}, {"a": 1}], "process 1 has b = None, process 0 has 2"),
    "only the last has it": ([{"a": 1}, {"a": 1}, {"a": 1, "b": 2}], "process 2 has b = 2, process 0 has None"),
    "only the one in between": ([{"b": 1}, {"a": 0, "b": 1}, {"b": 1}], "process 1 has a = 0, process 0 has None"),
    "names": ([{"a": 1}, {"a": 1}, {"A": 1}], "process 2 has A = 1, process 0 has None"),
    "the first of several": ([{"a": 1, "b": 1}, {"a": 1, "b": 2}, {"a": 2, "b": 1}], "process 1 has b = 2, process 0"),
    "within a list": ([{"a": [1, 2]}, {"a": [1, 2]}, {"a": [2, 1]}], r"process 2 has a = \[2, 1\], process 0 has"),
    "text for a number": ([{"a": 1}, {"a": "1"}, {"a": 1}], "process 1 has a = '1', process 0 has 1"),
    "the last digit": ([{"a": 0.1}, {"a": 0.1}, {"a": 0.10000000000000002}], "process 2 has a = 0.1000"),
    "false for nothing": ([{"a": ""}, {"a": False}, {"a": ""}], "process 1 has a = False, process 0 has ''"),
}


@pytest.mark.parametrize("me", [0, 1, 2])
@pytest.mark.parametrize("case", DISAGREEMENTS)
def test_every_process_hears_who_has_what(process, case, me):
    facts, message = DISAGREEMENTS[case]
    process(me, [said(facts)])
    with pytest.raises(ValueError, match=message) as told:
        distributed.agree(facts[me])
    assert str(told.value).endswith("; all must have the same")


@pytest.mark.parametrize("me", [0, 1, 2])
def test_the_same_facts_in_another_order_are_agreed_upon(process, me):
    facts = [{"a": 1, "b": [1, 2], "c": None}, {"c": None, "b": [1, 2], "a": 1}, {"b": [1, 2], "a": 1, "c": None}]
    process(me, [said(facts)])
    distributed.agree(facts[me])
    process(me, [said([{"b": (1, 2)}] * 3)])
    distributed.agree({"b": (1, 2)})  # JSON has no tuples


@pytest.mark.parametrize("me", [0, 1, 2])
def test_problems_of_each_are_heard_by_all_and_come_before_what_differs(process, me):
    facts, problems = [{"a": 1}, {"a": 2}, {"a": 1}], ["", "no disk", "no file\nno other file"]
    process(me, [said(facts, problems)])
    with pytest.raises(ValueError, match=r"\Aprocess 1: no disk\nprocess 2: no file\nno other file\Z"):
        distributed.agree(facts[me], problems[me])
    same = ["no disk"] * 3
    process(me, [said([{}] * 3, same)])
    with pytest.raises(ValueError, match=r"\Aprocess 0: no disk\nprocess 1: no disk\nprocess 2: no disk\Z"):
        distributed.agree({}, same[me])
    first = ["no disk", "", ""]
    process(me, [said([{}] * 3, first)])
    with pytest.raises(ValueError, match=r"\Aprocess 0: no disk\Z"):
        distributed.agree({}, first[me])


def test_alone_a_problem_is_told_as_it_is():
    distributed.agree({"a": 1})
    with pytest.raises(ValueError, match=r"\Ano disk\Z"):
        distributed.agree({"a": 1}, "no disk")
    assert distributed.exchange("x") == ["x"]


@pytest.mark.parametrize("me", [0, 7, 11])
def test_what_is_exchanged_is_in_the_processes_order_and_of_its_round(process, me):
    rounds = [[f"{turn} of {i}" for i in range(12)] for turn in ("first", "second")]
    values = process(me, rounds)
    assert [distributed.exchange(texts[me]) for texts in rounds] == rounds
    assert len(values.barriers) == 2


@pytest.mark.parametrize("processes", [2, 3])
def test_each_process_tells_jax_who_it_is(monkeypatch, process, processes):
    asked, started = {}, []
    monkeypatch.setattr(jax.distributed, "initialize", lambda **given: asked.update(given))
    monkeypatch.setattr(distributed.Watch, "start", lambda watch: started.append((watch.heartbeat, watch.processes)))
    monkeypatch.setattr(distributed, "check_port", lambda place: None)
    monkeypatch.setattr(distributed, "_watch", None, raising=False)
    here = [f"host{i}, pid {i}" for i in range(processes)]
    monkeypatch.setattr(distributed.socket, "gethostname", lambda: "host1")
    monkeypatch.setattr(distributed.os, "getpid", lambda: 1)
    monkeypatch.setattr(global_state, "client", KeyValues(1, [here]))
    monkeypatch.setattr(global_state, "process_id", 1)
    process(0, [])  # lets monkeypatch undo, at the end, what `start` sets
    distributed.start(distributed.Place(processes, "host0:1234", 1), 20.5)
    assert (asked["coordinator_address"], asked["num_processes"], asked["process_id"]) == ("host0:1234", processes, 1)
    assert asked["heartbeat_timeout_seconds"] > 20.5 < asked["initialization_timeout"], "ours come first"
    assert asked["initialization_timeout"] > distributed._CONNECT_S
    assert started == [(20.5, here)]
    assert distributed._me == 1


def test_one_process_asks_nobody(monkeypatch):
    monkeypatch.setattr(jax.distributed, "initialize", lambda **_: pytest.fail("jax was asked"))
    distributed.start(distributed.ALONE, 20)
    assert distributed._store is None


# ---- signs of life


class Ended(BaseException):
    """Raised where this process would end."""


class Clock:
    """A clock that advances while somebody sleeps. `pauses`: the actual length of certain sleeps, by their number."""

    def __init__(self, most: float, pauses: dict[int, float] | None = None):
        self.now, self.most, self.sleeps, self.pauses = 0.0, most, 0, pauses or {}

    def monotonic(self):
        return self.now

    def sleep(self, seconds):
        self.now += self.pauses.get(self.sleeps, seconds)
        self.sleeps += 1
        if self.now > self.most:
            raise Ended("nothing happened")


@pytest.fixture
def watching(monkeypatch, process):
    def make(me, clock, heartbeat=10.0):
        def ends(code, text=""):
            raise Ended(code, text, clock.now)

        process(me, [])
        monkeypatch.setattr(distributed, "time", clock)
        monkeypatch.setattr(distributed, "_exit", ends)
        monkeypatch.setattr(distributed, "_leaving", False)  # an earlier test may have left it set
        return distributed.Watch(heartbeat, ["host0, pid 10", "host1, pid 11", "host2, pid 12"])

    return make


@pytest.mark.parametrize("me", [0, 1])
def test_a_silent_process_is_lost_after_the_heartbeat_and_named(watching, me):
    watch = watching(me, Clock(100))
    watch.seen = [("", float("inf")) for _ in watch.seen]
    watch.seen[2] = ("5", 0.0)
    with pytest.raises(Ended) as ended:
        watch._check()
    code, text, when = ended.value.args
    assert (code, when) == (69, 10.5), "at 10 s exactly it is not yet lost"
    assert text.startswith("no sign of life of process 2 (host2, pid 12) for 10 s; the same command goes on from")


def test_nobody_misses_oneself(watching):
    watch = watching(1, Clock(100))
    watch.seen = [("", float("inf")), ("", 0.0), ("", float("inf"))]
    with pytest.raises(Ended, match="nothing happened"):
        watch._check()


def test_who_stood_still_itself_starts_counting_again(watching):
    """After a closed laptop lid or a debugger stop, the others have gone on; their signs of life are only read late."""
    watch = watching(0, Clock(100, {3: 60.0}))
    with pytest.raises(Ended) as ended:
        watch._check()
    assert ended.value.args[2] == 1.5 + 60 + 10.5
    watch = watching(0, Clock(100, {3: 5.0}))  # half a heartbeat is still early enough
    with pytest.raises(Ended) as ended:
        watch._check()
    assert ended.value.args[2] == 10.5


def test_who_ended_well_is_not_missed_and_who_did_not_ends_the_others(watching, monkeypatch):
    watch = watching(0, Clock(100))
    watch._ended(1, "0", "")
    watch._ended(2, "0", "")
    with pytest.raises(Ended, match="nothing happened"):
        watch._check()
    with pytest.raises(Ended) as ended:
        watch._ended(1, "75", "stopped by SIGTERM")
    assert ended.value.args[:2] == (75, "process 1 (host1, pid 11) ended: stopped by SIGTERM")
    watch._ended(0, "75", "it is this one")
    monkeypatch.setattr(distributed, "_leaving", True)
    watch._ended(1, "75", "so does this one")


@pytest.mark.parametrize("alive", [True, False])
def test_only_a_new_sign_of_life_is_one(watching, monkeypatch, alive):
    """The last entry of a dead process stays in the store and must not count as a sign of life."""
    clock = Clock(5)
    watch = watching(0, clock)
    beats = iter(range(100))
    told = {"fvjax/beat": lambda: [("fvjax/beat/000001", str(next(beats)) if alive else "7")], "fvjax/ended": list}
    monkeypatch.setattr(distributed._store, "key_value_dir_get", lambda name: told[name]())
    with pytest.raises(Ended, match="nothing happened"):
        watch._send_and_read()
    assert distributed._store.values == {"fvjax/beat/000000": "11"}
    assert watch.seen[1][1] == (5.0 if alive else 0.0)
    assert watch.seen[0][1] == 5.0, "process 0 has answered"
    assert watch.seen[2] == ("", 0.0)


def test_last_words_reach_the_others(watching, monkeypatch):
    watching(1, Clock(100))
    with pytest.raises(Ended, match="75"):
        distributed.leave(75, "stopped by SIGUSR1")
    assert distributed._store.values == {"fvjax/ended/000001": "75 stopped by SIGUSR1"}
    monkeypatch.setattr(distributed, "_leaving", False)
    watching(1, Clock(100))
    distributed.finished()
    assert distributed._store.values == {"fvjax/ended/000001": "0 "}
    watch = watching(0, Clock(100))
    monkeypatch.setattr(
        distributed._store,
        "key_value_dir_get",
        lambda name: [("fvjax/ended/000002", "2 config.x: no such file")] if "ended" in name else [],
    )
    with pytest.raises(Ended) as ended:
        watch._send_and_read()
    assert ended.value.args[:2] == (2, "process 2 (host2, pid 12) ended: config.x: no such file")


@pytest.mark.parametrize(
    ("error", "lost"),
    [
        (ValueError("UNAVAILABLE: Connection reset by peer"), True),
        (ValueError("DEADLINE_EXCEEDED: no answer"), True),
        (RuntimeError("whatever a computation says"), True),
        (ValueError("config.x: UNAVAILABLE: is no choice"), False),
        (ValueError("NOT_FOUND: no such file"), False),
    ],
)
def test_a_broken_connection_is_told_from_a_mistake(process, error, lost):
    process(0, [])
    assert distributed.broken(error) == lost


def test_alone_no_connection_breaks():
    assert not distributed.broken(RuntimeError("UNAVAILABLE: x"))


# ---- which process this is


@pytest.mark.parametrize(
    ("variables", "given", "expected"),
    [
        ({}, (None, None, None), distributed.ALONE),
        ({"SLURM_STEP_NODELIST": "a", "SLURM_STEP_NUM_TASKS": "3"}, (None, None, None), distributed.Place(3)),
        ({"SLURM_STEP_NODELIST": "a"}, (None, None, None), distributed.Place(1)),
        ({"SLURM_STEP_NUM_TASKS": "3"}, (None, None, None), distributed.ALONE),  # the batch script itself
        ({"OMPI_COMM_WORLD_SIZE": "4"}, (None, None, None), distributed.Place(4)),
        ({"OMPI_COMM_WORLD_SIZE": "4"}, ("h:1", 2, 1), distributed.Place(2, "h:1", 1)),
        ({}, ("h:1", 2, 0), distributed.Place(2, "h:1", 0)),
        ({}, ("h:1", 2, 2), "--process=2: 2 processes are numbered from 0"),
        ({}, ("h:1", None, 1), "--processes is missing"),
        ({}, (None, 2, 1), "--coordinator is missing"),
        ({}, ("h:1", 2, None), "--process is missing"),
    ],
)
def test_flags_or_the_scheduler_say_which_process_this_is(monkeypatch, variables, given, expected):
    for name in ("SLURM_STEP_NODELIST", "SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    for flag, value in zip(("COORDINATOR", "PROCESSES", "PROCESS"), given):
        monkeypatch.setattr(main, flag, SimpleNamespace(value=value))
    if isinstance(expected, str):
        with pytest.raises(ValueError, match=expected):
            main.place()
    else:
        assert main.place() == expected


def test_a_config_without_a_workdir_seen_by_all_is_refused_by_all(process, tmp_path):
    """A process reports a workdir that it does not see, and the process that sees it stops with the same error."""
    problems = ["", f"{tmp_path} of process 0 is not seen here"]
    process(0, [said([{}, {}], problems)])
    with pytest.raises(ValueError, match=f"process 1: {tmp_path} of process 0 is not seen here"):
        distributed.agree({}, "")


# ---- the rows and faces of each process


def mesh_of(**sizes) -> jax.sharding.Mesh:
    sizes = {"data": 1, "fsdp": 1, "tensor": 1} | sizes
    return sharding.make_mesh(sizes, jax.devices()[: np.prod(list(sizes.values()))])


@pytest.mark.parametrize("sizes", [{"data": 4}, {"data": 2, "fsdp": 2}, {"data": 2, "tensor": 2}, {"tensor": 4}])
@pytest.mark.parametrize("here", [(0, 1), (2, 3), (0, 3), (1,), (0, 1, 2, 3)])
def test_a_process_reads_the_rows_of_its_devices_each_once_and_in_order(monkeypatch, sizes, here):
    """The devices of a process need not be neighbours in the mesh, and several may hold the same rows."""
    mesh = mesh_of(**sizes)
    mine = {mesh.devices.ravel()[i] for i in here}
    real = jax.sharding.NamedSharding.devices_indices_map
    monkeypatch.setattr(
        sharding.NamedSharding,
        "addressable_devices_indices_map",
        lambda self, shape: {d: index for d, index in real(self, shape).items() if d in mine},
    )
    rows = sharding.rows_here(8, mesh)
    parts = mesh.shape["data"] * mesh.shape["fsdp"]
    each = 8 // parts
    held = sorted({i // (4 // parts) for i in here})  # tensor comes last in the mesh, so its devices are neighbours
    assert rows.tolist() == [row for part in held for row in range(part * each, part * each + each)]


@pytest.fixture(scope="module")
def odd_number(tmp_path_factory) -> stores.Store:
    """Return 33 faces of 11 people, which no number of devices divides."""
    records = [(images.encode(smooth_face(i), 60), f"{i % 11}", f"{i}.jpg") for i in range(33)]
    return stores.write(tmp_path_factory.mktemp("agreement") / "s", records, split="train", sources=[])


@pytest.mark.parametrize("cache", ["none", "host", "device"])
@pytest.mark.parametrize("sizes", [{"data": 4}, {"data": 2, "fsdp": 2}, {"data": 2, "tensor": 2}])
def test_cached_faces_need_not_divide_among_the_devices(odd_number, monkeypatch, cache, sizes):
    """A cache on the devices is whole on each device, because a step may need any of its faces."""
    config, plan, mesh = base(), PairPlan(odd_number.labels, 4, seed=3), mesh_of(**sizes)
    config.data.cache, placed = cache, []
    real = sharding.whole
    monkeypatch.setattr(sharding, "whole", lambda *args: placed.append(real(*args)) or placed[-1])
    for batch in feed.batches(config.data, odd_number, plan, mesh, start_step=1, num_steps=2):
        ids = plan.examples(np.asarray(batch["index"]))["ids"]
        assert np.array_equal(batch["images"], [[odd_number.image(a), odd_number.image(b)] for a, b in ids])
        assert batch["images"].sharding.spec == sharding.BATCH
    assert len(placed) == (cache == "device")
    for table in placed:
        assert table.sharding.is_fully_replicated
        assert {shard.data.shape for shard in table.addressable_shards} == {(33, 112, 112, 3)}


@pytest.mark.parametrize("cache", ["none", "host", "device"])
@pytest.mark.parametrize("rows", [[0, 1], [2, 3], [1, 3]])
def test_a_process_decodes_the_rows_of_its_own_devices(odd_number, monkeypatch, cache, rows):
    """A process passes on its own rows only; `sharding.batch` makes one global array of the rows of all processes."""
    config, plan, sent = base(), PairPlan(odd_number.labels, 4, seed=3), []
    config.data.cache = cache
    monkeypatch.setattr(
        sharding, "rows_here", lambda size, mesh: np.array(rows) if size == 4 else pytest.fail("whose?")
    )
    monkeypatch.setattr(sharding, "batch", lambda arrays, mesh: sent.append(arrays) or dict(arrays))
    got = list(feed.batches(config.data, odd_number, plan, mesh_of(), start_step=2, num_steps=2))
    assert len(sent) == len(got) == 2
    for step, (batch, arrays) in enumerate(zip(got, sent), 2):
        assert arrays["index"].tolist() == [4 * step + row for row in rows]
        pairs = plan.examples(4 * step + np.array(rows))
        assert arrays["labels"].tolist() == pairs["labels"].tolist()
        want = [[odd_number.image(a), odd_number.image(b)] for a, b in pairs["ids"]]
        assert np.array_equal(batch["images"], want)
        assert ("ids" in arrays) == (cache == "device")


def test_whole_arrays_are_split_or_not_as_asked():
    mesh, x = mesh_of(data=2, fsdp=2), np.arange(24).reshape(8, 3)
    split, copied = sharding.whole(x, mesh), sharding.whole(x, mesh, PartitionSpec())
    assert {shard.data.shape for shard in split.addressable_shards} == {(2, 3)}
    assert {shard.data.shape for shard in copied.addressable_shards} == {(8, 3)}
    assert np.array_equal(split, x)
    assert np.array_equal(copied, x)
    with pytest.raises(ValueError, match="should evenly divide"):
        sharding.whole(x[:7], mesh)


def test_the_last_size_of_a_mesh_is_what_is_left():
    for sizes, want in (
        ({"data": -1, "fsdp": 2, "tensor": 2}, (2, 2, 2)),
        ({"data": 1, "fsdp": -1, "tensor": 1}, (1, 8, 1)),
        ({"data": 2, "fsdp": 2, "tensor": -1}, (2, 2, 2)),
        ({"data": 8, "fsdp": 1, "tensor": -1}, (8, 1, 1)),
    ):
        assert tuple(sharding.make_mesh(sizes, jax.devices()[:8]).shape.values()) == want
    for sizes in ({"data": 3}, {"data": 9}, {"data": 0}, {"data": 4, "fsdp": 1}, {"data": -1, "fsdp": 3}):
        with pytest.raises(ValueError, match=r"config\.mesh: .* does not make up the 8 devices here"):
            sharding.make_mesh({"data": 1, "fsdp": 1, "tensor": 1} | sizes, jax.devices()[:8])


def test_rules_split_what_divides_and_refuse_the_rest():
    tree = {"a": jax.ShapeDtypeStruct((8, 6), np.float32), "b": jax.ShapeDtypeStruct((4,), np.float32)}
    rules = (("a", (None, "fsdp")), (".*", ("data",)))
    found = sharding.by_rules(tree, rules, mesh_of(data=4, fsdp=2))
    assert (found["a"].spec, found["b"].spec) == (PartitionSpec(None, "fsdp"), PartitionSpec("data"))
    assert (found["a"].shard_shape((8, 6)), found["b"].shard_shape((4,))) == ((8, 3), (1,))
    with pytest.raises(ValueError, match=r"a \(8, 6\) does not divide over fsdp=4"):
        sharding.by_rules(tree, rules, mesh_of(data=2, fsdp=4))
    with pytest.raises(ValueError, match=r"b \(4,\) does not divide over data=8"):
        sharding.by_rules(tree, rules, mesh_of(data=8))


def test_the_table_of_what_lives_where_counts_mebibytes():
    """The table counts the total and the bytes of one device."""
    mesh = mesh_of(data=2, fsdp=4)
    split = jax.sharding.NamedSharding(mesh, PartitionSpec(None, "fsdp"))
    whole = sharding.replicated(mesh)
    tree = {
        "params": {
            "big": jax.ShapeDtypeStruct((1024, 2048), np.float32, sharding=split),
            "half": jax.ShapeDtypeStruct((1024, 1024), np.float16, sharding=split),
            "small": jax.ShapeDtypeStruct((256, 1024), np.float32, sharding=whole),
        }
    }
    table = sharding.table({"frozen": tree, "opt": tree["params"]["small"]})
    cells = [list(column.cells) for column in table.columns]
    assert [column.header for column in table.columns][-2:] == ["MiB", "MiB a device"]
    assert cells[0] == ["frozen", "frozen", "opt", "together"]
    assert cells[1] == ["2", "1", "1", ""]
    assert cells[2][:2] == ["params/big", "params/small"]
    assert cells[3] == ["fsdp", "nothing", "nothing", ""]
    assert cells[4] == ["10.0", "1.0", "1.0", ""]
    assert cells[5] == ["2.5", "1.0", "1.0", "4.5"]


def test_a_request_to_stop_is_asked_of_all_by_one(monkeypatch):
    """`saved` also ends a process that received no signal itself, and says that another process received one."""
    request = preemption.Request()
    request.unsaved = True
    request.saved(stop=False)
    assert not request.unsaved
    with pytest.raises(preemption.Preempted, match="stopped by a signal to another process"):
        request.saved(stop=True)
    monkeypatch.setattr(preemption.signal, "signal", lambda *_: pytest.fail("nobody listens"))
    request.take_over()  # it had no handler before, so it has none now


@pytest.mark.parametrize(
    ("cores", "batch", "accumulation", "evaluated", "processes", "devices"),
    [
        (8, 16, 1, 8, 1, 8),
        (8, 16, 1, 8, 2, 4),
        (3, 16, 1, 8, 1, 2),
        (64, 64, 1, 64, 1, 8),
        (8, 24, 1, 12, 1, 6),
        (8, 24, 2, 12, 1, 6),
        (8, 20, 2, 12, 1, 1),
        (1, 16, 1, 8, 1, 1),
    ],
)
def test_a_cpu_has_as_many_devices_as_divide_the_batches(
    monkeypatch, cores, batch, accumulation, evaluated, processes, devices
):
    monkeypatch.setattr(runtime.os, "sched_getaffinity", lambda _: set(range(cores)), raising=False)
    config = base()
    config.batch_size, config.accumulation, config.eval.batch_size = batch, accumulation, evaluated
    assert runtime.cpu_devices(main.batches([typed(config)]), processes) == devices


def test_steps_beyond_the_epoch_and_rows_of_a_process_are_the_plans(odd_number):
    plan = PairPlan(odd_number.labels, 5, seed=1)
    start = 3 * plan.steps_per_epoch - 1
    whole = list(pipeline.train_batches(odd_number, plan, start_step=start, num_steps=2))
    part = list(pipeline.train_batches(odd_number, plan, start_step=start, num_steps=2, rows=np.array([1, 4])))
    for one, other in zip(whole, part):
        assert all(np.array_equal(one[key][[1, 4]], other[key]) for key in one)
    assert [int(batch["index"][0]) for batch in whole] == [5 * start, 5 * start + 5]


@pytest.mark.parametrize("wanted", [[2, 0, 0, 0], [0, 0, 2, 1], [0, 1, 0, 2]])
def test_the_highest_priority_action_of_all_processes_counts(wanted):
    """STOP (2) takes priority over SAVE (1), whichever process asks for it."""
    at = NamedSharding(Mesh(np.array(jax.devices()[:1]), ("data",)), PartitionSpec())
    assert int(agreement._maximum(np.array(wanted, np.int32), np.int32(7), at)) == 2
