"""The report over recorded results: one page for people, the same as Markdown for terminals and CI.

`queries` aggregates the store in SQL into the frozen values of `facts`, `journals` adds the kill and false-alarm
tables, `html` and `markdown` say them, `svg` draws, `words` formats numbers for both.
"""
