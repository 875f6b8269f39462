"""The built-in tokenizers, one per module. gptkit.plugins describes what a tokenizer is."""
