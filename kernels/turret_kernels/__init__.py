"""The kernels of Turret: one op per file, each a public function with a torch path."""
