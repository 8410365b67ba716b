"""The line below the message that is being typed."""

from __future__ import annotations

_BETWEEN = " · "


def status_line(model: str, n_used: int, n_ctx: int, way: str, speed: float, n_files: int, width: int) -> str:
    """The most that fits of: the model, how full the context is and what happens then, speed, and files to be sent.

    way: what happens when the context is full, in words; empty where nothing is kept in it. speed: tokens per second.
    """
    share = f"{100 * n_used // n_ctx} %"
    files = f"{n_files} file{'s' * (n_files != 1)} attached" if n_files else ""
    fast = f"{speed:.0f} tokens/s" if speed >= 10 else f"{speed:.1f} tokens/s" if speed else ""
    then = f", {way}" if way else ""
    short = f", {way.split(',')[0].removesuffix(' the oldest turns').removesuffix(' the oldest')}" if way else ""
    candidates = [
        (files, model, f"{n_used} of {n_ctx} tokens ({share}){then}", fast),
        (files, f"{n_used} of {n_ctx} tokens ({share}){then}", fast),
        (files, f"{n_used} of {n_ctx}{then}", fast),
        (files, f"{n_used} of {n_ctx}{short}", fast),
        (files, f"{share} of {n_ctx}{short}"),
        (f"{share} of {n_ctx}{short}",),
    ]
    lines = [_BETWEEN.join(filter(None, parts)) for parts in candidates]
    return next((line for line in lines if len(line) <= width), lines[-1][:width])
