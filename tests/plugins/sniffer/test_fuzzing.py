"""Two minutes of libFuzzer, starting from the samples."""

from __future__ import annotations

import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.plugins.sniffer.samples import DATAGRAMS, STREAMS

FUZZING_SECONDS = 120


@pytest.mark.soak
@pytest.mark.skipif(find_spec("atheris") is None, reason="needs atheris")
def test_fuzzing_breaks_no_recogniser(tmp_path: Path) -> None:
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    for number, sample in enumerate([*STREAMS, *DATAGRAMS]):
        (corpus / f"{sample.protocol}-{number}").write_bytes(sample.data)
    options = [
        f"-max_total_time={FUZZING_SECONDS}",
        "-max_len=4096",
        "-timeout=5",
        "-rss_limit_mb=1024",
    ]
    done = subprocess.run(
        [
            sys.executable, "-m", "tests.plugins.sniffer.fuzzing", str(corpus), *options,
            f"-artifact_prefix={tmp_path}/",
        ],
        capture_output=True,
        text=True,
        timeout=FUZZING_SECONDS * 3,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
