"""Generate: a run's model opened for writing."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from gptkit.backend import choose_device
from gptkit.experiment import SamplingSettings
from gptkit.experiment.load import Overrides
from gptkit.generation import encode_prompt, generate
from gptkit.model import GPT
from gptkit.plugins import Tokenizer
from gptkit.runs import Run
from gptkit.training.session import TrainingResult


class Writer:
    """A model with a prompt, ready to write."""

    def __init__(
        self,
        model: GPT,
        tokenizer: Tokenizer,
        prompt: tuple[str, list[int]],
        settings: SamplingSettings,
        title: str,
    ) -> None:
        self._model, self._tokenizer, self._settings = model, tokenizer, settings
        self.prompt, self._ids = prompt
        self.title = title
        self.tokens_written = 0

    def write(self, *, seed: int, num_samples: int) -> Iterator[tuple[int, str]]:
        """Pieces of text as (number of the sample, piece), as they are made."""
        self.tokens_written = self._settings.max_new_tokens * num_samples
        yield from generate(
            self._model, self._tokenizer, self._ids, self._settings, seed=seed, num_samples=num_samples
        )


def open_writer(
    run: Run,
    *,
    checkpoint: str = "best",
    backend: str = "auto",
    prompt: str | None = None,
    sampling: Overrides = (),
    skip_unknown: bool = False,
    warn: Callable[[str], None] = lambda message: None,
) -> Writer:
    """A run's model, on a device, with the prompt and the sampling of its experiment unless given.

    Raises UsageError for a prompt or sampling that cannot be used, CheckpointError, PluginError.
    """
    settings = run.sampling(sampling)
    loaded = run.load_model(checkpoint, warn=warn)
    model, tokenizer, read = loaded.model, loaded.tokenizer, loaded.checkpoint
    prepared = encode_prompt(
        tokenizer, settings.prompt if prompt is None else prompt, skip_unknown=skip_unknown
    )
    progress = read.state.get("progress")
    loss = progress.get("val_loss") if isinstance(progress, dict) else None
    title = f"{run.id}, step {read.step}" + (f", val loss {loss:.4f}" if isinstance(loss, float) else "")
    return Writer(model.to(choose_device(backend)), tokenizer, prepared, settings, title)


def write_after(trained: TrainingResult, tokens: int) -> str:
    """The experiment's prompt and `tokens` tokens after it, by the model as training left it; kept."""
    text = trained.write(tokens)
    trained.run.write_sample(trained.progress.step, text)
    return text
