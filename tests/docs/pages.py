"""The pages whose code blocks are executed, and their blocks."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from markdown_it import MarkdownIt

ROOT = Path(__file__).parents[2]
LANGUAGES = ("python", "bash", "json", "yaml", "toml", "text", "")
"""What a block may be; `text` and blocks without a name are shown, not executed."""
NOT_GUIDES = {"CHANGELOG.md", "benchmarks/LOG.md", "src/capreward/samples/README.md"}
"""Pages that are no instructions: they have no code."""


@dataclass(frozen=True)
class Block:
    """A code block of a page."""

    page: str
    line: int
    """Of its first line, from 1."""
    language: str
    text: str

    @property
    def place(self) -> str:
        return f"{self.page}:{self.line}"


def pages() -> list[str]:
    """By path from the repository's root; the README first."""
    found = [ROOT / "CONTRIBUTING.md", *ROOT.glob("docs/**/*.md"), *ROOT.glob("benchmarks/*/README.md")]
    return ["README.md", *sorted(str(path.relative_to(ROOT)) for path in found)]


def blocks(page: str) -> list[Block]:
    """In order, as CommonMark finds them, indented ones too (their language is "indented")."""
    found = []
    for token in MarkdownIt().parse((ROOT / page).read_text(encoding="utf-8")):
        if token.type in ("fence", "code_block"):
            fenced = token.type == "fence"
            language = token.info.strip() if fenced else "indented"
            found.append(Block(page, token.map[0] + 1 + fenced, language, token.content))
    return found
