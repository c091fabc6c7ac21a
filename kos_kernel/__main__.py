"""`python -m kos_kernel -f CONNECTION_FILE`: what the kernelspec starts."""

from __future__ import annotations

from ipykernel.kernelapp import IPKernelApp

from kos_kernel.kernel import KosKernel

if __name__ == "__main__":
    IPKernelApp.launch_instance(kernel_class=KosKernel)
