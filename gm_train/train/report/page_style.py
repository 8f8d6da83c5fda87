"""How a report looks: on a desktop and on a phone, light and dark."""

#: Pictures are drawn on white. A dark page turns charts dark and keeps their hues; maps stay as they were drawn.
STYLE = """\
:root { color-scheme: light dark; --page: #fff; --text: #222; --quiet: #5f6368; --line: #e2e4e7; --soft: #f5f6f7;
  --model: #fdf1ee; --old: #fff3d0; --old-line: #e0a800; }
@media (prefers-color-scheme: dark) {
  :root { --page: #16181b; --text: #e3e5e8; --quiet: #a2a8b0; --line: #353a40; --soft: #1f2226; --model: #3a2622;
    --old: #3a3014; --old-line: #c99700; }
  figure:not(.as-drawn) img { filter: invert(.91) hue-rotate(180deg); }
}
* { box-sizing: border-box; }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--text); background: var(--page); max-width: 1180px;
  margin: 0 auto; padding: 1.5em 16px 4em; overflow-wrap: anywhere; }
h1 { font-size: 1.6em; margin: 0; }
h2 { font-size: 1.25em; margin: 2em 0 .7em; padding-bottom: .2em; border-bottom: 1px solid var(--line); }
h3 { font-size: 1em; margin: 1.4em 0 .4em; }
p.sub { color: var(--quiet); margin: .2em 0; }
code, pre { font-size: .88em; background: var(--soft); border-radius: 4px; } code { padding: .1em .3em; }
pre { padding: 1em; overflow-x: auto; overflow-wrap: normal; }
div.table { overflow-x: auto; margin: .6em 0 1.4em; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
caption { text-align: left; font-weight: 600; padding: .3em 0; min-width: min(40em, 80vw); }
th, td { padding: .25em 1em .25em 0; text-align: right; vertical-align: top; border-bottom: 1px solid var(--line); }
th { font-weight: 600; color: var(--quiet); }
th:first-child, td:first-child { text-align: left; overflow-wrap: normal; }
table.pairs td { text-align: left; } table.pairs td:first-child { color: var(--quiet); }
tr.model td { background: var(--model); } td.best { font-weight: 700; }
ul.verdicts { padding-left: 1.3em; } ul.verdicts li { margin: .3em 0; }
.notes { color: var(--quiet); font-size: .9em; margin: .5em 0; }
p.older { background: var(--old); border-left: 4px solid var(--old-line); padding: .6em 1em; }
figure { margin: 0 0 .8em; min-width: 0; } figcaption { color: var(--quiet); font-size: .85em; }
div.scroll { overflow-x: auto; } img { display: block; max-width: 100%; border-radius: 4px; }
div.panels { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(340px, 100%), 1fr)); gap: 12px;
  align-items: start; }
div.panels img { width: 100%; max-width: 510px; }
p.live { position: fixed; right: 10px; bottom: 10px; margin: 0; padding: .25em .8em; border-radius: 1em;
  font-size: .8em; color: var(--quiet); background: var(--soft); border: 1px solid var(--line); }
@media (max-width: 640px) {
  table:not(.pairs), table:not(.pairs) > * , table:not(.pairs) tr, table:not(.pairs) td { display: block; }
  caption { min-width: 0; } table { width: 100%; } thead { position: absolute; clip-path: inset(50%); }
  table:not(.pairs) tr { border: 1px solid var(--line); border-radius: 6px; margin: 0 0 8px; padding: .3em .7em; }
  tr.model { background: var(--model); } tr.model td { background: none; }
  td { padding: .15em 0; border: 0; } 
  table.pairs td { border-bottom: 1px solid var(--line); padding: .3em .8em .3em 0; }
  table:not(.pairs) td:first-child { font-weight: 600; }
  td[data-label] { display: flex !important; justify-content: space-between; gap: 1em; text-align: right; }
  td[data-label]::before { content: attr(data-label); color: var(--quiet); font-weight: 400; text-align: left; }
  td[data-label]:empty { display: none !important; }
}
"""
