"""Recommendations for all users, in buckets of users with their interactions.

job.py runs it; inputs.py has the flags and checks them; plan.py is what tasks are sent; user_buckets.py divides the tables by
user; seen_items.py, known_users.py and batch_recommender.py do the work on the Arrow tables of one bucket.
"""
