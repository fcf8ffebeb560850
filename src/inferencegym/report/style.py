"""The colours as CSS custom properties, and the style of a report around them.

`tokens` is what reports and the dashboard share; `paper_css` is for reports alone. Lengths are CSS pixels and rem.
"""

from __future__ import annotations

from inferencegym.report.palette import named


def tokens() -> str:
    """CSS that gives every colour a name: light, dark where the reader's system is, and light again in print.

    `data-theme="dark"` or `"light"` on the root element overrules the system. Print is light whatever the theme.
    """
    light = "".join(f"--{name}:{shade.light};" for name, shade in named().items())
    dark = "".join(f"--{name}:{shade.dark};" for name, shade in named().items())
    return (
        f":root{{color-scheme:light;{light}}}\n"
        f'@media screen and (prefers-color-scheme:dark){{:root:not([data-theme="light"]){{color-scheme:dark;{dark}}}}}\n'
        f'@media screen{{:root[data-theme="dark"]{{color-scheme:dark;{dark}}}}}\n'
    )


def paper_css() -> str:
    """The whole style of a report: `tokens`, the page, and how it prints."""
    return tokens() + _PAGE + _PARTS + _PICTURES + _NARROW + _PRINT


_PAGE = """
*{box-sizing:border-box}html{-webkit-text-size-adjust:100%}
body{margin:0;background:var(--paper);color:var(--ink);font:15px/1.5 system-ui,sans-serif}main{max-width:1360px;margin:0 auto;padding:1.5rem}
h1{font-size:1.6rem;line-height:1.25;margin:0 0 .5rem;overflow-wrap:anywhere}h2{font-size:1.2rem;margin:2rem 0 .5rem}h3{font-size:1.05rem;margin:1.6rem 0 .3rem}
p{max-width:60rem;margin:.5rem 0}a{color:var(--accent)}em{color:var(--soft);font-style:normal;font-size:.87em;white-space:nowrap}
code,pre{font:.9em/1.45 ui-monospace,monospace;background:var(--mark);border-radius:4px}code{padding:.1em .35em;overflow-wrap:anywhere}pre{padding:1rem;overflow-x:auto}
:focus-visible{outline:2px solid var(--accent);outline-offset:2px}.ok{color:var(--ok)}.warn{color:var(--warn)}.bad{color:var(--bad)}
"""
_PARTS = """
pre.made{padding:.4rem .6rem;white-space:pre-wrap;margin:.2rem 0 .8rem}pre code{padding:0;font-size:1em}
dl{display:grid;grid-template-columns:fit-content(16rem) 1fr;gap:.15rem 1rem;margin:.5rem 0;font-size:.87rem;color:var(--soft)}dd{margin:0;color:var(--ink);overflow-wrap:anywhere}
.scroll{overflow-x:auto;margin:.5rem 0}table{border-collapse:collapse;font-variant-numeric:tabular-nums}
caption{text-align:left;color:var(--soft);font-size:.87rem;padding-bottom:.3rem}caption span{position:sticky;left:0;display:inline-block;max-width:min(60rem,calc(100vw - 3rem))}
th,td{padding:.25rem .8rem;border-bottom:1px solid var(--rule);text-align:right;vertical-align:top}th{font-weight:500}thead th{font-weight:600;vertical-align:bottom}
tbody th,thead th:first-child{text-align:left;padding-left:0}tbody th{white-space:nowrap}.words{text-align:left}tr.marked>*{background:var(--mark)}
.name{display:inline-flex;align-items:baseline;text-align:left}.key{flex:none;width:.8em;height:.8em;border-radius:2px;margin-right:.4em}summary{cursor:pointer;padding:.2rem 0}details{margin:.5rem 0}
.legend{list-style:none;display:flex;flex-wrap:wrap;gap:.3rem 1.2rem;padding:0;margin:.5rem 0}.legend svg{display:inline;width:36px;margin-right:.4em;vertical-align:middle}.empty{color:var(--soft)}
"""
_PICTURES = """
.charts{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,24rem),1fr));gap:1rem 1.5rem}figure{margin:0;min-width:0}figcaption{font-weight:600;font-size:.95rem}
svg{display:block;width:100%;height:auto}figure .pan{overflow-x:auto}svg text{fill:var(--soft);font:12px system-ui,sans-serif}svg .label{fill:var(--ink)}
svg .grid,svg .frame{stroke:var(--rule);fill:none}svg .axis{stroke:var(--soft)}svg .line{fill:none;stroke-width:1.8;stroke-linejoin:round}
"""
#: On a phone a chart is drawn smaller: its words grow instead.
_NARROW = """
@media screen and (max-width:540px){main{padding:1rem}h1{font-size:1.35rem}dl{grid-template-columns:1fr;gap:0}dt{margin-top:.35rem}th,td{padding:.25rem .5rem}
tbody th{white-space:normal;min-width:7rem}.charts svg text,.grows svg text{font-size:14px}}
"""
#: Black on white; nothing scrolls or stays folded up; figures and rows stay whole.
_PRINT = """
@page{margin:14mm}
@media print{:root{--ink:#000;--soft:#333}body{font-size:10pt}main{max-width:none;padding:0}h1,h2,h3,summary,caption,.legend{break-after:avoid}
h2{margin-top:1.2rem}figure,tr,dl,.legend{break-inside:avoid}tbody tr:first-child{break-before:avoid}h2+p,h3+p,p:has(+.legend){break-after:avoid}.scroll,figure .pan,pre{overflow:visible}pre{white-space:pre-wrap}
table{width:100%;font-size:8.5pt}th,td{padding:.15rem .4rem}thead th{overflow-wrap:break-word}tbody :is(th,td){overflow-wrap:anywhere}tbody th{white-space:normal;min-width:6em}tbody td{min-width:4em}.many{font-size:6.5pt}.many :is(th,td){overflow-wrap:anywhere;padding:.1rem .15rem}.many td{min-width:0}.many em{white-space:normal;font-size:1em}caption span{position:static;max-width:none}
svg{min-width:0!important}.grows svg{max-width:26rem!important}.charts{grid-template-columns:1fr 1fr}details::details-content{content-visibility:visible;block-size:auto;display:block}
.key,.legend svg,svg,tr.marked>*,code,pre{print-color-adjust:exact;-webkit-print-color-adjust:exact}thead{display:table-header-group}}
"""
