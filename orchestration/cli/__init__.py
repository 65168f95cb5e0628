"""The `boxseg` command: parse, call one function, print."""
