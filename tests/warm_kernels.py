"""Kernels that are forks of one process, which has imported the packages once for all of them.

    python tests/warm_kernels.py serve SOCKET              waits, until its standard input ends
    python tests/warm_kernels.py start SOCKET -f FILE …    is a kernel with these arguments

A fork is as fresh as a new process but for the packages in memory: no name is defined, nothing was
computed, and neither asddim_lib nor what is beside this file can be imported through the server.
"""

import importlib
import json
import os
import select
import signal
import socket
import sys
import threading
import traceback

#: What the chapters and the library import of others. Each is there, or the server ends.
PACKAGES = [
    "diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion",
    "ipykernel.ipkernel",
    "ipykernel.kernelapp",
    "ipywidgets",
    "matplotlib.pyplot",
    "pyarrow.parquet",
    "scipy.optimize",
    "scipy.stats",
    "seaborn",
    "torchmetrics.functional",
    "transformers.models.clip.modeling_clip",
    "transformers.models.clip.tokenization_clip",
]


def serve(address):
    """Forks a kernel for each connection, which says where and with what environment."""
    sys.path.pop(0)  # this file's folder, which is no place of the machine
    os.environ["MPLBACKEND"] = "module://matplotlib_inline.backend_inline"  # as a kernel sets it
    for name in PACKAGES:
        importlib.import_module(name)
    assert threading.active_count() == 1, "a fork would lack the other threads"
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(address)
        server.listen()
        print("ready", flush=True)
        while True:
            ready, _, _ = select.select([server, sys.stdin], [], [], 1)
            if sys.stdin in ready:
                return
            if server in ready:
                connection, _ = server.accept()
                if not os.fork():
                    server.close()
                    be_kernel(connection)
                connection.close()
            reap()


def reap():
    """Forgets the kernels that have ended."""
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        pass


def be_kernel(connection):
    """Runs the kernel that the connection asks for, and ends with it or with the connection."""
    wanted = json.loads(connection.makefile().readline())
    os.environ.clear()
    os.environ.update(wanted["environment"])
    os.chdir(wanted["folder"])
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)

    def end_with_the_connection():
        connection.recv(1)
        os._exit(1)

    threading.Thread(target=end_with_the_connection, daemon=True).start()
    from ipykernel.kernelapp import IPKernelApp

    sys.argv = ["ipykernel_launcher", *wanted["arguments"]]
    status = 1
    try:
        IPKernelApp.launch_instance()
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(status)


def start(address, *arguments):
    """Asks the server for a kernel, and stays as long as that one does."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # sent when the notebook is at its end
    wanted = {"arguments": arguments, "folder": os.getcwd(), "environment": dict(os.environ)}
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(address)
        connection.sendall(json.dumps(wanted).encode() + b"\n")
        connection.recv(1)


if __name__ == "__main__":
    {"serve": serve, "start": start}[sys.argv[1]](*sys.argv[2:])
