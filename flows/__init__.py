"""The operation: command line, Prefect flows, Dask workers, reports."""

import os

# Set before anything imports Prefect: nothing is reported home, and a slow shared machine gets more
# than Prefect's 20 s to start the embedded server. What the user has set himself stays.
os.environ.setdefault("DO_NOT_TRACK", "1")
os.environ.setdefault("PREFECT_SERVER_ANALYTICS_ENABLED", "false")
# Prefect's server may die in a long run; the run must not wait a minute for each thing it tells it.
os.environ.setdefault("PREFECT_CLIENT_MAX_RETRIES", "2")
os.environ.setdefault("PREFECT_API_REQUEST_TIMEOUT", "15")
os.environ.setdefault("PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS", "120")
