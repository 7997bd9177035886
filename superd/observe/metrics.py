"""Prometheus' text format: families of samples, each with what it means.

Used in the master. Knows nothing of what is measured. Never raises for a value that a 64-bit float
has room for. A scraper refuses all if two samples of a family have the same labels.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from itertools import accumulate

Number = int | float
Sample = tuple[str, Number]  # its labels, as `labels` renders them, and its value

_ESCAPES = str.maketrans({"\\": r"\\", "\n": r"\n", '"': r"\""})


def labels(**values: str) -> str:
    """Return labels as they stand between braces."""
    return ",".join(f'{name}="{_escaped(value)}"' for name, value in values.items())


def counter(name: str, text: str, samples: Iterable[Sample]) -> Iterator[str]:
    """Yield the lines of what only grows."""
    return _family(name, "counter", text, samples)


def gauge(name: str, text: str, samples: Iterable[Sample]) -> Iterator[str]:
    """Yield the lines of what goes up and down."""
    return _family(name, "gauge", text, samples)


def histogram(
    name: str,
    text: str,
    bounds: Sequence[float],
    samples: Iterable[tuple[str, Sequence[int]]],
) -> Iterator[str]:
    """Yield the lines of how many were up to each of some bounds, and beyond the last; the samples
    count each one once. There is no sum, since nobody has added up what was counted.
    """
    ends = [*map(_shown, map(float, bounds)), "+Inf"]
    yield from _head(name, "histogram", text)
    for of, counts in samples:
        total = 0
        for end, total in zip(ends, accumulate(counts), strict=True):
            yield f'{name}_bucket{{{of},le="{end}"}} {total}\n'
        yield f"{name}_count{{{of}}} {total}\n"


def _family(name: str, kind: str, text: str, samples: Iterable[Sample]) -> Iterator[str]:
    yield from _head(name, kind, text)
    for of, value in samples:
        shown = value if type(value) is int else _shown(value)
        yield f"{name}{{{of}}} {shown}\n" if of else f"{name} {shown}\n"


def _head(name: str, kind: str, text: str) -> tuple[str, str]:
    return f"# HELP {name} {text}\n", f"# TYPE {name} {kind}\n"


def _shown(value: float) -> str:
    if math.isinf(value):
        return "+Inf" if value > 0 else "-Inf"
    return "NaN" if math.isnan(value) else repr(float(value))


def _escaped(value: str) -> str:
    return value.encode("utf-8", "replace").decode("utf-8").translate(_ESCAPES)
