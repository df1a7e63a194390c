#!/usr/bin/env bash
# Runs a command as the first process of a container, and passes on to it the first SIGTERM only.
#
#   bash scripts/launch/one_sigterm.sh COMMAND [ARGUMENT ...]      exits with its status
#
# A pod may be sent several: by its node, and when another pod of the Job has ended. train.py saves
# and stops at the first, and dies of the second.
child='' passed=''
pass_on() {
  interrupted=1
  if [[ -n $child && -z $passed ]]; then
    passed=1
    kill -TERM "$child"
  fi
}
trap pass_on TERM
"$@" &
child=$!
[[ -z ${interrupted:-} ]] || pass_on # came before there was a child
while true; do
  interrupted=''
  wait "$child"
  now=$?
  [[ $now == 127 && -n ${status:-} ]] || status=$now # 127: it was waited for already
  [[ -n $interrupted ]] || exit "$status"
done
