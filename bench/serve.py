"""Put load on an OpenAI-compatible server: `turret bench serve` as a script."""

import typer

from turret_server.cli.bench import serve

if __name__ == "__main__":
    typer.run(serve)
