"""Names of models that see or hear are those of Megatron-Bridge: a copy of its rows."""

import re
from pathlib import Path

import pytest

from ckpt_tool.mapping.config import load_config
from ckpt_tool.mapping.megatron.rules import make_rules
from tests.operations.to_mcore.test_towers import MODELS, make_text, make_whole
from tests.support import deepseek_v4
from tests.support.merging import load_folder
from tests.support.tiny_models import build
from tests.support.versions import require_transformers_5


def read_rows() -> dict[str, list[list[str]]]:
    found: dict[str, list[list[str]]] = {}
    lines = (Path(__file__).parent / "bridge_rows.txt").read_text().splitlines()
    for line in (line for line in lines if line and not line.startswith("#")):
        if line.startswith("["):
            rows = found[line.strip("[]")] = []
        else:
            rows.append([part.strip() for part in line.split("|")])
    return found


ROWS = read_rows()
#: What DeepSeek-V4 has twice on the Hub.
COPIES = ("mtp.0.emb.", "mtp.0.head.")


def without_numbers(name: str) -> str:
    return re.sub(r"\.\d+\.", ".*.", name)


def is_said(names: list[str], rows: list[list[str]]) -> bool:
    """Whether a row has these names; one with ``**`` has all below a prefix, alike on the sides."""
    for row in rows:
        if row == names:
            return True
        if all(part.endswith("**") for part in row) and len(names) == len(row) == 2:
            prefixes = [part.removesuffix("**") for part in row]
            rests = [name.removeprefix(p) for name, p in zip(names, prefixes, strict=True)]
            if rests[0] == rests[1] and rests[0] != names[0]:
                return True
    return False


def make_model(family: str, folder: Path) -> Path:
    require_transformers_5()
    if family == "deepseek_v4":
        return deepseek_v4.write_published(folder)
    if family in MODELS:
        return make_whole(family, make_text(family, folder / "text"), folder / "hf")
    build(family).save_pretrained(folder / "hf")
    return folder / "hf"


@pytest.mark.parametrize("family", ROWS)
def test_every_name_is_in_a_row_of_megatron_bridge(family, tmp_path):
    folder = make_model(family, tmp_path)
    names = load_folder(folder)
    absent = MODELS[family].absent if family in MODELS else COPIES
    kept = [name for name in names if not absent or not name.startswith(absent)]
    bindings = make_rules(load_config(folder), kept, "per-layer").bindings
    assert {name for each in bindings for name in each.hf} == set(kept)
    missing = [
        (each.names, each.hf)
        for each in bindings
        if not is_said([without_numbers(name) for name in (*each.names, *each.hf)], ROWS[family])
    ]
    assert missing == []


def test_every_row_of_deepseek_v4_is_used(tmp_path):
    """But that of a table of experts in what predicts further, which no published model has."""
    folder = make_model("deepseek_v4", tmp_path)
    kept = [name for name in load_folder(folder) if not name.startswith(COPIES)]
    bindings = make_rules(load_config(folder), kept, "per-layer").bindings
    used = {tuple(without_numbers(n) for n in (*each.names, *each.hf)) for each in bindings}
    left = [row for row in ROWS["deepseek_v4"] if tuple(row) not in used]
    assert left == [["mtp.layers.*.transformer_layer.mlp.router.tid2eid", "mtp.*.ffn.gate.tid2eid"]]
