#!/bin/sh
# sh push.sh         uploads the package, then pushes the kernel that runs the whole series
# sh push.sh 05_lstm 06_evaluation …   pushes these instead, each when the one before is complete
# Kaggle's client says in words what it refuses, and exits with 0 all the same: its words are read,
# and the first refusal stops. A second call uploads the package only if it has changed.
PATH="$PWD/.venv/bin:$PATH"
cd "$(dirname "$0")" || exit 1
DATASET=OWNER/labhelpers
BUNDLE=MARK # a file of that name in the data set tells which package is served
PAUSE=${PAUSE:-10} # seconds between two looks
LOOKS=${LOOKS:-60} # at the data set before giving up; 72 times as many at a kernel: 12 hours

stop() {
  echo "Stopped: $*" >&2
  exit 1
}

kaggle_does() { # run the client, show what it says, stop at what it refuses
  said=$(kaggle "$@" 2>&1) || stop "kaggle $*: $said"
  echo "$said"
  refused=$(echo "$said" | grep -iE 'error|not valid|unsuccessful|skipping|does not resolve')
  [ -z "$refused" ] || stop "kaggle $1 $2: $refused. Put that right, then run push.sh again."
}

served() { # whether Kaggle serves this package, no other version of it
  kaggle datasets status $DATASET 2>&1 | grep -qx ready &&
    kaggle datasets files $DATASET --page-size 200 2>&1 | grep -qF "$BUNDLE.txt"
}

[ $# -gt 0 ] || set -- report
command -v kaggle >/dev/null || stop "no client; Python 3.11 or later, pip install kaggle"
for name in "$@"; do
  [ -d "kernels/$name" ] || stop "no kernel $name; there are: $(ls kernels | tr '\n' ' ')"
done

if ! served; then
  if kaggle datasets status $DATASET >/dev/null 2>&1; then
    kaggle_does datasets version -p dataset --dir-mode zip -m "$BUNDLE"
  else
    kaggle_does datasets create -p dataset --dir-mode zip
  fi
  looks=0
  until served; do
    looks=$((looks + 1))
    status=$(kaggle datasets status $DATASET 2>&1)
    ! echo "$status" | grep -qx failed || stop "Kaggle could not make the data set; see its page"
    [ $looks -lt "$LOOKS" ] || stop "$DATASET is not served yet ($status); run push.sh again later"
    sleep "$PAUSE"
  done
fi
echo "$DATASET is served as $BUNDLE"

before=
for name in "$@"; do
  if [ -n "$before" ]; then
    kernel=OWNER/labhelpers-$(echo "$before" | tr _ -)
    looks=0
    until kaggle kernels status "$kernel" 2>&1 | tee status.txt | grep -qi complete; do
      looks=$((looks + 1))
      ! grep -qiE 'error|cancel|denied' status.txt || stop "$kernel: $(cat status.txt)"
      [ $looks -lt $((LOOKS * 72)) ] || stop "$kernel: $(cat status.txt)"
      sleep "$PAUSE"
    done
  fi
  kaggle_does kernels push -p "kernels/$name"
  before=$name
done
