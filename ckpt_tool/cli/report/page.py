"""The page around the report: its style, its one script, and the policy that forbids loading."""

from __future__ import annotations

import html

from ckpt_tool.cli.consoles import make_printable

#: By what a report is known for one.
MARK = '<meta name="generator" content="ckpt verify">'

#: Nothing is fetched, whatever a name in a checkpoint may contain.
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'"

_STYLE = """
:root {
  color-scheme: light dark;
  --page: #f7f6f3; --card: #ffffff; --ink: #23272b; --soft: #5d666e; --line: #e0ddd6;
  --accent: #2f6690; --bar: #5b8db8; --good: #1b6b74; --good-page: #e3f1f1;
  --bad: #a1421c; --bad-page: #fbebe2; --note: #fdf5dc; --zero: #eceff0; --zero-ink: #929ba1;
  --l1: #fdf1c2; --l2: #fbdf8e; --l3: #f7c45c; --l4: #eea13c; --l5: #dc7a36; --l6: #bb5333;
  --l7: #8a3330; --l8: #53192b; --low: #3a2c12; --mid: #2a1d0c; --high: #ffffff;
}
@media (prefers-color-scheme: dark) {
  :root {
    --page: #14181b; --card: #1c2125; --ink: #e4e7e9; --soft: #9aa5ad; --line: #333b41;
    --accent: #8fbfe3; --bar: #5f97c6; --good: #7fd0d3; --good-page: #16302f;
    --bad: #f3a57b; --bad-page: #38231a; --note: #332c17; --zero: #283036; --zero-ink: #77838b;
    --l1: #43303a; --l2: #5c333d; --l3: #7b3b3d; --l4: #9f4a3b; --l5: #d0713f; --l6: #e69449;
    --l7: #f5bf66; --l8: #fdecb0; --low: #ffffff; --mid: #2a1d0c; --high: #241a10;
  }
}
* { box-sizing: border-box; }
body {
  margin: 0; background: var(--page); color: var(--ink);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", sans-serif;
}
main { max-width: 84rem; margin: 0 auto; padding: 2rem 1.25rem 3rem; }
h1 { margin: 0; font-size: 1.9rem; line-height: 1.2; letter-spacing: -0.01em; }
h2 { margin: 0 0 0.6rem; font-size: 1.1rem; }
h3 { margin: 0; font-size: 0.95rem; }
p { margin: 0 0 0.6rem; max-width: 95ch; }
code, .names, .path { font-family: ui-monospace, "SF Mono", Menlo, Consolas, monospace; }
code, .names { font-size: 0.92em; overflow-wrap: anywhere; }
section, .side {
  margin-top: 1.1rem; padding: 1.1rem 1.25rem; background: var(--card);
  border: 1px solid var(--line); border-radius: 10px;
}
.eyebrow { margin: 0 0 0.5rem; color: var(--soft); font-size: 0.85rem; }
.verdict { border-left: 6px solid var(--edge); background: var(--tint); }
.verdict h1 { color: var(--edge); }
.verdict p:not(.eyebrow) { margin: 0.5rem 0 0; }
.equal { --edge: var(--good); --tint: var(--good-page); }
.different { --edge: var(--bad); --tint: var(--bad-page); }
.tiles { display: flex; flex-wrap: wrap; gap: 0.4rem 2.2rem; margin: 1rem 0 0; padding: 0; }
.tiles div { display: flex; flex-direction: column-reverse; }
.tiles dt { color: var(--soft); font-size: 0.82rem; }
.tiles dd { margin: 0; font-size: 1.3rem; font-variant-numeric: tabular-nums; line-height: 1.2; }
.note { background: var(--note); }
.note p:last-child { margin: 0; }
.sides { display: grid; gap: 0 1.1rem; }
.sides { grid-template-columns: repeat(auto-fit, minmax(min(20rem, 100%), 1fr)); }
.side { min-width: 0; }
.path { margin: 0.15rem 0 0.7rem; font-size: 0.85rem; color: var(--soft); overflow-wrap: anywhere; }
.facts { display: grid; grid-template-columns: max-content 1fr; gap: 0.15rem 1.2rem; margin: 0; }
.facts dt { color: var(--soft); }
.facts dd { margin: 0; overflow-wrap: anywhere; font-variant-numeric: tabular-nums; }
details { margin-top: 0.6rem; }
summary { cursor: pointer; color: var(--accent); }
.names { margin: 0.4rem 0 0; padding-left: 1.2rem; columns: 26rem; column-gap: 2rem; }
.names li { break-inside: avoid; }
.soft { color: var(--soft); }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-size: 0.86rem; }
th, td { padding: 0.45rem 0.55rem; text-align: left; vertical-align: top; }
th { color: var(--soft); font-weight: 600; border-bottom: 1px solid var(--line); }
th { white-space: nowrap; vertical-align: bottom; }
td { border-bottom: 1px solid var(--line); }
tbody tr:last-child td { border-bottom: 0; }
th.number, td.number { text-align: right; font-variant-numeric: tabular-nums; }
td.number { white-space: nowrap; }
th:first-child, td:first-child { position: sticky; left: 0; background: var(--card); }
td:first-child { min-width: 17rem; max-width: 34rem; }
.wide { --room: min(100vw - 3rem, 124rem); width: max(100%, var(--room)); }
.wide { margin-left: calc(50% - max(50%, var(--room) / 2)); }
.cause { margin: 0.15rem 0; color: var(--accent); }
td small { display: block; overflow-wrap: anywhere; color: var(--soft); font-size: 0.88em; }
th button {
  padding: 0; border: 0; background: none; color: inherit; font: inherit; cursor: pointer;
}
th button::after { content: "\\25BE"; display: inline-block; width: 1em; opacity: 0.3; }
th[aria-sort] button::after { opacity: 1; }
th[aria-sort="ascending"] button::after { content: "\\25B4"; }
th[aria-sort="descending"] button::after { content: "\\25BE"; }
figure { margin: 0.9rem 0 0; }
figcaption { margin-bottom: 0.3rem; color: var(--soft); font-size: 0.88rem; }
svg { display: block; }
.histogram { max-width: 100%; height: auto; }
svg text { fill: var(--soft); font: 11px ui-monospace, "SF Mono", Menlo, Consolas, monospace; }
svg .label { fill: var(--ink); font-size: 12px; text-anchor: end; }
svg .number, svg .mark { text-anchor: middle; }
svg .mark { pointer-events: none; font-size: 10.5px; }
svg .value { fill: var(--ink); }
svg .cell:hover { stroke: var(--ink); stroke-width: 1.5; }
svg .m1, svg .m2, svg .m3, svg .m4 { fill: var(--low); }
svg .m5 { fill: var(--mid); }
svg .m6, svg .m7, svg .m8 { fill: var(--high); }
svg .m0 { fill: var(--zero-ink); }
.l1 { --one: var(--l1); --two: var(--l2); color: var(--low); }
.l2 { --one: var(--l2); --two: var(--l3); color: var(--low); }
.l3 { --one: var(--l3); --two: var(--l4); color: var(--low); }
.l4 { --one: var(--l4); --two: var(--l5); color: var(--low); }
.l5 { --one: var(--l5); --two: var(--l6); color: var(--mid); }
.l6 { --one: var(--l6); --two: var(--l7); color: var(--high); }
.l7 { --one: var(--l7); --two: var(--l8); color: var(--high); }
.l8 { --one: var(--l8); --two: var(--l8); color: var(--high); }
.l0 { --one: var(--zero); --two: var(--zero); color: var(--zero-ink); }
.cell { fill: var(--one); }
.cell { fill: color-mix(in oklab, var(--two) var(--part, 0%), var(--one)); }
.swatch { background: var(--one); }
.ramp, .ticks { max-width: 34rem; }
.ramp { height: 0.9rem; margin-top: 0.9rem; border-radius: 3px; background: linear-gradient(
  to right, var(--l1), var(--l2), var(--l3), var(--l4), var(--l5), var(--l6), var(--l7), var(--l8)
); }
.ticks { display: flex; justify-content: space-between; color: var(--soft); font-size: 0.8rem; }
.scale { display: flex; flex-wrap: wrap; gap: 0.3rem 1rem; margin: 0.9rem 0 0; padding: 0; }
.scale { list-style: none; font-size: 0.85rem; color: var(--soft); }
.swatch {
  display: inline-block; width: 1.6rem; margin-right: 0.4rem; border-radius: 3px;
  text-align: center; font-family: ui-monospace, Menlo, Consolas, monospace;
}
.bar { fill: var(--bar); }
.axis { stroke: var(--line); }
svg .tick { text-anchor: middle; font-size: 12px; }
svg .raised { font-size: 10px; }
.sign { display: inline-block; vertical-align: -0.08em; margin-right: 0.7rem; }
.sign path { fill: none; stroke: var(--edge); stroke-width: 3; stroke-linecap: round; }
.spark { display: inline-block; }
.pair { display: grid; gap: 1.5rem 2.5rem; align-items: start; }
.pair { grid-template-columns: repeat(auto-fit, minmax(min(38rem, 100%), 1fr)); }
.totals td:first-child { min-width: 0; }
.totals code { overflow-wrap: normal; }
.meter { display: block; height: 4px; margin: 2px 0 0 auto; border-radius: 2px; }
.meter { width: var(--part); background: var(--bar); }
footer { margin-top: 1.4rem; color: var(--soft); font-size: 0.85rem; }
@media (max-width: 90rem) {
  .wide th, .wide td { padding-left: 0.35rem; padding-right: 0.35rem; }
  .wide td:first-child { min-width: 15rem; }
}
@media (max-width: 60rem) {
  .sortable, .sortable tbody, .sortable tr, .sortable td { display: block; }
  .sortable thead { display: none; }
  .sortable tr { padding: 0.7rem 0; border-bottom: 1px solid var(--line); }
  .sortable td, .sortable td:first-child { position: static; min-width: 0; padding: 0; border: 0; }
  .sortable td.number { display: flex; gap: 0.6rem; justify-content: flex-end; }
  .sortable td.number:empty { display: none; }
  .sortable td.number::before { content: attr(data-label); color: var(--soft); margin-right: auto; }
  .sortable td.number { align-items: baseline; white-space: normal; }
  .sortable td.number::before { white-space: nowrap; }
  .meter { display: none; }
}
@media print { body { background: none; } section, .side { break-inside: avoid-page; } }
"""

_SCRIPT = """
for (const table of document.querySelectorAll("table.sortable")) {
  const heads = [...table.tHead.rows[0].cells];
  const compare = (numeric) => numeric
    ? (a, b) => Number(a) - Number(b)
    : (a, b) => a.localeCompare(b, undefined, { numeric: true });
  heads.forEach((head, at) => {
    const numeric = head.dataset.type === "number";
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const before = head.getAttribute("aria-sort");
      const down = before ? before === "ascending" : numeric;
      heads.forEach((other) => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
      const key = (row) => row.cells[at].dataset.sort;
      const order = compare(numeric);
      const rows = [...table.tBodies[0].rows];
      rows.sort((one, other) => {
        const [a, b] = [key(one), key(other)];
        if (a === "" || b === "") return (a === "") - (b === "");
        return down ? order(b, a) : order(a, b);
      });
      table.tBodies[0].append(...rows);
    });
  });
}
"""


def make_page(title: str, body: str) -> str:
    """A complete document; ``body`` is HTML, ``title`` is escaped here.

    It can always be written as UTF-8 and hides nothing: what is no character, or none to be seen,
    is shown by its code.
    """
    document = (
        f'<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n{MARK}\n'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{html.escape(title)}</title>\n<style>{_STYLE}</style>\n</head>\n"
        f"<body>\n<main>\n{body}\n</main>\n<script>{_SCRIPT}</script>\n</body>\n</html>\n"
    )
    return make_printable(document, "\n")
