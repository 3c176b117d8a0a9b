"""A data set is read as a stream: memory does not grow with the file."""

import os
import subprocess
import sys

import pyarrow as pa
import pytest
from pyarrow import parquet

from tests.pipeline_world import ROOT

READ = """
import sys
from pathlib import Path
from utils.data.readers import read_rows
def peak():
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM")) / 1000
rows = read_rows([Path(sys.argv[1])], "article", "abstract")
next(rows)
before = peak()
count = 1 + sum(1 for _ in rows)
print(count, peak() - before)
"""


@pytest.mark.slow
def test_a_large_parquet_file_never_stands_in_memory(tmp_path):
    path = tmp_path / "papers.parquet"
    schema = pa.schema([("article", pa.string()), ("abstract", pa.string())])
    with parquet.ParquetWriter(path, schema) as writer:
        for _ in range(60):
            articles = [os.urandom(20_000).hex() for _ in range(100)]
            writer.write_table(pa.table({"article": articles, "abstract": ["short"] * 100}, schema=schema))
    assert path.stat().st_size > 120e6
    done = subprocess.run([sys.executable, "-c", READ, str(path)], cwd=ROOT, capture_output=True, text=True, check=True)
    count, grown = done.stdout.split()
    assert int(count) == 6000
    assert float(grown) < 100, f"{grown} MB more than at the first row"


@pytest.mark.slow
def test_preparing_data_does_not_load_torch():
    code = "import utils.data.preparation, utils.modeling.tokenizer, utils.scoring.rouge, utils.pipeline.runner, sys"
    loaded = f"{code}; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", loaded], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
