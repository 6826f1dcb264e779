"Every link of a page that lies here leads to a file that is there, or to a place in a page."

import re
from pathlib import Path

import pytest

from conftest import ROOT

PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("figures/*/README.md"), *ROOT.glob("figures/*/*/*.md")])


def places(page: Path) -> set[str]:
    "Anchors of a page: those that it names, and its headings as GitHub names them."
    text = page.read_text()
    heads = [re.sub(r"[^\w\- ]", "", h.lower()).replace(" ", "-") for h in re.findall(r"^#+ (.+)$", text, re.M)]
    return set(re.findall(r'<a id="([^"]+)">', text)) | set(heads)


def dead(page: Path) -> list[str]:
    "Relative links and pictures of a page that lead nowhere."
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.S)
    found = []
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"\w+:", link): continue
        path, _, at = link.partition("#")
        there = (page.parent / path).resolve() if path else page
        if not there.exists() or at and at not in places(there): found.append(link)
    return found


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_no_link_leads_nowhere(page): assert dead(page) == []


def test_a_dead_link_is_found(tmp_path):
    (tmp_path / "a.md").write_text('[b](b.md) [c](b.md#c-d) [e](b.md#e) [f](#f) [g](../g.md) ![h](h.svg) [i](x:y)')
    (tmp_path / "b.md").write_text('# C, d\n<a id="f"></a>')
    assert dead(tmp_path / "a.md") == ["b.md#e", "#f", "../g.md", "h.svg"]
