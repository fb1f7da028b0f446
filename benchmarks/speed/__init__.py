"""Speed compared with the usual recipe and the limit of the machine, each in one run. docs/speed.md has the figures."""
