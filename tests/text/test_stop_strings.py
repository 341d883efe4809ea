"""Stop strings in pieces of text against a search in the whole."""

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from zipage.text.stop_strings import StopStrings

STOPS = st.lists(st.text("ab\n", min_size=1, max_size=5), max_size=4)
PIECES = st.lists(st.text("ab\n", max_size=6), max_size=8)


def run(matcher: StopStrings, pieces: list[str], first_matching: int = 0) -> tuple[str, str | None]:
    text = ""
    for index, piece in enumerate(pieces):
        final, stop = matcher.push(piece, index >= first_matching)
        text += final
        if stop is not None:
            return text, stop
    return text + matcher.flush(), None


def whole_search(text: str, stops: list[str], include_stop: bool, after: int) -> tuple[str, str | None]:
    """Shortest beginning of `text`, longer than `after`, that ends with a stop string."""
    for end in range(after + 1, len(text) + 1):
        found = [stop for stop in stops if text[:end].endswith(stop)]
        if found:
            stop = max(found, key=len)
            return text[: end if include_stop else end - len(stop)], stop
    return text, None


@settings(deadline=None)
@given(stops=STOPS, pieces=PIECES, include_stop=st.booleans(), first_matching=st.integers(0, 4))
def test_pieces_give_what_the_whole_gives(
    stops: list[str], pieces: list[str], include_stop: bool, first_matching: int
) -> None:
    after = len("".join(pieces[:first_matching]))
    expected = whole_search("".join(pieces), stops, include_stop, after)
    assert run(StopStrings(stops, include_stop), pieces, first_matching) == expected


@settings(deadline=None)
@given(stops=STOPS, pieces=PIECES, may_match=st.booleans())
def test_only_the_beginning_of_a_stop_string_is_held_back(stops: list[str], pieces: list[str], may_match: bool) -> None:
    matcher, text, returned = StopStrings(stops, False), "", ""
    for piece in pieces:
        text += piece
        final, stop = matcher.push(piece, may_match)
        if stop is not None:
            return
        returned += final
        beginnings = [stop[:length] for stop in stops for length in range(1, len(stop))]
        expected = max((beginning for beginning in beginnings if text.endswith(beginning)), key=len, default="")
        assert returned + expected == text


@pytest.mark.parametrize(
    ("stops", "text", "include_stop", "expected"),
    [
        (["ab", "abc"], "xabc", False, ("x", "ab")),
        (["abcd", "bc"], "xabcd", False, ("xa", "bc")),
        (["b", "ab"], "xab", False, ("x", "ab")),
        (["ab", "b"], "xab", False, ("x", "ab")),
        (["ab"], "xabab", True, ("xab", "ab")),
        (["\n\n"], "a\n\nb", False, ("a", "\n\n")),
        (["日本"], "中日日本", False, ("中日", "日本")),
        ([], "ab", False, ("ab", None)),
        (["abc"], "xab", False, ("xab", None)),
    ],
)
def test_which_stop_string_wins(
    stops: list[str], text: str, include_stop: bool, expected: tuple[str, str | None]
) -> None:
    for cut in itertools.pairwise([0, *range(1, len(text) + 1)]):
        pieces = [text[: cut[0]], text[cut[0] : cut[1]], text[cut[1] :]]
        assert run(StopStrings(stops, include_stop), pieces) == expected
    assert run(StopStrings(stops, include_stop), list(text)) == expected


def test_a_match_inside_held_back_text_does_not_count_later() -> None:
    matcher = StopStrings(["ab", "xaby"], False)
    assert matcher.push("xab", False) == ("", None)
    assert matcher.push("z", True) == ("xabz", None)


def test_a_match_that_began_before_it_could_count() -> None:
    matcher = StopStrings(["ab"], False)
    assert matcher.push("xa", False) == ("x", None)
    assert matcher.push("b", True) == ("", "ab")
