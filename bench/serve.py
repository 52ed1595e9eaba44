"""Put load on an OpenAI-compatible server: `turret bench serve` as a script."""

import sys

from turret_server.cli import app

if __name__ == "__main__":
    sys.argv[1:1] = ["bench", "serve"]
    app()
