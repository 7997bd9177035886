"""Minutes of libFuzzer, which begins with the samples."""

from __future__ import annotations

import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.plugins.sniffer.samples import DATAGRAMS, STREAMS

SECONDS = 120


@pytest.mark.soak
@pytest.mark.skipif(find_spec("atheris") is None, reason="needs atheris")
def test_nothing_breaks_a_parser(tmp_path: Path) -> None:
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    for number, sample in enumerate([*STREAMS, *DATAGRAMS]):
        (corpus / f"{sample.protocol}-{number}").write_bytes(sample.data)
    options = [f"-max_total_time={SECONDS}", "-max_len=4096", "-timeout=5", "-rss_limit_mb=1024"]
    done = subprocess.run(
        [
            sys.executable, "-m", "tests.plugins.sniffer.fuzzing", str(corpus), *options,
            f"-artifact_prefix={tmp_path}/",
        ],
        capture_output=True,
        text=True,
        timeout=SECONDS * 3,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
