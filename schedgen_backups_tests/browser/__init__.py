"""The Dagster UI as operators see it; needs Chromium: `make test-browser`."""
