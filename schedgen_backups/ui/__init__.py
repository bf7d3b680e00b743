"""The Dagster UI behind a gate: allowed requests, logins, and the processes of `serve`.

Dagster's webserver has no login and accepts a mutation from any page that a browser has open. Add a rule for
requests in `gate`, a kind of login in `login`. No definitions and no jobs live here; only `webserver` uses
private Dagster names. Imports `runs`, `config` and `core`; only `cli` and `demo` import this package.
"""
