#!/usr/bin/env bash
# A Slurm of one node, on this machine, as this user, with all of its files in DIR; for test_benchmark.py.
#
#   tests/slurm.sh start DIR      then set SLURM_CONF=DIR/slurm.conf
#   tests/slurm.sh stop DIR
#
# Needs munged, slurmctld and slurmd (Debian and Ubuntu: apt-get install slurm-wlm munge).
set -euo pipefail
dir=$2
export SLURM_CONF=$dir/slurm.conf PATH=$PATH:/usr/sbin

if [[ $1 == stop ]]; then
    for name in slurmd slurmctld munged; do
        [[ ! -s $dir/$name.pid ]] || kill "$(<"$dir/$name.pid")" || true
    done
    exit
fi

mkdir -p "$dir/state" "$dir/spool"
read -r port1 port2 < <(python3 -c '
import socket
sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(2)]
print(*(s.getsockname()[1] for s in sockets))')
host=$(hostname -s)
cat >"$SLURM_CONF" <<END
ClusterName=test
SlurmctldHost=$host(127.0.0.1)
SlurmctldPort=$port1
SlurmdPort=$port2
SlurmUser=$(id -un)
SlurmdUser=$(id -un)
AuthType=auth/munge
AuthInfo=socket=$dir/munge.socket
StateSaveLocation=$dir/state
SlurmdSpoolDir=$dir/spool
SlurmctldPidFile=$dir/slurmctld.pid
SlurmdPidFile=$dir/slurmd.pid
SlurmctldLogFile=$dir/slurmctld.log
SlurmdLogFile=$dir/slurmd.log
ProctrackType=proctrack/pgid
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SlurmdParameters=config_overrides
ReturnToService=2
KillWait=5
SchedulerParameters=batch_sched_delay=0,sched_min_interval=0,sched_interval=1,bf_interval=1
NodeName=$host NodeAddr=127.0.0.1 CPUs=2 RealMemory=4096 State=UNKNOWN
PartitionName=test Nodes=$host Default=YES State=UP
END
version=$(slurmd -V | tr -dc '0-9.' | cut -d . -f 1,2 | tr -d .)
((version < 2311)) || echo "CgroupPlugin=disabled" >"$dir/cgroup.conf" # older ones do not know it, nor need it
head -c 128 /dev/urandom >"$dir/munge.key"
chmod 600 "$dir/munge.key"
munged --force --key-file="$dir/munge.key" --socket="$dir/munge.socket" --pid-file="$dir/munged.pid" \
    --log-file="$dir/munged.log" --seed-file="$dir/munged.seed" >"$dir/munged.out" 2>&1
slurmctld >"$dir/slurmctld.out" 2>&1
slurmd >"$dir/slurmd.out" 2>&1
