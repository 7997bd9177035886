"""The text format of Prometheus, as the parser of its client library reads it."""

from __future__ import annotations

import math

from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families as parsed

from superd.observe.metrics import counter, gauge, histogram, labels

LABELS = st.text(alphabet=st.characters(codec=None), max_size=50)


@given(LABELS, st.integers(0, 2**64 - 1) | st.floats())
def test_the_parser_of_prometheus_reads_every_label_and_number_as_written(
    label: str, value: float
) -> None:
    text = "".join(gauge("some", "What it is.", [(labels(service=label, more="x"), value)]))
    (family,) = parsed(text)
    (sample,) = family.samples
    assert (family.name, family.type, family.documentation) == ("some", "gauge", "What it is.")
    assert sample.labels == {"service": label.encode("utf-8", "replace").decode(), "more": "x"}
    assert sample.value == value or (math.isnan(value) and math.isnan(sample.value))


def test_a_sample_without_labels_has_no_braces() -> None:
    lines = list(counter("some_total", "What it is.", [("", 5)]))
    assert lines[-1] == "some_total 5\n"


def test_each_bucket_of_a_histogram_counts_the_values_up_to_its_bound() -> None:
    samples = [(labels(service="echo"), [3, 0, 2]), (labels(service="qotd"), [0, 0, 0])]
    (family,) = parsed("".join(histogram("lasted_seconds", "How long.", [0.1, 1], samples)))
    assert family.type == "histogram"
    assert [
        (sample.name, sample.labels.get("le"), sample.value)
        for sample in family.samples
        if sample.labels["service"] == "echo"
    ] == [
        ("lasted_seconds_bucket", "0.1", 3),
        ("lasted_seconds_bucket", "1.0", 3),
        ("lasted_seconds_bucket", "+Inf", 5),
        ("lasted_seconds_count", None, 5),
    ]
