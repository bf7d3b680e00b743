"""What operators and auditors see in a browser; needs Chromium: `make test-browser`."""
