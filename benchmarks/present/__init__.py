"""How results are shown: one theme for all pictures, tables and pages from the same rows."""
