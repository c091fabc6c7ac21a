"""Jupyter's own suite for kernels, as it is to pass for ours, wherever they run."""

from __future__ import annotations

import jupyter_kernel_test


class Conformance(jupyter_kernel_test.KernelTests):
    """Jupyter's own suite."""

    language_name = "python"
    file_extension = ".py"
    code_hello_world = "print('hello, world')"
    code_stderr = "import sys; print('test', file=sys.stderr)"
    code_page_something = "zip?"
    code_clear_output = "from IPython.display import clear_output; clear_output()"
    code_generate_error = "raise"
    code_inspect_sample = "zip"
    completion_samples = [  # noqa: RUF012
        {"text": "zi", "matches": {"zip"}},
        {"text": "%kos sto", "matches": {"story"}},
    ]
    complete_code_samples = ["1", "print('hello, world')", "def f(x):\n  return x*2\n\n", "%kos nodes"]  # noqa: RUF012
    incomplete_code_samples = ["print('''hello", "def f(x):\n  x*2"]  # noqa: RUF012
    invalid_code_samples = ["import = 7q"]  # noqa: RUF012
    code_execute_result = [  # noqa: RUF012
        {"code": "1+2+3", "result": "6"},
        {"code": "[n*n for n in range(1, 4)]", "result": "[1, 4, 9]"},
    ]
    code_display_data = [{"code": "display(42)", "mime": "text/plain"}]  # noqa: RUF012
    code_history_pattern = "1?2*"
    supported_history_operations = ("tail", "search")  # as ipykernel's: a range is told without its session
