#!/usr/bin/env bash
# The paper's protocol: every algorithm at every length with every seed, then all figures and tables.
#
#   bash benchmark.sh                           # 100 runs, about 8 minutes on 2 cores
#   bash benchmark.sh --smoke                   # a tiny version of everything in a temporary folder, half a minute
#   LENGTHS="50 200" EXTRA_ARGS=--hide-umbrella OUT=runs/hidden bash benchmark.sh
#   STUDY=FILE ALGOS=teacher OUT=runs/study bash benchmark.sh   # these of FILE's arms; without ALGOS, all of them
#   ENV_IDS="Hopper-v5 Walker2d-v5" STUDY=FILE bash benchmark.sh   # all of it for each, in OUT/Hopper-v5 and so on
#   LAUNCHER=slurm SBATCH_PARTITION=cpu bash benchmark.sh       # the same runs as one Slurm job array
#   bash benchmark.sh --report                  # the figures again, of the runs that are finished
#
# Finished runs are skipped, interrupted ones continue from their checkpoint: after Ctrl-C, a crash or a power cut the
# same command completes the set, with the same numbers. OUT holds the run folders, logs/ and results/.
# A line of FILE is an arm, NAME SCRIPT LENGTHS TIMESTEPS [OPTIONS...]; {out} stands for OUT, # begins a comment:
#   student ppo_metairn 20,50 100000 --irn-from {out}/UmbrellaLength-v0__teacher__10__{seed}
# NAME is the algorithm's name in run folders and results. It may have several lines, of other LENGTHS (of environments
# other than Umbrella, 0). Options come last, so they also override the benchmark's own --eval-every 1000. An option
# @FILE.json, from this folder on, stands for the options in it: {"gamma": 1.0} for --gamma 1.0, as tune.py writes them.
# Settings, printed at first: STUDY ALGOS LENGTHS SEEDS TOTAL_TIMESTEPS ENV_IDS EXTRA_ARGS OUT WORKERS LAUNCHER PYTHON
set -feuo pipefail
fail() { echo "error: $*" >&2 && exit 2; }

# Settings: environment variables
here=$(dirname "$0")
mode=${1-}
[[ ! ${ENV_IDS:=} || ${STUDY:=} ]] || : "${LENGTHS:=0}"
case $mode in
    '' | --report | --task) ;; # --task: one run, within a Slurm job array
    -h | --help) sed -n '2,19s/^# \{0,1\}//p' "$0" && exit ;;
    --smoke) : "${LENGTHS:=2 5}" "${SEEDS:=1 2}" "${TOTAL_TIMESTEPS:=10000}" "${OUT:=$(mktemp -d)}" ;;
    *) fail "unknown argument $mode; there are --smoke and --report, and settings: see the head of $0" ;;
esac
[[ ${STUDY:=} ]] || : "${ALGOS:=ppo_vanilla ppo_metairn}" "${LENGTHS:=2 5 10 20 50}" "${TOTAL_TIMESTEPS:=100000}"
: "${SEEDS:=1 2 3 4 5 6 7 8 9 10}" "${EXTRA_ARGS:=}" "${OUT:=runs/benchmark}" "${LAUNCHER:=local}"
: "${WORKERS:=$(nproc 2>/dev/null || getconf _NPROCESSORS_ONLN)}"
: "${PYTHON:=$([[ -x $here/.venv/bin/python ]] && echo "$here/.venv/bin/python" || echo python)}"
ALGOS=$(echo ${ALGOS-}) LENGTHS=$(echo ${LENGTHS-}) TOTAL_TIMESTEPS=${TOTAL_TIMESTEPS-} # single spaces
settings=(STUDY ALGOS LENGTHS SEEDS TOTAL_TIMESTEPS ENV_IDS EXTRA_ARGS OUT WORKERS LAUNCHER PYTHON)
whole='(0|[1-9][0-9]*)'
for number in $LENGTHS $SEEDS $TOTAL_TIMESTEPS "$WORKERS"; do
    [[ $number =~ ^$whole$ ]] || fail "LENGTHS, SEEDS, TOTAL_TIMESTEPS, WORKERS: $number is not a whole number"
done
((WORKERS > 0)) || fail "WORKERS must be at least 1"
[[ $LAUNCHER =~ ^(local|slurm)$ ]] || fail "LAUNCHER must be local or slurm, got $LAUNCHER"
[[ ! $STUDY || -f $STUDY && -r $STUDY ]] || fail "STUDY: there is no file $STUDY"
[[ ! $STUDY || ! $TOTAL_TIMESTEPS ]] || fail "TOTAL_TIMESTEPS must not be set, as --smoke does: $STUDY sets it"
"$PYTHON" -c 'import importlib.util as u; [u.find_spec(x).name for x in ("torch", "tyro", "rliable")]' 2>/dev/null ||
    fail "PYTHON=$PYTHON does not find torch, tyro and rliable: pip install -r requirements.txt, or set PYTHON"
export OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 # one thread a process

# The arms that ALGOS and LENGTHS select: NAME LENGTH SCRIPT TIMESTEPS OPTIONS...
to_flags='import json, os, sys
options = json.load(open(os.path.join(*sys.argv[1:])))
assert all(type(x) in (int, float) or type(x) is str and len(x.split()) == 1 for x in options.values())
print(*("--{} {}".format(name.replace("_", "-"), x) for name, x in options.items()))'
arms=() table='' line=0 form="^[A-Za-z0-9.-]+(_[A-Za-z0-9.-]+)* [a-z_/]+ $whole(,$whole)* $whole$"
while read -r name script lengths steps options; do
    line=$((line + 1)) where=${STUDY:+$STUDY, line $line: }
    [[ $name ]] || continue
    [[ "$name $script $lengths $steps" =~ $form ]] || fail "${where}not NAME SCRIPT LENGTHS TIMESTEPS [OPTIONS...]," \
        "names of letters, digits, . - and single _, whole numbers: $name $script $lengths $steps"
    [[ -f $here/$script.py ]] || fail "${where}there is no $here/$script.py"
    for word in $options; do
        [[ $word == @* ]] || continue
        flags=$("$PYTHON" -c "$to_flags" "$here" "${word:1}" 2>/dev/null) ||
            fail "${where}${word:1} is not a JSON object of options, each a number or a word"
        options=${options/"$word"/"$flags"}
    done
    for word in $options $EXTRA_ARGS; do
        [[ ! ${word//_/-} =~ ^--(seed|chain-length|total-timesteps|runs-dir|exp-name|resume|evaluate)(=|$) ]] ||
            fail "${where}options and EXTRA_ARGS must not set ${word%%=*}, the benchmark does"
    done
    table+=" $name $script $lengths $steps $options"$'\n'
    for length in ${lengths//,/ }; do
        [[ " ${ALGOS:-$name} " != *" $name "* || " ${LENGTHS:-$length} " != *" $length "* ]] ||
            arms+=("$name $length $script $steps $options")
    done
done < <([[ $STUDY ]] && sed 's/#.*//' "$STUDY" ||
    for length in $LENGTHS; do for algo in $ALGOS; do echo "$algo $algo $length $TOTAL_TIMESTEPS"; done; done
    echo) # ends a last line that has no end
for name in $ALGOS; do [[ $'\n'$table == *$'\n'" $name "* ]] || fail "ALGOS: $STUDY has no arm $name"; done
((${#arms[@]})) || fail "LENGTHS: $STUDY has none of these: $LENGTHS"

if [[ $ENV_IDS ]]; then # all of this for each of them; a signal is handed on, and then ends the whole
    stopped=0 worst=0
    trap 'stopped=130; kill "${!-}" || true' INT
    trap 'stopped=143; kill "${!-}" || true' TERM
    for id in $ENV_IDS; do
        ENV_IDS='' OUT=$OUT/${id##*:} EXTRA_ARGS="${EXTRA_ARGS:+$EXTRA_ARGS }--env-id $id" LENGTHS=$LENGTHS \
            bash "$0" $mode &
        status=0
        wait $! || status=$?
        while kill -0 $! 2>/dev/null; do wait $! || status=$?; done # a signal ends wait, not the benchmark
        ((!stopped && status <= 128)) || exit $((stopped ? stopped : status))
        ((status <= worst)) || worst=$status
    done
    exit "$worst"
fi

# The runs; seeds outermost, so that a benchmark that is cut off has about as many of each setting
run_folder() { set +f && for folder in "$OUT"/*"__$1__$2__$3"; do echo "$folder"; done; } # always in a subshell: $()
runs=() todo=()
for seed in $SEEDS; do for arm in "${arms[@]}"; do
    read -r name length _ <<<"$arm"
    run="$name $length $seed"
    for other in ${runs[@]+"${runs[@]}"}; do [[ $run != "$other" ]] || fail "$run is listed twice"; done
    runs+=("$run")
    [[ -e $(run_folder $run)/finished ]] || todo+=("$run")
done; done

set_command() { # name length seed -> command, which starts or continues that run
    local folder arm words word
    folder=$(run_folder "$@")
    for arm in "${arms[@]}"; do [[ $arm != "$1 $2 "* ]] || words=($arm); done
    command=("$PYTHON" "$here/${words[2]}.py")
    [[ ! -e $folder/checkpoint.pt ]] || { command+=(--resume "$folder") && return; }
    command+=(--exp-name "$1" --chain-length "$2" --seed "$3" --total-timesteps "${words[3]}")
    command+=(--eval-every 1000 --eval-episodes 100 --runs-dir "$OUT" $EXTRA_ARGS)
    for word in "${words[@]:4}"; do
        [[ $word != *"{out}"* ]] || word=${word%%"{out}"*}$OUT${word#*"{out}"}
        command+=("$word")
    done
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
code=$(cat "$here/"{ppo_metairn,ppo_vanilla,umbrella_env}.py | cksum)
kind="STUDY=${STUDY:+$(cksum <<<"$table")} TOTAL_TIMESTEPS=$TOTAL_TIMESTEPS EXTRA_ARGS=$EXTRA_ARGS code=$code"
[[ -e $OUT/kind ]] || echo "$kind" >"$OUT/kind"
[[ $(<"$OUT/kind") == "$kind" ]] || fail "$OUT holds runs of another kind ($(<"$OUT/kind")), not $kind: set another OUT"

[[ $mode == --task || ${#todo[@]} == 0 ]] || printf '%s\n' "${todo[@]}" >>"$OUT/planned" # for plot_results.py
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
