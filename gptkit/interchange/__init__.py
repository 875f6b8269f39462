"""Models in other programs' formats: export to Hugging Face and GGUF, import, and the proof that both agree.

`mappings.py` is the table of what corresponds to what; `layouts.py` names the tensors of each architecture.
"""
