"""Floor 4: the training run. Importing it silences what the libraries below announce as they load and plan, for under Ray every
such line reaches the user's terminal, once a worker, and would drown the progress lines."""

import logging
import warnings

for _name in ("torchrec", "torch.fx", "streaming", "mlflow", "alembic"):
    logging.getLogger(_name).setLevel(logging.ERROR)
warnings.filterwarnings("ignore", category=FutureWarning, module=r"torch|recsys_ray")
warnings.filterwarnings("ignore", message="torch.distributed is disabled, unavailable or uninitialized")
logging.disable(logging.INFO)
import fbgemm_gpu  # noqa: E402, F401

logging.disable(logging.NOTSET)
logging.getLogger("recsys_ray").setLevel(logging.INFO)
