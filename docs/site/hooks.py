"""What the site needs beside Markdown: formulas as MathML, links to source, pages of the API; and no network."""

import html
import re
import shutil
from pathlib import Path
from typing import Any

from latex2mathml import converter
from mkdocs.exceptions import PluginError
from mkdocs.plugins import event_priority
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[2]
API = {
    "edge_runtime": "The device and the contracts",
    "edge_runtime/algorithms": "Algorithms",
    "edge_runtime/backends": "Backends",
    "edge_runtime/datasets": "Data sets",
    "coordinator": "The coordinator",
    "compression": "Compression",
    "export": "Export",
    "devices": "Devices",
}
"""Folders whose modules have a page together, and what it is called."""
_LINK = re.compile(r"(?<!!)\[(?P<text>(?:[^\[\]]|\[[^\]]*\])*)\]\((?P<target>[^()\s:]+)\)")
_FORMULA = re.compile(r'<(span|div) class="arithmatex">\s*\\[(\[](.*?)\\[)\]]\s*</\1>', re.DOTALL)
_FETCHED = re.compile(r'<(?:script|link|img|iframe)\b[^>]*\b(?:src|href)="(?:https?:)?//[^"]*"')


@event_priority(100)  # before mkdocstrings looks for the package
def on_config(config: Any) -> Any:
    """Leave pages out of the navigation that are not there yet, and lay the package out as it is installed."""
    config.nav = _there(config.nav, Path(config.docs_dir))
    package = ROOT / "build" / "api" / "edge_runtime"
    shutil.rmtree(package, ignore_errors=True)
    shutil.copytree(ROOT / "edge_runtime", package, ignore=shutil.ignore_patterns("__pycache__", "bundles"))
    for folder in package.iterdir():
        if folder.is_dir():
            (folder / "__init__.py").touch()
    config.nav[-1]["Inside"].append({"API": [{title: _page(folder)} for folder, title in API.items()]})
    return config


def _there(nav: list[Any], docs: Path) -> list[Any]:
    found: list[Any] = []
    for item in nav:
        ((title, target),) = item.items() if isinstance(item, dict) else [(None, item)]
        if isinstance(target, list):
            found.append({title: _there(target, docs)})
        elif target.endswith("/"):
            found.append({title: [f"{target}{path.name}" for path in sorted((docs / target).glob("*.md"))]})
        elif (docs / target).exists():
            found.append(item)
    return found


def _page(folder: str) -> str:
    return f"api/{folder.replace('/', '-')}.md"


def on_files(files: Files, config: Any) -> Files:
    """Make a page of the API for every folder, of what its modules' docstrings say."""
    for folder, title in API.items():
        modules = [path for path in sorted((ROOT / folder).glob("*.py")) if path.name != "__init__.py"]
        listed = "\n\n".join(f"::: {_module(path)}" for path in modules)
        files.append(File.generated(config, _page(folder), content=f"# {title}\n\n{listed}\n"))
    return files


def _module(path: Path) -> str:
    """Name a module as it is imported."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts if parts[0] == "edge_runtime" else ("edge_runtime", *parts))


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Let links that lead out of the documentation lead to the API, or else be text."""
    if page.file.src_uri.startswith("api/"):
        return markdown
    here = (ROOT / "docs" / page.file.src_uri).parent

    def link(found: re.Match[str]) -> str:
        text, target = found["text"], found["target"].partition("#")[0]
        path = (here / target).resolve()
        if not target or (ROOT / "docs") in path.parents:
            return found[0]
        if path.suffix == ".py" and path.exists() and str(path.parent.relative_to(ROOT)) in API:
            return f"[{text}][{_target(path, text)}]"
        return text

    return _LINK.sub(link, markdown)


def _target(path: Path, text: str) -> str:
    """Name what a link to a module is about: what its text names, where the API has that, else the module."""
    name = text.strip("`").removeprefix(f"{path.stem}.")
    own = name.partition(".")[0]
    told = re.search(rf'^(?:def|class) {own}\b[^"]*?:\n\s+"""', path.read_text(), re.MULTILINE)
    return f"{_module(path)}.{name}" if told and not own.startswith("_") else _module(path)


def on_page_content(content: str, page: Any, **_: Any) -> str:
    """Turn formulas into MathML, which browsers draw by themselves."""

    def formula(found: re.Match[str]) -> str:
        drawn = converter.convert(html.unescape(found[2]), display="inline" if found[1] == "span" else "block")
        if unknown := re.search(r">(\\\w+)<", drawn):
            raise PluginError(f"{page.file.src_uri}: {unknown[1]} is not drawn; write the formula with another command")
        return drawn

    return _FORMULA.sub(formula, content)


def on_post_page(output: str, page: Any, **_: Any) -> str:
    """Refuse a page that would fetch something from elsewhere."""
    if fetched := _FETCHED.search(output):
        raise PluginError(f"{page.file.src_uri}: the site must work offline, and this fetches {fetched[0]}")
    return output
