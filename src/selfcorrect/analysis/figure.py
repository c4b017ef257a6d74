"""A figure of an analysis: a vector drawing, its numbers as CSV, and what it says in words."""

import csv
import io
import re
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from markupsafe import Markup

from selfcorrect.analysis.svg import text
from selfcorrect.evaluation.kept import write_durably

_BOX = re.compile(r'viewBox="0 0 ([0-9.]+) ([0-9.]+)"')

# The page has these from page.css; a drawing that stands alone brings its own, for a light and a dark background.
_STYLE = """
svg{background:#fff;color:#1d2129;--ink:#1d2129;--muted:#5d6470;--grid:#ece9e2;--c1:#7d8694;--c2:#3b4cc0;--c3:#a03b8a;
--c4:#8a6410;
--q0:#440154;--q1:#482071;--q2:#433d83;--q3:#39568b;--q4:#2f6d8e;--q5:#26838d;--q6:#219989;--q7:#2aad80;--q8:#4ac16d;--q9:#7ad151;
--fixed:#12805f;--broken:#bd4a22;--kept_right:#a9c3e6;--kept_wrong:#cdc8be}
@media (prefers-color-scheme:dark){svg{background:#14161b;color:#e7e5df;--ink:#e7e5df;--muted:#a0a5af;--grid:#272b34;
--c1:#99a1ae;--c2:#8d9dff;--c3:#e08cd0;--c4:#d8b25c;
--q0:#355f8d;--q1:#2c728e;--q2:#25868d;--q3:#219989;--q4:#26ab82;--q5:#40bc72;--q6:#68cb5b;--q7:#98d73e;--q8:#cbe126;--q9:#fde725;
--fixed:#4ac79b;--broken:#f0885f;--kept_right:#48658f;
--kept_wrong:#474b55}}
.t{font:11.5px system-ui,sans-serif;fill:var(--ink)}.muted{fill:var(--muted)}.num{fill:var(--muted);font-size:11px}
.strong{font-weight:600}.grid{stroke:var(--grid)}.zero{stroke:var(--muted)}.s{fill:none;stroke-width:2}
.c1{--c:var(--c1)}.c2{--c:var(--c2)}.c3{--c:var(--c3)}.c4{--c:var(--c4)}
.q0{--c:var(--q0)}.q1{--c:var(--q1)}.q2{--c:var(--q2)}.q3{--c:var(--q3)}.q4{--c:var(--q4)}.q5{--c:var(--q5)}.q6{--c:var(--q6)}.q7{--c:var(--q7)}.q8{--c:var(--q8)}.q9{--c:var(--q9)}
.s,.whisker{stroke:var(--c)}
.band{fill:var(--c);opacity:.16}.bar{fill:var(--c);opacity:.75}.dot{fill:var(--c)}.key{fill:var(--c)}
.ribbon{opacity:.85}.ribbon.fixed,.node.right{fill:var(--fixed)}.ribbon.broken,.node.wrong{fill:var(--broken)}
.ribbon.kept_right{fill:var(--kept_right)}.ribbon.kept_wrong{fill:var(--kept_wrong)}.same{opacity:.45}
.leader{stroke:var(--muted);fill:none;opacity:.6}
"""


@dataclass(frozen=True, slots=True)
class Figure:
    """name: of the files; caption: what is plotted, n, and the interval; rows: the numbers, one dict a line."""

    name: str
    title: str
    caption: str
    svg: Markup
    rows: Sequence[dict[str, object]]

    def write(self, folder: Path) -> None:
        """NAME.svg and NAME.csv."""
        folder.mkdir(parents=True, exist_ok=True)
        write_durably(folder / f"{self.name}.svg", self._alone())
        out = io.StringIO()
        writer = csv.DictWriter(out, list(dict.fromkeys(key for row in self.rows for key in row)))
        writer.writeheader()
        writer.writerows(self.rows)
        write_durably(folder / f"{self.name}.csv", out.getvalue())

    def _alone(self) -> str:
        """The drawing with its title above and its caption beneath, in colours of its own."""
        box = _BOX.search(str(self.svg))
        assert box
        width, height = float(box[1]), float(box[2])
        lines = textwrap.wrap(self.caption, round(width / 6))
        told = [text(0, -12, self.title, "strong")]
        told += [text(0, height + 16 + 15 * place, line, "muted") for place, line in enumerate(lines)]
        inner = str(self.svg).partition(">")[2].rpartition("</svg>")[0]
        wide, high = width + 16, height + 40 + 15 * len(lines)
        return (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="-8 -30 {wide:g} {high:g}" width="{wide:g}" '
            f'height="{high:g}" role="img"><style>{_STYLE}</style><title>{Markup.escape(self.title)}</title>'
            f"{inner}{Markup('').join(told)}</svg>\n"
        )
