"""The text format of Prometheus: families of samples, each with a help text.

Used in the master. Knows nothing about what is measured. Never raises for values in the range of a
64-bit float. The labels of each sample in a family must differ, or a scraper rejects everything.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from itertools import accumulate

Number = int | float
Sample = tuple[str, Number]  # its labels, as `labels` renders them, and its value

_ESCAPES = str.maketrans({"\\": r"\\", "\n": r"\n", '"': r"\""})


def labels(**values: str) -> str:
    """Return labels in the form in which they are put between braces."""
    return ",".join(f'{name}="{_escaped(value)}"' for name, value in values.items())


def counter(name: str, text: str, samples: Iterable[Sample]) -> Iterator[str]:
    """Yield the lines of a value that only grows."""
    return _family(name, "counter", text, samples)


def gauge(name: str, text: str, samples: Iterable[Sample]) -> Iterator[str]:
    """Yield the lines of a value that goes up and down."""
    return _family(name, "gauge", text, samples)


def histogram(
    name: str,
    text: str,
    bounds: Sequence[float],
    samples: Iterable[tuple[str, Sequence[int]]],
) -> Iterator[str]:
    """Yield the lines of a histogram. Each sample has the number of events in each range: up to the
    first bound, from there up to the second, and so on, and above the last. There is no sum, since
    only numbers are counted.
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
