"""The style sheet of every page: both colour schemes, wide tables in boxes that scroll, and on a phone a row of a table
as a list, each value with its column's name before it."""

STYLE = """
:root {
  color-scheme: light dark;
  --page: #ffffff; --text: #1b1f24; --soft: #57606a; --rule: #d0d7de; --box: #f6f8fa;
  --good: #0f6b34; --bad: #b3261e; --doubt: #7a5200;
  --heat0: #ffffff; --heat1: #edf4fb; --heat2: #d3e5f5; --heat3: #a8cbea; --heat4: #6ea8da;
  --over: #b3261e; --on-over: #ffffff; --stripe: #e4e7ea;
  --reference: #7d8590; --port: #0757ba; --anchored: #0f6b34; --envelope: #b9c2cc; --limit: #b3261e;
}
@media (prefers-color-scheme: dark) {
  :root {
    --page: #12161b; --text: #e6e9ed; --soft: #a3acb6; --rule: #373e47; --box: #1b2027;
    --good: #6fd08c; --bad: #ff9d94; --doubt: #e8b75a;
    --heat0: #12161b; --heat1: #17232f; --heat2: #1c354c; --heat3: #234f78; --heat4: #346ca2;
    --over: #ff9d94; --on-over: #12161b; --stripe: #2a313a;
    --reference: #8b949e; --port: #79b8ff; --anchored: #6fd08c; --envelope: #434c56; --limit: #ff9d94;
  }
}
* { box-sizing: border-box; }
body {
  margin: 0 auto; padding: 1rem; max-width: 72rem; background: var(--page); color: var(--text);
  font: 1rem/1.5 system-ui, sans-serif; overflow-wrap: anywhere;
}
h1 { font-size: 1.5rem; line-height: 1.25; margin: 0.5rem 0; }
h2 { font-size: 1.15rem; margin: 2rem 0 0.5rem; }
p, ul, dl { margin: 0.5rem 0; }
code, pre { font: 0.875rem/1.45 ui-monospace, monospace; }
pre { background: var(--box); border: 1px solid var(--rule); border-radius: 6px; padding: 0.75rem; }
pre { white-space: pre-wrap; margin: 0.5rem 0; }
h3 { font-size: 1rem; margin: 0.5rem 0; }
.sides { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 30rem), 1fr)); gap: 0.75rem; }
.wrong { color: var(--bad); font-weight: 600; }
summary { cursor: pointer; padding: 0.25rem 0; }
.verdict { font-size: 1.1rem; border-left: 5px solid; padding: 0.5rem 0.75rem; background: var(--box); }
.soft, caption, figcaption { color: var(--soft); }
.agrees { color: var(--good); } .diverges { color: var(--bad); } .unchecked { color: var(--doubt); }
.verdict.agrees, .verdict.diverges { color: var(--text); }
.verdict.agrees { border-color: var(--good); } .verdict.diverges { border-color: var(--bad); }
.notes { padding-left: 1.25rem; }
.scroll { overflow-x: auto; max-width: 100%; border: 1px solid var(--rule); border-radius: 6px; margin: 0.5rem 0; }
table { border-collapse: collapse; font-size: 0.875rem; font-variant-numeric: tabular-nums; min-width: 100%; }
.heat, .facts { min-width: 0; }
caption, figcaption { text-align: left; font-size: 0.875rem; padding: 0.5rem 0.6rem; }
figcaption { padding: 0 0 0.25rem; }
th, td { padding: 0.3rem 0.45rem; text-align: left; vertical-align: top; border-top: 1px solid var(--rule); }
th, td { white-space: nowrap; }
tbody th, td.words, .facts td { white-space: normal; overflow-wrap: anywhere; min-width: 8.5rem; }
tbody th { font-weight: 600; min-width: 8.5rem; background: var(--page); }
tbody th.key { white-space: nowrap; min-width: 0; }
.number { text-align: right; }
caption span { position: sticky; left: 0.6rem; display: inline-block; white-space: normal; }
caption span { min-width: min(24rem, 72vw); max-width: 80vw; }
.scroll tbody th { position: sticky; left: 0; max-width: 45vw; }
.heat th, .heat td { padding: 0.3rem; font-size: 0.8125rem; }
.heat td, .heat thead th + th { text-align: right; border-left: 1px solid var(--rule); }
.heat0 { background: var(--heat0); } .heat1 { background: var(--heat1); } .heat2 { background: var(--heat2); }
.heat3 { background: var(--heat3); } .heat4 { background: var(--heat4); }
.heat5 { background: var(--over); color: var(--on-over); font-weight: 700; }
.heat6 { background: repeating-linear-gradient(45deg, transparent 0 5px, var(--stripe) 5px 8px); }
.legend { list-style: none; padding: 0; display: flex; flex-wrap: wrap; gap: 0.35rem 0.75rem; font-size: 0.875rem; }
.legend span { padding: 0.1rem 0.4rem; border: 1px solid var(--rule); border-radius: 4px; }
.legend svg { width: 28px; height: 12px; margin-right: 0.35rem; vertical-align: middle; }
figure { margin: 1rem 0; }
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 26rem), 1fr)); gap: 0.75rem; }
.charts svg { width: 100%; height: auto; max-width: 36rem; }
svg text { font: 13px system-ui, sans-serif; fill: var(--soft); }
svg .grid { stroke: var(--rule); stroke-width: 1; }
svg .line { fill: none; stroke-width: 1.75; stroke-linejoin: round; }
svg .area { stroke: none; opacity: 0.55; }
.line.reference { stroke: var(--reference); stroke-width: 5; opacity: 0.55; }
.line.port { stroke: var(--port); stroke-dasharray: 7 4; }
.line.free { stroke: var(--port); } .mark.free, .mark.port { fill: var(--port); }
svg .own { fill: none; stroke: var(--anchored); stroke-width: 1.25; }
.mark.anchored { fill: var(--anchored); } .mark.reference { fill: var(--reference); }
.area.envelope { fill: var(--envelope); }
.line.limit { stroke: var(--limit); stroke-dasharray: 2 3; } .mark.limit { fill: none; }
svg .cross { fill: var(--bad); font-size: 18px; text-anchor: middle; }
@media (max-width: 40rem) {
  table:not(.facts), table:not(.facts) :is(caption, tbody, tr, th, td.words) { display: block; }
  table:not(.facts) td { display: inline-block; margin-right: 0.9rem; }
  table:not(.facts) :is(th, td) { border: 0; }
  table:not(.facts) thead, table:not(.facts) td:empty { display: none; }
  table:not(.facts) tbody tr { border-top: 1px solid var(--rule); padding: 0.4rem 0.6rem; }
  table:not(.facts) :is(tbody th, td, td.words) { padding: 0.1rem 0; min-width: 0; max-width: none; }
  table:not(.facts) :is(tbody th, td, td.words) { text-align: left; white-space: normal; position: static; }
  td[data-label]::before { content: attr(data-label) ": "; color: var(--soft); }
  .heat td[data-label] { display: inline-block; padding: 0.1rem 0.4rem; margin: 0.1rem 0.2rem 0.1rem 0; }
  .heat td[data-label]::before { color: inherit; }
}
@media print { .scroll { overflow: visible; } .scroll tbody th { position: static; } }
"""
