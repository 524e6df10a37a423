"""One file per change of the tables, run by alembic at start."""
