"""What the documentation site needs beyond mkdocs.yml: the package's sources, formulas as text, lists, pictures."""

from __future__ import annotations

import re
import shutil
import tempfile
import tomllib
from pathlib import Path
from typing import Any

from markdown import Extension, Markdown
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.plugins import event_priority
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
_laid_out: list[Path] = []


class NoHtml(Extension):
    """Text is text: `<e, xi>` in a docstring is a product, not a tag. Pages have no HTML of their own."""

    def extendMarkdown(self, md: Markdown) -> None:
        """Take out what recognises tags within a text."""
        md.inlinePatterns.deregister("html")


def lay_out(target: Path) -> None:
    """Links in `target` that show the package as it installs: envs/, eval/ and configs/ below diffpolicy_spec.

    mkdocstrings reads sources without importing them, so it cannot follow setuptools' package-dir.
    """
    mapping = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-dir"]
    for name, folder in sorted(mapping.items()):
        place = target.joinpath(*name.split("."))
        if "." in name:
            place.symlink_to(ROOT / folder)
            continue
        place.mkdir()
        for path in (ROOT / folder).iterdir():
            (place / path.name).symlink_to(path)


@event_priority(100)  # before mkdocstrings reads its settings
def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Tell mkdocstrings where the sources are, and Markdown to leave formulas alone."""
    target = Path(tempfile.mkdtemp(prefix="diffpolicy_spec_docs_"))
    _laid_out.append(target)
    lay_out(target)
    handlers: dict[str, Any] = config.plugins["mkdocstrings"].config["handlers"]
    handlers["python"]["paths"] = [str(target)]
    config.markdown_extensions.append(NoHtml())  # type: ignore[arg-type]
    return config


def on_files(files: Files, *, config: MkDocsConfig) -> Files:
    """The pictures of benchmarks/results stand beside the pages, under their own names."""
    for picture in sorted(RESULTS.glob("*.png")):
        files.append(File.generated(config, picture.name, abs_src_path=str(picture)))
    return files


def on_page_markdown(markdown: str, *, page: Page, config: MkDocsConfig, files: Files) -> str:
    """What a page lists completely without naming it: sampler configurations, and results without a section."""
    markdown = markdown.replace("[table of samplers]", samplers())
    return markdown.replace("[other results]", other_results(markdown))


def samplers() -> str:
    """A table of configs/sampler: the name, and the comment its file begins with."""
    lines = ["| Name | What it is |", "|---|---|"]
    for path in sorted((ROOT / "configs" / "sampler").glob("*.yaml")):
        comment = re.match(r"(?:#.*\n)*", path.read_text())
        text = " ".join(line.lstrip("# ") for line in (comment[0] if comment else "").splitlines())
        lines.append(f"| `{path.stem}` | {text} |")
    return "\n".join(lines)


def other_results(markdown: str) -> str:
    """Files of benchmarks/results that the page does not show itself: tables under their title or name, pictures."""
    parts, shown = [], markdown
    for path in sorted(RESULTS.glob("*.md")):
        shown += path.read_text()
        if f'--8<-- "{path.name}"' in markdown:
            continue
        title, text = re.match(r"\s*(?:# (.*)\n)?([\s\S]*)", path.read_text()).groups()  # type: ignore[union-attr]
        parts += [
            f"## {title or path.stem.replace('_', ' ').capitalize()}",
            re.sub(r"^#", "##", text, flags=re.MULTILINE).strip(),
        ]
    parts += [f"![{p.stem}]({p.name})" for p in sorted(RESULTS.glob("*.png")) if f"({p.name})" not in shown]
    return "\n\n".join(parts)


def on_shutdown() -> None:
    """Remove the links."""
    while _laid_out:
        shutil.rmtree(_laid_out.pop())
