"""The built-in datasets, one per module. gptkit.plugins describes what a dataset is."""
