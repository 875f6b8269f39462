"""Generates text: one forward pass over the prompt, then one per token.

Input: a model, a tokenizer and a prompt. Output: text, piece by piece. Keys and values are cached; when the
context is full, the cache is rebuilt from its last half, so the cost per token does not grow with the length
of the text, with any positional encoding. The randomness of each sample comes from its own seed.

Knows nothing of runs or terminals.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gptkit.backend import default_operations
from gptkit.errors import UsageError
from gptkit.experiment.schema import SamplingSettings
from gptkit.model import GPT
from gptkit.model.decoding import decoder_for
from gptkit.plugins import StreamDecoder, Tokenizer
from gptkit.seeds import derive_seed
from gptkit.words import first_difference, quote_characters

_PROMPT_IDS = 32  # at the end of a prompt that decoders get; more than any of them decodes again


def encode_prompt(tokenizer: Tokenizer, prompt: str, *, skip_unknown: bool = False) -> tuple[str, list[int]]:
    """The prompt and its ids. Characters that the tokenizer does not know are dropped with `skip_unknown`, as
    is white space at its end that has no ids.

    Raises UsageError for unknown characters otherwise, and for a prompt without tokens.
    """
    unknown = tokenizer.unknown_characters(prompt)
    if unknown and not skip_unknown:
        raise UsageError(
            "the prompt has characters that the run's tokenizer has never seen: "
            f"{quote_characters(unknown)}. Leave them out, or drop them with --unknown skip."
        )
    if unknown:
        prompt = "".join(character for character in prompt if character not in unknown)
    ids = tokenizer.encode(prompt).tolist()
    if not ids:
        shown = f" {prompt!r:.60}" if prompt else ""
        raise UsageError(f"the prompt{shown} has no tokens; use at least one character that the model knows.")
    shorter = prompt.rstrip()
    if shorter != prompt and tokenizer.encode(shorter).tolist() == ids:
        prompt = shorter  # the text continues with white space of its own
    return prompt, ids


def generate(
    model: GPT,
    tokenizer: Tokenizer,
    prompt_ids: Sequence[int],
    settings: SamplingSettings,
    *,
    seed: int,
    num_samples: int = 1,
    warn: Callable[[str], None] = lambda message: None,
) -> Generation:
    """Text that follows the prompt, as (number of the sample, next piece), while it is generated.

    All samples are generated as one batch, `max_new_tokens` each or until one of `stop` appears, which is
    left out. Sample number i depends on (seed, i) alone, not on `num_samples`. `warn` gets a message, once,
    where many tokens in a row give no text.
    """
    return Generation(model, tokenizer, prompt_ids, settings, seed, num_samples, warn)


class Generation:
    """Samples that are generated while they are iterated over; see `generate`."""

    def __init__(
        self,
        model: GPT,
        tokenizer: Tokenizer,
        prompt_ids: Sequence[int],
        settings: SamplingSettings,
        seed: int,
        num_samples: int,
        warn: Callable[[str], None],
    ) -> None:
        self._model, self._settings, self._seed, self._warn = model, settings, seed, warn
        self._prompt = torch.tensor(prompt_ids, dtype=torch.int64).expand(num_samples, -1)
        self._streams = [_TextStream(tokenizer, settings.stop, prompt_ids) for _ in range(num_samples)]

    @property
    def tokens(self) -> int:
        """How many tokens were generated so far: of each sample those up to its end."""
        return sum(stream.tokens for stream in self._streams)

    def __iter__(self) -> Iterator[tuple[int, str]]:
        silent = max([StreamDecoder.LONGEST, *map(len, self._settings.stop)])
        warned = False
        for tokens in generate_tokens(self._model, self._prompt, self._settings, seed=self._seed):
            for number, (stream, token) in enumerate(zip(self._streams, tokens.tolist(), strict=True)):
                if piece := stream.push(token):
                    yield number, piece
                elif len(stream.without_text) > silent and not warned:
                    self._warn(stream.why_silent())
                    warned = True
            if all(stream.done for stream in self._streams):
                return
        for number, stream in enumerate(self._streams):
            if piece := stream.finish():
                yield number, piece


def generate_tokens(model: GPT, prompt: Tensor, settings: SamplingSettings, *, seed: int) -> Iterator[Tensor]:
    """The tokens that follow prompts (N, T), one (N,) at a time, `max_new_tokens` times."""
    device = model.token_embedding.weight.device
    samples = len(prompt)
    context = model.settings.context_length
    kept = max(1, context // 2)  # tokens that stay in the context when it is full
    seen = list(prompt[:, -context:].to(device).unbind(dim=1))  # the tokens in the context, (N,) each
    was_training = model.training
    model.eval()
    try:
        with default_operations(device.type):
            decoder = decoder_for(model, samples)
        unread = True  # whether the decoder has to process all of `seen`, not its last token alone
        for uniform in _uniform_numbers(samples, settings.max_new_tokens, seed, device):
            with torch.inference_mode():
                logits = decoder.read(torch.stack(seen, dim=1)) if unread else decoder.step(seen[-1])
                tokens = choose_tokens(logits, uniform, settings)
            yield tokens
            seen.append(tokens)
            if unread := len(seen) > context:
                seen = seen[-kept:]
    finally:
        model.train(was_training)


def _uniform_numbers(samples: int, count: int, seed: int, device: torch.device) -> Iterator[Tensor]:
    """`count` times uniform numbers in [0, 1), one per sample, (N,); drawn in blocks, so memory is bounded.

    Those of a sample depend on (seed, its number) alone, and a smaller `count` gives a prefix of a larger.
    """
    block = 1024
    generators = [
        torch.Generator().manual_seed(derive_seed(seed, "generate", number)) for number in range(samples)
    ]
    dtype = torch.float32 if device.type == "mps" else torch.float64
    for start in range(0, count, block):
        drawn = torch.stack([torch.rand(block, generator=one, dtype=torch.float64) for one in generators])
        yield from drawn[:, : count - start].to(device, dtype).unbind(dim=1)


def choose_tokens(logits: Tensor, uniform: Tensor, settings: SamplingSettings) -> Tensor:
    """Samples a token per row: logits (N, V) and uniform numbers (N,) in [0, 1) -> (N,).

    Inverts the cumulative distribution that remains after temperature, top_k, min_p and top_p (Holtzman et
    al. 2020), applied in this order. Temperature 0 takes the most probable token.
    """
    if settings.temperature == 0:
        return logits.argmax(dim=-1)
    if logits.device.type == "cpu":
        chosen = choose_with_numpy(logits.to(torch.float64).numpy(), uniform.numpy(), settings)
        return torch.from_numpy(chosen)
    return choose_with_torch(logits, uniform, settings)


def choose_with_numpy(
    logits: NDArray[np.float64], uniform: NDArray[np.float64], settings: SamplingSettings
) -> NDArray[np.int64]:
    """`choose_tokens` on a CPU, where numpy's overhead per call is a fraction of torch's."""
    scores = logits / settings.temperature
    V = scores.shape[-1]
    if 0 < settings.top_k < V:
        least = np.partition(scores, V - settings.top_k, axis=-1)[:, V - settings.top_k, None]
        scores[scores < least] = -np.inf
    scores -= scores.max(axis=-1, keepdims=True)
    probabilities = np.exp(scores, out=scores)  # not normalized: the most probable token has 1
    if settings.min_p > 0:
        probabilities[probabilities < settings.min_p] = 0.0
    if settings.top_p < 1:
        order = np.argsort(-probabilities, axis=-1, kind="stable")
        ordered = np.take_along_axis(probabilities, order, axis=-1)
        before = ordered.cumsum(axis=-1) - ordered
        ordered[before >= settings.top_p * ordered.sum(axis=-1, keepdims=True)] = 0.0
        np.put_along_axis(probabilities, order, ordered, axis=-1)
    cumulative = probabilities.cumsum(axis=-1)
    picked = (cumulative <= uniform[:, None] * cumulative[:, -1:]).sum(axis=-1)
    chosen: NDArray[np.int64] = np.minimum(picked, V - 1)
    return chosen


def choose_with_torch(logits: Tensor, uniform: Tensor, settings: SamplingSettings) -> Tensor:
    """`choose_tokens` on a GPU, without a copy to the host."""
    logits = logits.to(uniform.dtype) / settings.temperature
    if 0 < settings.top_k < logits.size(-1):
        least = logits.topk(settings.top_k, dim=-1).values[:, -1:]
        logits = logits.masked_fill(logits < least, float("-inf"))
    probabilities = logits.softmax(dim=-1)
    if settings.min_p > 0:
        least = settings.min_p * probabilities.amax(dim=-1, keepdim=True)
        probabilities = probabilities.masked_fill(probabilities < least, 0.0)
    if settings.top_p < 1:
        probabilities = _nucleus(probabilities, settings.top_p)
    cumulative = probabilities.cumsum(dim=-1)
    picked = torch.searchsorted(cumulative, uniform.unsqueeze(1) * cumulative[:, -1:], right=True)
    return picked.squeeze(1).clamp(max=logits.size(-1) - 1)


def _nucleus(probabilities: Tensor, top_p: float) -> Tensor:
    """Zeroes all but the smallest set of most probable tokens whose probabilities reach `top_p`."""
    ordered, order = probabilities.sort(dim=-1, descending=True, stable=True)
    before = ordered.cumsum(dim=-1) - ordered
    ordered = ordered.masked_fill(before >= top_p * ordered.sum(dim=-1, keepdim=True), 0.0)
    return torch.zeros_like(probabilities).scatter(-1, order, ordered)


class _TextStream:
    """Decodes tokens after a prompt to whole characters, and withholds text that may become one of `stop`."""

    def __init__(self, tokenizer: Tokenizer, stop: Sequence[str], prompt_ids: Sequence[int]) -> None:
        self._tokenizer = tokenizer
        self._decoder = tokenizer.stream_decoder()
        self._of_prompt = _read_prompt(tokenizer, self._decoder, prompt_ids)
        self._stop = stop
        self._withheld = ""
        self.done = False
        self.tokens = 0  # pushed before the sample was done
        self.without_text: list[int] = []  # those since the last text

    def push(self, token: int) -> str:
        if self.done:
            return ""
        self.tokens += 1
        piece = self._emit(self._after_prompt(self._decoder.push(token)), last=False)
        self.without_text.append(token)
        if piece:
            self.without_text.clear()
        return piece

    def why_silent(self) -> str:
        """Why the last tokens gave no text, and what to do."""
        number, text = len(self.without_text), self._tokenizer.decode(self.without_text)
        if not text:
            return f"{number} tokens in a row stand for no text: the tokenizer decodes them to ''."
        return (
            f"{number} tokens in a row gave no text yet, although they decode to {text!r:.60}: the "
            "tokenizer's stream decoder holds them back.\nIf none comes, its decode has to return U+FFFD for "
            "half a character, or its stream_decoder to return text earlier; 'gptkit plugins check' shows "
            "where."
        )

    def finish(self) -> str:
        return "" if self.done else self._emit(self._after_prompt(self._decoder.finish()), last=True)

    def _after_prompt(self, text: str) -> str:
        """The text without what the decoder still held back of the prompt."""
        if self._of_prompt and text:
            known = first_difference(text, self._of_prompt)
            text, self._of_prompt = text[known:], self._of_prompt[known:] if known == len(text) else ""
        return text

    def _emit(self, text: str, *, last: bool) -> str:
        text = self._withheld + text
        if not self._stop:
            return text
        # The stop text that is complete first, so that the result does not depend on the token boundaries
        found = [(at + len(stop), at) for stop in self._stop if (at := text.find(stop)) >= 0]
        if found:
            self.done, self._withheld = True, ""
            return text[: min(found)[1]]
        hold = 0 if last else max(_overlap(text, stop) for stop in self._stop)
        self._withheld = text[len(text) - hold :]
        return text[: len(text) - hold]


def _read_prompt(tokenizer: Tokenizer, decoder: StreamDecoder, prompt_ids: Sequence[int]) -> str:
    """Makes the decoder continue a prompt; returns the text of the prompt that it still holds back.

    What a token adds to the text depends on those before it: a space between words, for example. The last few
    are enough, from one on that begins with a whole character.
    """
    first = max(0, len(prompt_ids) - _PROMPT_IDS)
    starts = range(first, max(first - 4, -1), -1)  # a character has at most four ids
    ids = next((part for at in starts if not _is_cut(tokenizer, part := prompt_ids[at:])), prompt_ids[first:])
    returned = "".join(map(decoder.push, ids))
    whole = tokenizer.decode(ids)
    return whole[len(returned) :] if whole.startswith(returned) else ""


def _is_cut(tokenizer: Tokenizer, ids: Sequence[int]) -> bool:
    """Whether the text of ids begins with a part of a character."""
    return tokenizer.decode(ids).startswith("\ufffd")


def _overlap(text: str, stop: str) -> int:
    """The number of characters at the end of `text` that are a prefix of `stop`."""
    for length in range(min(len(text), len(stop) - 1), 0, -1):
        if text.endswith(stop[:length]):
            return length
    return 0
