"""The log of what a served recommender is asked and answers, as Parquet, and what watches it for drift.

logged_request.py is one answered request and its row in the log; request_log.py writes it from a server and log_files.py keeps
the folder of the log within its bytes.
"""

from recsys_ray.serving.monitor.logged_request import LoggedRequest
from recsys_ray.serving.monitor.request_log import RequestLog

__all__ = ["LoggedRequest", "RequestLog"]
