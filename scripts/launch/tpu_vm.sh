#!/usr/bin/env bash
# Trains on Cloud TPU VMs, one slice or several, that are asked for as a queued resource.
#
#   scripts/launch/tpu_vm.sh run       create, install, start, watch, start again; until it is done
#   scripts/launch/tpu_vm.sh COMMAND   one step of that, see below
#
# Runs on your machine, from the root of the repository, with gcloud set up. `run` may be stopped
# and run again: it goes on from whatever is there. Set in the environment:
#
#   NAME       of the queued resource, new for each run
#   PROJECT, ZONE
#   TYPE       accelerator type, such as v5p-128 (64 chips), v5litepod-256 or v6e-256
#   RUNTIME    image of the VMs: v2-alpha-tpuv5 (v5p), v2-alpha-tpuv5-lite (v5e), v2-alpha-tpuv6e
#   SLICES     number of slices, 1 if unset; must be the config's mesh.slices
#   SPOT       1 for spot VMs, 0 if unset
#   CODE       where the code travels through: gs://BUCKET/code.tar.gz
#   CONFIG     configs/NAME.py
#   DATA       the data set: gs://BUCKET/data
#   WORKDIR    of the run: gs://BUCKET/runs/NAME
#   CACHE      compiled programs, shared by all starts: gs://BUCKET/compiled
#   FLAGS      more flags of scripts/train.py, if any
#   POLL       seconds between looks, 60 if unset
#   CRASHES    starts in a row that may end otherwise than 0, 2 or 75 before `run` gives up; 3
#   FAILURES   times in a row that a step of `run` may fail, such as `install`, before it gives up; 10
#   GRACE      seconds that VMs may still train when others have ended, 900 if unset
set -euo pipefail

SLICES=${SLICES:-1} SPOT=${SPOT:-0} FLAGS=${FLAGS:-} POLL=${POLL:-60} CRASHES=${CRASHES:-3}
FAILURES=${FAILURES:-10} GRACE=${GRACE:-900}
FINISHED=0 BAD_INPUT=2 PREEMPTED=75 # exit statuses of scripts/train.py

need() {
  local variable
  for variable in "$@"; do
    [[ -n ${!variable:-} ]] || { echo "error: set $variable; $0 says what it is" >&2; exit 2; }
  done
}

queued() { gcloud compute tpus queued-resources "$@" --project="$PROJECT" --zone="$ZONE"; }

# Runs a command on every VM of every slice.
everywhere() { queued ssh "$NAME" --node=all --worker=all --command="$1"; }

state() { # of the queued resource; ABSENT: there is none; UNKNOWN: gcloud could not tell
  local told problem
  problem=$(mktemp)
  if told=$(queued describe "$NAME" --format='value(state.state)' 2> "$problem"); then
    echo "$told"
  elif grep -q NOT_FOUND "$problem"; then
    echo ABSENT
  else
    cat "$problem" >&2
    echo UNKNOWN
  fi
  rm -f "$problem"
}

# In what follows each step says `|| return`: bash forgets `set -e` where the caller asks for success.

create() { # ask for the slices
  need TYPE RUNTIME
  local nodes=(--node-id="$NAME") spot=()
  ((SLICES == 1)) || nodes=(--node-count="$SLICES" --node-prefix="$NAME")
  ((SPOT == 0)) || spot=(--spot)
  queued create "$NAME" --accelerator-type="$TYPE" --runtime-version="$RUNTIME" \
    "${nodes[@]}" "${spot[@]}" --async
}

delete() { # give the slices back
  queued delete "$NAME" --force --quiet
}

install() { # bring the committed code to every VM, with its requirements
  need CODE
  git archive --format=tar.gz HEAD | gcloud storage cp - "$CODE" || return
  everywhere "set -eo pipefail
    mkdir -p modbrick
    gcloud storage cat '$CODE' | tar -xz -C modbrick
    cd modbrick
    python3 -m pip install --quiet --user uv
    python3 -m uv venv --quiet --allow-existing --python 3.12 .venv
    python3 -m uv pip install --quiet --constraint requirements/dev.txt --editable '.[tpu,gcs]'
    echo installed"
}

# A VM keeps of the start in hand: start.sh, start.pid, train.log, train.pid, and train.status at its
# end.
start() { # start training on every VM; each finds the others by itself
  need CONFIG DATA WORKDIR CACHE
  everywhere "set -e
cd modbrick
rm -f train.status
cat > start.sh << 'END'
JAX_COMPILATION_CACHE_DIR='$CACHE' .venv/bin/python scripts/train.py --config='$CONFIG' \\
  --config.data.path='$DATA' --config.mesh.slices=$SLICES --workdir='$WORKDIR' \\
  --start_timeout=86400 $FLAGS &
echo \$! > train.pid
wait \$!
echo \$? > train.status
END
    nohup bash start.sh > train.log 2>&1 < /dev/null &
    echo \$! > start.pid
    sleep 1"
}

clear() { # end at once, unsaved, what an earlier start left on any VM, and forget how it ended
  everywhere 'mkdir -p modbrick && cd modbrick || exit
    for file in start.pid train.pid; do
      pid=$(cat $file 2>/dev/null) || continue
      grep -qs -e start.sh -e train.py "/proc/$pid/cmdline" && kill -KILL "$pid"
    done
    rm -f start.pid train.pid train.status'
}

stop() { # end training after the step in hand, saved; every VM then exits with status 75
  everywhere 'kill -TERM "$(cat modbrick/train.pid)"'
}

status() { # a line for each VM: running, or the exit status of the last start
  everywhere 'echo "train: $(cat modbrick/train.status 2>/dev/null ||
    (kill -0 "$(cat modbrick/train.pid 2>/dev/null)" 2>/dev/null && echo running) || echo absent)"' |
    grep -o 'train: [a-z0-9]*' | cut -d' ' -f2
}

watch() { # follow the log of the first VM, the only one that talks
  queued ssh "$NAME" --node=0 --worker=0 --command='tail -n 100 -F modbrick/train.log'
}

# A start is of all VMs or none: if it fails on one, the next try ends those that wait for it.
begin() {
  clear || return
  start
}

# A step of `run`, and whether it succeeded; after too many failures in a row the end of `run`.
attempt() {
  if "$1"; then
    failures=0
    return
  fi
  failures=$((failures + 1))
  if ((failures >= FAILURES)); then
    echo "error: '$1' failed $failures times in a row, see above;" \
      "'$0 delete' gives the slices back" >&2
    exit 1
  fi
  echo "'$1' failed, $failures of $FAILURES times in a row: trying again" >&2
  return 1
}

run() { # everything, until the run has finished or cannot go on
  need TYPE RUNTIME CODE CONFIG DATA WORKDIR CACHE
  local crashes=0 failures=0 unfinished='' parted='' ended now
  while true; do
    case $(state) in
      ABSENT)
        unfinished=''
        attempt create || true
        ;;
      ACTIVE)
        # No answer: a VM is not there yet, or not any more, which the next look at the state tells.
        ended=$(status | sort -u | paste -sd ' ') || ended=unreachable
        # Whoever has met the others ends soon after one of them; who has not would wait for a day.
        case " $ended " in
          " running " | " unreachable " | "  ") parted='' ;;
          *" running "*)
            now=$(date +%s)
            parted=${parted:-$now}
            ((now - parted < GRACE)) || ended=${ended/running/waiting} parted=''
            ;;
          *) parted='' ;;
        esac
        case "$unfinished $ended " in
          *" $BAD_INPUT "*)
            echo "error: train.py refused its input: see '$0 watch'" >&2
            return "$BAD_INPUT"
            ;;
          " $FINISHED ") echo "finished: $WORKDIR; '$0 delete' gives the slices back"; return 0 ;;
          *" unreachable " | *"  ") ;;
          begin*) ! attempt begin || unfinished='' ;;
          *" running "*) ;; # the others end when one of them has
          " absent ")
            if attempt install; then attempt begin || unfinished=begin; fi
            ;;
          *)
            # After 75 it goes on where it was; a crash, from the last checkpoint, a few times.
            if [[ " $ended " == " $PREEMPTED " ]]; then crashes=0; else crashes=$((crashes + 1)); fi
            if ((crashes > CRASHES)); then
              echo "error: $crashes starts in a row ended with $ended: see '$0 watch'" >&2
              return 1
            fi
            echo "start again: the last one ended with $ended"
            attempt begin || unfinished=begin
            ;;
        esac
        ;;
      SUSPENDED | FAILED) # preempted: a later look finds it absent, and asks anew
        attempt delete || true
        ;;
    esac
    sleep "$POLL"
  done
}

case ${1:-} in
  create | delete | install | start | stop | status | watch | run | state | clear)
    need NAME PROJECT ZONE
    "$1"
    ;;
  *)
    sed -n '2,/^set /{/^#/s/^# \{0,1\}//p;}' "$0" >&2
    grep -oE '^[a-z]+\(\) \{ # .*' "$0" | sed 's/() { #/:/' >&2
    exit 2
    ;;
esac
