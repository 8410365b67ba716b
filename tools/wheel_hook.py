"""Hatchling's hook: kernels compiled ahead go into the wheel, which then is for one platform.

`tools/build_wheel.py` names their folder in the environment. Without it a wheel is pure Python.
"""

from __future__ import annotations

import os
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

FOLDER = "EDGELLM_WHEEL_KERNELS"
# The objects call three memory functions of the C library, which are older than any manylinux.
TAG = "py3-none-manylinux_2_17_x86_64"


class PrebuiltKernels(BuildHookInterface):
    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        if folder := os.environ.get(FOLDER):
            build_data["force_include"][folder] = "edgellm/kernels/objects"
            build_data["pure_python"] = False
            build_data["tag"] = TAG
