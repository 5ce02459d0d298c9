"""The report: one self-contained HTML page from results files and training logs."""
