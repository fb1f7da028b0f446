"""How fast we are: each beside the usual recipe and the limit of the machine, in one run. docs/speed.md has the figures."""
