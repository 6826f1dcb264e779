"""The documentation site: made whole where its extra is installed; what needs no MkDocs is in the notebook."""

from importlib.util import find_spec
from pathlib import Path

import pytest

from conftest import ROOT
from mixrepro.workflow.site import NEEDED, broken, build, contents, notebooks, settings, spaced

LACKS = [n for n in NEEDED if not find_spec(n)]


def test_every_notebook_is_in_the_navigation_once():
    def flat(nav):
        if isinstance(nav, str): return [nav]
        return [p for part in (nav.values() if isinstance(nav, dict) else nav) for p in flat(part)]
    pages = ["README.md", *(p.relative_to(ROOT).with_suffix(".md").as_posix() for p in notebooks(ROOT))]
    assert sorted(flat(contents(pages))) == sorted(pages) and len(pages) > 200


def test_nothing_is_fetched_from_elsewhere_by_the_configuration():
    told = settings(Path("a"), Path("b"), ["README.md"])
    assert told["theme"]["font"] is False and told["strict"] and "://" not in str(told)


def test_lists_are_told_from_what_only_looks_like_one():
    assert spaced("a - b\n-c") == "a - b\n-c" and spaced("a\n1. b\n2. c") == "a\n\n1. b\n2. c"


def test_what_is_missing_is_named(monkeypatch):
    monkeypatch.setattr("mixrepro.workflow.site.find_spec", lambda n: None if n == "material" else n)
    with pytest.raises(ModuleNotFoundError, match=r"the site needs material: run 'make docs', or pip install 'mixrepro\[docs\]'"): build(ROOT)


@pytest.mark.browser
@pytest.mark.skipif(bool(LACKS), reason=f"make docs installs {', '.join(LACKS)}")
def test_the_whole_site(tmp_path):
    "A minute: every page in strict mode, every link; build refuses what is broken."
    first = build(ROOT, tmp_path / "site")
    assert first.is_file() and len(list(first.parent.rglob("*.html"))) > 400 and broken(first.parent) == []
    assert "FeatureNoise" in (first.parent / "search/search_index.json").read_text()
