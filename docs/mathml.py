"""A hook of mkdocs: equations as MathML, which browsers draw by themselves, without a script."""

from __future__ import annotations

import html
import re
from typing import Any

from latex2mathml.converter import convert

_EQUATION = re.compile(r'<(span|div) class="arithmatex">\\[(\[](.*?)\\[)\]]</\1>', re.DOTALL)


def on_page_content(content: str, **_: Any) -> str:
    return _EQUATION.sub(_drawn, content)


def _drawn(found: re.Match[str]) -> str:
    return convert(html.unescape(found[2]).strip(), display="block" if found[1] == "div" else "inline")
