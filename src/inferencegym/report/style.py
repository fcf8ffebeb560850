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
