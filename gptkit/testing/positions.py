"""What a positional encoding has to do at its three seams, checked on small tensors.

In: a class of them and its options. Out: checks; those inside a model are in `in_a_model`. Tolerances allow
for sums in another order, no more.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from gptkit.model.seams import overrides, rotation_of
from gptkit.plugins import ModelShape, PositionalEncoding
from gptkit.testing.in_a_model import (
    check_cached,
    check_compiled,
    check_decoded,
    check_trains_in_bf16,
    check_trains_in_fp32,
)
from gptkit.testing.runner import Check, DefectError, asked, raised, require, shown
from gptkit.testing.subject import PluginSubject

COMMON_SHAPES = (ModelShape(16, 32, 2), ModelShape(16, 64, 4), ModelShape(16, 16, 1))
ODD_SHAPES = (
    ModelShape(16, 24, 3),  # heads that are no power of two
    ModelShape(24, 20, 4),  # heads of an odd size
    ModelShape(9, 7, 1),  # all odd
    ModelShape(2, 8, 2),
    ModelShape(1, 8, 2),
)
_NEAR = 1e-4  # of numbers of about 1; absolute, and relative to each


@dataclass
class PositionSubject(PluginSubject):
    """`shapes` are those that it can serve, set by the check "shapes"; the first is a common one."""

    shapes: list[ModelShape] = field(init=False, default_factory=list)

    def make(self, shape: ModelShape | None = None, *, stirred: bool = True, seed: int = 1) -> Any:
        """One in eval mode. Stirred: parameters that start at 0, as some do, would hide what they do."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            position = self.cls(self.options, shape or self.shapes[0]).eval()
        generator = torch.Generator().manual_seed(5)
        with torch.no_grad():
            for parameter in position.parameters() if stirred else ():
                parameter.add_(torch.empty_like(parameter).normal_(0, 0.3, generator=generator))
        return position


def some(*shape: int, seed: int = 0) -> Tensor:
    return torch.empty(shape).normal_(generator=torch.Generator().manual_seed(seed))


def _close(one: Tensor, other: Tensor) -> bool:
    return torch.allclose(one, other, rtol=_NEAR, atol=_NEAR)


def check_shapes(subject: PositionSubject) -> str:
    refused = []
    for shape in (*COMMON_SHAPES, *ODD_SHAPES):
        said = f"context_length {shape.context_length}, n_embd {shape.n_embd}, n_head {shape.n_head}"
        try:
            with torch.random.fork_rng(devices=[]):
                position = subject.cls(subject.options, shape)
        except ValueError as error:
            refused.append(f"{said}: {shown(str(error), 80)}")
            continue
        except Exception as error:
            raise DefectError(f"{said}: {raised(error)}; a shape is refused with ValueError") from error
        require(isinstance(position, nn.Module), f"{said}: gives {shown(position)}, no torch module")
        subject.shapes.append(shape)
    right = any(shape in COMMON_SHAPES for shape in subject.shapes)
    require(right, f"it refuses every common shape, as {refused[0]}" if refused else "")
    count = len(COMMON_SHAPES) + len(ODD_SHAPES)
    return f"{len(subject.shapes)} of {count}" + "".join(f"; refuses {reason}" for reason in refused)


def _in_both_types(subject: PositionSubject, shape: ModelShape) -> list[tuple[Any, torch.dtype]]:
    """As trained: parameters are in the type that is computed in, tables stay in fp32."""
    halved = subject.make(shape)
    for parameter in halved.parameters():
        parameter.data = parameter.data.bfloat16()
    return [(subject.make(shape), torch.float32), (halved, torch.bfloat16)]


def _require_like(out: object, x: Tensor, what: str) -> None:
    """The same shape; fp32 for fp32. The model turns what it gets for bf16 into bf16, so fp32 will do."""
    require(isinstance(out, Tensor), f"{what} gives a {type(out).__name__}, not a tensor")
    assert isinstance(out, Tensor)
    require(out.shape == x.shape, f"{what} gives the shape {tuple(out.shape)}, not {tuple(x.shape)}")
    require(out.dtype in (x.dtype, torch.float32), f"{what} gives {out.dtype} for {x.dtype}")
    require(bool(out.isfinite().all()), f"{what} gives numbers that are not finite")


@torch.no_grad()
def check_embed(subject: PositionSubject) -> str:
    for shape in subject.shapes:
        for position, dtype in _in_both_types(subject, shape):
            x, positions = some(2, shape.context_length, shape.n_embd).to(dtype), _all(shape)
            what = f"embed(x {tuple(x.shape)} in {dtype})"
            with asked(what):
                _require_like(position.embed(x, positions), x, what)
    return "keeps the shape" if overrides(subject.make(), "embed") else "does nothing"


@torch.no_grad()
def check_rotate(subject: PositionSubject) -> str:
    for shape in subject.shapes:
        for position, dtype in _in_both_types(subject, shape):
            q, k = (part.to(dtype) for part in _queries_and_keys(shape))
            what = f"rotate(q, k {tuple(q.shape)} in {dtype})"
            with asked(what):
                turned = position.rotate(q, k, _all(shape))
            pair = isinstance(turned, tuple | list) and len(turned) == 2
            require(pair, f"{what} gives a {type(turned).__name__}, not two tensors")
            for name, before, after in (("q", q, turned[0]), ("k", k, turned[1])):
                _require_like(after, before, f"{what} for {name}")
    return "keeps the shapes" if overrides(subject.make(), "rotate") else "does nothing"


def _all(shape: ModelShape) -> Tensor:
    return torch.arange(shape.context_length)


def _queries_and_keys(shape: ModelShape) -> tuple[Tensor, Tensor]:
    sizes = (2, shape.n_head, shape.context_length, shape.head_size)
    return some(*sizes), some(*sizes, seed=1)


@torch.no_grad()
def check_bias(subject: PositionSubject) -> str:
    for shape in subject.shapes:
        for position, _ in _in_both_types(subject, shape):
            whole = _all(shape)
            for queries in (whole, whole[-1:]):
                _require_bias(position, queries, whole, shape.n_head)
    return "is finite where it counts" if overrides(subject.make(), "bias") else "none"


def _require_bias(position: Any, queries: Tensor, keys: Tensor, n_head: int) -> None:
    what = f"bias({len(queries)} queries, {len(keys)} keys) of {n_head} heads"
    with asked(what):
        bias = position.bias(queries, keys)
    if bias is None:
        return
    require(isinstance(bias, Tensor), f"{what} gives a {type(bias).__name__}, neither a tensor nor None")
    wanted = (n_head, len(queries), len(keys))
    require(bias.shape == wanted, f"{what} gives the shape {tuple(bias.shape)}, not {wanted}")
    require(bias.is_floating_point(), f"{what} gives {bias.dtype}, not floating point")
    behind = keys <= queries.unsqueeze(1)
    finite = bool(bias[:, behind].isfinite().all())
    require(finite, f"{what} is not finite at keys behind the query; a large number, as -1e4, hides a key")


def _outputs(position: Any, shape: ModelShape) -> dict[str, Tensor]:
    """What it gives at each seam that it has, for the whole context."""
    positions, (q, k) = _all(shape), _queries_and_keys(shape)
    turned = position.rotate(q, k, positions)
    out = {
        "embed()": position.embed(some(2, shape.context_length, shape.n_embd), positions),
        "rotate() of q": turned[0],
        "rotate() of k": turned[1],
    }
    bias = position.bias(positions, positions)
    return out if bias is None else {**out, "bias()": bias.masked_fill(_ahead(positions), 0.0)}


def _ahead(positions: Tensor) -> Tensor:
    return positions > positions.unsqueeze(1)


@torch.no_grad()
def check_chance(subject: PositionSubject) -> str:
    """Generation draws from a generator of its own; who draws from torch's makes samples depend on it."""
    position = subject.make()
    before = torch.get_rng_state()
    _outputs(position, position.shape)
    drew = not torch.equal(before, torch.get_rng_state())
    torch.set_rng_state(before)
    require(not drew, "in eval mode it draws from torch's generator; draw only where self.training is set")
    return "draws nothing in eval mode"


@torch.no_grad()
def check_same_twice(subject: PositionSubject) -> str:
    one, other = subject.make(stirred=False), subject.make(stirred=False)
    for kind in ("parameters", "buffers"):
        first, second = dict(getattr(one, f"named_{kind}")()), dict(getattr(other, f"named_{kind}")())
        require(first.keys() == second.keys(), f"made twice, it has other {kind}")
        for name, tensor in first.items():
            same = torch.equal(tensor, second[name])
            require(same, f"made twice under the same torch seed, {name} differs; draw with torch alone")
    position = subject.make()
    first, second = _outputs(position, position.shape), _outputs(position, position.shape)
    for seam, tensor in first.items():
        same = torch.equal(tensor, second[seam])
        require(same, f"{seam}: called twice with the same, it gives something else; keep no state")
    return "made and called twice, it gives the same"


def check_checkpoint(subject: PositionSubject) -> str:
    position = subject.make()
    parameters = {name for name, _ in position.named_parameters()}
    extra = sorted(position.state_dict().keys() - parameters)
    remedy = "a checkpoint keeps parameters; register a table with persistent=False"
    require(not extra, f"state_dict() has {', '.join(extra)}: {remedy}")
    return f"only parameters: {', '.join(sorted(parameters)) or 'none'}"


def check_devices(subject: PositionSubject) -> str:
    position = subject.make()
    for name, module in position.named_modules():
        for key, value in vars(module).items():
            plain = isinstance(value, Tensor)
            where = f"{name}.{key}".lstrip(".")
            require(not plain, f"{where} is a plain tensor and stays behind on the CPU; use register_buffer")
    return "tables go where the model goes"


@torch.no_grad()
def check_tables(subject: PositionSubject) -> str:
    tables = subject.make().rotation()
    if tables is None:
        return "none"
    for shape in subject.shapes:
        position = subject.make(shape)
        found = position.rotation()
        if found is not None:
            _require_tables(position, found, shape)
    return "turn as rotate() does"


def _require_tables(position: PositionalEncoding, tables: Any, shape: ModelShape) -> None:
    pair = isinstance(tables, tuple | list) and len(tables) == 2
    require(pair, f"rotation() gives a {type(tables).__name__}, not two tables")
    wanted = (shape.context_length, shape.head_size)
    for table in tables:
        require(isinstance(table, Tensor), f"rotation() gives a {type(table).__name__}, not a tensor")
        require(table.shape == wanted, f"rotation() gives a table {tuple(table.shape)}, not {wanted}")
        require(table.dtype == torch.float32, f"rotation() gives a table in {table.dtype}, not in fp32")
    if overrides(position, "rotate") and rotation_of(position) is None:
        return  # inherited from before this rotate was written: the model does not use them
    q, k = _queries_and_keys(shape)
    turned = position.rotate(q, k, _all(shape))
    for name, x, got in (("q", q, turned[0]), ("k", k, turned[1])):
        by_tables = x * tables[0] + x.roll(x.size(-1) // 2, -1) * tables[1]
        apart = (by_tables - got).abs().amax(dim=(0, 1, 3))
        at = int(apart.argmax())
        close = _close(by_tables, got)
        require(
            close, f"rotation() turns {name} otherwise than rotate(): at position {at} by {apart[at]:.3g}"
        )


@torch.no_grad()
def check_future(subject: PositionSubject) -> str:
    """Tokens and keys that come later change nothing for those before them."""
    position = subject.make()
    shape = position.shape
    half, positions = shape.context_length // 2, _all(shape)
    before = _outputs(position, shape)
    x = some(2, shape.context_length, shape.n_embd)
    q, k = _queries_and_keys(shape)
    for tensor in (x, q, k):
        tensor[..., half:, :] += 3.0
    turned = position.rotate(q, k, positions)
    after = {"embed()": position.embed(x, positions), "rotate() of q": turned[0], "rotate() of k": turned[1]}
    for seam, tensor in after.items():
        same = _close(tensor[..., :half, :], before[seam][..., :half, :])
        require(same, f"{seam}: later tokens change what earlier ones become")
    if "bias()" in before:
        part = position.bias(positions[:half], positions[:half])
        part = part.masked_fill(_ahead(positions[:half]), 0.0)
        same = _close(part, before["bias()"][:, :half, :half])
        require(same, "bias(): keys in the future change what stands at those behind a query")
    return "later tokens change nothing"


@torch.no_grad()
def check_positions(subject: PositionSubject) -> str:
    """With a cache the first query does not stand at 0: positions are given."""
    position = subject.make()
    shape = position.shape
    whole, positions, T = _outputs(position, shape), _all(shape), shape.context_length
    x = some(2, T, shape.n_embd)
    q, k = _queries_and_keys(shape)
    for start, end in ((T // 3, T // 2), (T - 1, T)):
        here = positions[start:end]
        turned = position.rotate(q[:, :, start:end], k[:, :, start:end], here)
        parts = {"embed()": position.embed(x[:, start:end], here)}
        parts |= {"rotate() of q": turned[0], "rotate() of k": turned[1]}
        said = f"positions {start} to {end - 1} alone give something else than within the whole"
        for seam, tensor in parts.items():
            same = _close(tensor, whole[seam][..., start:end, :])
            require(same, f"{seam}: {said}; take the positions that are given, count none")
        if "bias()" in whole:
            bias = position.bias(here, positions[:end])
            bias = bias.masked_fill(positions[:end] > here.unsqueeze(1), 0.0)
            same = _close(bias, whole["bias()"][:, start:end, :end])
            require(same, f"bias(): queries at {said}; take the positions that are given, count none")
    return "are taken as given"


_SEAMS = ("embed", "rotate", "bias")

CHECKS: tuple[Check[PositionSubject], ...] = (
    Check("shapes", check_shapes, ("options",)),
    Check("embed", check_embed, ("shapes",)),
    Check("rotate", check_rotate, ("shapes",)),
    Check("bias", check_bias, ("shapes",)),
    Check("chance", check_chance, _SEAMS),
    Check("same twice", check_same_twice, ("chance",)),
    Check("checkpoint", check_checkpoint, ("shapes",)),
    Check("devices", check_devices, ("shapes",)),
    Check("rotation tables", check_tables, ("same twice",)),
    Check("future", check_future, ("same twice",)),
    Check("positions", check_positions, ("future",)),
    Check("cached", check_cached, ("positions",)),
    Check("decoded", check_decoded, ("cached", "rotation tables")),
    Check("trains in fp32", check_trains_in_fp32, ("same twice",)),
    Check("trains in bf16", check_trains_in_bf16, ("trains in fp32",)),
    Check("compiled", check_compiled, ("same twice",)),
)
