"""Test FaceInsight's rules, losses and graph against its equations in float64 (tests/golden/faceinsight)."""

import json
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fvjax import attribute_rules, co_occurrence
from fvjax.attribute_rules import check_consistent, compile_rules, parse, violated, violation_terms
from fvjax.losses import attributes as attribute_loss
from fvjax.losses import logic
from fvjax.models import graph

GOLDEN = json.loads(Path("tests/golden/faceinsight/faceinsight_equations.json").read_text())
RULES = json.loads(Path("tests/golden/faceinsight/faceinsight_rules.json").read_text())
CELEBA = RULES["celeba40"]["attributes"]
for case in GOLDEN["logic"]:
    case.setdefault("rules", RULES["celeba40"]["exclusions"])  # the last one's
LOGIC = [pytest.param(case, id=case["note"][:20]) for case in GOLDEN["logic"]]
GRAPHS = [pytest.param(case, id=case["note"][:20]) for case in GOLDEN["graphs"]]


per_image = jax.jit(attribute_loss.per_image, static_argnames="groups")
logic_loss = jax.jit(logic.loss, static_argnames=("rules", "names", "form"))


def rule(antecedent, *consequents, kind="excludes", name="r"):
    return {"name": name, "antecedent": antecedent, "consequents": list(consequents), "kind": kind}


# ---- equation 9 ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", LOGIC)
def test_terms_in_float64(case):
    table = compile_rules(case["rules"], case["names"])
    v, terms = violation_terms(np.array(case["P"]), table)
    np.testing.assert_allclose(v, case["V"], rtol=0, atol=1e-12)
    np.testing.assert_allclose(terms, case["terms"], rtol=0, atol=1e-12)
    np.testing.assert_allclose(terms.sum(1), case["loss_per_image"], rtol=1e-12)


@pytest.mark.parametrize("case", LOGIC)
def test_logic_loss_and_gradient(case):
    @jax.jit
    def both(p):
        linear, log_form = (partial(logic.loss, rules=case["rules"], names=case["names"], form=f) for f in logic.FORMS)
        return jax.value_and_grad(linear)(p), jax.value_and_grad(log_form)(p)

    (value, gradient), (log_form, log_gradient) = both(jnp.array(case["P"], jnp.float32))
    np.testing.assert_allclose(value, case["loss"], rtol=1e-6)
    np.testing.assert_allclose(gradient, case["gradient"], rtol=1e-6, atol=1e-7)
    if case["loss_log_form"] is not None:
        np.testing.assert_allclose(log_form, case["loss_log_form"], rtol=2e-6)
    assert np.isfinite(log_form)
    assert np.isfinite(log_gradient).all()


def test_one_image_and_half_precision():
    case = GOLDEN["logic"][0]
    p = jnp.array(case["P"][0], jnp.bfloat16)
    value = logic_loss(p, attribute_rules.parse(case["rules"]), tuple(case["names"]))
    assert value.dtype == jnp.float32
    assert value == pytest.approx(0.468, abs=5e-3)


@pytest.mark.parametrize(("set_name", "expected"), list(GOLDEN["celeba_loss_at_one_half"].items()))
def test_celeba_rules_at_one_half(set_name, expected):
    rules = [one for one in RULES["celeba40"]["exclusions"] if set_name in ("all", one["set"])]
    _, terms = violation_terms(np.full((3, 40), 0.5), compile_rules(rules, CELEBA))
    np.testing.assert_allclose(terms.sum(1), expected, rtol=1e-12)


@pytest.mark.parametrize("data", ["celeba", "maad"])
def test_violated_rules_of_label_rows(data):
    case, sets = GOLDEN["violations"][data], RULES[{"celeba": "celeba40", "maad": "maad47"}[data]]
    rules = sets["exclusions"] + [one for one in sets["groups"] if one["set"] == "groups"]
    table = compile_rules(rules, case["names"])
    broken = violated(case["labels"], table)
    assert [[table.rules[i].name for i in np.flatnonzero(row)] for row in broken] == case["violated"]


def test_hard_decisions_have_no_loss_exactly_where_all_rules_are_kept():
    names = ["a", "b", "c"]
    rules = [
        rule("a", "b"),
        rule("b", "c", kind="implies", name="s"),
        rule(None, *names, kind="at_least_one", name="t"),
    ]
    table = compile_rules(rules, names)
    for bits in np.ndindex(2, 2, 2):
        a, b, c = map(bool, bits)
        kept = (not (a and b)) and (not b or c) and (a or b or c)
        assert (violation_terms(np.array(bits, float), table)[1].sum() == 0) == kept
        assert violated([bits], table).any() != kept


def test_labels_decide_a_rule_only_if_unlabelled_cells_do_not_matter():
    names = ["a", "b", "c"]
    some = [rule("a", "b", "c", kind="at_least_one", name="s"), rule(None, "b", "c", kind="at_least_one", name="t")]
    tables = [compile_rules(rules, names) for rules in ([rule("a", "b", "c")], some)]
    rows = {
        (1, 1, 0): [True, True, True],  # b decides all three
        (1, 0, -1): [False, False, False],
        (1, -1, -1): [True, True, True],
        (0, 1, 0): [False, True, True],  # whether a is positive matters for the exclusion
        (0, -1, -1): [True, False, True],
        (-1, 0, 0): [True, True, False],
    }
    decided = [attribute_rules.checkable(list(rows), table) for table in tables]
    assert np.concatenate(decided, 1).tolist() == list(rows.values())


def test_the_order_of_consequents_does_not_matter():
    p = np.linspace(0.1, 0.9, 4)[None]
    one, other = (violation_terms(p, compile_rules([rule("a", *order)], "abcd"))[1] for order in ("bcd", "dbc"))
    np.testing.assert_allclose(one, other, rtol=1e-6)


def test_unknown_form_and_other_number_of_attributes():
    with pytest.raises(ValueError, match="'linear' or 'log'"):
        logic.loss(jnp.zeros((1, 2)), [rule("a", "b")], "ab", "square")
    with pytest.raises(ValueError, match="3 attributes, but the rules are about 2"):
        logic.loss(jnp.zeros((1, 3)), [rule("a", "b")], "ab")


# ---- what is refused -------------------------------------------------------------------------------------------------

REFUSED = [
    ([rule("a", "z")], "rule 'r': unknown attribute 'z'"),
    ([rule("z", "a")], "rule 'r': unknown attribute 'z'"),
    ([rule("a")], "rule 'r': it has no consequent"),
    ([rule("a", "")], "rule 'r': it has no consequent"),
    ([rule("", "b")], "its antecedent is ''"),
    ([rule(None, "b")], "needs an antecedent"),
    ([rule("a", "b", kind="forbids")], "unknown kind 'forbids'"),
    ([rule("a", "b", "c", kind="implies")], "'implies' has one consequent"),
    ([rule("a", "b", "b")], "a consequent is named twice"),
    ([rule("a", "b", "a")], "'a' is on both sides"),
    ([rule("a", "b"), rule("a", "c")], "rule 'r' occurs twice"),
    ([rule("a", "b", "c"), rule("a", "c", "b", name="s")], "rules 'r' and 's' say the same"),
    ([rule("a", "b"), rule("a", "b", kind="implies", name="s")], "rule 's' .* contradicts the rule 'r'"),
    ([rule("a", "b", "c"), rule("a", "c", "b", kind="at_least_one", name="s")], "contradicts the rule 'r'"),
    (
        [rule("a", "b", kind="implies"), rule("b", "c", kind="implies", name="s"), rule("c", "a", name="t")],
        "contradicts 'a' itself",
    ),
    (
        [
            rule(None, "a", kind="at_least_one"),
            rule("a", "b", name="s"),
            rule(None, "b", kind="at_least_one", name="t"),
        ],
        "a picture could",
    ),
    ([{**rule("a", "b"), "weight": 2}], "unknown key 'weight'"),
    ([{**rule("a", "b"), "consequents": "b"}], "expected a list"),
    (["a -> b"], "expected a table"),
]  # fmt: skip


@pytest.mark.parametrize(("rules", "message"), REFUSED)
def test_refused_rules(rules, message):
    with pytest.raises(ValueError, match=message) as error:
        compile_rules(rules, ["a", "b", "c"])
    assert "\n" not in str(error.value)


def test_shipped_exclusions_do_not_contradict_each_other():
    for sets in (RULES["celeba40"], RULES["maad47"]):
        check_consistent(parse(sets["exclusions"] + sets["groups"] + sets.get("implications", [])))


def test_rules_of_class_groups():
    table = compile_rules(attribute_rules.group_rules({"age": ("young", "old")}), ["old", "x", "young"])
    assert violated([[0, 1, 0], [1, 0, 0]], table).tolist() == [[True], [False]]


# ---- equation 3 ------------------------------------------------------------------------------------------------------


def test_cross_entropy_from_logits():
    case = GOLDEN["bce"]
    p, labels = np.array(case["P"]), jnp.array(case["labels"], jnp.int8)
    logits = jnp.array(np.log(p) - np.log1p(-p), jnp.float32)
    np.testing.assert_allclose(per_image(logits, labels).mean(), case["loss"], rtol=1e-6)
    case = case["from_two_logits"]
    yes, no = jnp.array(case["yes_no"]).T
    for label, key in ((1, "bce_if_1"), (-1, "bce_if_0")):
        cells = per_image((yes - no)[:, None], jnp.full((4, 1), label, jnp.int8))
        np.testing.assert_allclose(cells, case[key], rtol=1e-6, atol=1e-30)


def test_unlabelled_cells_and_rows_have_no_loss_and_no_gradient():
    labels = jnp.array([[0, 1], [0, 0]], jnp.int8)
    logits = jnp.array([[3.0, -2.0], [5.0, 1.0]])
    gradient = jax.grad(lambda x: per_image(x, labels).sum())(logits)
    assert (gradient != 0).tolist() == [[False, True], [False, False]]


def test_softmax_over_a_group():
    logits, labels = (
        jnp.array([[2.0, 0.5, -1.0, 3.0], [1.0, 0.0, 1.0, 0.0]]),
        jnp.array([[-1, 1, -1, 1], [0, 0, -1, 0]]),
    )
    found = per_image(logits, labels, groups=((0, 1, 2),))
    expected = np.log(np.exp([2.0, 0.5, -1.0]).sum()) - 0.5 + np.log1p(np.exp(-3.0))
    np.testing.assert_allclose(found, [expected, 0.0], rtol=1e-6)
    with pytest.raises(ValueError, match="distinct columns"):
        attribute_loss.per_image(logits, labels, [(0, 1), (1, 2)])
    with pytest.raises(ValueError, match="differ in shape"):
        attribute_loss.per_image(logits, labels[:, :3])


# ---- equations 5 to 8 ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", GRAPHS)
def test_correlation_graph(case):
    found = graph.correlation(case["labels"], case["tau"], case["omega"])
    np.testing.assert_allclose(found["P"], case["P"], rtol=0, atol=1e-12)
    assert found["C"].tolist() == case["C_with_diagonal"]
    np.testing.assert_allclose(found["C_hat"], case["C_hat"], rtol=0, atol=1e-12)
    labels = np.array(case["labels"])
    known = labels != 0 if (labels == -1).any() else np.ones_like(labels, bool)
    again = graph.correlation(labels == 1, case["tau"], case["omega"], labelled=known)
    np.testing.assert_array_equal(again["C_hat"], found["C_hat"])


@pytest.mark.parametrize("case", GRAPHS[:2])
def test_convolution(case):
    module = graph.CorrelationGraph(hidden=len(case["W0"][0]), slope=case["leaky_slope"])
    parameters = {"params": {"w0": jnp.array(case["W0"]), "w1": jnp.array(case["W1"])}}
    t_hat = jax.jit(module.apply)(parameters, jnp.array(case["T0"]), np.array(case["C_hat"]))
    np.testing.assert_allclose(t_hat, case["T_hat"], rtol=1e-6, atol=1e-6)


def test_omegas_and_taus():
    labels = GOLDEN["graphs"][1]["labels"]
    for case in GOLDEN["omegas_on_graph_1"]:
        found = graph.correlation(labels, 0.4, case["omega"])["C_hat"]
        np.testing.assert_allclose(found, case["C_hat"], rtol=0, atol=1e-12)
    for case in GOLDEN["taus_on_graph_1"]:
        found = graph.correlation(labels, case["tau"], 0.8)
        np.testing.assert_allclose(found["C_hat"], case["C_hat"], rtol=0, atol=1e-12)
        per_row = found["C"].sum(1) - np.diag(found["C"])
        assert per_row.tolist() == case["edges_per_row"]


def test_controls():
    rng = np.random.default_rng(0)
    first = rng.random(400) < 0.2
    labels = np.stack([first, first & (rng.random(400) < 0.9), rng.random(400) < 0.95, rng.random(400) < 0.1], 1)
    paper, lift, identity, random = (graph.adjacency(kind, labels, tau=0.4, omega=0.8) for kind in graph.KINDS)
    assert paper["C"][0].tolist() == [1, 1, 1, 0]  # column 2 is nearly always positive: everybody's neighbour …
    assert lift["C"].tolist() == [[1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]  # … but not by lift
    np.testing.assert_array_equal(identity["C_hat"], np.eye(4))
    assert random["C"].sum() == paper["C"].sum()
    assert not np.array_equal(random["C"], paper["C"])
    np.testing.assert_array_equal(random["C"], graph.adjacency("random", labels, tau=0.4, omega=0.8)["C"])
    figures = co_occurrence.statistics(paper["C"])
    assert figures["edges_max"] == 2
    assert figures["in_degree"][2] == 3
    assert figures["empty_rows"] == [2]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("nearest", [[1]], 0.4, 0.8), "choose one of conditional"),
        (("lift", [[2]], 0.4, 0.8), "other than -1, 0 and 1"),
        (("lift", [[1]], 1.4, 0.8), "tau is 1.4"),
        (("lift", [[1]], 0.4, -0.1), "omega is -0.1"),
        (("lift", np.zeros((0, 3)), 0.4, 0.8), "none of them 0"),
    ],
)
def test_refused_graphs(arguments, message):
    kind, labels, tau, omega = arguments
    with pytest.raises(ValueError, match=message):
        graph.adjacency(kind, labels, tau=tau, omega=omega)


def test_new_convolution_has_parameters_within_the_bound():
    init = jax.jit(graph.CorrelationGraph(hidden=9).init)
    parameters = init(jax.random.key(0), jnp.ones((3, 4)), np.eye(3))["params"]
    assert {name: value.shape for name, value in parameters.items()} == {"w0": (4, 9), "w1": (9, 4)}
    assert abs(parameters["w0"]).max() <= 9**-0.5
    assert abs(parameters["w1"]).max() <= 0.5
