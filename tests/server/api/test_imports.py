import subprocess
import sys


def test_the_api_process_imports_neither_torch_nor_transformers():
    code = (
        "import sys, turret_server.api.app;"
        "print([m for m in ('torch', 'transformers', 'numpy') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "torch" not in done.stdout
    assert "transformers" not in done.stdout
