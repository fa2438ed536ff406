#!/usr/bin/env bash
# The paper's protocol: every algorithm at every length with every seed, then all figures and tables.
#
#   bash benchmark.sh                           # 100 runs, about 8 minutes on 2 cores
#   bash benchmark.sh --smoke                   # a tiny version of everything in a temporary folder, half a minute
#   LENGTHS="50 200" EXTRA_ARGS=--hide-umbrella OUT=runs/hidden bash benchmark.sh
#   LAUNCHER=slurm SBATCH_PARTITION=cpu bash benchmark.sh       # the same runs as one Slurm job array
#   bash benchmark.sh --report                  # the figures again, of the runs that are finished
#
# Finished runs are skipped, interrupted ones continue from their checkpoint: after Ctrl-C, a crash or a power cut the
# same command completes the set, with the same numbers. OUT holds the run folders, logs/ and results/.
# Settings, printed at first: ALGOS LENGTHS SEEDS TOTAL_TIMESTEPS EXTRA_ARGS METAIRN_ARGS OUT WORKERS LAUNCHER PYTHON
set -euo pipefail
fail() { echo "error: $*" >&2 && exit 2; }

# Settings: environment variables
here=$(dirname "$0")
mode=${1-}
case $mode in
    '' | --report | --task) ;; # --task: one run, within a Slurm job array
    -h | --help) sed -n '2,12s/^# \{0,1\}//p' "$0" && exit ;;
    --smoke) : "${LENGTHS:=2 5}" "${SEEDS:=1 2}" "${TOTAL_TIMESTEPS:=10000}" "${OUT:=$(mktemp -d)}" ;;
    *) fail "unknown argument $mode; there are --smoke and --report, and settings: see the head of $0" ;;
esac
: "${ALGOS:=ppo_vanilla ppo_metairn}" "${LENGTHS:=2 5 10 20 50}" "${SEEDS:=1 2 3 4 5 6 7 8 9 10}"
: "${TOTAL_TIMESTEPS:=100000}" "${EXTRA_ARGS:=}" "${METAIRN_ARGS:=}" "${OUT:=runs/benchmark}" "${LAUNCHER:=local}"
: "${WORKERS:=$(nproc 2>/dev/null || getconf _NPROCESSORS_ONLN)}"
: "${PYTHON:=$([[ -x $here/.venv/bin/python ]] && echo "$here/.venv/bin/python" || echo python)}"
settings=(ALGOS LENGTHS SEEDS TOTAL_TIMESTEPS EXTRA_ARGS METAIRN_ARGS OUT WORKERS LAUNCHER PYTHON)
for number in $LENGTHS $SEEDS "$TOTAL_TIMESTEPS" "$WORKERS"; do
    [[ $number =~ ^(0|[1-9][0-9]*)$ ]] || fail "LENGTHS, SEEDS, TOTAL_TIMESTEPS, WORKERS: $number is not a whole number"
done
((WORKERS > 0)) || fail "WORKERS must be at least 1"
[[ $LAUNCHER =~ ^(local|slurm)$ ]] || fail "LAUNCHER must be local or slurm, got $LAUNCHER"
for algo in $ALGOS; do [[ -f $here/$algo.py ]] || fail "ALGOS: there is no $here/$algo.py"; done
for word in $EXTRA_ARGS $METAIRN_ARGS; do
    [[ ! ${word//_/-} =~ ^--(seed|chain-length|total-timesteps|runs-dir|exp-name|resume|evaluate)(=|$) ]] ||
        fail "EXTRA_ARGS, METAIRN_ARGS: must not set ${word%%=*}, the benchmark does"
done
"$PYTHON" -c 'import importlib.util as u; [u.find_spec(x).name for x in ("torch", "tyro", "rliable")]' 2>/dev/null ||
    fail "PYTHON=$PYTHON does not find torch, tyro and rliable: pip install -r requirements.txt, or set PYTHON"
export OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 # one thread a process

# The runs; seeds outermost, so that a benchmark that is cut off has about as many of each setting
run_folder() { for folder in "$OUT"/*"__$1__$2__$3"; do echo "$folder"; done; }
runs=() todo=()
for seed in $SEEDS; do for length in $LENGTHS; do for algo in $ALGOS; do
    run="$algo $length $seed"
    for other in ${runs[@]+"${runs[@]}"}; do [[ $run != "$other" ]] || fail "$run is listed twice"; done
    runs+=("$run")
    [[ -e $(run_folder $run)/finished ]] || todo+=("$run")
done; done; done

set_command() { # algorithm length seed -> command, which starts or continues that run
    local folder
    folder=$(run_folder "$@")
    command=("$PYTHON" "$here/$1.py" --chain-length "$2" --seed "$3")
    command+=(--total-timesteps "$TOTAL_TIMESTEPS" --eval-every 1000 --eval-episodes 100 --runs-dir "$OUT" $EXTRA_ARGS)
    [[ $1 != ppo_metairn ]] || command+=($METAIRN_ARGS)
    [[ ! -e $folder/checkpoint.pt ]] || command=("$PYTHON" "$here/$1.py" --resume "$folder")
}

report() { # the figures of what is finished, then what is not; exit status 1 if anything is missing
    local status=0 run log
    if "$PYTHON" "$here/plot_results.py" --runs "$OUT" --out "$OUT/results"; then
        [[ ! -e $OUT/invocations.csv ]] || cp "$OUT/invocations.csv" "$OUT/results/"
        echo "figures and tables of what is finished: $OUT/results"
    else
        status=1
    fi
    for run in "${runs[@]}"; do
        [[ ! -e $(run_folder $run)/finished ]] || continue
        log=$OUT/logs/${run// /__}.log
        echo "not finished: $run: $({ grep '[[:alnum:]]' "$log" || echo never started; } 2>/dev/null | tail -n 1) ($log)"
        status=1
    done
    exit "$status"
}
[[ $mode != --report ]] || report
mkdir -p "$OUT/logs"

# Only one benchmark at a time in OUT (many tasks of a job array), and only of one kind
lock() { "$PYTHON" -c "import fcntl; fcntl.flock(9, fcntl.LOCK_$1 | fcntl.LOCK_NB)" 2>/dev/null; } # shared or exclusive
exec 9<>"$OUT/lock" # the runs inherit it: the lock is held until the last of them has ended
lock "$([[ $mode == --task ]] && echo SH || echo EX)" ||
    fail "another benchmark, or a run that one left behind, is at work in $OUT: wait for it, or set another OUT"
if [[ $mode != --task && -s $OUT/slurm/jobs && $(squeue --noheader --jobs "$(<"$OUT/slurm/jobs")" 2>/dev/null) ]]; then
    fail "Slurm jobs $(<"$OUT/slurm/jobs") are at work in $OUT: wait for them, cancel them, or set another OUT"
fi
code=$(cat "$here"/ppo_*.py "$here/umbrella_env.py" | cksum)
kind="TOTAL_TIMESTEPS=$TOTAL_TIMESTEPS EXTRA_ARGS=$EXTRA_ARGS METAIRN_ARGS=$METAIRN_ARGS code=$code"
[[ -e $OUT/kind ]] || echo "$kind" >"$OUT/kind"
[[ $(<"$OUT/kind") == "$kind" ]] || fail "$OUT holds runs of another kind ($(<"$OUT/kind")), not $kind: set another OUT"

for name in "${settings[@]}"; do echo "$name=${!name}"; done
echo "${#runs[@]} runs, of which $((${#runs[@]} - ${#todo[@]})) are finished; to do:"
for run in ${todo[@]+"${todo[@]}"}; do
    set_command $run
    printf '   '
    printf ' %q' "${command[@]}"
    echo
done

if [[ $LAUNCHER == slurm && ${#todo[@]} -gt 0 ]]; then # one task a run, then a job that draws the figures
    type sbatch >/dev/null 2>&1 || fail "LAUNCHER=slurm: there is no sbatch on this machine"
    mkdir -p "$OUT/slurm"
    printf '%s\n' "${todo[@]}" >"$OUT/slurm/runs"
    LAUNCHER=local WORKERS=1
    exports=$(for name in "${settings[@]}"; do printf 'export %s=%q\n' "$name" "${!name}"; done)
    cat >"$OUT/slurm/array.sh" <<END
#!/usr/bin/env bash
#SBATCH --job-name=metairn --array=1-${#todo[@]} --ntasks=1 --cpus-per-task=1 --mem=2G --time=01:00:00
#SBATCH --requeue --open-mode=append
$exports
read -r ALGOS LENGTHS SEEDS < <(sed -n "\${SLURM_ARRAY_TASK_ID}p" $(printf %q "$OUT/slurm/runs"))
exec bash $(printf %q "$0") --task
END
    lock SH # from here on its tasks may run
    job=$(sbatch --parsable --output="$OUT/slurm/%A_%a.out" "$OUT/slurm/array.sh")
    echo "$job" >"$OUT/slurm/jobs"
    figures=$(sbatch --parsable --job-name=metairn-figures --dependency="afterany:$job" --mem=2G \
        --output="$OUT/slurm/%j.out" --wrap "$exports"$'\n'"exec bash $(printf %q "$0") --report")
    echo "$job,$figures" >"$OUT/slurm/jobs"
    echo "submitted $OUT/slurm/array.sh as job $job; job $figures draws the figures and writes to $OUT/slurm/$figures.out"
    exit
fi

# WORKERS runs at a time
next=0 finished=0 failed=0 stopped=0 pids=()
stop() { # the runs write a checkpoint and end; a second signal ends them at once
    stopped=$1
    kill -TERM ${pids[@]+"${pids[@]}"} 2>/dev/null || true
}
trap 'stop 130' INT
trap 'stop 143' TERM
while ((${#pids[@]} || (next < ${#todo[@]} && !stopped))); do
    while ((${#pids[@]} < WORKERS && next < ${#todo[@]} && !stopped)); do
        log=$OUT/logs/${todo[next]// /__}.log
        set_command ${todo[next]}
        echo "${command[*]}" >>"$log"
        "${command[@]}" >>"$log" 2>&1 &
        pids[next]=$! began[next]=$SECONDS
        next=$((next + 1))
    done
    sleep 0.2 || true
    for i in "${!pids[@]}"; do
        ! kill -0 "${pids[i]}" 2>/dev/null || continue
        status=0
        wait "${pids[i]}" || status=$?
        unset "pids[i]"
        if ((status == 0)); then
            touch "$(run_folder ${todo[i]})/finished"
            finished=$((finished + 1)) outcome="finished in $((SECONDS - began[i])) s"
        elif ((stopped)); then
            continue
        else
            failed=$((failed + 1)) outcome="FAILED with status $status"
            ((status <= 128)) || echo "killed by signal $((status - 128))" >>"$OUT/logs/${todo[i]// /__}.log"
        fi
        left=$((SECONDS * (${#todo[@]} - finished - failed) / (finished + failed)))
        printf '%d of %d done, %d running, %d failed, about %d:%02d left; %s\n' $((${#runs[@]} - ${#todo[@]} + finished)) \
            ${#runs[@]} ${#pids[@]} "$failed" $((left / 60)) $((left % 60)) "${todo[i]} $outcome"
    done
done
trap - INT TERM
if ((finished + failed)) && [[ $mode != --task ]]; then
    commit=$(git -C "$here" describe --always --dirty 2>/dev/null || echo unknown)
    cpu=$(sed -n 's/^model name[^:]*: //p' /proc/cpuinfo 2>/dev/null | head -n 1)
    [[ -e $OUT/invocations.csv ]] || echo "date,commit,cpu,workers,finished,failed,seconds" >"$OUT/invocations.csv"
    echo "$(date -u +%F),$commit,${cpu:-$(uname -m)},$WORKERS,$finished,$failed,$SECONDS" >>"$OUT/invocations.csv"
fi
if ((stopped)); then
    echo "stopped, nothing is lost: the same command goes on"
    exit "$stopped"
fi
[[ $mode == --task ]] || report
((failed == 0))
