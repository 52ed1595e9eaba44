"""Many replicas behind one address. One replica is one API with one engine.

`affinity`, `wire`, `relay`, `changes` and `metrics_page` are plain Python; `router`, `replica` and
`application` are what Ray Serve runs.
"""
