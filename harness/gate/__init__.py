"""What CI calls: the ops that a change affects, on fixed and on rotating seeds, within a budget of time.

`trees` reads files of the working directory and of a revision alike, `fingerprint` hashes what an op depends on,
`config` reads the goldengate.toml of a repository of kernels, `plan` orders the runs, `judging` works through them,
`junit`, `markdown` and `annotations` say the result, `command` is `goldengate gate`.
"""
