"""Trained models in MLflow's model registry, on an MLflow server, a database, Databricks or Unity Catalog.

address.py says which tracking server and registry MLflow speaks to, names.py what a model may be called, signature.py what MLflow
knows of its inputs, model_log.py logs a bundle as a version of a registered model, versions.py finds and marks versions, and
artifacts.py copies a registered bundle to this machine.
"""
