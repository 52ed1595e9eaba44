"""Many replicas behind one address. One replica is one API with one engine.

`application` starts Ray Serve, which runs `entrance`, `router` and `replica`; everything else knows
nothing of Ray.
"""
