"""The model card of an exported folder: README.md with what the model is, its losses, how to reproduce it.

Input: a run and its experiment. Output: Markdown with the front matter that Hugging Face's hub reads. Knows
nothing of weights.
"""

from __future__ import annotations

from importlib.metadata import version

from gptkit.experiment.load import to_toml
from gptkit.experiment.schema import Experiment
from gptkit.runs import Run
from gptkit.runs.run import LoadedModel
from gptkit.words import printable


def model_card(run: Run, experiment: Experiment, loaded: LoadedModel, architecture: str) -> str:
    """Markdown. What run.json lacks is left out."""
    record = run.read_record_or_empty()
    model, checkpoint = experiment.model, loaded.checkpoint
    progress = checkpoint.state.get("progress")
    loss = progress.get("val_loss") if isinstance(progress, dict) else None
    facts = [
        ("Parameters", f"{loaded.model.parameter_count:,}"),
        ("Context", f"{model.context_length} tokens"),
        ("Shape", f"{model.n_layer} blocks, width {model.n_embd}, {model.n_head} heads"),
        ("Tokenizer", f"{experiment.tokenizer.type}, {loaded.tokenizer.vocab_size:,} tokens"),
        ("Text", _code(record.dataset.title)),
        ("SHA-256 of the text", _code(record.dataset.sha256)),
        ("Trained", f"{checkpoint.step:,} steps of {experiment.tokens_per_step:,} tokens"),
        ("Validation loss", f"{loss:.4f} nats per token" if isinstance(loss, float) else None),
        ("Seed", str(experiment.seed)),
    ]
    table = "\n".join(f"| {name} | {value} |" for name, value in facts if value)
    return f"""---
library_name: transformers
pipeline_tag: text-generation
tags:
- gptkit
---

# {printable(experiment.name)}

A small GPT, trained with gptkit {version("gptkit")} (run `{printable(run.id)}`) and exported as a
{architecture} of transformers. It continues text of the kind that it was trained on.

| | |
|---|---|
{table}

## Use

```python
from transformers import pipeline

write = pipeline("text-generation", model="path/to/this/folder")
print(write({experiment.sampling.prompt!r})[0]["generated_text"])
```

The model sees {model.context_length} tokens at once: prompt and new text together should not be longer.

## Reproduce

With this file as `experiment.toml` and the text of the hash above, `gptkit train experiment.toml` trains the
model again; on the same kind of machine, bit for bit.

```toml
{to_toml(experiment).strip()}
```
"""


def _code(text: str | None) -> str | None:
    return f"`{printable(text).replace('|', ' ')}`" if text else None
