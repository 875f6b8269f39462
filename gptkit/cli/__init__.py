"""The command line: parse, call one function, render. Imports no torch until a command needs it."""
