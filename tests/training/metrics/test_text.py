"""Metrics of sequences: against the table of the longest common subsequence, and by hand."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import minidl as md
from minidl.metrics import (
    ExactMatch,
    RougeL,
    TokenF1,
    longest_common_subsequence,
    rouge_l,
    token_f1,
)


def by_table(x, y):
    table = np.zeros((len(x) + 1, len(y) + 1), int)
    for i, a in enumerate(x):
        for j, b in enumerate(y):
            longer = max(table[i, j + 1], table[i + 1, j])
            table[i + 1, j + 1] = table[i, j] + 1 if a == b else longer
    return table[-1, -1]


@given(st.text("abc", max_size=90), st.text("abcd", max_size=12))
def test_longest_common_subsequence(x, y):
    expected = by_table(x, y)
    assert longest_common_subsequence(x, y) == longest_common_subsequence(y, x) == expected
    assert longest_common_subsequence(list(map(ord, x)), list(map(ord, y))) == expected
    assert longest_common_subsequence(x, x) == len(x)


def test_rouge_l():
    """The example of Lin 2004, section 3.1."""
    reference = "police killed the gunman".split()
    assert rouge_l("police kill the gunman".split(), reference) == (0.75, 0.75, 0.75)
    assert rouge_l("the gunman kill police".split(), reference) == (0.5, 0.5, 0.5)
    assert rouge_l("abcd", "ab") == (0.5, 1.0, pytest.approx(2 / 3))
    assert rouge_l("", "") == (1, 1, 1) and rouge_l("", "a") == rouge_l("a", "") == (0, 0, 0)
    assert rouge_l(np.array([1, 2, 3]), md.tensor([1, 3])).recall == 1


def test_token_f1():
    assert token_f1("aab", "abc") == pytest.approx((2 / 3, 2 / 3, 2 / 3))
    assert token_f1("ba", "ab").f1 == 1 and token_f1("", "").f1 == 1 and token_f1("a", "").f1 == 0
    assert token_f1("abcd", "a").precision == 0.25


@pytest.mark.parametrize(
    ("kind", "expected"), [(RougeL, (1 + 0.5) / 2), (TokenF1, 1.0), (ExactMatch, 0.5)]
)
def test_means_over_pairs(kind, expected):
    metric = kind()
    metric.update_state(["ab"], ["ab"])
    metric.update_state([[1, 2]], [np.array([2, 1])])
    assert metric.result() == expected
    with pytest.raises(ValueError, match="takes no mask"):
        metric.update_state(["a"], ["a"], np.ones(1, bool))
    with pytest.raises(ValueError, match="as many references as predictions, got 2 and 1"):
        metric.update_state(["a", "b"], ["a"])
    with pytest.raises(TypeError, match="expected a list of sequences, got a string"):
        metric.update_state("ab", "ab")
