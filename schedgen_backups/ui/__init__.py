"""The Dagster UI behind a gate: which requests reach Dagster's webserver, who may log in, and the processes
of `serve`.

Dagster's webserver has no login and takes a mutation from any page that a browser has open. Add a rule for
requests in `gate`, a kind of login in `login`. No definitions and no jobs; private Dagster names only in
`webserver`. A package of its own above `runs`, because it runs no job: it is a server in front of Dagster.
Imports `runs`, `config` and `core`; only `cli` and `demo` import it.
"""
