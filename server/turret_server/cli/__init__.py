"""`turret`: one file per command group."""
