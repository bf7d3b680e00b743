"""The Dagster project of a shop, which backs up its own database and bucket."""
