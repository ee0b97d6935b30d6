"""Plans, runs and models as JSON-ready documents and as tables in the terminal."""
