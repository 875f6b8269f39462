"""The baseline of `gptkit bench`: a GPT-2 of the same shape in Hugging Face transformers.

Input: an experiment. Output: a GPT-2 of that size that trains and samples, in fp32 or bf16, with the
library's fused kernels (scaled_dot_product_attention, a fused GELU, AdamW in one pass) and a batch that is
already on the device. What GPT-2 does not have, such as RoPE or Muon, is left out: it has learned positions
and AdamW.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch

from gptkit.backend import Backend
from gptkit.errors import PluginError
from gptkit.experiment.schema import Experiment, SamplingSettings

_GELU = {
    "gelu": "gelu",
    "gelu_tanh": "gelu_pytorch_tanh",
}  # one fused kernel each; GPT-2's own default is five


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Silences the library's warnings, and restores its verbosity."""
    try:
        from transformers.utils import logging
    except ImportError:
        raise PluginError("transformers is not installed; pip install transformers") from None
    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(before)


class Transformers:
    """GPT-2 of an experiment's size. "bf16" means autocast in training and bf16 weights in sampling."""

    def __init__(self, experiment: Experiment, backend: Backend, vocab_size: int, precision: str) -> None:
        from transformers import GPT2Config, GPT2LMHeadModel

        model, training = experiment.model, experiment.training
        config = GPT2Config(
            vocab_size=vocab_size,
            n_positions=model.context_length,
            n_embd=model.n_embd,
            n_layer=model.n_layer,
            n_head=model.n_head,
            resid_pdrop=model.dropout,
            embd_pdrop=model.dropout,
            attn_pdrop=model.attention_share_dropped,
            activation_function=_GELU.get(model.mlp, "gelu"),
            bos_token_id=0,
            eos_token_id=None,
            pad_token_id=0,
        )
        config._attn_implementation = "sdpa"
        self._backend, self._precision = backend, precision
        self._model: Any = GPT2LMHeadModel(config)
        self._model.to(backend.device)
        self._adam: torch.optim.AdamW | None = None
        self._clip = training.grad_clip
        self._accumulation = training.gradient_accumulation_steps
        shape = (training.batch_size, model.context_length)
        self._tokens = torch.randint(vocab_size, shape, device=backend.device)

    def step(self) -> None:
        """One optimizer update, always on the same batch."""
        if self._adam is None:
            fused = self._backend.device in ("cpu", "cuda", "mps")
            self._adam = torch.optim.AdamW(self._model.parameters(), lr=1e-4, fused=fused)
            self._model.train()
        for _ in range(self._accumulation):
            with self._autocast():
                loss = self._model(self._tokens, labels=self._tokens).loss / self._accumulation
            loss.backward()
        if self._clip:
            torch.nn.utils.clip_grad_norm_(self._model.parameters(), self._clip)
        self._adam.step()
        self._adam.zero_grad(set_to_none=True)

    def sample(self, streams: int, count: int, sampling: SamplingSettings) -> None:
        """Samples `count` tokens after one token, in each of `streams`, with the library's own cache."""
        if self._precision == "bf16":
            self._model.to(torch.bfloat16)
        self._model.eval()
        prompt = self._tokens[:1, :1].expand(streams, 1)
        strategy: dict[str, Any] = {"do_sample": False}
        if sampling.temperature > 0:
            strategy = {
                "do_sample": True,
                "temperature": sampling.temperature,
                "top_k": sampling.top_k,
                "top_p": sampling.top_p,
                "min_p": sampling.min_p or None,
            }
        with torch.inference_mode():
            self._model.generate(
                prompt,
                attention_mask=torch.ones_like(prompt),
                max_new_tokens=count,
                min_new_tokens=count,
                **strategy,
            )

    def _autocast(self) -> AbstractContextManager[Any]:
        if self._precision == "bf16":
            return torch.autocast(self._backend.device, dtype=torch.bfloat16)
        return nullcontext()
