"""Numbers in sentences: rounded for the eye, never into something they are not."""

import pytest

from trisparse.report.prose import listed, millions, percent, plain, short_count, titled


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (0, "0"),
        (0.01234, "0.0123"),
        (2.1637, "2.16"),
        (95.12, "95.1"),
        (812.4, "812"),
        (12345.6, "12346"),
        (-1.5, "-1.50"),
    ],
)
def test_plain_has_three_digits_and_no_exponent(value: float, words: str):
    assert plain(value) == words


def test_listed_reads_like_a_sentence():
    assert [listed(words) for words in ([], ["a"], ["a", "b"], ["a", "b", "c"])] == [
        "",
        "a",
        "a and b",
        "a, b and c",
    ]


def test_percent_does_not_round_into_none_or_all():
    assert [percent(share) for share in (0, 0.001, 0.5, 0.999, 1)] == [
        "0%",
        "under 1%",
        "50%",
        "over 99%",
        "100%",
    ]


def test_counts():
    assert [short_count(count) for count in (0, 512, 1024, 1536, 65536)] == ["0", "512", "1k", "1536", "64k"]
    assert [millions(count) for count in (65536, 13_107_200)] == ["65536", "13.1 million"]
    assert titled("gated NSA") == "Gated NSA"
