"CITATION.cff can be read by what reads such files, and says what the package says."

import re
import tomllib

import yaml

from conftest import ROOT

KEYS = {"cff-version", "message", "title", "authors", "type", "version", "license", "repository-code", "keywords", "references"}


def faults(c: dict) -> list[str]:
    "What the format, version 1.2.0, wants and does not find."
    found = [k for k in ("cff-version", "message", "title", "authors") if not c.get(k)] + sorted(c.keys() - KEYS)
    if c.get("cff-version") != "1.2.0" or c.get("type") not in (None, "software", "dataset"): found.append("version or type")
    for of in [c, *c.get("references", [])]:
        found += [k for k in ("title", "authors") if not of.get(k)]
        found += [str(a) for a in of.get("authors", []) if not a or a.keys() - {"name", "family-names", "given-names", "orcid"}]
    return found + [f"{r['title']}: type" for r in c.get("references", []) if not r.get("type")]


def test_citation():
    c = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert faults(c) == [] and c["license"] == project["license"] and c["authors"] == project["authors"]
    version = re.search(r'"(.+)"', (ROOT / "mixrepro/__init__.py").read_text())[1]
    assert c["version"] == version and f"## {version}" in (ROOT / "CHANGELOG.md").read_text()


def test_a_fault_is_found():
    c = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert faults({**c, "authors": [{"surname": "x"}]}) and faults({**c, "message": ""}) and faults({**c, "titel": "x"})


def test_what_the_guide_names_is_there():
    guide = (ROOT / "CONTRIBUTING.md").read_text()
    for name in re.findall(r"`((?:nbs|mixrepro|tests)/[\w./-]+)`", guide):
        assert (ROOT / name).exists() or name == "nbs/<paper>/vm-fig6.ipynb", name
