"""Load test for any OpenAI-compatible endpoint: the engine behind `turret bench serve`.

The path of one run: `config` names what to send, `workload` turns it into request specs (with
`arrivals`, `popularity`, `lengths`, `prompts`, `trace`), `driver` sends them through `client`
(with `sse`), each becomes a `record`, `stats` summarises them and `result` wraps the numbers
with machine, versions and commit. `compare`, `plots` and `html` put several results side by side.

Nothing here imports the server's engine or torch: the generator shares its cores with the server
under test, so it has to stay small.
"""
