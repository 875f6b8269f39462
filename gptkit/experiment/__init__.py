"""An experiment: its schema, and how it is read from a TOML file, overridden, checked and written.

`schema` has the fields, `fields` describes them, `overrides` has the flags and --set, `load` reads and
writes, `source` finds a field in the file or on the command line, `messages` describes what is wrong. Nothing
is imported here: `gptkit --help` needs the flags, but not pydantic, which is slow to import.
"""
