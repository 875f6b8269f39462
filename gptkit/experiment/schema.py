"""What an experiment file may say: every field with its default, its unit and its reason.

The fields are described and validated here and nowhere else. The defaults are a modern recipe for a small
GPT; a file holds only what differs. Imports no torch.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StringConstraints,
    model_validator,
)
from pydantic_core import PydanticCustomError

# Bounds that no honest experiment meets; they keep absurd numbers from becoming a crash much later.
_MANY = 2**31 - 1
MAX_NAME = 200  # characters of a plugin's name, or of a text's path


def _no_device(name: str) -> str:
    """A run's folder is named after it, and must be able to stand on any machine."""
    if re.fullmatch(r"(?i)con|prn|aux|nul|com[0-9]|lpt[0-9]", name):
        raise ValueError(f"{name!r} is a name that Windows keeps for a device; choose another")
    return name


Name = Annotated[
    str,
    StringConstraints(min_length=1, max_length=64, pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*$"),
    AfterValidator(_no_device),
]
Count = Annotated[int, Field(ge=1, le=_MANY)]
CountOrNone = Annotated[int, Field(ge=0, le=_MANY)]
Rate = Annotated[float, Field(ge=0, le=1000)]
Fraction = Annotated[float, Field(ge=0, le=1)]
BelowOne = Annotated[float, Field(ge=0, lt=1)]


class Section(BaseModel):
    """A table of an experiment file: unknown keys, nan and inf are refused, and values are not coerced."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, strict=True)


class PluginTable(BaseModel):
    """`name`, short for `{ type = "name" }`, or that table with the plugin's own options beside `type`."""

    model_config = ConfigDict(extra="allow", frozen=True)

    type: str = Field(min_length=1, max_length=MAX_NAME, description="The plugin's name.")

    @model_validator(mode="before")
    @classmethod
    def _from_name(cls, value: Any) -> Any:
        return {"type": value} if isinstance(value, str) else value

    @property
    def options(self) -> dict[str, Any]:
        return dict(self.model_extra or {})


class DataSettings(Section):
    dataset: PluginTable = Field(
        default=PluginTable(type="shakespeare"),
        description="A registered dataset, or a text (a file, folder or glob): looked up as given, then in "
        "the data folders.",
    )
    fallback: PluginTable | None = Field(
        default=None,
        description="The dataset to use, with a warning, when `dataset` is not here and cannot be had.",
    )
    val_fraction: float = Field(
        default=0.1,
        gt=0,
        lt=1,
        description="The last part of the text, as a fraction of its characters, kept for evaluation.",
    )


def _near_divisors(wanted: int, number: int) -> str:
    """The numbers on both sides of `wanted` that divide `number`."""
    below = next(divisor for divisor in range(min(wanted, number), 0, -1) if number % divisor == 0)
    above = next((divisor for divisor in range(wanted, number + 1) if number % divisor == 0), None)
    return f"{below} or {above}" if above else str(below)


class ModelSettings(Section):
    context_length: int = Field(
        default=64,
        ge=1,
        le=2**20,
        description="Tokens that the model sees at once. Attention grows with its square.",
    )
    n_layer: int = Field(default=4, ge=1, le=1000, description="Blocks, one after the other.")
    n_head: int = Field(default=4, ge=1, le=4096, description="Attention heads in a block; divides n_embd.")
    n_embd: int = Field(default=128, ge=1, le=2**20, description="Width: numbers that stand for one token.")
    dropout: BelowOne = Field(
        default=0.0,
        description="Share of activations dropped in training. Helps when a text is seen many times.",
    )
    attention_dropout: Literal["same"] | BelowOne = Field(
        default="same", description="Share of attention weights dropped in training; same: as dropout."
    )
    position: PluginTable = Field(
        default=PluginTable(type="rope"), description="The positional encoding: how a token knows its place."
    )
    norm: Literal["layernorm", "rmsnorm"] = Field(
        default="rmsnorm", description="layernorm has a gain and, with `bias`, a shift; rmsnorm has neither."
    )
    mlp: Literal["gelu", "gelu_tanh", "relu2", "swiglu"] = Field(
        default="relu2",
        description="gelu, gelu_tanh (GPT-2's) and relu2 (squared ReLU): 4x hidden width; swiglu: 8/3x.",
    )
    qk_norm: bool = Field(
        default=True,
        description="Normalise each query and key (RMS), which keeps attention tame at high rates.",
    )
    bias: bool = Field(default=False, description="A bias in linear layers and layernorms.")
    tie_embeddings: bool = Field(
        default=False, description="The output projection shares the token embedding's weights."
    )
    init: Literal["gpt2", "modern"] = Field(
        default="modern", description="Initial weights; the table is in gptkit/model/gpt.py."
    )

    @property
    def attention_share_dropped(self) -> float:
        """`attention_dropout` as a number."""
        return self.dropout if self.attention_dropout == "same" else self.attention_dropout

    @property
    def drops_out(self) -> bool:
        """Whether anything is dropped in training."""
        return self.dropout > 0 or self.attention_share_dropped > 0

    @model_validator(mode="after")
    def _heads_divide_width(self) -> ModelSettings:
        if self.n_embd % self.n_head:
            raise PydanticCustomError(
                "fields",  # the error names them, for the place in the file
                "n_head = {n_head} does not divide n_embd = {n_embd}; n_head = {near} would",
                {
                    "fields": ("n_head", "n_embd"),
                    "n_head": self.n_head,
                    "n_embd": self.n_embd,
                    "near": _near_divisors(self.n_head, self.n_embd),
                },
            )
        return self


class TrainingSettings(Section):
    max_steps: Count = Field(default=1000, description="Optimizer updates; the schedule ends here.")
    epochs: Annotated[float, Field(gt=0, le=1e6)] | None = Field(
        default=None,
        description="Passes over the training text, instead of max_steps; a fraction is allowed.",
    )
    minutes: Annotated[float, Field(gt=0, le=1e6)] | None = Field(
        default=None,
        description="Minutes of training, instead of max_steps: evaluating, sampling and saving come on top. "
        "The schedule ends with the time, so the number of steps depends on the machine and the moment: such "
        "a run does not come out twice the same. Resumed, it goes on with the time that was left. The clock "
        "is read every log_interval; the `expected_steps` that it gave stand in metrics.jsonl.",
    )
    batch_size: Annotated[int, Field(ge=1, le=2**20)] = Field(
        default=32, description="Sequences in one forward pass."
    )
    gradient_accumulation_steps: Annotated[int, Field(ge=1, le=2**20)] = Field(
        default=1, description="Forward passes whose gradients make one step."
    )
    grad_clip: Rate = Field(default=1.0, description="Largest norm of the gradient; 0 leaves it as it is.")
    log_interval: Count = Field(default=10, description="Steps from one logged training loss to the next.")
    backend: Literal["auto", "cpu", "cuda", "mps"] = Field(
        default="auto", description="What computes; auto takes the best there is."
    )
    precision: Literal["auto", "fp32", "bf16"] = Field(
        default="auto", description="Of the matrix products; weights stay fp32. auto takes what is fast here."
    )
    compile: Literal["auto"] | bool = Field(
        default="auto",
        description="torch.compile; auto: on a GPU, where the run is long enough to win back the warm-up.",
    )
    threads: Literal["auto"] | Annotated[int, Field(ge=1, le=4096)] = Field(
        default="auto", description="CPU threads; another number may change the last bits of the result."
    )

    @model_validator(mode="after")
    def _one_length(self) -> TrainingSettings:
        if self.epochs is not None and self.minutes is not None:
            raise PydanticCustomError(
                "fields",
                "epochs and minutes both say how long it trains; keep one of them",
                {"fields": ("minutes", "epochs")},
            )
        return self


def _weight_decay(default: float) -> Any:
    return Field(default=default, ge=0, le=100, description="Decoupled weight decay, of matrices only.")


def _beta1(default: float) -> Any:
    return Field(default=default, ge=0, lt=1, description="AdamW's average of gradients.")


def _beta2(default: float) -> Any:
    return Field(default=default, ge=0, lt=1, description="AdamW's average of squared gradients.")


def _eps() -> Any:
    return Field(default=1e-8, gt=0, le=1, description="AdamW's guard against a division by 0.")


class AdamWSettings(Section):
    """AdamW (Loshchilov and Hutter 2019) for all parameters."""

    type: Literal["adamw"] = Field(default="adamw", description="AdamW for all parameters.")
    learning_rate: Rate = Field(default=0.001, description="The peak of the schedule.")
    weight_decay: float = _weight_decay(0.1)
    beta1: float = _beta1(0.9)
    beta2: float = _beta2(0.99)
    eps: float = _eps()


class MuonSettings(Section):
    """Muon (Jordan et al. 2024) for the hidden matrices, AdamW for the rest."""

    type: Literal["muon"] = Field(
        default="muon", description="Muon for the hidden matrices, AdamW for the rest."
    )
    learning_rate: Rate = Field(default=0.02, description="Of the hidden matrices: the peak of the schedule.")
    adamw_learning_rate: Rate = Field(
        default=0.005,
        description="Of embeddings, output projection and norms: the peak of the same schedule.",
    )
    momentum: BelowOne = Field(default=0.9, description="Muon's average of gradients.")
    weight_decay: float = _weight_decay(0.0)
    beta1: float = _beta1(0.8)
    beta2: float = _beta2(0.95)
    eps: float = _eps()


OptimizerSettings = AdamWSettings | MuonSettings


def _muon_unless_said(value: Any) -> Any:
    """`"adamw"` is short for `{ type = "adamw" }`, as with plugins; a table without a type is Muon's."""
    if isinstance(value, str):
        return {"type": value}
    return {"type": "muon", **value} if isinstance(value, dict) else value


class ScheduleSettings(Section):
    type: Literal["constant", "cosine", "linear"] = Field(
        default="linear",
        description="After the warm-up: constant, a cosine to the end, or constant and then linearly down.",
    )
    warmup_steps: CountOrNone = Field(default=0, description="Steps from 0 to learning_rate, linearly.")
    min_learning_rate: Rate = Field(
        default=0.0, description="Where cosine and linear end; other rates end in the same proportion."
    )
    warmdown_fraction: Fraction = Field(
        default=0.6, description="linear: the last part of max_steps, in which the rate goes down."
    )


class EvaluationSettings(Section):
    eval_interval: Count = Field(default=500, description="Steps from one evaluation to the next.")
    eval_tokens: Count = Field(
        default=262_144,
        description="The whole val split up to this many tokens; of a larger one, fixed windows of it.",
    )
    stop_after_bad_evals: CountOrNone = Field(
        default=0,
        description="The run is finished after so many evaluations in a row without a new best; 0: never.",
    )


class CheckpointSettings(Section):
    save: bool = Field(default=True, description="false: train and record, but write no checkpoint.")
    checkpoint_interval: Count = Field(default=500, description="Steps from one checkpoint to the next.")
    keep_last: Count = Field(default=3, description="How many of the newest checkpoints stay.")
    keep_every: CountOrNone = Field(default=0, description="Checkpoints at multiples of it stay; 0: none.")


class SamplingSettings(Section):
    prompt: str = Field(
        default="\n", min_length=1, max_length=1_000_000, description="What a sample starts with."
    )
    max_new_tokens: CountOrNone = Field(default=500, description="Tokens written after the prompt.")
    temperature: Annotated[float, Field(ge=0, le=100)] = Field(
        default=1.0, description="Below 1 bolder, above 1 wilder; 0 always takes the likeliest token."
    )
    top_k: CountOrNone = Field(default=0, description="Only the k likeliest tokens; 0: all.")
    top_p: Annotated[float, Field(gt=0, le=1)] = Field(
        default=1.0, description="Only the likeliest tokens that together have this probability; 1: all."
    )
    min_p: Fraction = Field(
        default=0.0, description="Only tokens at least this probable, relative to the likeliest; 0: all."
    )
    stop: list[Annotated[str, Field(min_length=1)]] = Field(
        default=[], description="Texts that end a sample when they appear."
    )
    sample_interval: CountOrNone = Field(
        default=500, description="Steps from one sample shown while training to the next; 0: none."
    )


def _on_off_or_options(value: Any) -> Any:
    if not isinstance(value, bool | dict):
        raise ValueError("should be true, false or a table of the tracker's options")
    return value


TrackerName = Annotated[str, StringConstraints(min_length=1, max_length=200)]
Tracking = dict[TrackerName, Annotated[Any, AfterValidator(_on_off_or_options)]]


class Experiment(Section):
    """All that a training run depends on."""

    name: Name = Field(default="gpt", description="The run's name; letters, digits, '_' and '-'.")
    seed: Literal["random"] | Annotated[int, Field(ge=0, lt=2**63)] = Field(
        default="random", description="All randomness comes from it; random draws one and records it."
    )
    tokenizer: PluginTable = Field(default=PluginTable(type="char"), description="How text becomes tokens.")
    data: DataSettings = Field(default=DataSettings(), description="What it trains on.")
    model: ModelSettings = Field(default=ModelSettings(), description="The GPT.")
    training: TrainingSettings = Field(default=TrainingSettings(), description="How long, on what.")
    optimizer: Annotated[
        Annotated[OptimizerSettings, Field(discriminator="type")], BeforeValidator(_muon_unless_said)
    ] = Field(default=MuonSettings(), description="How a gradient becomes an update.")
    schedule: ScheduleSettings = Field(default=ScheduleSettings(), description="The rate over the steps.")
    evaluation: EvaluationSettings = Field(default=EvaluationSettings(), description="When and how much.")
    checkpoints: CheckpointSettings = Field(default=CheckpointSettings(), description="What is kept.")
    sampling: SamplingSettings = Field(default=SamplingSettings(), description="Text that it writes.")
    tracking: Tracking = Field(
        default={},
        description="Where else a run's numbers and samples go: a tracker's name = true, or a table of "
        "its options. It changes no weight.",
    )

    @property
    def tokens_per_step(self) -> int:
        training = self.training
        return training.batch_size * training.gradient_accumulation_steps * self.model.context_length
