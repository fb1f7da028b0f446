"""The online service on Ray Serve: HTTP requests in, ranked items out.

messages.py says what a request may hold and what an answer holds; filters.py and users.py look up items and users; retrieval.py,
ranking.py and history.py are the deployments that hold the models; release.py finds the newest complete set of them; pipeline.py
sends a request through one set, again where a replica dies; routes.py is the FastAPI application around it, with page.html;
body.py and front_door.py guard the door; deploy.py starts all of this, and swaps one release for the next.
"""
