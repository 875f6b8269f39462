"""The command line: parse, call, render. Imports no torch until a command needs it."""
