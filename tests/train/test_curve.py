"""The picture of a run's losses."""

from __future__ import annotations

import math
import re
import xml.etree.ElementTree as ET

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgellm.train.curve import HEIGHT, MOST_POINTS, WIDTH, loss_curve, round_numbers

SVG = "{http://www.w3.org/2000/svg}"
LOSSES = [{"step": n, "loss": 1 + 2 / n + 0.1 * (-1) ** n} for n in range(1, 101)]


def parts(svg: str, tag: str) -> list[ET.Element]:
    return list(ET.fromstring(svg).iter(f"{SVG}{tag}"))


def points(svg: str, kind: str) -> list[tuple[float, float]]:
    """Those of the line of a kind, the last path of its class but for the legend's."""
    paths = [path.get("d") for path in parts(svg, "path") if path.get("class") == kind]
    longest = max(paths, key=len, default="M")
    return [tuple(map(float, pair.split(","))) for pair in longest[1:].split()]


def test_lines_lie_where_their_numbers_say() -> None:
    entries = [{"step": 0, "validation_loss": 3.0}, *LOSSES, {"step": 100, "validation_loss": 1.0}]
    svg = loss_curve(entries, "a run")
    ticks = {text.text: text for text in parts(svg, "text")}
    assert {"0", "20", "100", "1", "2", "3", "step", "loss, nats per token", "a run"} <= ticks.keys()
    low, high = (float(ticks[name].get("y")) - 4 for name in ("1", "3"))
    left, right = (float(ticks[name].get("x")) for name in ("0", "100"))
    for (x, y), entry in zip(points(svg, "batch"), LOSSES, strict=True):
        assert x == pytest.approx(left + (right - left) * entry["step"] / 100, abs=0.11)
        assert y == pytest.approx(low + (high - low) * (entry["loss"] - 1) / 2, abs=0.11)
    dots = [(float(dot.get("cx")), float(dot.get("cy"))) for dot in parts(svg, "circle")]
    assert dots == [(pytest.approx(left, abs=0.1), pytest.approx(high, abs=0.1)),
                    (pytest.approx(right, abs=0.1), pytest.approx(low, abs=0.1))]  # fmt: skip
    assert points(svg, "other") == dots
    assert "validation, at best 1.000" in ticks


def test_the_smoothed_line_has_no_jitter_and_begins_at_the_first_loss() -> None:
    svg = loss_curve(LOSSES, "a")
    batch, line = np.array(points(svg, "batch"))[:, 1], np.array(points(svg, "line"))[:, 1]
    assert line[0] == batch[0] and np.abs(np.diff(line[20:])).max() < 0.4 * np.abs(np.diff(batch[20:])).max()


def test_it_suits_light_and_dark_pages_and_needs_nothing_else() -> None:
    svg = loss_curve(LOSSES, "a")
    assert "@media (prefers-color-scheme:dark)" in svg
    plain, dark = (
        re.findall(r"([\w.]+)\{(?:fill|stroke):(#\w+)\}", part) for part in parts(svg, "style")[0].text.split("@")
    )
    assert [name for name, _ in plain] == [name for name, _ in dark] and len(plain) == 8
    assert all(light != other for (_, light), (_, other) in zip(plain, dark, strict=True))
    assert "var(" not in svg
    assert not re.search(r"(href|src|url|@import|<script)", svg)


def test_names_of_strangers_are_text() -> None:
    svg = loss_curve(LOSSES, "<script>&\"'")
    assert parts(svg, "text")[0].text == "<script>&\"'" and not parts(svg, "script")


def test_long_runs_keep_their_peaks_and_a_small_file() -> None:
    entries = [{"step": n, "loss": 2.0 + (5.0 if n == 31_234 else 0)} for n in range(1, 50_001)]
    svg = loss_curve(entries, "long")
    drawn = points(svg, "batch")
    assert len(drawn) <= MOST_POINTS + 2 and len(svg) < 40_000
    assert min(y for _, y in drawn) < 200 < max(y for _, y in drawn)
    assert drawn == sorted(drawn, key=lambda point: point[0])


@pytest.mark.parametrize(
    "entries",
    [
        [], [{"step": 1}], [{"step": 1, "loss": 2.5}], [{"step": 0, "validation_loss": 2.0}],
        [{"step": 1, "loss": math.nan}, {"step": 2, "loss": "x"}, {"loss": 3.0}], [{"step": 1, "loss": 0}],
        [{"step": 1, "loss": 1e30}, {"step": 2, "loss": -1e-30}],
    ],
)  # fmt: skip
def test_few_or_odd_numbers(entries) -> None:
    inside(loss_curve(entries, "odd"))


def inside(svg: str) -> None:
    for kind in ("batch", "line", "other"):
        assert all(0 <= x <= WIDTH and 0 <= y <= HEIGHT for x, y in points(svg, kind))


@given(st.lists(st.floats(-1e6, 1e6), max_size=50))
def test_any_numbers_stay_in_the_picture(losses: list[float]) -> None:
    inside(loss_curve([{"step": n, "loss": loss} for n, loss in enumerate(losses)], "any"))


@given(st.floats(-1e6, 1e6), st.floats(0, 1e6), st.integers(3, 10))
def test_numbers_along_an_axis_are_few_and_round(low: float, span: float, most: int) -> None:
    found = round_numbers(low, low + span, most)
    size = found[1] - found[0]
    assert found[0] <= low + 1e-6 * size and found[-1] >= low + span - 1e-6 * size
    assert 2 <= len(found) <= most + 2
    digits = size / 10 ** math.floor(math.log10(size) + 1e-9)
    assert any(digits == pytest.approx(factor, rel=1e-3) for factor in (1, 2, 5))
