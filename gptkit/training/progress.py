"""Where a run stands, as it is saved with every checkpoint. Knows nothing of how it gets on."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import Any


@dataclass
class Progress:
    """Where a run stands; saved with every checkpoint, so that a resumed run reports as one undisturbed."""

    step: int = 0
    tokens: int = 0
    seconds: float = 0.0  # of training: evaluating, sampling and saving left out
    loss_sum: float = 0.0  # of the steps since the last that was logged
    loss_count: int = 0
    train_loss: float | None = None
    val_loss: float | None = None
    best_val_loss: float | None = None
    best_step: int | None = None
    bad_evals: int = 0  # evaluations since the best
    expected_steps: int | None = None  # of a run whose end the clock decides, as of the last step logged

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Progress:
        """Raises ValueError where `data` is not what `to_json` gave."""
        known = {field.name: field.type for field in fields(cls)}
        if data.keys() != known.keys():
            raise ValueError("its progress has other fields")
        for name, value in data.items():
            wanted = (int,) if "int" in str(known[name]) else (int, float)
            optional = value is None and "None" in str(known[name])
            if not optional and not _is_number(value, wanted):
                raise ValueError(f"its progress has {name} = {value!r}")
        return cls(**data)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def _is_number(value: Any, wanted: tuple[type[int], ...] | tuple[type[int], type[float]]) -> bool:
    """Whether it is a number of that kind, and of a size that can be computed with."""
    return not isinstance(value, bool) and isinstance(value, wanted) and abs(value) < 1e300
