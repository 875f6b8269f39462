"""A tokenizer's text as it appears id by id: the same text, and no character in halves.

In: a tokenizer that has learnt. Out: checks.
"""

from __future__ import annotations

from typing import Any

from gptkit.testing.runner import DefectError, asked, require, shown

_HALF = "\ufffd"  # what decode gives for bytes that are no character


def check_streams(subject: Any) -> str:
    """`subject` has `tokenizer` and `texts`, as with all checks of tokenizers."""
    tokenizer = subject.tokenizer
    for name, text in subject.texts.items():
        ids = tokenizer.encode(text).tolist()
        whole = tokenizer.decode(ids)
        with asked(f"{name}: the stream of {shown(text)}"):
            stream = tokenizer.stream_decoder()
            pieces = [*(stream.push(token) for token in ids), stream.finish()]
        _require_whole(f"{name}, of {shown(text)}", pieces, whole)
    return f"{len(subject.texts)} texts, id by id"


def _require_whole(what: str, pieces: list[Any], whole: str) -> None:
    for piece in pieces:
        require(isinstance(piece, str), f"{what}: a piece is {shown(piece)}, not a string")
    streamed = "".join(pieces)
    if streamed == whole:
        return
    if streamed.count(_HALF) > whole.count(_HALF):
        raise DefectError(f"{what}: a character is shown in halves: {shown(_around(streamed, whole))}")
    raise DefectError(
        f"{what}: the pieces give {shown(_around(streamed, whole))}, "
        f"decode gives {shown(_around(whole, streamed))}"
    )


def _around(text: str, other: str) -> str:
    """The part of `text` where it begins to differ from `other`."""
    pairs = enumerate(zip(text, other, strict=False))
    at = next((at for at, (one, another) in pairs if one != another), min(len(text), len(other)))
    return text[max(0, at - 8) : at + 16]


def check_streams_apart(subject: Any) -> str:
    """Several samples are written at once, each with a stream of its own."""
    tokenizer = subject.tokenizer
    names = sorted(subject.texts, key=lambda name: len(subject.texts[name]))
    first, second = names[0], names[-1]
    if "joined emoji" in names and "combining marks, composed" in names:  # of several bytes a character
        first, second = "joined emoji", "combining marks, composed"
    ids = [tokenizer.encode(subject.texts[name]).tolist()[:500] for name in (first, second)]
    streams = [tokenizer.stream_decoder(), tokenizer.stream_decoder()]
    pieces: list[list[str]] = [[], []]
    for at in range(max(map(len, ids))):
        for number, stream in enumerate(streams):
            if at < len(ids[number]):
                pieces[number].append(stream.push(ids[number][at]))
    for number, stream in enumerate(streams):
        pieces[number].append(stream.finish())
        same = "".join(pieces[number]) == tokenizer.decode(ids[number])
        require(same, f"two streams at once disturb each other: {shown(''.join(pieces[number]))}")
    return "two at once do not disturb each other"
