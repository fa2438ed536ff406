#!/usr/bin/env bash
# For test_benchmark.py: a Slurm of one node, as this user, with all of its files in DIR; it takes arrays of two tasks.
#
#   tests/slurm.sh real DIR      then set SLURM_CONF=DIR/slurm.conf (needs apt-get install slurm-wlm munge)
#   tests/slurm.sh stop DIR
#   tests/slurm.sh stub DIR      then put DIR first on PATH: its sbatch notes its arguments, and runs each job at once
set -euo pipefail
dir=$2
export SLURM_CONF=$dir/slurm.conf PATH=$PATH:/usr/sbin

if [[ $1 == stub ]]; then
    printf '#!/bin/sh\necho "MaxArraySize            = 3"\n' >"$dir/scontrol"
    printf '#!/bin/sh\ncat "%s/at_work" 2>/dev/null\n' "$dir" >"$dir/squeue"
    cat >"$dir/sbatch" <<'END'
#!/usr/bin/env bash
dir=$(dirname "$0") last=1
[[ ! -e $dir/full ]] || exit 1 # as if no more jobs were allowed
echo "$*" >>"$dir/submitted"
job=$(grep -c '' "$dir/submitted")
for word in "$@"; do
    [[ $word != --array=1-* ]] || last=${word#--array=1-}
    [[ $word != --output=* ]] || output=${word#--output=}
done
for ((task = 1; task <= last; task++)); do
    file=${output//%[Aj]/$job}
    SLURM_ARRAY_TASK_ID=$task sh -c "${!#}" >>"${file//%a/$task}" 2>&1
done
echo "$job"
END
    chmod +x "$dir"/*
    exit
fi

if [[ $1 == stop ]]; then
    for name in slurmd slurmctld munged; do
        [[ ! -s $dir/$name.pid ]] || kill "$(<"$dir/$name.pid")" || true
    done
    exit
fi

trap 'cat "$dir"/*.out >&2 || true' ERR # what the daemons said
mkdir -p "$dir/state" "$dir/spool"
ports='import socket; print(*[s.getsockname()[1] for s in [socket.create_server(("127.0.0.1", 0)) for _ in "12"]])'
read -r port1 port2 < <(python3 -c "$ports")
host=$(hostname -s) user=$(id -un)
printf '%s\n' ClusterName=test "SlurmctldHost=$host(127.0.0.1)" "SlurmctldPort=$port1" "SlurmdPort=$port2" \
    "SlurmUser=$user" "SlurmdUser=$user" AuthType=auth/munge "AuthInfo=socket=$dir/munge.socket" \
    "StateSaveLocation=$dir/state" "SlurmdSpoolDir=$dir/spool" "SlurmctldPidFile=$dir/slurmctld.pid" \
    "SlurmdPidFile=$dir/slurmd.pid" "SlurmctldLogFile=$dir/slurmctld.log" "SlurmdLogFile=$dir/slurmd.log" \
    ProctrackType=proctrack/pgid TaskPlugin=task/none JobAcctGatherType=jobacct_gather/none MpiDefault=none \
    AccountingStorageType=accounting_storage/none SelectType=select/cons_tres SelectTypeParameters=CR_CPU \
    MaxArraySize=3 SlurmdParameters=config_overrides ReturnToService=2 KillWait=5 \
    SchedulerParameters=batch_sched_delay=0,sched_min_interval=0,sched_interval=1,bf_interval=1 \
    "NodeName=$host NodeAddr=127.0.0.1 CPUs=2 RealMemory=4096 State=UNKNOWN" \
    "PartitionName=test Nodes=$host Default=YES State=UP" >"$SLURM_CONF"
version=$(slurmd -V | tr -dc '0-9.' | cut -d . -f 1,2 | tr -d .)
((version < 2311)) || echo "CgroupPlugin=disabled" >"$dir/cgroup.conf" # older ones do not know it, nor need it
head -c 128 /dev/urandom >"$dir/munge.key"
chmod 600 "$dir/munge.key"
munged --force --key-file="$dir/munge.key" --socket="$dir/munge.socket" --pid-file="$dir/munged.pid" \
    --log-file="$dir/munged.log" --seed-file="$dir/munged.seed" >"$dir/munged.out" 2>&1
slurmctld >"$dir/slurmctld.out" 2>&1
slurmd >"$dir/slurmd.out" 2>&1
