"""The site's configuration. `make site` copies docs/ and notebooks/ into one folder."""

project = "Deep learning's odd corners"
author = "The course authors"
copyright = "2026, The course authors. Text: CC BY 4.0, code: MIT"

extensions = ["myst_nb"]
html_theme = "sphinx_book_theme"
html_title = project

# The pages show the stored outputs, which `make test` has compared.
nb_execution_mode = "off"
# A lesson also links to files of the repository, which are no pages here.
suppress_warnings = ["myst.xref_missing"]
