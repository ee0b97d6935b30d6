"""What people read: pictures of results, tables for the terminal, artifacts in Prefect.

Take what you need from its module: a run that draws nothing loads nothing that draws.
"""
