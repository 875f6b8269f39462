"""Runs as pages: self-contained HTML files that open offline.

`page` is the report of one run, `comparison` the page that compares several, `charts` draws curves as SVG,
`render` fills the templates and formats values. Nothing here imports torch or knows training.
"""
