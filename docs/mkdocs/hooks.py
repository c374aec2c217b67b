"""Gives the site the repository's own layout, so that a relative link means the same in both.

The site holds PAGES, and whatever they link to in the repository: a folder is its README or a list of its files, a notebook is
shown with its outputs, source code is shown as code, and anything else is a file.
"""

import logging
import re
from collections.abc import Iterator
from pathlib import Path
from posixpath import normpath

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files, InclusionLevel
from mkdocs.structure.pages import Page
from nbconvert import MarkdownExporter

ROOT = Path(__file__).parents[2]
PAGES = (
    "README.md",
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "docs/**/*.md",
    "notebooks/*.ipynb",
    "benchmarks/*.md",
    "benchmarks/*/README.md",
)
ASSETS = ("docs/mkdocs/*.css", "docs/mkdocs/*.js")
CODE = {".py": "python", ".pyi": "python", ".yaml": "yaml", ".toml": "toml", ".txt": "text", "": "text"}
LINK = re.compile(r"\]\(([^)\s#:]+)")
IMAGE = re.compile(r'(<img [^>]*src="([^"]+)"[^>]*>)(?!</a>)')
UNREAD = re.compile(r"^(?:[-*] |1\. |\|).*", re.MULTILINE)

log = logging.getLogger("mkdocs.hooks.mkdocs")


class Shown(File):
    """A page made of something that is not Markdown."""

    def is_documentation_page(self) -> bool:
        return True


class Folder(File):
    """Links to a folder lead to the page of its README.md."""

    def copy_file(self, dirty: bool = False) -> None:
        pass


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """The theme's files, and those of the repository in place of those of docs/."""
    site = Files(file for file in files if file.src_dir != config.docs_dir)
    in_menu = {path for pattern in PAGES for path in ROOT.glob(pattern)}
    wanted = sorted(in_menu) + [path for pattern in ASSETS for path in ROOT.glob(pattern)]
    while wanted:
        path = wanted.pop()
        if path.relative_to(ROOT).as_posix() in site:
            continue
        for file in made_of(path, config):
            site.append(file)
            if path not in in_menu:
                file.inclusion = InclusionLevel.NOT_IN_NAV
            if isinstance(file, Folder):
                wanted.append(path / "README.md")
            if file.is_documentation_page():
                targets = [Path(normpath(path.parent / link)) for link in LINK.findall(file.content_string)]
                wanted += [t for t in targets if t.exists() and ROOT in t.parents]
    return site


def made_of(path: Path, config: MkDocsConfig) -> Iterator[File]:
    """What the site has for a path of the repository."""
    uri = path.relative_to(ROOT).as_posix()

    def file(kind: type[File], uri: str, dest: str | None = None, content: str | bytes | None = None) -> File:
        made = kind(uri, None if content else str(ROOT), config.site_dir, config.use_directory_urls, dest_uri=dest)
        if content:
            made._content = content
        return made

    if path.is_dir():
        yield file(Folder, uri, f"{uri}/index.html")
    elif path.name == "README.md" and not path.exists():
        yield file(File, uri, content=listing(path.parent))
    elif path.suffix == ".ipynb":
        text, resources = MarkdownExporter().from_filename(
            path, {"unique_key": path.stem, "output_files_dir": f"{path.stem}_files"}
        )
        yield file(
            Shown, uri, uri.replace(".ipynb", ".html"), text.replace('<table border="1" class="dataframe">', "<table>")
        )
        for name, data in resources["outputs"].items():
            yield file(File, f"{path.parent.name}/{name}", content=data)
    elif path.suffix in CODE:
        yield file(Shown, uri, f"{uri}.html", source(path))
    else:
        yield file(File, uri)


def listing(folder: Path) -> str:
    names = [p.name for p in sorted(folder.iterdir()) if not p.name.startswith(("_", "."))]
    return unsearched(f"# {folder.relative_to(ROOT).as_posix()}/", *(f"- [{name}]({name})" for name in names))


def source(path: Path) -> str:
    fence = "`" * 10
    return unsearched(f"# {path.relative_to(ROOT).as_posix()}", "", fence + CODE[path.suffix], path.read_text(), fence)


def unsearched(title: str, *lines: str) -> str:
    return "\n".join(("---", "search: {exclude: true}", "---", title, "", *lines))


def on_page_markdown(_: str, page: Page, **__: object) -> None:
    if page.is_homepage:  # the only page of its menu
        page.meta["hide"] = ["navigation"]


def on_page_content(html: str, page: Page, **_: object) -> str:
    """Code hosts read a list or table right below a paragraph, the site's parser does not: it would be shown as running text."""
    if unread := UNREAD.search(re.sub(r"<pre.*?</pre>", "", html, flags=re.DOTALL)):
        log.warning(f"'{page.file.src_uri}' has a list or table with no empty line above it: {unread[0][:80]!r}")
    html = html.replace(
        '<details class="mkdocstrings-source"', '<details data-search-exclude class="mkdocstrings-source"'
    )
    return IMAGE.sub(r'<a href="\2">\1</a>', html)  # figures are small on a phone
