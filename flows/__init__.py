"""The operation: command line, Prefect flows, Dask workers, reports."""

import os

# Set before anything imports Prefect: nothing is reported home, and a slow shared machine gets more
# than Prefect's 20 s to start the embedded server. What the user has set himself stays.
os.environ.setdefault("DO_NOT_TRACK", "1")
os.environ.setdefault("PREFECT_SERVER_ANALYTICS_ENABLED", "false")
os.environ.setdefault("PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS", "120")
