"""Public and synthetic data sets as Parquet with a schema beside it, one module each. Run them with jobs/fetch_dataset.py.

Every set is a folder: `interactions.parquet` or `interactions/`, `users.parquet` and `items.parquet` where the set has them,
`schema.json`, and `dataset.json`, which says what it was made from.
"""
