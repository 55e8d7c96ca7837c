"""What the fuzzer has found once, and what was crafted by hand: each has its right outcome now.

A folder of `corpus/` is what a finding is: the files of a case, and `case.json`, to which `outcome`
(`ok` or `refused`) and `says` (what of the message is looked for) were added by hand.
"""

import json
import re
from pathlib import Path

import pytest

from tests.fuzz.case import NAME, Case
from tests.fuzz.children import run_apart

CORPUS = Path(__file__).parent / "corpus"
FOLDERS = sorted(path.parent for path in CORPUS.glob(f"*/{NAME}"))


def test_there_is_a_corpus():
    assert len(FOLDERS) >= 10


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_its_outcome_is_right(folder):
    row = json.loads((folder / NAME).read_text())
    for number in (0, 1, 2, 4):
        outcome = run_apart(Case.load(folder), folder, number)
        assert outcome.kind == row["outcome"], outcome.said
        assert re.search(row["says"], outcome.said), outcome.said
