#!/bin/sh
# What `make setup` does, from the root of the checkout: .venv with everything that the lab and the
# tests need. TORCH names a build of torch, PYTHON the Python to make .venv with; both may be empty.
set -eu

venv=.venv
bin=$venv/bin
stamp=$venv/.minserve-setup
choice=$venv/.minserve-torch
here=$(pwd -P)
if [ -n "${PYTHON:-}" ]; then  # one program, whose path may have spaces
  set -- "$PYTHON"
else
  set -- python3 python3.13 python3.12 python3.11
fi

fail() {
  printf '%s\n' "$@" >&2
  exit 1
}

find_python() {
  ok='import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))'
  for each; do
    if "$each" -c "$ok" 2>/dev/null; then
      echo "$each"
      return
    fi
  done
  fail "minserve needs Python 3.11, 3.12 or 3.13, and none of these is one: $*." \
    'Install one, or name yours: make setup PYTHON=/path/to/python3.12'
}

make_venv() {
  python=$(find_python "$@")
  "$python" -m venv $venv || {
    rm -rf $venv
    fail 'That Python cannot make a virtual environment (on Debian and Ubuntu: apt install python3-venv).'
  }
}

# Programs in .venv/bin name its Python by its full path.
is_here() {
  path=$here/$bin/python
  grep -qF -e "#!$path" -e "exec' $path" -e "exec' \"$path" $bin/pip
}

# Without the network, if nothing but the place has changed.
mend_moved() {
  base=$($bin/python -c 'import sys; print(sys._base_executable)') &&
    "$base" -m venv --without-pip $venv &&
    $bin/python labs/tools/moved.py "$here/$venv" &&
    { $bin/python -m pip install --quiet --no-deps --no-build-isolation -e . || rm -f $stamp; }
}

install_torch() {
  pin=$(grep '^torch==' constraints.txt)
  if [ "$1" = cpu ]; then
    $bin/python -m pip install --quiet -c constraints.txt uv
    $bin/uv pip install --python $bin/python --torch-backend=cpu --reinstall-package torch "$pin"
    echo cpu > $choice
    [ -z "$had" ] || echo 'Libraries of CUDA that the other build brought stay until make distclean.'
  elif [ -n "$had" ]; then
    $bin/python -m pip install --quiet --force-reinstall --no-deps "$pin"
    echo default > $choice
  elif [ "$(uname -s)" = Linux ] && ! command -v nvidia-smi >/dev/null &&
    ! $bin/python -c 'import torch' 2>/dev/null; then
    echo 'No NVIDIA GPU seen. The ordinary torch for Linux may bring gigabytes of CUDA libraries;'
    echo 'to do without them, stop here and say: make setup TORCH=cpu'
  fi
}

case ${TORCH:-} in
  '' | cpu | default) ;;
  *) fail "TORCH=$TORCH is not known. Expected cpu, for torch without CUDA's libraries, or default, for" \
    'the ordinary build. Left out, the build that was chosen first stays.' ;;
esac

# The build that is there: "" where there is none yet.
had=
if [ -f $stamp ] || [ -f $choice ]; then
  had=$(cat $choice 2>/dev/null || true)
  had=${had:-default}
fi
torch=${TORCH:-${had:-default}}

if [ -e $venv ] && ! $bin/python -c '' 2>/dev/null; then
  echo "The Python in $venv does not run (its own may have been removed): $venv is made anew."
  rm -rf $venv
  had=
elif [ -f $bin/pip ] && ! is_here; then
  echo "This checkout was moved or copied: $venv is adapted to $here."
  mend_moved || {
    echo "That cannot be done: $venv is made anew."
    rm -rf $venv
    had=
  }
fi

want=$(cat pyproject.toml constraints.txt | cksum)
if [ -n "$had" ] && [ "$torch" = "$had" ] && [ "$(cat $stamp 2>/dev/null)" = "$want" ]; then
  exit 0
fi

if [ ! -w . ]; then
  fail "$here cannot be written to, and $venv has to be made or changed in it: work in a checkout of" \
    'your own, or have its owner say make setup.'
fi
[ -e $venv ] || make_venv "$@"
rm -f $stamp
if [ "$torch" != "$had" ]; then
  [ -z "$had" ] || echo "torch is changed from the build '$had' to '$torch'."
  install_torch "$torch"
fi
$bin/python -m pip install --quiet -c constraints.txt -e '.[dev]'
$bin/python -c "import torch; from minserve.kernels import select_ops; print('CPU operators:', select_ops('auto', torch.device('cpu'), torch.float32).name)"
echo "$torch" > $choice
echo "$want" > $stamp
echo "Ready: $venv"
