"""Runs as pages to read: one self-contained HTML file that opens offline.

`curves` reads the metrics and thins them out, `charts` draws them as SVG, `settings` holds the experiment
against its defaults, `samples` chooses among the samples, `facts` words the record, `run_page` puts a run's
page together and `comparison_page` one of several runs, `pages` renders and writes them. Nothing here knows
torch or training.
"""
