"""Ten items for a user, in two stages: a retrieval model finds hundreds of candidates, a ranking model puts them in order.

served_catalogue.py holds the items that may be recommended, encoded once; candidates.py finds candidates for many users at once;
recommender.py ranks them. Batch jobs and the online service share all of it.
"""
