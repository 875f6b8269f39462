"""The contract of a positional encoding: its three hooks on small tensors, and inside a small GPT.

Input: a class of positional encodings and its options. Output: a result per check. Tolerances allow for sums
in another order, no more.
"""

from __future__ import annotations

import warnings
from functools import cache
from typing import Any, ClassVar
from unittest import SkipTest

import torch
from torch import Tensor, nn

from gptkit.backend import default_operations
from gptkit.experiment.schema import ModelSettings, MuonSettings
from gptkit.model import GPT
from gptkit.model.decoding import decoder_for
from gptkit.plugins import ModelShape, PluginOptions, PositionalEncoding
from gptkit.plugins.registry import POSITIONS
from gptkit.testing.contract import (
    ContractError,
    PluginContract,
    calling,
    check,
    describe,
    quote,
    require,
)
from gptkit.training.loss import cross_entropy
from gptkit.training.optim import Optimizer, flatten_parameters

COMMON_SHAPES = (ModelShape(16, 32, 2), ModelShape(16, 64, 4), ModelShape(16, 16, 1))
ODD_SHAPES = (
    ModelShape(16, 24, 3),  # a number of heads that is not a power of two
    ModelShape(24, 20, 4),  # an odd head size
    ModelShape(9, 7, 1),  # everything odd
    ModelShape(2, 8, 2),
    ModelShape(1, 8, 2),
)
_TOLERANCE = 1e-4  # of numbers of about 1; absolute, and relative to each
_LOGIT_TOLERANCE = 1e-3  # of logits, some of which are above 10
_VOCAB_SIZE = 11
_STEPS = 12


class PositionContract(PluginContract):
    """The checks of a positional encoding.

    Attributes:
        plugin: the class of positional encodings. Set it.
        options: options to check it with; by default those of `plugin.Options.example`.
    """

    family = POSITIONS

    shapes: ClassVar[list[ModelShape]]  # those that it accepts, a common one first; set by test_shapes

    @classmethod
    def setup_class(cls) -> None:
        super().setup_class()
        cls.shapes = []

    @classmethod
    def make(cls, shape: ModelShape | None = None, *, perturbed: bool = True) -> Any:
        """An encoding in eval mode. Perturbed, as parameters that are 0 at first would hide what they do."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(1)
            position = cls.plugin(cls.example, shape or cls.shapes[0]).eval()
        if perturbed:
            _perturb(position, seed=5)
        return position

    # On small tensors

    @check("options")
    def test_shapes(self) -> None:
        """`plugin(options, shape)` works for common shapes; one that it cannot serve raises ValueError.

        Fix: raise ValueError in `__init__` with the reason, and no other exception.
        """
        refused = []
        for shape in (*COMMON_SHAPES, *ODD_SHAPES):
            what = f"context_length {shape.context_length}, n_embd {shape.n_embd}, n_head {shape.n_head}"
            try:
                with torch.random.fork_rng(devices=[]):
                    position = self.plugin(self.example, shape)
            except ValueError as error:
                refused.append(f"{what}: {quote(str(error), 80)}")
                continue
            except Exception as error:
                raise ContractError(f"{what}: {describe(error)}") from error
            require(isinstance(position, nn.Module), f"{what}: returns {quote(position)}, not a torch module")
            self.shapes.append(shape)
        common = any(shape in COMMON_SHAPES for shape in self.shapes)
        require(common, f"it refuses every common shape, as {refused[0]}" if refused else "")
        count = len(COMMON_SHAPES) + len(ODD_SHAPES)
        self.report(f"{len(self.shapes)} of {count}" + "".join(f"; refuses {reason}" for reason in refused))

    @check("shapes")
    @torch.no_grad()
    def test_embed(self) -> None:
        """`embed(x, positions)` keeps the shape (B, T, C) and the type, in fp32 and in bf16; all is finite.

        Fix: add to `x` and return it; convert tables to `x.dtype`.
        """
        for shape in self.shapes:
            for position, dtype in self._in_both_types(shape):
                x = _normal(2, shape.context_length, shape.n_embd).to(dtype)
                what = f"embed(x {tuple(x.shape)} in {dtype})"
                with calling(what):
                    _require_like(position.embed(x, _positions(shape)), x, what)
        self.report("keeps the shape" if self.make().overrides("embed") else "does nothing")

    @check("shapes")
    @torch.no_grad()
    def test_rotate(self) -> None:
        """`rotate(q, k, positions)` returns two tensors of the same shapes (B, H, T, D) and type, all finite.

        Fix: return the pair (q, k), each with the shape that it came with.
        """
        for shape in self.shapes:
            for position, dtype in self._in_both_types(shape):
                q, k = (part.to(dtype) for part in _queries_and_keys(shape))
                what = f"rotate(q, k {tuple(q.shape)} in {dtype})"
                with calling(what):
                    rotated = position.rotate(q, k, _positions(shape))
                pair = isinstance(rotated, tuple | list) and len(rotated) == 2
                require(pair, f"{what} returns a {type(rotated).__name__}, not two tensors")
                for name, before, after in (("q", q, rotated[0]), ("k", k, rotated[1])):
                    _require_like(after, before, f"{what} for {name}")
        self.report("keeps the shapes" if self.make().overrides("rotate") else "does nothing")

    @check("shapes")
    @torch.no_grad()
    def test_bias(self) -> None:
        """`bias(query_positions, key_positions)` returns finite floats (H, Tq, Tk), or None.

        Fix: return one matrix per head; to hide a key behind the query use a large number such as -1e4.
        """
        for shape in self.shapes:
            for position, _ in self._in_both_types(shape):
                keys = _positions(shape)
                for queries in (keys, keys[-1:]):
                    _require_bias(position, queries, keys, shape.n_head)
        self.report("is finite where it counts" if self.make().overrides("bias") else "none")

    def _in_both_types(self, shape: ModelShape) -> list[tuple[Any, torch.dtype]]:
        """As in training: parameters are in the type of the activations, tables stay in fp32."""
        half = self.make(shape)
        for parameter in half.parameters():
            parameter.data = parameter.data.bfloat16()
        return [(self.make(shape), torch.float32), (half, torch.bfloat16)]

    @check("embed", "rotate", "bias")
    @torch.no_grad()
    def test_chance(self) -> None:
        """In eval mode it draws nothing from torch's generator: samples must not depend on it.

        Fix: draw only where `self.training` is set.
        """
        position = self.make()
        before = torch.get_rng_state()
        _outputs(position, position.shape)
        drew = not torch.equal(before, torch.get_rng_state())
        torch.set_rng_state(before)
        require(not drew, "in eval mode it draws from torch's generator")
        self.report("draws nothing in eval mode")

    @check("chance")
    @torch.no_grad()
    def test_same_twice(self) -> None:
        """Made twice under one torch seed it has the same tensors; called twice it returns the same.

        Fix: draw initial values with torch's generator alone, and keep no state between calls.
        """
        one, other = self.make(perturbed=False), self.make(perturbed=False)
        for kind in ("parameters", "buffers"):
            first, second = dict(getattr(one, f"named_{kind}")()), dict(getattr(other, f"named_{kind}")())
            require(first.keys() == second.keys(), f"made twice, it has other {kind}")
            for name, tensor in first.items():
                same = torch.equal(tensor, second[name])
                require(same, f"made twice under the same torch seed, {name} differs")
        position = self.make()
        first, second = _outputs(position, position.shape), _outputs(position, position.shape)
        for hook, tensor in first.items():
            same = torch.equal(tensor, second[hook])
            require(same, f"{hook}: called twice with the same, it returns something else")
        self.report("made and called twice, it returns the same")

    @check("shapes")
    def test_checkpoint(self) -> None:
        """`state_dict()` has parameters only: tables are computed again, not saved.

        Fix: register a table with `register_buffer(name, table, persistent=False)`.
        """
        position = self.make()
        parameters = {name for name, _ in position.named_parameters()}
        extra = sorted(position.state_dict().keys() - parameters)
        require(not extra, f"state_dict() has {', '.join(extra)}")
        self.report(f"only parameters: {', '.join(sorted(parameters)) or 'none'}")

    @check("shapes")
    def test_devices(self) -> None:
        """Every tensor is a parameter or a buffer, so that it moves with the model to a GPU.

        Fix: register a table with `register_buffer(name, table, persistent=False)`.
        """
        for name, module in self.make().named_modules():
            for key, value in vars(module).items():
                where = f"{name}.{key}".lstrip(".")
                require(not isinstance(value, Tensor), f"{where} is a plain tensor and stays on the CPU")
        self.report("tables move with the model")

    @check("same twice")
    @torch.no_grad()
    def test_rotation_tables(self) -> None:
        """`rotation()` returns None, or two fp32 tables (context_length, D) that do what `rotate` does.

        Fix: return (cos, cos) and (-sin, sin) of each position and pair (i, i + D/2), or None.
        """
        self.report("none")
        for shape in self.shapes:
            position = self.make(shape)
            tables = position.rotation()
            if tables is not None:
                _require_tables(position, tables, shape)
                self.report("do what rotate() does")

    @check("same twice")
    @torch.no_grad()
    def test_future(self) -> None:
        """Later tokens and keys change nothing for earlier ones.

        Fix: compute each position from that position alone: no mean, sum or length over T.
        """
        position = self.make()
        shape = position.shape
        half, positions = shape.context_length // 2, _positions(shape)
        before = _outputs(position, shape)
        x = _normal(2, shape.context_length, shape.n_embd)
        q, k = _queries_and_keys(shape)
        for tensor in (x, q, k):
            tensor[..., half:, :] += 3.0
        rotated = position.rotate(q, k, positions)
        after = {"embed()": position.embed(x, positions)}
        after |= {"rotate() of q": rotated[0], "rotate() of k": rotated[1]}
        for hook, tensor in after.items():
            same = _close(tensor[..., :half, :], before[hook][..., :half, :])
            require(same, f"{hook}: later tokens change earlier ones")
        if "bias()" in before:
            part = _masked(position.bias(positions[:half], positions[:half]), positions[:half])
            same = _close(part, before["bias()"][:, :half, :half])
            require(same, "bias(): keys in the future change the bias of keys behind a query")
        self.report("later tokens change nothing")

    @check("future")
    @torch.no_grad()
    def test_positions(self) -> None:
        """Positions are those that are passed: with a key-value cache the first query is not at 0.

        Fix: index tables by `positions`, never by `torch.arange(T)`.
        """
        position = self.make()
        shape = position.shape
        whole, positions, T = _outputs(position, shape), _positions(shape), shape.context_length
        x = _normal(2, T, shape.n_embd)
        q, k = _queries_and_keys(shape)
        for start, end in ((T // 3, T // 2), (T - 1, T)):
            here = positions[start:end]
            rotated = position.rotate(q[:, :, start:end], k[:, :, start:end], here)
            parts = {"embed()": position.embed(x[:, start:end], here)}
            parts |= {"rotate() of q": rotated[0], "rotate() of k": rotated[1]}
            differs = f"positions {start} to {end - 1} alone differ from the same positions within the whole"
            for hook, tensor in parts.items():
                same = _close(tensor, whole[hook][..., start:end, :])
                require(same, f"{hook}: {differs}")
            if "bias()" in whole:
                bias = _masked(position.bias(here, positions[:end]), here, positions[:end])
                same = _close(bias, whole["bias()"][:, start:end, :end])
                require(same, f"bias(): queries at {differs}")
        self.report("are used as passed")

    # Inside a small GPT

    @check("positions")
    @torch.inference_mode()
    def test_cached(self) -> None:
        """A GPT gives the same logits token by token with a cache as for the whole sequence.

        Fix: let no hook depend on how many positions a call has.
        """
        model = self._perturbed_model()
        T = model.settings.context_length
        tokens = _tokens(2, T)
        wanted = model(tokens)
        for sizes in ([1] * T, [T // 2, T - T // 2]):
            cache = model.new_cache(2)
            got = torch.cat([model(part, cache) for part in torch.split(tokens, sizes, dim=1)], dim=1)
            how = "token by token" if sizes[0] == 1 else "in two parts"
            _require_close(got, wanted, f"{how} with a cache, the logits differ from those of the whole")
        self.report("token by token a model returns the same as at once")

    @check("cached", "rotation tables")
    @torch.inference_mode()
    def test_decoded(self) -> None:
        """Generation, which on a CPU uses the tables of `rotation`, sees the logits of the model.

        Fix: let `rotation` return the same tables before and after the model has been used, or None.
        """
        model = self._perturbed_model()
        T = model.settings.context_length
        tokens = _tokens(2, T)
        wanted = model(tokens)
        with default_operations("cpu"):
            decoder = decoder_for(model, 2)
        got = [decoder.read(tokens[:, :3]).clone()]
        got += [decoder.step(tokens[:, place]).clone() for place in range(3, T)]
        _require_close(torch.stack(got, dim=1), wanted[:, 2:], "in generation the logits differ")
        self.report("generation sees what the model sees")

    @check("same twice")
    def test_trains_in_fp32(self) -> None:
        """In a few steps a GPT memorizes a batch; each parameter gets a finite gradient.

        Fix: work in training mode, use every parameter, and avoid functions with infinite slopes.
        """
        with default_operations("cpu"):
            self._train(torch.float32)

    @check("trains in fp32")
    def test_trains_in_bf16(self) -> None:
        """The same in bf16, as on a GPU.

        Fix: convert tables to the type of the tensor that they are combined with.
        """
        with default_operations("cpu"):
            self._train(torch.bfloat16)

    def _train(self, dtype: torch.dtype) -> None:
        model = _model(self.make(perturbed=False)).train()
        settings = MuonSettings()
        parameters = flatten_parameters(model, dtype, settings)
        optimizer = Optimizer(parameters, settings)
        window = _tokens(4, model.settings.context_length + 1)
        losses = []
        for _ in range(_STEPS):
            with calling("a forward pass"):
                loss = cross_entropy(model(window[:, :-1]), window[:, 1:])
            with calling("the backward pass"):
                loss.backward()  # type: ignore[no-untyped-call]
            for name, parameter in model.position.named_parameters():
                gradient = parameter.grad
                require(gradient is not None, f"{name} gets no gradient: nothing depends on it")
                assert gradient is not None
                require(bool(gradient.isfinite().all()), f"{name} gets a gradient that is not finite")
            losses.append(loss.item())
            norm = parameters.collect_gradients(scale=1.0)
            parameters.clip_gradient(norm, 1.0)
            optimizer.step(1.0)
        change = f"the loss on one batch goes from {losses[0]:.3f} to {losses[-1]:.3f} in {_STEPS} steps"
        require(losses[-1] < losses[0] - 0.1, change)
        self.report(change)

    @check("same twice")
    @torch.no_grad()
    def test_compiled(self) -> None:
        """Under torch.compile a GPT gives the same logits. No kernels are compiled for it.

        Fix: use tensor operations that torch.compile can trace, and do not ask whether it is compiling.
        """
        if error := _compiler_error():
            raise SkipTest(f"torch.compile does not work here: it {error}")
        model = self._perturbed_model(n_layer=1)
        tokens = _tokens(2, model.settings.context_length)
        with calling("compiled, the model"):
            got = _compiled(model, tokens)
        _require_close(got, model(tokens), "compiled, the model has other logits")
        self.report("a compiled model returns the same")

    def _perturbed_model(self, n_layer: int = 2) -> GPT:
        """New weights give the same logits for every token; these matter everywhere."""
        model = _model(self.make(), n_layer)
        _perturb(model, seed=7)
        return model


def _perturb(module: nn.Module, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.empty_like(parameter).normal_(0, 0.3, generator=generator))


def _model(position: Any, n_layer: int = 2) -> GPT:
    """A new GPT with this encoding, in eval mode."""
    shape: ModelShape = position.shape
    settings = ModelSettings(
        context_length=shape.context_length, n_embd=shape.n_embd, n_head=shape.n_head, n_layer=n_layer
    )
    with torch.random.fork_rng(devices=[]):
        model = GPT(settings, _VOCAB_SIZE, position)
    model.initialize(torch.Generator().manual_seed(1))
    return model.eval()


def _compiled(model: GPT, tokens: Tensor) -> Tensor:
    """The logits of the compiled model."""
    import torch._dynamo

    torch._dynamo.reset()  # it compiles a function for a limited number of models only
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logits: Tensor = torch.compile(model, backend="aot_eager", dynamic=False)(tokens)
    return logits


@cache
def _compiler_error() -> str:
    """What torch.compile raises for a plain model, on this Python and platform; empty if it works."""
    try:
        _compiled(_model(PositionalEncoding(PluginOptions(), COMMON_SHAPES[0]), n_layer=1), _tokens(1, 4))
    except Exception as error:
        return describe(error)
    return ""


def _tokens(rows: int, count: int) -> Tensor:
    return torch.randint(_VOCAB_SIZE, (rows, count), generator=torch.Generator().manual_seed(3))


def _normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.empty(shape).normal_(generator=torch.Generator().manual_seed(seed))


def _positions(shape: ModelShape) -> Tensor:
    return torch.arange(shape.context_length)


def _queries_and_keys(shape: ModelShape) -> tuple[Tensor, Tensor]:
    sizes = (2, shape.n_head, shape.context_length, shape.head_size)
    return _normal(*sizes), _normal(*sizes, seed=1)


def _masked(bias: Tensor, queries: Tensor, keys: Tensor | None = None) -> Tensor:
    """The bias with 0 at keys ahead of their query, which the model masks."""
    return bias.masked_fill((queries if keys is None else keys) > queries.unsqueeze(1), 0.0)


def _outputs(position: Any, shape: ModelShape) -> dict[str, Tensor]:
    """What each hook returns for the whole context."""
    positions, (q, k) = _positions(shape), _queries_and_keys(shape)
    rotated = position.rotate(q, k, positions)
    outputs = {
        "embed()": position.embed(_normal(2, shape.context_length, shape.n_embd), positions),
        "rotate() of q": rotated[0],
        "rotate() of k": rotated[1],
    }
    bias = position.bias(positions, positions)
    return outputs if bias is None else {**outputs, "bias()": _masked(bias, positions)}


def _close(one: Tensor, other: Tensor) -> bool:
    return torch.allclose(one, other, rtol=_TOLERANCE, atol=_TOLERANCE)


def _require_close(got: Tensor, wanted: Tensor, message: str) -> None:
    difference = (got - wanted).abs().amax(dim=(0, 2))
    at = int(difference.argmax())
    close = torch.allclose(got, wanted, rtol=_LOGIT_TOLERANCE, atol=_LOGIT_TOLERANCE)
    require(close, f"{message}: at position {at} by {difference[at]:.3g}")


def _require_like(out: object, x: Tensor, what: str) -> None:
    """The same shape; fp32 for fp32. The model converts a result for bf16 to bf16, so fp32 is accepted."""
    require(isinstance(out, Tensor), f"{what} returns a {type(out).__name__}, not a tensor")
    assert isinstance(out, Tensor)
    require(out.shape == x.shape, f"{what} returns the shape {tuple(out.shape)}, not {tuple(x.shape)}")
    require(out.dtype in (x.dtype, torch.float32), f"{what} returns {out.dtype} for {x.dtype}")
    require(bool(out.isfinite().all()), f"{what} returns numbers that are not finite")


def _require_bias(position: Any, queries: Tensor, keys: Tensor, n_head: int) -> None:
    what = f"bias({len(queries)} queries, {len(keys)} keys) of {n_head} heads"
    with calling(what):
        bias = position.bias(queries, keys)
    if bias is None:
        return
    require(isinstance(bias, Tensor), f"{what} returns a {type(bias).__name__}, neither a tensor nor None")
    wanted = (n_head, len(queries), len(keys))
    require(bias.shape == wanted, f"{what} returns the shape {tuple(bias.shape)}, not {wanted}")
    require(bias.is_floating_point(), f"{what} returns {bias.dtype}, not floating point")
    behind = keys <= queries.unsqueeze(1)
    finite = bool(bias[:, behind].isfinite().all())
    require(finite, f"{what} is not finite at keys behind the query")


def _require_tables(position: PositionalEncoding, tables: Any, shape: ModelShape) -> None:
    pair = isinstance(tables, tuple | list) and len(tables) == 2
    require(pair, f"rotation() returns a {type(tables).__name__}, not two tables")
    wanted = (shape.context_length, shape.head_size)
    for table in tables:
        require(isinstance(table, Tensor), f"rotation() returns a {type(table).__name__}, not a tensor")
        require(table.shape == wanted, f"rotation() returns a table {tuple(table.shape)}, not {wanted}")
        require(table.dtype == torch.float32, f"rotation() returns a table in {table.dtype}, not in fp32")
    if not position.only_rotates_by_tables():
        return  # inherited from a class whose rotate was another: the model ignores them
    q, k = _queries_and_keys(shape)
    rotated = position.rotate(q, k, _positions(shape))
    for name, x, got in (("q", q, rotated[0]), ("k", k, rotated[1])):
        by_tables = x * tables[0] + x.roll(x.size(-1) // 2, -1) * tables[1]
        difference = (by_tables - got).abs().amax(dim=(0, 1, 3))
        at = int(difference.argmax())
        wrong = f"rotation() rotates {name} otherwise than rotate(): at position {at} by {difference[at]:.3g}"
        require(_close(by_tables, got), wrong)
