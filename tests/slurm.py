"""A Slurm cluster of one node on this machine, for the tests of `study.py --cluster slurm`.

It needs root and Debian's packages slurm-wlm and munge. All its files are in one folder.
"""

import os
import platform
import shutil
import socket
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from tests.helpers import wait_for

# A requeued job starts again after cred_expire seconds. The node may have fewer cores than the two CPUs it is given.
CONFIG = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
SlurmUser=root
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ProctrackType=proctrack/pgid
TaskPlugin=task/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SlurmdParameters=config_overrides
NodeName={host} NodeAddr=127.0.0.1 CPUs=2 RealMemory=64000
PartitionName=test Nodes=ALL Default=YES MaxTime=INFINITE
"""


@contextmanager
def local_slurm(folder: Path) -> Iterator[Path]:
    """Runs the cluster for the duration of a block, with its files in `folder`; yields the path of slurm.conf."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(2)]
        for free in sockets:
            free.bind(("127.0.0.1", 0))
        ports = [free.getsockname()[1] for free in sockets]
    config = folder / "slurm.conf"
    config.write_text(CONFIG.format(host=platform.node().split(".")[0], folder=folder, ports=ports))
    (folder / "state").mkdir()
    (folder / "spool").mkdir()
    places = {name: folder / f"munge.{name}" for name in ("socket", "key-file", "pid-file", "log-file", "seed-file")}
    places["key-file"].write_bytes(os.urandom(1024))
    places["key-file"].chmod(0o400)
    commands = [["munged", "--foreground", "--force", *(f"--{name}={path}" for name, path in places.items())]]
    commands += [[name, "-D", "-f", str(config)] for name in ("slurmctld", "slurmd")]

    def ask(*command: str) -> str:
        env = {**os.environ, "SLURM_CONF": str(config)}
        return subprocess.run(command, env=env, capture_output=True, text=True, check=False, timeout=60).stdout

    daemons = []
    try:
        with open(folder / "daemons.log", "wb") as log:
            for command in commands:
                daemons.append(subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True))
                if command[0] == "munged":
                    wait_for(places["socket"].exists, 30)
        wait_for(lambda: "idle" in ask("sinfo", "--noheader", "--format=%T"), 60)
        yield config
        ask("scancel", "--user=root")
        wait_for(lambda: not ask("squeue", "--noheader"))
    finally:
        for daemon in reversed(daemons):
            daemon.terminate()
            daemon.wait(30)
        shutil.rmtree(folder / "spool", ignore_errors=True)
