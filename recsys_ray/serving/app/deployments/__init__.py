"""The deployments that hold models and data: retrieval.py, ranking.py and history.py; tasks.py is what they are asked and answer.

filters.py and users.py look up items and users. Only these modules import torch: the ingress replicas, which have no model, start
fast and stay small.
"""
