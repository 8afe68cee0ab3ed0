"""What MkDocs cannot do alone for the documentation site: pages for notebooks and for the repository's files that the
documentation links to, and the reference of the public API.
"""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[1]
_LINK = re.compile(r"\]\(([^)#:\s]+)(#[^)]*)?\)")
_ROLE = re.compile(r":(?:class|meth|func|mod|data|attr|exc):<code>~?([\w.]+)</code>")
_LANGUAGES = {".py": "python", ".yaml": "yaml", ".md": "markdown", ".jinja": "jinja"}
API = {
    "Agent": ("retro.RetrospectiveModel", "retro.Reflected", "retro.RetroAgent", "retro.FunctionEnvironment"),
    "Words": (
        *("retro.types.Task", "retro.types.Step", "retro.types.Trajectory", "retro.types.Episode"),
        *("retro.types.Reflection", "retro.types.ReflectionRequest", "retro.types.Reflector"),
    ),
    "Extension points": (
        *("retro.envs.base.TaskSet", "retro.envs.base.Environment", "retro.memory.base.Memory"),
        *("retro.retrospective.generator.Generator", "retro.rollout.runner.Runner"),
        "retro.envs.testing.check_environment",
    ),
    "Replay buffer": ("retro.buffer.ReplayBuffer",),
}
"""What the page ``api.md`` describes, by heading."""


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the reference, a page for each notebook, and one for each file and folder elsewhere that a page links to."""
    sections = (f"## {title}\n\n" + "\n\n".join(f"::: {name}" for name in names) for title, names in API.items())
    for notebook in Path(config.docs_dir).glob("*.ipynb"):
        files.append(File.generated(config, f"{notebook.stem}.md", content=_shown_notebook(notebook)))
    pages = [file for file in files if file.is_documentation_page()]
    files.append(File.generated(config, "api.md", content="# Reference\n\n" + "\n\n".join(sections)))
    linked = {
        path
        for file in pages
        for target, _ in _LINK.findall(file.content_string)
        if (path := _outside(Path(config.docs_dir), file.src_uri, target)) is not None
    }
    for path in sorted(linked):
        files.append(File.generated(config, _page_of(path), content=_shown(path)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, **_: Any) -> str:
    """Let links to notebooks and to the repository's files lead to their pages."""

    def relinked(found: re.Match[str]) -> str:
        if found[1].endswith(".ipynb"):
            return f"]({found[1].removesuffix('.ipynb')}.md{found[2] or ''})"
        path = _outside(Path(config.docs_dir), page.file.src_uri, found[1])
        if path is None:
            return found[0]
        return f"]({os.path.relpath(_page_of(path), Path(page.file.src_uri).parent)})"

    return _LINK.sub(relinked, markdown)


def on_page_content(html: str, **_: Any) -> str:
    """Show ``:class:`~retro.agent.Model``` of a docstring as ``Model``."""
    return _ROLE.sub(lambda found: f"<code>{found[1].rpartition('.')[2]}</code>", html)


def _outside(docs: Path, page: str, target: str) -> Path | None:
    """The folder or text file of the repository that a link leads to, if it is not within ``docs``."""
    path = (docs / page).parent.joinpath(target).resolve()
    text = path.is_dir() or path.suffix in _LANGUAGES
    return path.relative_to(ROOT) if text and path.is_relative_to(ROOT) and not path.is_relative_to(docs) else None


def _page_of(path: Path) -> str:
    return f"source/{path}.md"


def _shown(path: Path) -> str:
    """The page of a file, with its content, or of a folder, with its files."""
    full = ROOT / path
    if full.is_dir():
        return f"# {path}/\n\n" + "\n".join(f"- `{file.name}`" for file in sorted(full.iterdir()) if file.is_file())
    return f"# {path}\n\n`````{_LANGUAGES.get(path.suffix, 'text')}\n{full.read_text(encoding='utf-8')}\n`````\n"


def _shown_notebook(path: Path) -> str:
    """The page of a notebook: its texts, its code, and what the code printed."""
    parts = []
    for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
        text = "".join(cell["source"])
        parts.append(text if cell["cell_type"] == "markdown" else f"```python\n{text}\n```")
        printed = ["".join(output.get("text") or output["data"]["text/plain"]) for output in cell.get("outputs", ())]
        if printed:
            parts.append("```text\n" + "".join(printed).rstrip() + "\n```")
    return "\n\n".join(parts)
