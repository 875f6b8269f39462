"""Text for messages."""

from gptkit.words import closest, nearest, printable


def test_the_nearest_name_ignores_case_and_may_be_none() -> None:
    assert closest("SHAKESPEAR", ["python-docs", "shakespeare"]) == "shakespeare"
    assert nearest("roep", ["rope", "alibi"]) == "; did you mean 'rope'?"
    assert (closest("zzz", ["rope"]), nearest("zzz", [])) == (None, "")


def test_control_characters_are_escaped() -> None:
    assert printable("naïve 日本 text") == "naïve 日本 text"
    assert printable("a\x1b[31m\n\u202e\udc80") == "a\\x1b[31m\\n\\u202e\\udc80"
