"""What the library's notebooks show is what their code gives today, but for the digits: pytest -m slow tests/test_shown.py (a quarter of an hour).

A notebook that fails here is run anew in JupyterLab, or by `jupyter nbconvert --to notebook --execute --inplace`, and cleaned by nbdev_clean."""

import re

import nbformat
import pytest
from nbclient import NotebookClient

from conftest import ROOT
from test_gates import ARTEFACT, NOTEBOOKS

LIBRARY = [p for p in NOTEBOOKS if not re.match(ARTEFACT, p.name) and p.stem != "index"]
NUMBER = re.compile(r"[-+−]?\d([\d.,]*\d)?(e[-+]?\d+)?")


def words(output) -> str:
    "An output without its digits, and without the layout that hangs on their number; of a picture that it is one."
    if output.output_type == "stream": text = output.text
    else:
        data = output.get("data", {})
        if "image/png" in data or "image/svg+xml" in data: return "a picture"
        text = data.get("text/html") or data.get("text/markdown") or data.get("text/plain", "")
    return re.sub(r"[\s|:]+|-{2,}", " ", NUMBER.sub("#", re.sub(r"<style.*?</style>", "", text, flags=re.S))).strip()


def shown(cell) -> list[str]:
    "What a reader of a cell sees; streams that came in parts are one, what names a temporary folder is not kept."
    said = [o for o in cell.get("outputs", []) if not (o.output_type == "stream" and o.name == "stderr")]
    texts, last = [], None
    for o in said:
        if o.output_type == last == "stream": texts[-1] = f"{texts[-1]} {words(o)}".strip()
        else: texts.append(words(o))
        last = o.output_type
    return [t for t in texts if "/tmp/" not in t and not t.startswith("Text(")]


@pytest.mark.slow
@pytest.mark.parametrize("path", LIBRARY, ids=lambda p: str(p.relative_to(ROOT / "nbs")))
def test_what_a_notebook_shows_is_what_its_code_gives(path):
    nb = nbformat.read(path, as_version=4)
    before = [shown(c) for c in nb.cells]
    NotebookClient(nb, timeout=900, kernel_name="python3", resources={"metadata": {"path": str(path.parent)}}).execute()
    other = {i: (was, shown(c)) for i, (was, c) in enumerate(zip(before, nb.cells)) if was != shown(c)}
    assert not other, "\n".join(f"cell {i}: {was} is now {now}" for i, (was, now) in other.items())


def test_words_are_compared_and_digits_are_not():
    out = lambda text: nbformat.v4.new_output("stream", text=text)
    cell = lambda *texts: nbformat.v4.new_code_cell("1", outputs=[out(t) for t in texts])
    assert shown(cell("agrees (+2.00,  -2.5 to 6.5)")) == shown(cell("agrees (-1.0, 3 to 4)")) != shown(cell("undecided (+2.00, -2.5 to 6.5)"))
    assert shown(cell("one ", "two")) == shown(cell("one two")) and shown(cell("below /tmp/abc")) == [] != shown(cell("below"))
    assert shown(cell("27 claims: a")) != shown(cell("28 claims: a b")) and shown(cell("p 0.5, 1")) == shown(cell("p 1e-5, 1"))


def test_no_table_is_shown_as_the_text_of_python():
    "Two tables in one tuple are: each has a cell of its own."
    long = [p.stem for p in NOTEBOOKS for c in nbformat.read(p, as_version=4).cells for o in c.get("outputs", [])
            if set(o.get("data", {})) == {"text/plain"} and o.data["text/plain"].count("\n") > 40]
    assert long == []
