"""The Dagster UI as the operators see it; needs Chromium: `make test-browser`."""
