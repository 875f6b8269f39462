"""The built-in tokenizers, one file each."""
