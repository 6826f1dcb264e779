"""How the index becomes the README: jupyter nbconvert --config nbs/readme_config.py nbs/index.ipynb --output-dir ."""

from nbconvert.preprocessors import Preprocessor


class Python(Preprocessor):
    "Code in the page is marked as Python, which nbdev's clean notebooks do not say; of a cell without echo only the result is shown."

    def preprocess(self, nb, resources):
        nb.metadata["language_info"] = {"name": "python"}
        for cell in nb.cells:
            if cell.source.startswith("#| echo: false"): cell["metadata"]["transient"] = {"remove_source": True}
        return nb, resources


c = get_config()  # noqa: F821 (nbconvert provides it)
c.NbConvertApp.export_format = "markdown"
c.NbConvertApp.output_base = "README"
c.MarkdownExporter.preprocessors = [Python]
c.RegexRemovePreprocessor.enabled = True
c.RegexRemovePreprocessor.patterns = [r"\s*#\|\s*(hide|default_exp)", r"\s*\Z"]
