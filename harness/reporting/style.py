"""The style sheet of the page: light and dark by what the reader's system prefers, nothing fetched."""

from __future__ import annotations

CSS = """
:root { color-scheme: light dark; --back: #fff; --card: #f6f7f9; --text: #1b1f24; --soft: #59636e; --line: #d5dae0;
  --accent: #0b62c4; --bad: #b3261e; --bad-back: #fdecea; --warn: #8a5300; --warn-back: #fff3dc; --good: #176639;
  --good-back: #e6f4ea; --track: #dfe3e8; }
@media (prefers-color-scheme: dark) { :root { --back: #101418; --card: #181d23; --text: #e5e9ee; --soft: #9aa5b1;
  --line: #303841; --accent: #6cb2ff; --bad: #ff8a80; --bad-back: #3a1715; --warn: #f5c069; --warn-back: #33260c;
  --good: #7fd8a0; --good-back: #12301e; --track: #2c343d; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--back); color: var(--text); font: 15px/1.5 system-ui, -apple-system, "Segoe UI",
  Roboto, "Helvetica Neue", Arial, sans-serif; }
main { max-width: 1180px; margin: 0 auto; padding: 28px 24px 64px; }
h1 { font-size: 15px; font-weight: 600; margin: 0; color: var(--soft); letter-spacing: .02em; }
h2 { font-size: 18px; margin: 34px 0 10px; }
h3 { font-size: 15px; margin: 0 0 4px; }
p { margin: 4px 0; }
.soft { color: var(--soft); }
.verdict { border-left: 6px solid; border-radius: 6px; padding: 14px 18px; margin: 12px 0 14px; font-size: 22px;
  font-weight: 650; line-height: 1.3; }
.verdict.fail { border-color: var(--bad); background: var(--bad-back); color: var(--bad); }
.verdict.warn { border-color: var(--warn); background: var(--warn-back); color: var(--warn); }
.verdict.pass { border-color: var(--good); background: var(--good-back); color: var(--good); }
.facts { display: flex; flex-wrap: wrap; gap: 10px; margin: 0; padding: 0; list-style: none; }
.facts li { background: var(--card); border: 1px solid var(--line); border-radius: 6px; padding: 8px 14px;
  min-width: 118px; }
.facts b { display: block; font-size: 19px; font-variant-numeric: tabular-nums; }
.facts span { color: var(--soft); font-size: 13px; }
.card { border: 1px solid var(--line); border-left: 4px solid var(--bad); border-radius: 6px; background: var(--card);
  padding: 12px 16px; margin: 10px 0; }
.card.warn { border-left-color: var(--warn); }
.card ul { margin: 4px 0 6px; padding-left: 20px; }
code, pre { font: 13px/1.45 ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; }
pre { background: var(--back); border: 1px solid var(--line); border-radius: 4px; padding: 6px 10px; margin: 6px 0 2px;
  white-space: pre-wrap; overflow-wrap: anywhere; }
details { border: 1px solid var(--line); border-radius: 6px; margin: 10px 0; background: var(--back); }
details > summary { cursor: pointer; padding: 9px 14px; font-weight: 600; }
details > summary::marker { color: var(--soft); }
details[open] > summary { border-bottom: 1px solid var(--line); }
details > .body { padding: 10px 14px 14px; overflow-x: auto; }
details details > summary { font-weight: 500; }
summary .soft { font-weight: 400; margin-left: 8px; }
summary svg.used { margin-left: 10px; }
table { border-collapse: collapse; width: 100%; font-size: 14px; }
caption { text-align: left; color: var(--soft); padding: 4px 0 6px; }
th { text-align: left; font-weight: 600; color: var(--soft); border-bottom: 1px solid var(--line);
  padding: 5px 10px 5px 0; vertical-align: bottom; }
tbody th { color: var(--text); border-bottom: 0; vertical-align: middle; }
td { padding: 5px 10px 5px 0; vertical-align: middle; }
tbody tr + tr > * { border-top: 1px solid var(--line); }
.n { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
th.n { text-align: right; }
.rule { color: var(--soft); font-size: 12.5px; font-weight: 400; line-height: 1.35;
  min-width: 190px; max-width: 250px; }
#headroom caption { position: absolute; width: 1px; height: 1px; overflow: hidden; clip-path: inset(50%); }
.chip { display: inline-block; border-radius: 10px; padding: 1px 9px; font-size: 12.5px; font-weight: 650;
  white-space: nowrap; }
.chip.fail { background: var(--bad-back); color: var(--bad); }
.chip.warn { background: var(--warn-back); color: var(--warn); }
.chip.pass { background: var(--good-back); color: var(--good); }
svg { vertical-align: middle; overflow: visible; }
svg polyline { fill: none; stroke: var(--accent); stroke-width: 1.6; stroke-linejoin: round; }
svg circle { fill: var(--accent); }
svg .limit { stroke: var(--bad); stroke-width: 1; stroke-dasharray: 3 3; }
svg .base { stroke: var(--line); }
svg .bar { fill: var(--accent); } svg .bar.large { fill: var(--warn); }
svg .track { fill: var(--track); } svg .fine { fill: var(--good); } svg .tight { fill: var(--warn); }
svg .over { fill: var(--bad); }
svg .cell { fill: var(--track); } svg .cell.bad { fill: var(--bad); }
svg .inputs { fill: #7a8794; } svg .golden { fill: #c58f1d; } svg .device { fill: #2f7fd6; }
svg .judge { fill: #3c9a63; }
.key { display: inline-block; width: 10px; height: 10px; border-radius: 2px; margin: 0 5px 0 12px; }
.key.inputs { background: #7a8794; } .key.golden { background: #c58f1d; } .key.device { background: #2f7fd6; }
.key.judge { background: #3c9a63; }
.strip { display: flex; align-items: center; gap: 10px; margin: 3px 0; overflow-x: auto; }
.axis { min-width: 110px; color: var(--soft); font-size: 13px; }
@media print { details > .body { display: block; } }
"""
