"""Promotion of a registered model: the candidate becomes the champion only if it is better, beyond chance, on the same rows.

row_mapping.py encodes a dataset's rows as each model wants them, ranking.py and retrieval.py measure a model of either kind,
bootstrap.py says how sure the difference of two models is, and promote.py decides and writes down why.
"""
