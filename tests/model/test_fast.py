"""Which implementation of an operation is called, and how long those of a run are installed."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from gptkit.backend import default_operations, fast_operations
from gptkit.model import fast, ops
from gptkit.model.ops import Implementation, operation
from gptkit.native import unsupported, usable


@operation
def double(x: float) -> Any:
    """The operation of these tests."""
    return 2 * x


def named(name: str, *reasons: str) -> Implementation:
    return Implementation(name, lambda x: list(reasons), lambda x: name)


def test_the_first_that_supports_a_call_is_called_and_else_the_body() -> None:
    assert double(3) == 6
    with fast.using({"double": (named("slow", "too long"), named("first"), named("second"))}):
        assert double(3) == "first"
    with fast.using({"double": (named("slow", "too long"),)}):
        assert double(3) == 6


def test_reasons_depend_on_the_arguments() -> None:
    small = Implementation("small", lambda x: ["x is large"] if x > 9 else [], lambda x: "small")
    with fast.using({"double": (small,)}):
        assert (double(9), double(10)) == ("small", 20)


def test_implementations_are_installed_for_a_block_and_then_those_before_it_again() -> None:
    one, two = {"double": (named("one"),)}, {"double": (named("two"),)}
    assert fast.installed() is None
    with fast.using(one):
        with fast.using(two):
            assert (double(3), fast.installed()) == ("two", two)
        assert (double(3), fast.installed()) == ("one", one)
        with fast.using({}):
            assert double(3) == 6
        assert double(3) == "one"
    with pytest.raises(KeyError), fast.using(one):
        raise KeyError
    assert fast.installed() is None
    assert double(3) == 6


def test_tables_are_combined_in_order() -> None:
    one, two = named("one"), named("two")
    assert fast.combined({"a": (one,), "b": (one,)}, {"b": (two,), "c": (two,)}) == {
        "a": (one,),
        "b": (one, two),
        "c": (two,),
    }


def test_a_compiled_operation_is_its_body() -> None:
    def norm(x: Tensor) -> Tensor:
        return ops.rms_norm(x)

    wrong = Implementation("wrong", lambda x: [], lambda x: x)
    x = torch.arange(6.0).view(2, 3)
    with fast.using({"rms_norm": (wrong,)}):
        assert torch.equal(norm(x), x)
        compiled = torch.compile(norm, backend="eager", fullgraph=True)(x)
    torch.testing.assert_close(compiled, norm(x))


def test_a_run_keeps_its_implementations_where_others_would_install_the_default() -> None:
    chosen = {"double": (named("chosen"),)}
    with fast.using(chosen), default_operations("cpu"):
        assert fast.installed() == chosen
    with default_operations("cpu"):
        assert fast.installed() == fast_operations("cpu", native=usable())
    assert fast.installed() is None


def test_there_is_nothing_but_torch_on_a_gpu() -> None:
    assert fast_operations("cuda", native=True) == {}


def test_without_c_every_operation_has_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GPTKIT_NATIVE", "0")
    reasons = unsupported()
    assert {"rms_norm", "attend", "Blocks", "decoder_for"} <= reasons.keys()
    assert all(found == ["GPTKIT_NATIVE=0"] for found in reasons.values())
    assert fast_operations("cpu", native=True) == fast.CPU
