"""Batch inference: scores for a table of rows, and recommendations for all users, on Ray Data or Spark.

partitioned/   the input in partitions, each of which becomes one file of a resumable output; the stages that an engine runs
scoring/       scores of any table of raw rows; also by workers that a launcher starts, with sharded tables
recommending/  two stages for all users: users with what they have seen, candidates, order
settings.py    the flags that both jobs have; models.py the bundles that their worker processes load
"""
