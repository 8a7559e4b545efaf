"""The benchmarks: brokerfl compared with bare redis-py, measured in one run. `scripts/bench` is the command.

One module per concern: `rows`, `two_runs`, `many_runs`, `servers` and `growth` say what is measured, `measure` how;
`federation` is brokerfl, `rivals` bare redis-py doing the same work, `stage` holds both; `processes` starts what they
run in, `memory` and `cpu` look into processes, `environment` and `report` present the results. `large_model` and
`inline_limit` are separate commands, and so is `flower`, which compares brokerfl with Flower, both run by `superlink`.
"""
