"""Test trees and the names of their leaves, in both directions, and errors with name, count and suggestion."""

import re
from types import SimpleNamespace

import pytest

from fvjax import trees


def leaf(*shape):
    return SimpleNamespace(shape=shape)


def test_names_are_paths_in_alphabetical_order_and_lead_back():
    tree = {"b": {"y": 1, "x": {"k": 2}}, "a": 3, "nothing": {}}
    assert list(trees.flatten(tree).items()) == [("a", 3), ("b/x/k", 2), ("b/y", 1)]
    assert trees.unflatten(trees.flatten(tree)) == {"b": {"y": 1, "x": {"k": 2}}, "a": 3}
    assert trees.flatten({"k": 1}, "params/") == {"params/k": 1}


@pytest.mark.parametrize("names", [("a", "a/b"), ("a", "a/b/c"), ("a/b", "a/b/c/d")])
def test_a_name_is_a_leaf_or_a_branch_whatever_comes_first(names):
    for order in (names, names[::-1]):
        with pytest.raises(ValueError, match=r"itself a leaf|appears twice"):
            trees.unflatten(dict.fromkeys(order, 0))
    with pytest.raises(ValueError, match=re.escape(f"{names[1]}: one of its parents is itself a leaf")):
        trees.unflatten(dict.fromkeys(names, 0))
    with pytest.raises(ValueError, match=re.escape(f"{names[0]} appears twice")):
        trees.unflatten(dict.fromkeys(names[::-1], 0))


def test_the_first_rule_that_matches_a_whole_name_decides():
    rules = [("a/.*", 1), ("a/b", 2), ("b", 3), (".*", 4)]
    with pytest.raises(ValueError, match=r"rule: 'a/b' decides nothing"):  # an earlier rule matches all of its leaves
        trees.first_match(rules, ["a/b", "b", "bb"], "rule")
    del rules[1]
    assert trees.first_match(rules, ["a/b", "b", "bb", "ab"], "rule") == {"a/b": 1, "b": 3, "bb": 4, "ab": 4}


def test_a_rule_for_everything_else_may_be_left_with_nothing():
    assert trees.first_match([("a", 1), (".*", 2)], ["a"], "rule") == {"a": 1}
    for rules in ([("x", 1), ("a", 2)], [("a", 2), ("x", 1)], [("a", 2), ("x", 1), (".*", 3)]):
        with pytest.raises(ValueError, match=r"rule: 'x' decides nothing; names look like \['a', 'b', 'c'\]$"):
            trees.first_match([*rules, ("[bcd]", 4)] if rules[-1][0] != ".*" else rules, ["a", "d", "c", "b"], "rule")


def test_a_name_without_a_rule_is_named():
    with pytest.raises(ValueError, match=r"^sharding rule: nothing matches 'b'; add a \('\.\*', …\) rule"):
        trees.first_match([("a", 1)], ["a", "b"], "sharding rule")


def test_trees_that_fit_are_no_error():
    tree = {"a": leaf(2, 3), "b": leaf()}
    trees.strict_diff(tree, {"b": leaf(), "a": SimpleNamespace(shape=[2, 3])}, "file")  # shapes may be lists


DIFFERENCES = {
    "three missing": ("abc", "", "3 missing (a, b, c)"),
    "more missing": ("dcba", "", "4 missing (a, b, c …)"),
    "three unexpected": ("", "xyz", "3 unexpected (x, y, z)"),
    "more unexpected": ("", "wxyz", "4 unexpected (w, x, y …)"),
    "misspelt": (
        ["kernel", "bias"],
        ["kernal", "bias"],
        "1 missing (kernel); 1 unexpected (kernal, did you mean kernel?)",
    ),
    "misspelt, the nearest": (
        ["scale", "kernels", "kernel"],
        ["kernal"],
        "3 missing (kernel, kernels, scale); 1 unexpected (kernal, did you mean kernel?)",
    ),
    "nothing alike": (["kernel"], ["x"], "1 missing (kernel); 1 unexpected (x)"),
}


@pytest.mark.parametrize("case", DIFFERENCES)
@pytest.mark.parametrize("remedy", ["", "do this"])
def test_differences_are_counted_and_three_are_named(case, remedy):
    expected, given, told = DIFFERENCES[case]
    with pytest.raises(ValueError) as error:
        trees.strict_diff(dict.fromkeys(expected, leaf(1)), dict.fromkeys(given, leaf(1)), "F", remedy)
    assert str(error.value) == f"F does not fit the model: {told}" + (f"; {remedy}" if remedy else "")


def test_other_shapes_are_counted_and_three_are_told():
    expected, given = ({name: leaf(*shape) for name in "dcba"} for shape in ((2, 3), (3, 2)))
    with pytest.raises(ValueError) as error:
        trees.strict_diff(expected | {"same": leaf(1)}, given | {"same": leaf(1)}, "F")
    told = "; ".join(f"{name} is (3, 2), expected (2, 3)" for name in "abc")
    assert str(error.value) == f"F does not fit the model: 4 of another shape ({told})"
    with pytest.raises(ValueError, match=r"model: 1 missing \(b\); 1 unexpected \(x\); 1 of another shape \(a is \(\)"):
        trees.strict_diff({"a": leaf(1), "b": leaf(1)}, {"a": leaf(), "x": leaf(1)}, "F")
