"""Truth: what a person would write."""

import pytest

from stabilitylab.phrasing import p_cell, rounded


@pytest.mark.parametrize(
    ("value", "digits", "said"),
    [
        (0.25, 3, "0.25"), (1, 3, "1"), (49.98, 3, "50"), (999.4, 3, "999"), (999.6, 3, "1,000"), (1000, 3, "1,000"),
        (-12345.6, 3, "-12,346"), (150, 2, "150"), (99.7, 2, "100"), (3e-7, 3, "3e-07"), (2e12, 3, "2e+12"),
        (12345.6, 4, "12,346"), (float("inf"), 3, "inf"), (float("nan"), 3, "nan"),
    ],
)  # fmt: skip
def test_numbers_keep_the_digits_before_their_point(value, digits, said):
    assert rounded(value, digits) == said


def test_p_values_of_a_table():
    assert [p_cell(each) for each in (0.04, 0.001, 0.0009)] == ["0.04", "0.001", "< 0.001"]
