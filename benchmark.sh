#!/usr/bin/env bash
# The paper's protocol: PPO and MetaIRN at every length with every seed, then all figures and tables.
#
#   bash benchmark.sh                           # 100 runs, about 8 minutes on 2 cores
#   bash benchmark.sh --smoke                   # a tiny version of everything in a temporary folder, half a minute
#   LENGTHS="50 200" EXTRA_ARGS=--hide-umbrella OUT=runs/hidden bash benchmark.sh
#   STUDY=FILE ALGOS=teacher OUT=runs/study bash benchmark.sh   # these of FILE's arms; without ALGOS, all of them
#   ENV_IDS="Hopper-v5 Walker2d-v5" STUDY=FILE bash benchmark.sh   # all of it for each, in OUT/Hopper-v5 and so on
#   LAUNCHER=slurm SBATCH_PARTITION=cpu bash benchmark.sh       # as Slurm job arrays; SBATCH_TIMELIMIT (1 h a run)
#   bash benchmark.sh --report                  # the figures again, of the runs that are finished
#
# Finished runs are skipped, and interrupted ones continue from their last evaluation. So after Ctrl-C, a crash or a
# power cut the same command completes the set, with the same numbers. OUT holds the run folders, logs/ and results/.
# A line of FILE is an arm, NAME SCRIPT LENGTHS TIMESTEPS [OPTIONS...]. A word that begins with # begins a comment.
#   student ppo_metairn 20,50 100000 --irn-from {out}/UmbrellaLength-v0__teacher__10__{seed} @tuned.json#student
# Arms run at the same time. So an arm that others need, such as teacher here, runs first, in a call of its own (ALGOS).
# An arm may have several lines, of other LENGTHS (0 for environments other than Umbrella). {out} stands for OUT. SCRIPT
# and @FILE.json are paths from this folder on. @FILE.json stands for the options in it: {"gamma": 1.0} for --gamma 1.0.
# @FILE.json#KEY takes them from {KEY: {"gamma": 1.0}}. Options override the benchmark's own, such as --eval-every 1000.
# Settings, printed at first: STUDY ALGOS LENGTHS SEEDS TOTAL_TIMESTEPS ENV_IDS EXTRA_ARGS OUT WORKERS LAUNCHER PYTHON

# shellcheck disable=SC2015,SC2016,SC2046,SC2086,SC2116,SC2206 # words are split on purpose
set -feuo pipefail
fail() { echo "error: $*" >&2 && exit 2; }
# Settings: environment variables
here=$(dirname "$0") mode=${1-} ENV_IDS=$(echo ${ENV_IDS-}) SEEDS=$(echo ${SEEDS-})
[[ ! $ENV_IDS || ${STUDY:=} ]] || export LENGTHS=${LENGTHS:-0}
case $mode in
    '' | --report) ;;
    --task) read -r ALGOS LENGTHS SEEDS _ < <(sed -n "$((SLURM_ARRAY_TASK_ID + $2))p" "$OUT/slurm/runs") ;;
    -h | --help) sed -n '2,/^$/s/^# \{0,1\}//p' "$0" && exit ;;
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
for number in $LENGTHS $SEEDS "${TOTAL_TIMESTEPS:-0}" "$WORKERS"; do
    [[ $number =~ ^$whole$ ]] || fail "LENGTHS, SEEDS, TOTAL_TIMESTEPS, WORKERS: $number is not a whole number"
done
((WORKERS > 0)) || fail "WORKERS must be at least 1"
[[ $LAUNCHER =~ ^(local|slurm)$ ]] || fail "LAUNCHER must be local or slurm, got $LAUNCHER"
[[ $LAUNCHER == local ]] || type sbatch >/dev/null 2>&1 || fail "LAUNCHER=slurm: there is no sbatch on this machine"
[[ ! $STUDY || -f $STUDY && -r $STUDY ]] || fail "STUDY: there is no file $STUDY"
[[ ! $STUDY || ! $TOTAL_TIMESTEPS ]] || fail "TOTAL_TIMESTEPS must not be set, as --smoke does: $STUDY sets it"
"$PYTHON" -c 'import importlib.util as u; [u.find_spec(x).name for x in ("torch", "tyro", "rliable")]' 2>/dev/null ||
    fail "PYTHON=$PYTHON does not find torch, tyro and rliable: pip install -r requirements.txt, or set PYTHON"
export OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 # one thread a process

# The arms that ALGOS and LENGTHS select: NAME LENGTH SCRIPT TIMESTEPS OPTIONS...
to_flags='import json, os, sys; path, _, key = sys.argv[2].partition("#")
options = json.load(open(os.path.join(sys.argv[1], path)))
options = options[key] if key else options
assert all(type(x) in (int, float) or type(x) is str and len(x.split()) == 1 for x in options.values())
print(*("--{} {}".format(name.replace("_", "-"), x) for name, x in options.items()))'
arms=() table='' line=0 path='[A-Za-z0-9_-]+(/[A-Za-z0-9_-]+)*'
form="^[A-Za-z0-9.-]+(_[A-Za-z0-9.-]+)* $path $whole(,$whole)* $whole$"
ours='[[:space:]]--(seed|chain-length|total-timesteps|runs-dir|exp-name|resume|evaluate)[=[:space:]]'
text=$(for length in $LENGTHS; do for algo in $ALGOS; do echo "$algo $algo $length $TOTAL_TIMESTEPS"; done; done)
[[ ! $STUDY ]] || text=$(sed -e 's/^#.*//' -e 's/[[:space:]]#.*//' "$STUDY")
while read -r name script lengths steps words; do
    line=$((line + 1)) where=${STUDY:+$STUDY, line $line: } options=''
    [[ $name ]] || continue
    [[ "$name $script $lengths $steps" =~ $form ]] || fail "${where}not NAME SCRIPT LENGTHS TIMESTEPS [OPTIONS...]," \
        "names of letters, digits, . - and single _, whole numbers: $name $script $lengths $steps"
    [[ -f $here/$script.py ]] || fail "${where}there is no $here/$script.py"
    for word in $words; do flags=$word file=$here/${word:1}
        [[ $word != @* || -f ${file%%#*} ]] || fail "${where}there is no ${file%%#*}"
        [[ $word != @* ]] || flags=$("$PYTHON" -c "$to_flags" "$here" "${word:1}" 2>/dev/null) ||
            fail "$where${word:1} is not a JSON object of options, each a number or a word, or has no such #KEY"
        options+=" $flags"
    done
    [[ ! " ${options//_/-} ${EXTRA_ARGS//_/-} " =~ $ours ]] ||
        fail "${where}options and EXTRA_ARGS must not set --${BASH_REMATCH[1]}, the benchmark does"
    table+=" $name $script $(cksum <"$here/$script.py") $lengths $steps$options"$'\n'
    for length in ${lengths//,/ }; do
        [[ " ${ALGOS:-$name} " != *" $name "* || " ${LENGTHS:-$length} " != *" $length "* ]] ||
            arms+=("$name $length $script $steps$options") at+=" $length "
    done
done <<<"$text"
for name in $ALGOS; do [[ $'\n'$table == *$'\n'" $name "* ]] || fail "ALGOS: $STUDY has no arm $name"; done
((${#arms[@]})) || [[ $LENGTHS ]] || fail "STUDY: $STUDY has no arms"
for length in $LENGTHS; do [[ ${at-} == *" $length "* ]] || fail "LENGTHS: no arm runs at $length"; done

csv=$OUT/invocations.csv columns=date,commit,cpu,torch,numpy,gymnasium,mujoco,workers,finished,failed,seconds
next=0 finished=0 failed=0 status=0 pids=()
record() { # in invocations.csv, what was done and with what (not by a task of a job array)
    ((finished + failed)) && [[ $mode != --task ]] || return 0
    commit=$(git -C "$here" describe --always --dirty --exclude '*' 2>/dev/null || echo unknown) # not a tag's name
    cpu=$(sed -n '/^model name/{s/^[^:]*: //;s/,//g;p;q;}' /proc/cpuinfo 2>/dev/null) || cpu='' # not on macOS
    libraries=$("$PYTHON" -c 'from importlib import metadata, util
mujoco = metadata.version("mujoco") if util.find_spec("mujoco") else ""
print(*map(metadata.version, ("torch", "numpy", "gymnasium")), mujoco, sep=",")')
    [[ -s $csv ]] || echo "$columns" >"$csv"
    echo "$(date -u +%F),$commit,${cpu:-$(uname -m)},$libraries,$WORKERS,$finished,$failed,$SECONDS" >>"$csv"
}
stop() { # exit status: kills what this benchmark has started
    trap '' INT TERM
    while kill $(jobs -pr) 2>/dev/null; do sleep 0.1; done
    [[ $ENV_IDS ]] || { record && echo "stopped; the same command goes on from the last evaluation of each run"; }
    exit "$1"
}
trap 'stop 130' INT && trap 'stop 143' TERM && trap 'kill $(jobs -pr) 2>/dev/null || true' EXIT
for id in $ENV_IDS; do # all of this for each of them, in the background since a signal interrupts only `wait`
    ENV_IDS='' OUT=$OUT/${id##*:} EXTRA_ARGS="${EXTRA_ARGS:+$EXTRA_ARGS }--env-id $id" bash "$0" $mode &
    wait $! || status=$?
done
[[ ! $ENV_IDS ]] || exit "$status"

set_run() { # NAME LENGTH SEED SCRIPT TIMESTEPS OPTIONS... -> run, log, folder, command (starts or continues the run)
    run="$1 $2 $3" log=$OUT/logs/$1__$2__$3.log command=("$PYTHON" "$here/$4.py")
    folder=$(set +f && for folder in "$OUT"/*"__$1__$2__$3"; do echo "$folder"; done)
    [[ ! -e $folder/checkpoint.pt ]] || { command+=(--resume "$folder") && return; }
    command+=(--exp-name "$1" --chain-length "$2" --seed "$3" --total-timesteps "$5")
    command+=(--eval-every 1000 --eval-episodes 100 --runs-dir "$OUT" $EXTRA_ARGS "${@:6}")
    command=("${command[@]/"{out}"/$OUT}")
}
shopt -u patsub_replacement 2>/dev/null || true # & in OUT is a letter
runs=() todo=() listed=' ' # seeds outermost, so that a benchmark that is cut off has about as many of each setting
for seed in $SEEDS; do for arm in "${arms[@]}"; do
    read -r name length rest <<<"$arm"
    set_run $name $length $seed $rest
    [[ $listed != *" $run,"* ]] || fail "$run is listed twice"
    listed+=" $run," runs+=("$run $rest")
    [[ -e $folder/finished ]] || todo+=("$run $rest")
done; done

report() { # the figures of what is finished, then what is not; exit status 1 if anything is missing
    trap - INT TERM && status=0
    "$PYTHON" "$here/plot_results.py" --runs "$OUT" --out "$OUT/results" &&
        echo "figures and tables of what is finished: $OUT/results" || status=1
    for words in "${runs[@]}"; do
        set_run $words
        [[ ! -e $folder/finished ]] && status=1 || continue
        echo "not finished: $run: $(grep '[[:alnum:]]' "$log" 2>/dev/null | tail -n 1 || echo never started) ($log)"
    done
    exit "$status"
}
[[ $mode != --report ]] || report

# Only one benchmark at a time in OUT (many tasks of a job array), and only of one kind
mkdir -p "$OUT/logs" 2>/dev/null || fail "OUT: $OUT cannot be made"
locks='import fcntl, sys
try: fcntl.flock(9, eval(sys.argv[1], vars(fcntl)))
except BlockingIOError: sys.exit(1)
except OSError as error: print(f"no file locks here ({error.strerror}): see to it that nothing else uses OUT")'
lock() { "$PYTHON" -c "$locks" "$1" 2>/dev/null; } # shared or exclusive
exec 9<>"$OUT/lock" # the runs inherit it: the lock is held until the last of them has ended
lock "$([[ $mode == --task ]] && echo LOCK_SH || echo 'LOCK_EX | LOCK_NB')" || # a task waits while another one is refused
    fail "another benchmark, or a run that one left behind, is at work in $OUT: wait for it, or set another OUT"
[[ $mode == --task || ! -s $OUT/slurm/jobs || ! $(squeue --noheader --jobs "$(<"$OUT/slurm/jobs")" 2>/dev/null) ]] ||
    fail "Slurm jobs $(<"$OUT/slurm/jobs") are at work in $OUT: wait for them, cancel them, or set another OUT"
kind="STUDY=${STUDY:+$(cksum <<<"$table")} TOTAL_TIMESTEPS=$TOTAL_TIMESTEPS EXTRA_ARGS=$EXTRA_ARGS"
kind+=" code=$(set +f && cat "$here"/ppo_*.py "$here/umbrella_env.py" | cksum)"
[[ -s $OUT/kind ]] || { echo "$kind" >"$OUT/kind.tmp" && mv "$OUT/kind.tmp" "$OUT/kind"; }
[[ $(<"$OUT/kind") == "$kind" ]] || fail "$OUT holds runs of another kind ($(<"$OUT/kind")), not $kind: set another OUT"
[[ ! -s $csv || $(head -n 1 "$csv") == "$columns" ]] || fail "the columns of $csv are not $columns: move it away"
[[ $mode == --task || ${#todo[@]} == 0 ]] || printf '%s\n' "${todo[@]}" | cut -d ' ' -f 1-3 >>"$OUT/planned"
for name in "${settings[@]}"; do echo "$name=${!name}"; done
echo "${#runs[@]} runs, of which $((${#runs[@]} - ${#todo[@]})) are finished; to do:"
for words in ${todo[@]+"${todo[@]}"}; do
    set_run $words && echo "   $(printf ' %q' "${command[@]}")"
done

if [[ $LAUNCHER == slurm && ${#todo[@]} -gt 0 ]]; then # one task a run, then a job that draws the figures
    most=$(scontrol show config 2>/dev/null | sed -n 's/^MaxArraySize *= *//p') || most=''
    most=$((${most:-1001} > 1 ? ${most:-1001} - 1 : 1)) # the largest index, and so the most tasks, of an array
    mkdir -p "$OUT/slurm" && printf '%s\n' "${todo[@]}" >"$OUT/slurm/runs"
    LAUNCHER=local WORKERS=1 benchmark=$0 jobs=''
    export "${settings[@]}" benchmark
    submit() { # sbatch's options -> the job's number, also in the file of jobs
        job=$(sbatch --parsable --export=ALL --mem=2G "$@") || fail "sbatch refused a job; submitted: ${jobs:-none}"
        job=${job%%;*} jobs+=${jobs:+,}${job%%;*} && echo "$jobs" >"$OUT/slurm/jobs"
    }
    lock LOCK_SH # from here on its tasks may run
    for ((first = 0, n = ${#todo[@]}; first < n; first += most)); do
        submit --job-name=metairn --time="${SBATCH_TIMELIMIT:-01:00:00}" --requeue --open-mode=append --output="$OUT/slurm/%A_%a.out" \
            --array="1-$((n - first < most ? n - first : most))" --wrap "exec bash \"\$benchmark\" --task $first"
    done
    submit --job-name=metairn-figures --dependency="afterany:${jobs//,/:}" --output="$OUT/slurm/%j.out" \
        --wrap 'exec bash "$benchmark" --report'
    echo "submitted as ${jobs%,*}; job $job draws the figures and writes to $OUT/slurm/$job.out"
    exit
fi

# WORKERS runs at a time
while ((${#pids[@]} || next < ${#todo[@]})); do
    while ((${#pids[@]} < WORKERS && next < ${#todo[@]})); do
        set_run ${todo[next]}
        echo "${command[*]}" >>"$log"
        "${command[@]}" >>"$log" 2>&1 &
        pids[next]=$! began[next]=$SECONDS next=$((next + 1))
    done
    sleep 0.2 9>&- || true # a signal ends it, and it holds no lock
    for i in "${!pids[@]}"; do
        ! kill -0 "${pids[i]}" 2>/dev/null || continue
        set_run ${todo[i]}
        if wait "${pids[i]}" && touch "$folder/finished"; then
            finished=$((finished + 1)) outcome="finished in $((SECONDS - began[i])) s"
        else
            status=$? failed=$((failed + 1)) outcome="FAILED with status $status"
            ((status <= 128)) || echo "killed by signal $((status - 128))" >>"$log"
        fi
        unset "pids[i]"
        left=$((SECONDS * (${#todo[@]} - finished - failed) / (finished + failed)))
        echo "$((${#runs[@]} - ${#todo[@]} + finished)) of ${#runs[@]} done, ${#pids[@]} running, $failed failed," \
            "about $((left / 60)):$(printf %02d $((left % 60))) left; $run $outcome"
    done
done
record
[[ $mode == --task ]] && exit "$failed" || report
