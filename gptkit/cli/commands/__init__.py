"""One file for each command, or group of commands: parse, one call with typed arguments, render.

What a command needs is imported when it runs, so that `gptkit --help` is quick.
"""
