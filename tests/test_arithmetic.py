"""Test the counted FLOPs, memory and collectives of small programs that can be counted by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from fvjax.planning import flops, hlo, memory


def array(*shape, dtype=jnp.float32):
    return jax.ShapeDtypeStruct(shape, dtype)


# ---- FLOPs -----------------------------------------------------------------------------------------------------------

PRODUCTS = {
    "matrix": (lambda x, y: x @ y, (array(3, 5), array(5, 7)), 2 * 3 * 5 * 7),
    "batched": (lambda x, y: jnp.einsum("bij,bjk->bik", x, y), (array(4, 3, 5), array(4, 5, 7)), 2 * 4 * 3 * 5 * 7),
    "over two axes": (lambda x, y: jnp.einsum("ijk,jkl->il", x, y), (array(3, 5, 2), array(5, 2, 7)), 2 * 3 * 10 * 7),
    "elementwise is free": (lambda x, y: jnp.exp(x) * y + 1, (array(3, 5), array(3, 5)), 0),
    "in a call": (jax.jit(lambda x, y: x @ y), (array(3, 5), array(5, 7)), 2 * 3 * 5 * 7),
    "two of them": (lambda x, y: (x @ y, x @ (y + 1)), (array(3, 5), array(5, 7)), 2 * 2 * 3 * 5 * 7),
}


@pytest.mark.parametrize("case", PRODUCTS)
def test_flops_of_products(case):
    fn, args, expected = PRODUCTS[case]
    assert flops.count(fn, *args) == expected


def test_flops_of_loops_are_multiplied_out():
    def twice(x, w):
        def outer(x, _):
            return lax.scan(lambda x, w: (x @ w, None), x, w)[0], x @ x

        return lax.scan(outer, x, None, length=3)

    one = 2 * 4**3
    assert flops.count(twice, array(4, 4), array(5, 4, 4)) == 3 * (5 + 1) * one
    loop = lambda x: lax.while_loop(lambda x: x[0, 0] < 1, lambda x: x @ x, x)  # noqa: E731
    assert flops.count(loop, array(4, 4)) == one, "how often it runs is not known: once"


def convolution(x, kernel, strides=(1, 1), groups=1):
    dims = ("NHWC", "HWIO", "NHWC")
    return lax.conv_general_dilated(x, kernel, strides, "SAME", dimension_numbers=dims, feature_group_count=groups)


@pytest.mark.parametrize(
    ("stride", "groups", "kernel"), [(1, 1, (3, 3)), (2, 1, (3, 3)), (1, 2, (5, 1)), (2, 4, (3, 3))]
)
def test_flops_of_convolutions_and_their_gradients(stride, groups, kernel):
    """Each gradient costs as much as the convolution. The zeros that a stride inserts are not counted."""
    x, k = array(2, 8, 8, 4), array(*kernel, 4 // groups, 8)
    fn = lambda x, k: convolution(x, k, (stride, stride), groups)  # noqa: E731
    forward = 2 * (2 * (8 // stride) ** 2 * 8) * (kernel[0] * kernel[1] * 4 // groups)
    assert flops.count(fn, x, k) == forward
    by_input = flops.count(lambda x, k: jax.vjp(lambda x: fn(x, k), x)[1](fn(x, k))[0], x, k) - 2 * forward
    assert by_input == forward
    by_kernel = flops.count(lambda x, k: jax.vjp(lambda k: fn(x, k), k)[1](fn(x, k))[0], x, k) - 2 * forward
    assert by_kernel == forward


# ---- memory ----------------------------------------------------------------------------------------------------------

SQUARE = 4 * 16 * 16  # bytes of float32 [16, 16]


def test_memory_of_a_chain_of_products():
    """Fused operations take no memory, and the last one overwrites the product. A product cannot be overwritten."""
    x = array(16, 16)
    found = memory.estimate(lambda x: jnp.exp(x @ x) + 1, x)
    assert found == ((SQUARE,), 4 * SQUARE)
    assert memory.estimate(lambda x: x @ x @ x, x) == ((2 * SQUARE,), 2 * 2 * SQUARE + SQUARE)
    assert memory.estimate(lambda x: jnp.exp(x @ x).sum(0), x) == ((SQUARE + SQUARE // 16,), 3 * SQUARE + SQUARE // 16)


def test_what_is_read_late_stays_alive():
    def late(x):
        first = x @ x
        last = first
        for _ in range(3):
            last = last @ x
        return last + first

    short = memory.estimate(lambda x: x @ x @ x @ x @ x, array(16, 16))
    assert memory.estimate(late, array(16, 16)).alive[0] == short.alive[0] + SQUARE


def test_views_and_unused_results_cost_nothing():
    fn = lambda x: (x @ x).T.reshape(-1)  # noqa: E731
    assert memory.estimate(fn, array(16, 16)).alive == (SQUARE,)
    assert memory.estimate(fn, array(16, 16)) == memory.estimate(lambda x: (fn(x), jnp.sin(x) @ x)[0], array(16, 16))


def test_half_precision_takes_half():
    fn = lambda x: x @ x @ x  # noqa: E731
    full, half = (memory.estimate(fn, array(16, 16, dtype=d)) for d in (jnp.float32, jnp.bfloat16))
    assert (full.alive[0], full.moved) == (2 * half.alive[0], 2 * half.moved)


def test_a_loop_stacks_up_what_it_keeps_and_moves_it_each_time():
    def loop(x):
        return lax.scan(lambda x, _: (x @ x, x), x, None, length=5)[1]

    found = memory.estimate(loop, array(16, 16))
    assert len(found.alive) == 2
    assert found.alive[0] == 5 * SQUARE
    once = memory.estimate(lambda x: (x @ x, x), array(16, 16))
    assert found.moved == 5 * once.moved
    # as one kernel it reads its operand and writes its result, and keeps its own values on the chip
    kernel = memory.estimate(loop, array(16, 16), kernels=1)
    assert kernel.alive == (5 * SQUARE,)
    assert kernel.moved == (1 + 1 + 5) * SQUARE


# ---- collectives -----------------------------------------------------------------------------------------------------

PROGRAM = """HloModule jit_step

%add.clone_promoted (a: f32[], b: f32[]) -> f32[] {
  ROOT %s = f32[] add(%a, %b)
}

%inner.body (p: (s32[], bf16[4,8])) -> (s32[], bf16[4,8]) {
  %g = (bf16[4,8]{1,0}, f32[2]{0}) all-gather-start(%p), replica_groups=[2,4]<=[8], dimensions={0}
  %alone = f32[9]{0} all-reduce(%p), replica_groups={{0},{1}}, to_apply=%add
}

%outer.body (p: (s32[], f32[6])) -> (s32[], f32[6]) {
  %w = (s32[], bf16[4,8]) while(%p), condition=%c, body=%inner.body, backend_config={"known_trip_count":{"n":"5"}}
  %r = f32[6]{0} reduce-scatter(%p), replica_groups={{0,1},{2,3}}, to_apply=%add
}

%quiet.body (p: f32[]) -> f32[] {
  ROOT %q = f32[] add(%p, %p)
}

%called (p: f32[]) -> f32[] {
  ROOT %t = u8[16]{0} collective-permute(%p), source_target_pairs={{0,1},{1,0}}
}

ENTRY %main.1 (x: f32[6]) -> f32[6] {
  %l = (s32[], f32[6]) while(%x), condition=%c, body=%outer.body, backend_config={"known_trip_count":{"n":"3"}}
  %n = f32[] while(%x), condition=%c, body=%quiet.body
  %k = f32[] call(%x), to_apply=%called
  %half = f32[10]{0} all-reduce(%x), replica_groups={}, to_apply=%add.clone_promoted
  ROOT %whole = f64[3,2]{1,0} all-to-all(%x), replica_groups={{0,2,4}}
}
"""


def test_collectives_of_a_program_by_hand():
    """Count collectives by hand.

    Each iteration of a loop counts, a start counts once, groups of one device are left out, and promoted bfloat16 has
    two bytes. A loop of unknown length does not matter if it has no collective.
    """
    found = hlo.collectives(PROGRAM, 8)
    assert sorted(found) == sorted(
        [
            hlo.Collective("all-gather", 4 * 8 * 2 + 2 * 4, (0, 1, 2, 3), 15),
            hlo.Collective("reduce-scatter", 24, (0, 1), 3),
            hlo.Collective("collective-permute", 16, (0, 1), 1),
            hlo.Collective("all-reduce", 20, tuple(range(8)), 1),
            hlo.Collective("all-to-all", 48, (0, 2, 4), 1),
        ]
    )
    assert sum(one.sent for one in found) == pytest.approx(15 * 72 * 3 / 4 + 3 * 24 + 16 + 2 * 20 * 7 / 8 + 48 * 2 / 3)


def test_a_loop_of_unknown_length_is_an_error_where_it_communicates():
    unknown = PROGRAM.replace(', backend_config={"known_trip_count":{"n":"5"}}', "")
    with pytest.raises(ValueError, match=r"inner\.body: how often this loop with collectives runs is not known"):
        hlo.collectives(unknown, 8)


@pytest.mark.parametrize("kind", hlo.KINDS)
def test_alone_nobody_sends_anything(kind):
    assert hlo.share(kind, 1) == 0
    sent = {"all-reduce": 1, "all-gather": 0.5, "reduce-scatter": 1, "all-to-all": 0.5, "collective-permute": 1}
    assert hlo.share(kind, 2) == sent[kind]


@pytest.mark.parametrize("kind", sorted(hlo.BYTES))
def test_bytes_of_a_number(kind):
    names = {"pred": "bool", "bf16": "bfloat16", "f": "float", "s": "int", "u": "uint"}
    name = names.get(kind) or names[kind[0]] + kind[1:]
    assert hlo.BYTES[kind] == jnp.dtype(name).itemsize


@pytest.mark.parametrize(
    ("text", "group"),
    [
        # different sizes, so that a swap of axes is detected
        ("replica_groups=mesh['a'=2,'b'=3,'c'=4] {'a','c'}", (0, 1, 2, 3, 12, 13, 14, 15)),
        ("replica_groups=mesh['a'=2,'b'=3,'c'=4] {'c','a'}", (0, 12, 1, 13, 2, 14, 3, 15)),
        ("replica_groups=mesh['a'=4,'b'=6], device_ids=([2,3,4]T(2,0,1)) {'b'}", (0, 4, 8, 12, 16, 20)),
        ("replica_groups=mesh['a'=4,'b'=6], device_ids=([24]) {'a'}", (0, 6, 12, 18)),
        ("replica_groups=[4,6]<=[2,3,4]T(1,2,0)", (0, 12, 1, 13, 2, 14)),
        ("source_target_pairs={{3,4},{4,3}}", (3, 4)),
    ],
)
def test_groups_of_meshes_whose_sizes_differ(text, group):
    assert hlo.group_of(f"%x = f32[8] all-reduce(%y), {text}, to_apply=%add", 24) == group
    assert all(isinstance(i, int) and not isinstance(i, np.integer) for i in group)
