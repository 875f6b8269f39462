"""Writing text with a model: reading the prompt once, then a token at a time.

In: a model, a tokenizer and a prompt. Out: text, piece by piece. Keys and values of what was read are kept;
when the context is full, the last half of it is read again and writing goes on, so a token costs the same
however long the text is, with any positional encoding. All chance in a sample comes from its own seed.

Knows nothing of runs or terminals.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gptkit.errors import UsageError
from gptkit.experiment.schema import SamplingSettings
from gptkit.model import GPT
from gptkit.model.decoding import decoder_for
from gptkit.plugins import Tokenizer
from gptkit.seeds import derive_seed
from gptkit.words import quote_characters


def encode_prompt(tokenizer: Tokenizer, prompt: str, *, skip_unknown: bool = False) -> tuple[str, list[int]]:
    """The prompt, and its ids. Raises UsageError for characters that the tokenizer has never seen.

    With `skip_unknown` these are left out of both.
    """
    unknown = tokenizer.unknown_characters(prompt)
    if unknown and not skip_unknown:
        raise UsageError(
            "the prompt has characters that the run's tokenizer has never seen: "
            f"{quote_characters(unknown)}. Leave them out, or drop them with --unknown skip."
        )
    if unknown:
        prompt = "".join(character for character in prompt if character not in unknown)
    ids = [int(token) for token in tokenizer.encode(prompt)]
    if not ids:
        raise UsageError("the prompt has no tokens; give at least one character that the model knows.")
    return prompt, ids


def generate(
    model: GPT,
    tokenizer: Tokenizer,
    prompt_ids: Sequence[int],
    settings: SamplingSettings,
    *,
    seed: int,
    num_samples: int = 1,
) -> Iterator[tuple[int, str]]:
    """Text that follows the prompt, as (number of the sample, next piece), while it is made.

    All samples are made together, `max_new_tokens` each or until one of `stop` appears, which is left out.
    Sample number i depends on (seed, i) alone, not on how many there are.
    """
    writers = [_Writer(tokenizer, settings.stop) for _ in range(num_samples)]
    prompt = torch.tensor(prompt_ids, dtype=torch.int64).expand(num_samples, -1)
    for tokens in generate_tokens(model, prompt, settings, seed=seed):
        for number, (writer, token) in enumerate(zip(writers, tokens.tolist(), strict=True)):
            if piece := writer.push(token):
                yield number, piece
        if all(writer.done for writer in writers):
            return
    for number, writer in enumerate(writers):
        if piece := writer.finish():
            yield number, piece


def generate_tokens(model: GPT, prompt: Tensor, settings: SamplingSettings, *, seed: int) -> Iterator[Tensor]:
    """The tokens that follow prompts (N, T), one (N,) at a time, `max_new_tokens` times."""
    device = model.token_embedding.weight.device
    samples = len(prompt)
    context = model.settings.context_length
    kept = max(1, context // 2)  # how much is read again when the context is full
    seen = list(prompt[:, -context:].to(device).unbind(dim=1))  # what the context holds, (N,) each
    was_training = model.training
    model.eval()
    try:
        decoder = decoder_for(model, samples)
        unread = True  # whether the decoder has to read all of `seen`, and not its last alone
        for chances in _chances(samples, settings.max_new_tokens, seed, device):
            with torch.inference_mode():
                logits = decoder.read(torch.stack(seen, dim=1)) if unread else decoder.step(seen[-1])
                tokens = choose_tokens(logits, chances, settings)
            yield tokens
            seen.append(tokens)
            if unread := len(seen) > context:
                seen = seen[-kept:]
    finally:
        model.train(was_training)


def _chances(samples: int, count: int, seed: int, device: torch.device) -> Iterator[Tensor]:
    """`count` times a number in [0, 1) for each sample, (N,); drawn a block at a time, so memory is bounded.

    Those of a sample depend on (seed, its number) alone, and fewer are the beginning of more.
    """
    block = 1024
    generators = [
        torch.Generator().manual_seed(derive_seed(seed, "generate", number)) for number in range(samples)
    ]
    dtype = torch.float32 if device.type == "mps" else torch.float64
    for start in range(0, count, block):
        drawn = torch.stack([torch.rand(block, generator=one, dtype=torch.float64) for one in generators])
        yield from drawn[:, : count - start].to(device, dtype).unbind(dim=1)


def choose_tokens(logits: Tensor, chances: Tensor, settings: SamplingSettings) -> Tensor:
    """A token for each row: logits (N, V) and chances (N,) in [0, 1) -> (N,).

    The chance picks by the cumulative distribution of what temperature, top_k, min_p and top_p (Holtzman et
    al. 2020) leave, applied in this order.
    """
    if settings.temperature == 0:
        return logits.argmax(dim=-1)
    if logits.device.type == "cpu":
        chosen = choose_with_numpy(logits.to(torch.float64).numpy(), chances.numpy(), settings)
        return torch.from_numpy(chosen)
    return choose_with_torch(logits, chances, settings)


def choose_with_numpy(
    logits: NDArray[np.float64], chances: NDArray[np.float64], settings: SamplingSettings
) -> NDArray[np.int64]:
    """On a CPU: a dozen calls, each of which costs a fraction of torch's on a row of a small vocabulary."""
    shares = logits / settings.temperature
    V = shares.shape[-1]
    if 0 < settings.top_k < V:
        least = np.partition(shares, V - settings.top_k, axis=-1)[:, V - settings.top_k, None]
        shares[shares < least] = -np.inf
    shares -= shares.max(axis=-1, keepdims=True)
    np.exp(shares, out=shares)  # relative to the likeliest token
    if settings.min_p > 0:
        shares[shares < settings.min_p] = 0.0
    if settings.top_p < 1:
        order = np.argsort(-shares, axis=-1, kind="stable")
        ordered = np.take_along_axis(shares, order, axis=-1)
        before = ordered.cumsum(axis=-1) - ordered
        ordered[before >= settings.top_p * ordered.sum(axis=-1, keepdims=True)] = 0.0
        np.put_along_axis(shares, order, ordered, axis=-1)
    cumulative = shares.cumsum(axis=-1)
    picked = (cumulative <= chances[:, None] * cumulative[:, -1:]).sum(axis=-1)
    chosen: NDArray[np.int64] = np.minimum(picked, V - 1)
    return chosen


def choose_with_torch(logits: Tensor, chances: Tensor, settings: SamplingSettings) -> Tensor:
    """On a GPU: nothing is copied from it."""
    logits = logits.to(chances.dtype) / settings.temperature
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
    picked = torch.searchsorted(cumulative, chances.unsqueeze(1) * cumulative[:, -1:], right=True)
    return picked.squeeze(1).clamp(max=logits.size(-1) - 1)


def _nucleus(probabilities: Tensor, top_p: float) -> Tensor:
    """Zero outside the fewest likeliest tokens that together have `top_p` of the probability."""
    ordered, order = probabilities.sort(dim=-1, descending=True, stable=True)
    before = ordered.cumsum(dim=-1) - ordered
    ordered = ordered.masked_fill(before >= top_p * ordered.sum(dim=-1, keepdim=True), 0.0)
    return torch.zeros_like(probabilities).scatter(-1, order, ordered)


class _Writer:
    """Tokens to text that can be shown: whole characters, and nothing that may yet become a stop text."""

    def __init__(self, tokenizer: Tokenizer, stop: Sequence[str]) -> None:
        self._decoder = tokenizer.stream_decoder()
        self._stop = stop
        self._held = ""
        self.done = False

    def push(self, token: int) -> str:
        return "" if self.done else self._give(self._decoder.push(token), last=False)

    def finish(self) -> str:
        return "" if self.done else self._give(self._decoder.finish(), last=True)

    def _give(self, text: str, *, last: bool) -> str:
        text = self._held + text
        if not self._stop:
            return text
        # The one that is complete first, so that nothing depends on how the tokenizer cuts the text
        found = [(at + len(stop), at) for stop in self._stop if (at := text.find(stop)) >= 0]
        if found:
            self.done, self._held = True, ""
            return text[: min(found)[1]]
        hold = 0 if last else max(_overlap(text, stop) for stop in self._stop)
        self._held = text[len(text) - hold :]
        return text[: len(text) - hold]


def _overlap(text: str, stop: str) -> int:
    """How many characters at the end of `text` could begin `stop`."""
    for length in range(min(len(text), len(stop) - 1), 0, -1):
        if text.endswith(stop[:length]):
            return length
    return 0
