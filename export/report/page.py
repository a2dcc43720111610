"""The frame of the HTML report: its style, in light, dark and print, and the rule that it may load nothing."""

# Okabe and Ito's orange and blue, told apart by colour-blind readers; lighter on dark ground.
STYLE = """
:root { color-scheme: light dark; --ground: #fff; --card: #f5f6f8; --ink: #1b1f24; --soft: #59636e; --line: #d5dae0;
  --before: #d98e00; --after: #0072b2; --good: #1a6e3c; --bad: #a8320a; }
@media (prefers-color-scheme: dark) { :root { --ground: #14171b; --card: #1e2329; --ink: #e8eaed; --soft: #a3adb8;
  --line: #39414a; --before: #e69f00; --after: #56b4e9; --good: #6fd08c; --bad: #ff9a6b; } }
@media print { :root { --ground: #fff; --card: #fff; --ink: #000; --soft: #444; --line: #bbb; --before: #d98e00;
  --after: #0072b2; --good: #000; --bad: #000; } * { print-color-adjust: exact; -webkit-print-color-adjust: exact; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 64rem; padding: 2rem 1.25rem; background: var(--ground); color: var(--ink);
  font: 1rem/1.5 system-ui, sans-serif; }
h1 { font-size: 1.7rem; line-height: 1.25; margin: 0 0 .5rem; overflow-wrap: anywhere; }
h2 { font-size: 1.2rem; margin: 2.25rem 0 .5rem; }
.verdict { font-size: 1.25rem; font-weight: 600; margin: 0 0 .25rem; } header { margin-bottom: 1.25rem; }
.good { color: var(--good); } .bad { color: var(--bad); font-weight: 600; }
.remarks { list-style: none; margin: 0 0 1.5rem; padding: .6rem 1rem; border-left: .25rem solid var(--before);
  background: var(--card); }
.note, .legend, footer, dt { color: var(--soft); font-size: .875rem; margin: 0 0 .5rem; }
.cards { display: grid; grid-template-columns: repeat(auto-fill, minmax(17rem, 1fr)); gap: .75rem; margin: 0; }
.cards div { display: flex; flex-direction: column-reverse; justify-content: flex-end; background: var(--card);
  border: 1px solid var(--line); border-radius: .5rem; padding: .75rem 1rem; }
dt { margin: 0; line-height: 1.3; } dd { margin: 0; font-size: 1.4rem; font-variant-numeric: tabular-nums; }
svg { display: block; width: 100%; min-width: 40rem; font: 14px system-ui, sans-serif; }
svg text { fill: var(--ink); font-variant-numeric: tabular-nums; } .grid { stroke: var(--line); }
.allowed { stroke: var(--bad); stroke-width: 1.5; stroke-dasharray: 7 5; }
.bar.before, .mark.before { fill: none; stroke: var(--before); stroke-width: 2; }
.bar.before { fill: color-mix(in srgb, var(--before) 35%, transparent); stroke-width: 1.5; }
.bar.after, .mark.after { fill: var(--after); }
.legend i { display: inline-block; width: .8em; height: .8em; margin: 0 .2em 0 .9em; }
.legend i:first-child { margin-left: 0; }
.legend .before { border: 2px solid var(--before); } .legend .after { background: var(--after); }
.legend .round { border-radius: 50%; } .legend .turned { transform: rotate(45deg) scale(.8); }
.wide { overflow-x: auto; } table { border-collapse: collapse; width: 100%; font-size: .875rem; }
th, td { text-align: left; vertical-align: top; padding: .35rem .75rem .35rem .5rem; border-top: 1px solid var(--line);
  font-variant-numeric: tabular-nums; }
thead th { border-top: 0; color: var(--soft); white-space: nowrap; }
tbody th { font-weight: 400; font-family: ui-monospace, monospace; overflow-wrap: anywhere; min-width: 12rem; }
tbody td { overflow-wrap: break-word; }
.bad th, .bad td { color: var(--bad); } .bad th { font-weight: 600; }
code { font: .9em ui-monospace, monospace; overflow-wrap: anywhere; }
.kept th { box-shadow: inset .2rem 0 var(--before); }
@media print { body { padding: 0; } .wide { overflow-x: visible; }
  svg, thead th, tbody th { min-width: 0; overflow-wrap: break-word; }
  table { font-size: .7rem; } svg, tr, .cards div { break-inside: avoid; } h2, .note, .legend { break-after: avoid; } }
footer { margin-top: 2.5rem; border-top: 1px solid var(--line); padding-top: .75rem; }
"""

PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
<main>
{body}
</main>
</body>
</html>
"""


def page(title: str, body: str) -> str:
    """A whole document; ``title`` and ``body`` are HTML already."""
    return PAGE.format(title=title, style=STYLE, body=body)
