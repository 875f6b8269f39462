"""Build hook of hatchling: puts the compiled C libraries into a wheel, and the platform into its name.

The wheel then needs no compiler where it is installed. It serves every version of Python, since ctypes loads
the libraries: py3-none-<platform>. Where there is no compiler, where it fails, on Windows, and with
GPTKIT_NATIVE=0 the wheel has no library, and its name is that of any platform. An editable installation gets
none either: it compiles the sources that are edited, when they are first used.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path
from types import ModuleType
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

_MACOS = "11.0"  # the first one for ARM


class CustomBuildHook(BuildHookInterface):  # type: ignore[type-arg]
    """Has the libraries from `initialize` to `finalize`, in a folder among the temporary files."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        if version == "editable" or os.environ.get("GPTKIT_NATIVE", "1") == "0":
            return
        os.environ.setdefault("MACOSX_DEPLOYMENT_TARGET", _MACOS)
        self._folder = tempfile.TemporaryDirectory()
        try:
            built = _build_module(Path(self.root)).compile_levels(Path(self._folder.name))
        except (OSError, subprocess.SubprocessError) as error:
            built = []
            self.app.display_warning(f"The C compiler failed: {error}")
        if not built:
            self.app.display_warning(
                "The wheel has no library of the C operations: no compiler could make it."
            )
            return
        for path in built:
            build_data["force_include"][str(path)] = f"gptkit/native/lib/{path.name}"
        build_data["pure_python"] = False
        build_data["tag"] = f"py3-none-{_platform()}"

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        if hasattr(self, "_folder"):
            self._folder.cleanup()


def _platform() -> str:
    """The platform's tag. cibuildwheel replaces that of Linux by the oldest system that will do."""
    name = sysconfig.get_platform()
    if sys.platform == "darwin":  # Python may be for two architectures, the libraries are for this one
        name = f"macosx-{os.environ['MACOSX_DEPLOYMENT_TARGET']}-{os.uname().machine}"
    return name.replace("-", "_").replace(".", "_")


def _build_module(root: Path) -> ModuleType:
    """gptkit/native/build.py alone: what its package imports, torch above all, is missing here."""
    sys.path.insert(0, str(root))
    try:
        spec = importlib.util.spec_from_file_location("gptkit_build", root / "gptkit" / "native" / "build.py")
        assert spec is not None
        assert spec.loader is not None
        module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(root))
    return module
