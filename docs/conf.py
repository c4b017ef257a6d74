"""Sphinx: README.md, CONTRIBUTING.md and docs/*.md as they lie in the repository, as a site (`make docs`).

The source folder is the repository, so that links lead to the same places as where the files are read as they are.
docs/README.md lists the pages: its headings and links are the site's navigation.
"""

import re
import shutil
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]

project = "selfcorrect"
extensions = ["myst_parser"]
root_doc = "README"
include_patterns = ["README.md", "CONTRIBUTING.md", "docs/*.md"]
exclude_patterns = [".*", "build", "runs", "src", "tests", "benchmarks", "recipes", "examples", "*.egg-info"]
myst_heading_anchors = 4
html_theme = "furo"
html_title = "selfcorrect"
html_copy_source = False
html_show_copyright = False
html_show_search_summary = False  # excerpts are fetched, which a browser refuses where the site is opened as files
html_static_path = ["site.css"]
html_css_files = ["site.css"]
pygments_style = "friendly"
pygments_dark_style = "monokai"
highlight_language = "text"

_PAGE = re.compile(r"^- \[([^]]+)\]\(([^)#]+)\.md\)", re.MULTILINE)
_LINK = re.compile(r"(?<!!)\[([^]]+)\]\((?!https?:)([^)#\s]+)(#[^)]*)?\)")


def _navigation() -> str:
    text = (ROOT / "docs" / "README.md").read_text(encoding="utf-8")
    trees = ["```{toctree}\n:hidden:\n\nAll pages <docs/README>\n```"]
    for section in text.split("\n## ")[1:]:
        heading, _, body = section.partition("\n")
        pages = [(title, page[3:] if page.startswith("../") else f"docs/{page}") for title, page in _PAGE.findall(body)]
        listed = "\n".join(f"{title} <{page}>" for title, page in pages if page != root_doc)
        trees.append(f"```{{toctree}}\n:hidden:\n:caption: {heading}\n\n{listed}\n```")
    return "\n\n" + "\n\n".join(trees) + "\n"


def _read(app: Any, page: str, source: list[str]) -> None:
    """Folders, and Markdown files that are no pages, have no place on the site: their links become plain text."""
    folder = (ROOT / page).parent

    def kept(link: re.Match[str]) -> str:
        target = (folder / link[2]).resolve()
        is_page = target.suffix != ".md" or target.relative_to(ROOT).with_suffix("").as_posix() in app.env.found_docs
        return link[0] if not target.exists() or (target.is_file() and is_page) else link[1]

    source[0] = _LINK.sub(kept, source[0])
    if page == root_doc:
        source[0] += _navigation()


def _finished(app: Any, error: Exception | None) -> None:
    if error is None:
        shutil.copy(Path(app.outdir) / f"{root_doc}.html", Path(app.outdir) / "index.html")


def setup(app: Any) -> None:
    app.connect("source-read", _read)
    app.connect("build-finished", _finished)
