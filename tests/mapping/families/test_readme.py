"""The table of families in `mapping/README.md` is what the code says: it cannot drift."""

import re
from pathlib import Path

import ckpt_tool
from ckpt_tool.mapping.families.family import Family
from ckpt_tool.mapping.families.hub_rules import Rename, Rule, SplitExperts
from ckpt_tool.mapping.families.megatron_rows import LATENT, WIDE_NORMS
from ckpt_tool.mapping.families.table import FAMILIES
from tests.mapping.families.bridges import BRIDGES, SWIFT
from tests.real import megatron_deci as deci
from tests.real.megatron_models import CLASSES
from tests.real.megatron_routed import UNNAMED
from tests.support.megatron import SEEING, SINCE_0_19

README = Path(ckpt_tool.__file__).parent / "mapping" / "README.md"
HEAD = (
    "model type",
    "class",
    "names on the Hub",
    "tied",
    "torchtitan",
    "Megatron-Core",
    "judged by",
    "MTP",
    "vision",
    "else",
)


def describe_rule(rule: Rule) -> str:
    if isinstance(rule, Rename):
        return f"`{rule.old}` → `{rule.new}`"
    if isinstance(rule, SplitExperts):
        return f"`{rule.target}.E.{{{rule.gate},{rule.up},{rule.down}}}`"
    return "fused experts, transposed"


def describe_hub(family: Family) -> str:
    if family.hub is None:
        return "by transformers"
    return ", ".join(map(describe_rule, family.hub)) or "as in memory"


def describe_megatron(family: Family) -> str:
    rows = family.megatron
    if rows is None:
        return ""
    if rows.around.inner:
        return "as its language model's type says"
    said = ["MLA" if set(LATENT) & set(rows.attention[1:]) else "GQA"]
    if "sparse" in rows.flags:
        said.append("indexer")
    if "head_counts" in rows.flags:
        said = ["GQA with a gate for each head"]
    if "lightning" in rows.flags:
        said = ["MLA, lightning attention"]
    if "linear_attention" in rows.attentions:
        said = ["GQA with a gate, gated DeltaNet"]
    if set(WIDE_NORMS) & set(rows.attention):
        said.append("norms of all heads")
    if any(".post_layernorm." in row.megatron for row in rows.attention):
        said.append("norms after")
    by_flag = {
        "norms_beside": "norms beside the layer",
        "by_kind": "keys and values that are shared or tied",
    }
    said += [what for flag, what in by_flag.items() if flag in rows.flags]
    if any(row.megatron.endswith((".softmax_offset", ".attn_sink")) for row in rows.attention):
        said.append("sinks")
    if "streams" in rows.flags:
        said = ["one key and value head, compressed", "sinks", "hyper-connections"]
    if rows.is_patterned:
        said.append("Mamba")
    if rows.moe:
        shared = any("shared_experts." in row.megatron for row in rows.moe)
        kind = "two pools of experts" if "pools" in rows.flags else "experts"
        said.append(f"{kind}, shared expert" if shared else kind)
    return ", ".join(said)


def describe_vision(family: Family) -> str:
    rows = family.megatron
    said = ["yes"] if rows and rows.around.vision else []
    return ", ".join(
        said + [f"`{prefix}*`" for prefix in (rows.around.megatron_towers if rows else ())]
    )


#: What real modules had to be given, so that they compute what transformers does.
GIVEN = {
    "ernie4_5_moe": "its router's softmax is the tests'",
    "olmoe": "its norms are the tests'",
    "falcon_h1": "its layer, of megatron-core's parts, is the tests'",
    "nemotron_h": "its scan and latent projections are the tests', MTP by 0.19",
    "minimax_m2": "its norms are the tests'",
    "gemma": "its norms are the tests'",
    "gemma2": "its norms and softcaps are the tests'",
    "gemma3_text": "its norms and local rotary embedding are the tests'",
    "exaone4": "its norms are the tests'",
    "gemma4_text": "its layers are the tests'",
    "glm4": "its norms are the tests'",
    "nemotron": "its norms are the tests'",
    "mimo_v2_flash": "its attention is the tests'",
    "glm_moe_dsa": "its indexer's linear layers are the tests'",
    "deepseek_v32": "its indexer's linear layers are the tests'",
    "bailing_moe_v2": "of a GLM-4.5-MoE under its names",
    "bailing_hybrid": "of a DeepSeek-V3 with lightning attention, the tests' on both sides",
    "qwen3_next": "norms from zero are the tests'",
    "qwen3_5_text": "norms from zero are the tests'",
    "qwen3_5_moe_text": "norms from zero are the tests'",
    "step3p5": "norms from zero and the heads of its layers are the tests'",
}
#: What is held against something else.
OTHERWISE = {
    # Its language model computes what that of its family does, whose logits are held.
    "qwen3_asr": "keys; of text its family's logits",
    # Its class is Llama's, and so are its rows.
    "internlm3": "logits, those of Llama",
    "gemma4_unified_text": "logits, those of Gemma 4",
    # Nothing can be built that would load it.
    "deepseek_v4": "rows (no released megatron-core has its modules)",
    **dict.fromkeys(SEEING, "logits of text"),
}


def judge(model_type: str, family: Family) -> str:
    """What the rows of a family in megatron-core are held against."""
    if family.megatron is None:
        return ""
    if "pools" in family.megatron.flags:
        return "rows"
    if model_type in OTHERWISE:
        return OTHERWISE[model_type]
    if family.architecture not in CLASSES and model_type not in (*UNNAMED, *deci.MODELS):
        return "keys"
    alone = ", by 0.19 alone" if {model_type, f"{model_type}_mtp"} & SINCE_0_19.keys() else ""
    given = f" ({GIVEN[model_type]})" if model_type in GIVEN else ""
    return f"logits{alone}{given}"


def test_both_releases_of_megatron_core_are_among_those_that_are_installed():
    pins = [path.read_text() for path in (README.parents[2] / ".ci").glob("constraints-*.txt")]
    found = {each for text in pins for each in re.findall(r"megatron-core==(0\.\d+)", text)}
    assert {"0.16", "0.19"} <= found


def describe_else(family: Family) -> str:
    legacy = family.legacy
    said = {
        f"float32: `{family.float32}`": family.float32,
        "float32: transformers is asked": family.float32 is None,
        "weights [in, out]": family.conv1d,
        f"config.json: `{legacy.expert_count}`": legacy.expert_count,
        "config.json: two rope thetas": legacy.local_rope,
        "config.json: longrope's factors alone": legacy.longrope_only,
    }
    return "; ".join(text for text, holds in said.items() if holds)


def make_row(model_type: str, family: Family) -> tuple[str, ...]:
    rows = family.megatron
    return (
        f"`{model_type}`",
        family.architecture,
        describe_hub(family),
        "yes" if family.tied else "",
        family.torchtitan.said if family.torchtitan else "",
        describe_megatron(family),
        judge(model_type, family),
        "yes" if rows and rows.mtp.rows else "",
        describe_vision(family),
        describe_else(family),
    )


def make_table() -> str:
    rows = [HEAD, ("---",) * len(HEAD), *(make_row(*item) for item in FAMILIES.items())]
    return "\n".join(f"| {' | '.join(row)} |".replace("|  |", "| |").replace("|  |", "| |")
                     for row in rows)  # fmt: skip


def test_the_readme_has_the_table_of_families():
    table = make_table()
    assert table in README.read_text(), f"the table of families is now:\n{table}"


def test_the_readme_names_every_file_of_the_room():
    text = README.read_text()
    files = {path.relative_to(README.parent).as_posix() for path in README.parent.rglob("*.py")}
    files = {name for name in files if not name.endswith("__init__.py")}
    assert {name for name in files if f"`{name}`" not in text} == set()


def is_covered(bridge: str) -> bool:
    found = FAMILIES.get(BRIDGES[bridge][0])
    return found is not None and found.megatron is not None


def make_bridges() -> str:
    """How many of Megatron-Bridge's families are here, and why the others are not."""
    lines = ["| not yet | why |", "| --- | --- |"]
    lines += [f"| {name} | {why} |" for name, (_, why) in BRIDGES.items() if not is_covered(name)]
    return "\n".join(lines)


def test_the_readme_says_which_families_of_megatron_bridge_are_not_here():
    covered = [name for name in BRIDGES if is_covered(name)]
    assert [name for name in covered if BRIDGES[name][1]] == []
    assert [name for name, (_, why) in BRIDGES.items() if not why and name not in covered] == []
    said = f"**{len(covered)} of {len(BRIDGES)}**"
    print(f"{said} of Megatron-Bridge's families")
    assert said in README.read_text(), said
    table = make_bridges()
    assert table in README.read_text(), f"the table is now:\n{table}"
    front = README.parents[2] / "README.md"
    assert f"{len(covered)} of the {len(BRIDGES)} model classes" in front.read_text()


def test_the_readme_says_which_families_of_ms_swift_are_not_here():
    covered = {name for name in SWIFT if name in FAMILIES and FAMILIES[name].megatron is not None}
    assert covered == {name for name, why in SWIFT.items() if not why}
    said = f"**{len(covered)} of {len(SWIFT)}** model types that ms-swift"
    lines = ["| not yet | why |", "| --- | --- |"]
    lines += [f"| `{name}` | {why} |" for name, why in SWIFT.items() if why]
    table = "\n".join(lines)
    assert said in README.read_text(), said
    assert table in README.read_text(), f"the table is now:\n{table}"
