"""Features and scores of requests, compared with the rows that a model was trained and tested on.

bins.py decides what is compared, reference.py counts the rows of a dataset, served_features.py those of requests, and drift.py
compares both.
"""
