"""In and out as values and files: rollouts and scores of others in, rows as OTLP and Parquet out."""
