"""Watches a served recommender: a log of requests and answers, and what is found when they are compared with training.

A server writes the log (request_log/); jobs/monitor.py reads it back. inspection.py puts together how features and scores have
drifted (drift/) and what was recommended, and how well (answers/); report.py and record.py show it. alarms.py has the
thresholds, stability.py the statistics that tell drift from chance.
"""

from recsys_ray.serving.monitor.request_log.logged_request import LoggedRequest
from recsys_ray.serving.monitor.request_log.request_log import RequestLog

__all__ = ["LoggedRequest", "RequestLog"]
