"""Public and synthetic data sets as Parquet with a schema.json, one module per set. jobs/fetch_dataset.py runs them.

Every set is a folder with `interactions.parquet` or `interactions/`, `users.parquet` and `items.parquet` when the set has them,
`schema.json`, and `dataset.json`, which records what the set was made from. `folder.py` writes it all or not at all.
"""
