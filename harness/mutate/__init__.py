"""Systematic wrong kernels, and how many of them the gate rejects (design.md 6).

`source` reads a kernel file, `values`, `control` and `memory` hold the operators, `mutants` enumerates what they make
of one op's kernel, `situations` says on what a mutant is run, `rivals` are the gates of others, `judge` decides one
mutant, `pool` does so in processes with a time limit, `summary` counts and words, `command` is `goldengate mutate`.
"""
