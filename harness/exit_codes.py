"""Exit codes of every sub-command: passed; something failed; bad input or usage; nothing failed but something is
unverified; an error of goldengate itself."""

PASSED, FAILED, USAGE, UNVERIFIED, INTERNAL = range(5)
