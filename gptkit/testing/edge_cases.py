"""Texts that reveal faults of a tokenizer: one to train on, many to try, one of unseen characters.

Input: none. Output: text, always the same. Knows nothing of tokenizers.
"""

from __future__ import annotations

_SENTENCES = (
    "The harbour master wrote down every ship that came in, and some that did not.",
    "Nobody had asked for a lighthouse, but there it stood; what else could they do with it?",
    '"Twelve boats," she said, "and only eleven of them have names."',
    "When it rained the whole town smelled of tar, bread and wet rope.",
    "He counted the steps again: 214 up, 213 down. It was never the same number twice.",
    "I don't know who lit the lamp last night -- do you?",
)

EDGE_CASES: dict[str, str] = {
    "combining marks, composed": "na\u00efve caf\u00e9 \u00c5ngstr\u00f6m \u1e69",
    "combining marks, apart": "nai\u0308ve cafe\u0301 A\u030angstro\u0308m s\u0323\u0307 \u0301",
    "joined emoji": "\U0001f44d\U0001f3fd "
    "\U0001f469\u200d\U0001f469\u200d\U0001f467 \U0001f3f3\ufe0f\u200d\U0001f308",
    "flags": "\U0001f1e9\U0001f1ea\U0001f1eb\U0001f1f7\U0001f1e9",
    "right to left": "\u05e9\u05dc\u05d5\u05dd \u200f\u0639\u0644\u064a\u0643\u0645\u202b abc\u202c",
    "line ends": "a\r\nb\rc\n\r\n\n\rd\u2028e\u2029f\x85g\x0bh\x0ci\r",
    "NUL and controls": "\x00a\x01\x1b[0m\x7f\x00",
    "byte-order marks": "\ufeffa\ufeffb\ufeff",
    "U+FFFD": "a\ufffdb \ufffd",
    "the last of Unicode": "\U0010ffffa\U0010fffe\U0010ffff",
    "noncharacters": "\ufdd0a\ufffe\uffff\U0001fffe",
    "tabs": "\t\tx\t y\t",
    "10,000 of one character": "z" * 10_000,
    "white space": "   \n\n  x   y  \t \n \u00a0\u3000\u2003  ",
    "one space": " ",
    "one line end": "\n",
    "Hangul": "\u1112\u1161\u11ab\u1100\u1173\u11af \ud55c\uae00",
    "digits": "0123456789 \u0660\u0661\u0662 3.14159265358979323846264338327950288 \u00b2\u2462",
    "mixed case": "hELLO \u03a3\u0391\u03a3 Stra\u00dfe \u0130stanbul \u0131I \u01c5 \ufb00",
    "spaces before punctuation": "Hello , world ! do n't , he 's  . . .  A , B",
    "what looks like special tokens": "<|endoftext|><unk> <s></s>[UNK][CLS] [PAD]\u2581a \u0120b ##ing </w>",
}
"""Texts by what is hard about them."""

UNSEEN = "\u16a0\u16c7\u16bb \ua66e \u2ab8\U0001d50a\u0b95 \u2603\U0001f9ff\u1f84"
"""Runes, and other characters that occur in none of the texts above; but for its spaces."""


def _prose(sentences: int, stride: int) -> str:
    """Sentences in an order that never repeats for long."""
    count = len(_SENTENCES)
    drawn = (_SENTENCES[(stride * number * number + number // 7) % count] for number in range(sentences))
    return "".join(sentence + (" " if number % 5 else "\n") for number, sentence in enumerate(drawn, start=1))


SAMPLE = _prose(60, 1)
"""Plain English, about 4,000 characters."""

TRAIN = SAMPLE + "\n".join(EDGE_CASES.values())
VAL = _prose(20, 5) + "".join(text[:100] for text in EDGE_CASES.values())

OTHER_VAL = VAL[::-1] + "".join(sorted(set(VAL))) * 40 + "tz" * 500
"""The same characters as VAL, which is all that it has in common with it."""


def all_texts() -> dict[str, str]:
    """The edge cases, plain English, and all edge cases in one text."""
    return {**EDGE_CASES, "plain English": SAMPLE, "all together": "".join(EDGE_CASES.values())}
