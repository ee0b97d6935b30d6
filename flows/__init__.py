"""The operation: command line, Prefect flows, Dask workers, reports."""
