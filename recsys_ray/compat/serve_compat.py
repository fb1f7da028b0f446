"""Gives public names to what Ray Serve does not make public.

Why each private part is needed:

* `running_http_options`: `serve.start` ignores the address that it is given where Serve already runs, and only warns.
* `PROXY_CALLBACK_VARIABLE`: the one way to put middleware before Serve's HTTP proxy, an environment variable of Serve's own
  processes; its name is exported nowhere, so a check that Serve still has the constant stands beside it.
"""

from __future__ import annotations

from recsys_ray.compat.versions import require_version

require_version("ray", ["2.60"])

from ray.serve._private import constants
from ray.serve.config import HTTPOptions
from ray.serve.context import _get_global_client

PROXY_CALLBACK_VARIABLE = "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH"
assert hasattr(constants, PROXY_CALLBACK_VARIABLE)


def running_http_options() -> HTTPOptions | None:
    """Returns the options of the HTTP proxies that run on the connected cluster; None where Serve does not run."""
    client = _get_global_client(raise_if_no_controller_running=False)
    return client.http_config if client is not None else None
