"""One set of tables and statements for every SQL database, shared by SQLAlchemy and Django."""
