"""The schema of an experiment: every field with its type, limits, default, unit and description.

Fields are described and validated here and nowhere else; the text below a field is its description.
`gptkit.experiment.fields` reads all of it off. The defaults are a modern recipe for a small GPT, so that a
file sets only what differs. Knows nothing of files, flags or installed plugins. Imports no torch.
"""

from __future__ import annotations

import unicodedata
from math import ceil
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

from gptkit import files
from gptkit.plugins.registry import DATASETS, POSITIONS, TOKENIZERS

# No sensible experiment reaches these limits; they keep absurd numbers from causing a crash much later.
_MANY = 2**31 - 1
MAX_NAME = 200  # characters of a plugin's name, or of a text's path


def _portable(name: str) -> str:
    """The run's folder is named after it, and must be the same on every system.

    Some systems compose letters and their marks (NFC), others do not.
    """
    name = unicodedata.normalize("NFC", name)
    if problem := files.name_problem(name):
        raise PydanticCustomError("name", problem)
    return name


def unit(name: str) -> Any:
    """The unit of a number."""
    return Field(json_schema_extra={"unit": name})


def plugin(family: str) -> Any:
    """Marks a field that names a plugin of that group of entry points."""
    return Field(json_schema_extra={"plugin": family})


Name = Annotated[
    str, AfterValidator(_portable), Field(json_schema_extra={"minLength": 1, "maxLength": files.MAX_NAME})
]
Count = Annotated[int, Field(ge=1, le=_MANY)]
CountOrZero = Annotated[int, Field(ge=0, le=_MANY)]
Size = Annotated[int, Field(ge=1, le=2**20)]
Steps = Annotated[Count, unit("steps")]
StepsOrZero = Annotated[CountOrZero, unit("steps")]
Rate = Annotated[float, Field(ge=0, le=1000)]
Fraction = Annotated[float, Field(ge=0, le=1)]
BelowOne = Annotated[float, Field(ge=0, lt=1)]
Length = Annotated[float, Field(gt=0, le=1e6)]


class Section(BaseModel):
    """A table of an experiment file. Rejects unknown keys, nan and inf; does not coerce values."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, allow_inf_nan=False, strict=True, use_attribute_docstrings=True
    )


class PluginTable(BaseModel):
    """A plugin by name, with its own options. `"name"` in a file is short for `{ type = "name" }`."""

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
    dataset: Annotated[PluginTable, plugin(DATASETS)] = PluginTable(type="shakespeare")
    """A registered dataset, or a text of your own (a file, folder or glob), looked up as given and in the
    data folders."""

    fallback: Annotated[PluginTable | None, plugin(DATASETS)] = None
    """The dataset to use instead, with a warning, if `dataset` is neither here nor available."""

    val_fraction: Annotated[float, Field(gt=0, lt=1)] = 0.1
    """Fraction of the text, taken from its end, that is held out for validation."""

    val: Annotated[PluginTable | None, plugin(DATASETS)] = None
    """A text of its own for validation, like `dataset`; then the model is trained on the whole of `dataset`,
    and `val_fraction` has no effect."""


def _near_divisors(wanted: int, number: int) -> str:
    """The divisors of `number` on both sides of `wanted`, as text."""
    below = next(divisor for divisor in range(min(wanted, number), 0, -1) if number % divisor == 0)
    above = next((divisor for divisor in range(wanted, number + 1) if number % divisor == 0), None)
    return f"{below} or {above}" if above else str(below)


class ModelSettings(Section):
    context_length: Annotated[Size, unit("tokens")] = 64
    """Tokens that the model sees at once. The cost of attention grows with its square."""

    n_layer: Annotated[int, Field(ge=1, le=1000)] = 4
    """Transformer blocks, one after the other."""

    n_head: Annotated[int, Field(ge=1, le=4096)] = 4
    """Attention heads per block; divides n_embd."""

    n_embd: Size = 128
    """Width of the model: the size of a token's embedding."""

    dropout: BelowOne = 0.0
    """Fraction of activations zeroed in training. Helps when a text is seen many times."""

    attention_dropout: Literal["same"] | BelowOne = "same"
    """Fraction of attention weights zeroed in training; "same": as dropout."""

    position: Annotated[PluginTable, plugin(POSITIONS)] = PluginTable(type="rope")
    """Positional encoding."""

    norm: Literal["layernorm", "rmsnorm"] = "rmsnorm"
    """Normalization: layernorm has a learned scale and, with `bias`, a shift; rmsnorm has neither."""

    mlp: Literal["gelu", "gelu_tanh", "relu2", "swiglu"] = "relu2"
    """Activation of the feed-forward network: gelu, gelu_tanh (as in GPT-2), relu2 (squared ReLU) or swiglu,
    which has three matrices instead of two."""

    mlp_hidden: Literal["auto"] | Size = "auto"
    """Hidden width of the feed-forward network; auto: 4 n_embd, for swiglu 8/3 n_embd."""

    qk_norm: bool = True
    """Normalize queries and keys (RMSNorm): stabilizes attention at high learning rates."""

    bias: bool = False
    """Add a bias to linear layers and layernorms."""

    tie_embeddings: bool = False
    """Share the token embedding's weights with the output projection."""

    init: Literal["gpt2", "modern"] = "modern"
    """Initialization of the weights; the table is in gptkit/model/gpt.py."""

    @property
    def attention_share_dropped(self) -> float:
        """`attention_dropout` as a number."""
        return self.dropout if self.attention_dropout == "same" else self.attention_dropout

    @property
    def hidden_width(self) -> int:
        """`mlp_hidden` as a number. A third matrix of 8/3 C keeps the number of weights."""
        if self.mlp_hidden != "auto":
            return self.mlp_hidden
        return 8 * ceil(8 * self.n_embd / 3 / 8) if self.mlp == "swiglu" else 4 * self.n_embd

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
    max_steps: Steps = 1000
    """Optimizer updates; the schedule ends here."""

    epochs: Annotated[Length, unit("epochs")] | None = None
    """Passes over the training text, instead of max_steps; may be a fraction."""

    minutes: Annotated[Length, unit("minutes")] | None = None
    """Minutes of training, instead of max_steps; evaluation, sampling and saving are not counted. The
    schedule ends with the time, so the number of steps depends on the machine and its load, and such a run is
    not reproducible. A resumed run has the time that was left. The clock is read every log_interval;
    metrics.jsonl records the number of steps then expected."""

    batch_size: Annotated[Size, unit("sequences")] = 32
    """Sequences per forward pass."""

    gradient_accumulation_steps: Annotated[Size, unit("forward passes")] = 1
    """Forward passes whose gradients make one step."""

    grad_clip: Rate = 1.0
    """Largest norm of the gradient; a larger one is scaled down. 0: no limit."""

    freeze: list[Annotated[str, Field(min_length=1, max_length=MAX_NAME)]] = []
    """Parts of the model whose weights stay as they are, by their names in a checkpoint: token_embedding,
    blocks.0, blocks.1.attention, …. For a model that starts from another's weights (--load)."""

    log_interval: Steps = 10
    """Steps between two logged training losses."""

    backend: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """Device to train on; auto: the best that is available."""

    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """Precision of matrix products; weights stay fp32. auto: fp32 or bf16, what is fast on the device. fp16,
    with a loss scale, is for GPUs without bf16."""

    compile: Literal["auto"] | bool = "auto"
    """Use torch.compile; auto: on a GPU, if the run is long enough to win back the warm-up."""

    threads: Literal["auto"] | Annotated[int, Field(ge=1, le=4096)] = "auto"
    """CPU threads; another number may change the last bits of the result."""

    @model_validator(mode="after")
    def _one_length(self) -> TrainingSettings:
        if self.epochs is not None and self.minutes is not None:
            raise PydanticCustomError(
                "fields",
                "epochs and minutes both set the length of training; keep one of them",
                {"fields": ("minutes", "epochs")},
            )
        return self


WeightDecay = Annotated[float, Field(ge=0, le=100, description="Decoupled weight decay, of matrices only.")]
Beta1 = Annotated[BelowOne, Field(description="AdamW: decay rate of the running mean of gradients.")]
Beta2 = Annotated[BelowOne, Field(description="AdamW: decay rate of the running mean of squared gradients.")]
Eps = Annotated[
    float, Field(gt=0, le=1, description="AdamW: added to the denominator against a division by 0.")
]


class AdamWSettings(Section):
    """AdamW (Loshchilov and Hutter 2019) for all parameters."""

    type: Literal["adamw"] = "adamw"
    """AdamW for all parameters."""

    learning_rate: Rate = 0.001
    """Peak learning rate."""

    weight_decay: WeightDecay = 0.1
    beta1: Beta1 = 0.9
    beta2: Beta2 = 0.99
    eps: Eps = 1e-8


class MuonSettings(Section):
    """Muon (Jordan et al. 2024) for the hidden matrices, AdamW for the rest."""

    type: Literal["muon"] = "muon"
    """Muon for the hidden matrices, AdamW for the rest."""

    learning_rate: Rate = 0.02
    """Peak learning rate of the hidden matrices; that of all other parameters follows from it."""

    adamw_learning_rate_ratio: Rate | None = 0.25
    """Peak learning rate of embeddings, output projection and norms, as a multiple of learning_rate."""

    adamw_learning_rate: Rate | None = None
    """The same as a number, instead of adamw_learning_rate_ratio; it does not follow learning_rate."""

    momentum: BelowOne = 0.9
    """Muon: decay rate of the running mean of gradients."""

    weight_decay: WeightDecay = 0.0
    beta1: Beta1 = 0.8
    beta2: Beta2 = 0.95
    eps: Eps = 1e-8

    @property
    def adamw_peak(self) -> float:
        """Peak learning rate of the parameters that AdamW updates."""
        if self.adamw_learning_rate is not None:
            return self.adamw_learning_rate
        assert self.adamw_learning_rate_ratio is not None
        return self.learning_rate * self.adamw_learning_rate_ratio

    @model_validator(mode="before")
    @classmethod
    def _number_instead_of_ratio(cls, value: Any) -> Any:
        if isinstance(value, dict) and value.get("adamw_learning_rate") is not None:
            return {"adamw_learning_rate_ratio": None, **value}
        return value

    @model_validator(mode="after")
    def _one_adamw_rate(self) -> MuonSettings:
        if (self.adamw_learning_rate is None) == (self.adamw_learning_rate_ratio is None):
            raise PydanticCustomError(
                "fields",
                "adamw_learning_rate or adamw_learning_rate_ratio sets the rate of AdamW; keep one of them",
                {"fields": ("adamw_learning_rate", "adamw_learning_rate_ratio")},
            )
        return self


OptimizerSettings = AdamWSettings | MuonSettings
OPTIMIZERS: dict[str, type[AdamWSettings] | type[MuonSettings]] = {
    "adamw": AdamWSettings,
    "muon": MuonSettings,
}


def _muon_by_default(value: Any) -> Any:
    """`"adamw"` is short for `{ type = "adamw" }`, as with plugins; a table without a type is of Muon."""
    if isinstance(value, str):
        return {"type": value}
    return {"type": "muon", **value} if isinstance(value, dict) else value


class ScheduleSettings(Section):
    type: Literal["constant", "cosine", "linear"] = "linear"
    """After the warm-up: constant, cosine decay to the end, or linear (constant, then linear decay)."""

    warmup_steps: StepsOrZero = 0
    """Steps in which the learning rate rises linearly from 0."""

    min_learning_rate: Rate = 0.0
    """Learning rate at the end of cosine and linear; other rates end in the same proportion."""

    warmdown_fraction: Fraction = 0.6
    """linear: the last fraction of the steps, in which the learning rate decays."""


class EvaluationSettings(Section):
    eval_interval: Steps = 500
    """Steps between two evaluations."""

    eval_tokens: Annotated[Count, unit("tokens")] = 262_144
    """The whole validation split is evaluated up to this many tokens; of a larger one, fixed windows."""

    stop_after_bad_evals: Annotated[CountOrZero, unit("evaluations")] = 0
    """Finish after this many evaluations in a row without a new best loss; 0: never."""


class CheckpointSettings(Section):
    save: bool = True
    """Write checkpoints; false: train and record without them."""

    checkpoint_interval: Steps = 500
    """Steps between two checkpoints."""

    keep_last: Count = 3
    """How many of the newest checkpoints are kept."""

    keep_every: StepsOrZero = 0
    """Also keep the checkpoints at multiples of this many steps; 0: none."""


class SamplingSettings(Section):
    prompt: Annotated[str, Field(min_length=1, max_length=1_000_000)] = "\n"
    """Text that a sample starts with."""

    max_new_tokens: Annotated[CountOrZero, unit("tokens")] = 500
    """Tokens generated after the prompt."""

    temperature: Annotated[float, Field(ge=0, le=100)] = 1.0
    """Below 1 more predictable, above 1 more varied; 0: always the most likely token."""

    top_k: CountOrZero = 0
    """Sample from the k most likely tokens only; 0: all."""

    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Sample from the most likely tokens that together have this probability; 1: all."""

    min_p: Fraction = 0.0
    """Sample from tokens at least this probable, relative to the most likely one; 0: all."""

    stop: list[Annotated[str, Field(min_length=1)]] = []
    """Texts that end a sample when they appear."""

    sample_interval: StepsOrZero = 500
    """Steps between two samples during training; 0: none."""


class DistributedSettings(Section):
    strategy: Literal["replicate"] = "replicate"
    """How several processes (--processes) share the training: replicate: each has all weights and computes a
    part of the batch, and gradients are averaged."""

    timeout: Annotated[float, Field(gt=0, le=1e6), unit("seconds")] = 600.0
    """How long a process waits for the others, also while rank 0 evaluates, samples or saves; then training
    ends with an error."""


def _on_off_or_options(value: Any) -> Any:
    if not isinstance(value, bool | dict):
        raise ValueError("should be true, false or a table of the tracker's options")
    return value


class InitFromSettings(Section):
    run: Annotated[str, Field(min_length=1, max_length=4096)] | None = None
    """The run whose weights and tokenizer training starts with: its id, a unique beginning of it, or its
    folder."""

    checkpoint: Literal["best", "last"] | StepsOrZero | None = None
    """Which of its checkpoints: the best unless set, the last, or that of a step."""

    sha256: Annotated[str, StringConstraints(pattern="^[0-9a-f]{64}$")] | None = None
    """SHA-256 of its weights. Where it is set, as in the file that a run keeps, other weights are refused."""

    @model_validator(mode="after")
    def _of_a_run(self) -> InitFromSettings:
        if self.run is None and (self.checkpoint is not None or self.sha256 is not None):
            raise PydanticCustomError("fields", "needs init_from.run", {"fields": ("checkpoint", "sha256")})
        return self


TrackerName = Annotated[str, StringConstraints(min_length=1, max_length=200)]
Tracking = dict[TrackerName, Annotated[Any, AfterValidator(_on_off_or_options)]]


class Experiment(Section):
    """Everything that a training run depends on."""

    name: Name = "gpt"
    """The run's name: letters of any script, digits, '_' and '-'."""

    seed: Literal["random"] | Annotated[int, Field(ge=0, lt=2**63)] = "random"
    """Seed of all randomness; random: one is drawn and recorded."""

    tokenizer: Annotated[PluginTable, plugin(TOKENIZERS)] = PluginTable(type="char")
    """How text becomes tokens."""

    data: DataSettings = DataSettings()
    """The text."""

    init_from: InitFromSettings = InitFromSettings()
    """The weights to start with; unless set, random ones."""

    model: ModelSettings = ModelSettings()
    """The GPT."""

    training: TrainingSettings = TrainingSettings()
    """Length of training, batches, device and precision."""

    optimizer: Annotated[
        Annotated[OptimizerSettings, Field(discriminator="type")], BeforeValidator(_muon_by_default)
    ] = MuonSettings()
    """The optimizer and its learning rates."""

    schedule: ScheduleSettings = ScheduleSettings()
    """The learning rate over the steps."""

    evaluation: EvaluationSettings = EvaluationSettings()
    """When and on how much of the validation split."""

    checkpoints: CheckpointSettings = CheckpointSettings()
    """Which checkpoints are written and kept."""

    sampling: SamplingSettings = SamplingSettings()
    """How text is generated."""

    distributed: DistributedSettings = DistributedSettings()
    """Training by several processes. How many they are is not part of an experiment."""

    tracking: Tracking = {}
    """Trackers that receive the run's metrics and samples too: a tracker's name = true, or a table of its
    options. Changes no weight."""

    @property
    def tokens_per_step(self) -> int:
        training = self.training
        return training.batch_size * training.gradient_accumulation_steps * self.model.context_length
