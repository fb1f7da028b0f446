"""The answers of a server and what users did then: answers.py reads the log, recommended.py describes the items, labels.py
joins what users did, and calibration.py measures the answers by it."""
