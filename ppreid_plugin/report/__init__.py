"""What comes out: run records, tables, figures."""
