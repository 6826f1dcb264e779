# make reproduce     regenerate every figure and table that is ready into figures/embedded/ (PROFILE names another)
# make test          run all tests
# make test-slurm    run the test of a one-node SLURM cluster, where Debian's packages of it are installed
# make test-browser  run the tests in Debian's Chromium (apt-get install chromium) of JupyterLab, gallery and site
# make faults        do every fault that we know to copies of a small reproduction; the table goes to runs/.workflow/
# make docs          make the documentation in site/, every link checked; it is read without a network
# make lab           open the notebooks in JupyterLab
# make readme        run nbs/index.ipynb, which counts what stands, and write README.md from it
# make constraints   resolve constraints.txt anew from pyproject.toml, for all Pythons and systems at once
#                    (versions that still fit stay; remove the file first to take the newest)
# make install       only the environment
#
# Each makes the environment in .venv/ first, or mends it. PYTHON=/path/to/python says which Python makes it,
# SPACE_MB=0 leaves out the look at the free space.

SHELL := /bin/bash
PROFILE ?= embedded
PYTHONS := 3.13 3.12 3.11
SPACE_MB ?= 6500
PYTHON_IS_ASKED_FOR := $(filter command,$(origin PYTHON))
override PYTHON := $(value PYTHON)
export PROFILE
# Hundreds of processes import the same modules: what Python compiles of them is kept.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: reproduce test test-slurm test-browser faults docs lab readme constraints install

# Modules are called, never the scripts in .venv/bin: a shell would read the folder's name in their first line.
reproduce: install
	@.venv/bin/python -m mixrepro reproduce --profile "$$PROFILE"

test: install
	@.venv/bin/python -m pytest -q -n 3 --dist loadfile --no-loadscope-reorder

test-slurm: install
	@.venv/bin/python -m pytest -q -m slurm tests/test_slurm.py

EXTRA := .venv/bin/python -m pip install --quiet --disable-pip-version-check --no-build-isolation -c constraints.txt -e

test-browser: install
	@$(EXTRA) '.[docs,browser]'
	@.venv/bin/python -m pytest -q -rs -m browser tests/test_browser.py

faults: install
	@.venv/bin/python -m pytest -q -m faults tests/faults

docs: install
	@$(EXTRA) '.[docs]'
	@.venv/bin/python -c 'from mixrepro.workflow.site import build; build()'
	@echo 'site/ is made; to read and search it: .venv/bin/python -m http.server --bind 127.0.0.1 --directory site 8000'

lab: install
	@.venv/bin/python -m jupyterlab $$(test "$$(id -u)" != 0 || echo --allow-root) nbs/index.ipynb

# One thread: with two a sum rounds otherwise, and the example's network is another.
readme: export OMP_NUM_THREADS = 1
readme: install
	@.venv/bin/python -m nbconvert --to notebook --execute --inplace --log-level WARN nbs/index.ipynb
	@.venv/bin/python -c 'from nbdev.clean import nbdev_clean; nbdev_clean("nbs/index.ipynb")'
	@.venv/bin/python -m nbconvert --log-level WARN --config nbs/readme_config.py nbs/index.ipynb --output-dir .

install constraints: export ENVIRONMENT = $(value environment)
install constraints: export PYTHON := $(PYTHON)
install constraints: export PYTHON_IS_ASKED_FOR := $(PYTHON_IS_ASKED_FOR)
install constraints: export PYTHONS := $(PYTHONS)
install constraints: export SPACE_MB := $(SPACE_MB)
install constraints:
	@/bin/bash -euo pipefail -c "$$ENVIRONMENT" $@ $@

define environment
say() { printf '%s\n' "$*" >&2; }
stop() { say "$*"; exit 1; }

# Which Python: $version (3.12), $prefix (the folder it lives in), $base (its path, outside any environment).
about='import sys
print("%d.%d" % sys.version_info[:2])
for name in ("base_prefix", "_base_executable"): print(getattr(sys, name, ""))
'
look() {
  local said
  said=$("$1" -E -c "$about" < /dev/null 2> /dev/null) || return 1
  version=${said%%$'\n'*} said=${said#*$'\n'}
  prefix=${said%%$'\n'*} base=${said#*$'\n'} base=${base:-$1}
  [[ $version =~ ^[0-9]+\.[0-9]+$ ]]
}
fits() { [[ " $PYTHONS " == *" $version "* ]]; }
makes_environments() { "$base" -I -c 'import ensurepip, venv' 2> /dev/null; }
refuse() {
  if fits; then
    stop "$1 is Python $version without ensurepip, so it cannot make an environment:" \
      "on Debian or Ubuntu 'apt-get install python$version-venv', then run make again"
  elif (( ${version%%.*} * 1000 + ${version#*.} > 3013 )); then
    stop "$1 is Python $version, which is too new (snakemake needs immutables, which has no wheel for it): $instead"
  fi
  stop "$1 is Python $version, which is too old: $instead"
}
instead="install Python ${PYTHONS// / or }, or name one that you have, make PYTHON=/path/to/python"
choose() {
  local name first=
  if [[ -n $PYTHON ]]; then
    PYTHON=${PYTHON/#\~\//$HOME/}
    command -v "$PYTHON" > /dev/null || stop "PYTHON=$PYTHON was not found: $instead"
    look "$PYTHON" || stop "PYTHON=$PYTHON does not run as a Python: $instead"
    fits && makes_environments || refuse "PYTHON=$PYTHON"
    return
  fi
  for name in python3 $(printf 'python%s ' $PYTHONS); do
    look "$name" || continue
    if fits && makes_environments; then return; fi
    if [[ -z $first ]] || fits; then first=$name; fi
  done
  [[ -n $first ]] || stop "no Python was found: $instead"
  look "$first"; refuse "$first"
}

# What .venv is: $how is keep, update or make, and $why says why.
files() { cat pyproject.toml constraints.txt | cksum; }
record() {
  printf '%s\n' "$here" "$version" "$prefix" "$1" > .venv/installed.part && mv -f .venv/installed.part .venv/installed
}
inspect() {
  local folder was_version was_prefix was_files line
  how=make why=
  [[ -e .venv || -L .venv ]] || return 0
  why="an installation into it did not come to its end"
  if [[ -e .venv/installing || ! -e .venv/installed ]]; then return; fi
  why="it does not say how it was made"
  { for line in folder was_version was_prefix was_files; do IFS= read -r "$line" || return 0; done; } < .venv/installed
  why="it was made in $folder, and this clone was moved or copied"
  [[ $folder == "$here" ]] || return 0
  if [[ -n $PYTHON_IS_ASKED_FOR ]]; then
    choose
    why="it was made by Python $was_version in $was_prefix, and PYTHON is Python $version in $prefix"
    [[ $version == "$was_version" && $prefix == "$was_prefix" ]] || return 0
  fi
  why="its Python, in $was_prefix, is gone"
  look "$here/.venv/bin/python" || return 0
  why="its Python was $was_version and is $version now"
  [[ $version == "$was_version" ]] || return 0
  why="its Python is $version"
  fits || return 0
  how=update why="pyproject.toml or constraints.txt has changed" prefix=$was_prefix
  if [[ $was_files == "$(files)" ]]; then how=keep; fi
}

# Space: before the start, and after a failure that does not say that a disk is full.
room='
import os, shutil, sys, tempfile
need = int(sys.argv[1]) << 20
def gb(n): return f"{n / 1e9:.2f} GB"
def held(top): return sum(os.lstat(os.path.join(d, f)).st_blocks * 512 for d, _, fs in os.walk(top) for f in fs)
try: tmp = tempfile.gettempdir()
except OSError: sys.exit("no folder for temporary files can be written to: name one, make TMPDIR=/path/to/folder")
free, spare = shutil.disk_usage(".").free + held(".venv"), shutil.disk_usage(tmp).free
both = os.stat(".").st_dev == os.stat(tmp).st_dev
if free < need + both * need // 2:
    more = f", its download {gb(need / 2)} for a while" if both else ""
    sys.exit(f"{gb(free)} are free in {os.getcwd()}, and .venv takes {gb(need)}{more}: "
             "free some space, or take a clone on a larger disk (make SPACE_MB=0 tries all the same)")
if spare < need // 2:
    sys.exit(f"{gb(spare)} are free in {tmp}, and {gb(need / 2)} are downloaded to it: "
             "free some space, or name another folder, make TMPDIR=/path/to/it (make SPACE_MB=0 tries all the same)")
'
full='
import os, shutil, tempfile
places = [place for place in (".", ".venv", tempfile.gettempdir()) if os.path.exists(place)]
if min(shutil.disk_usage(place).free for place in places) < 64 << 20: print("No space left")
'

# Runs a command; its errors are shown and kept in $said.
show() {
  { said=$("$@" 2>&1 >&3 | while IFS= read -r line; do printf '%s\n' "$line" >&2; printf '%s\n' "$line"; done); } 3>&1
}
said=
explain() {
  said+=$("$base" -I -c "$full" 2> /dev/null) || said+="No space left"
  say
  case $said in
    *"No space left"* | *"Disk quota exceeded"*)
      stop "the disk is full, here or in the folder for temporary files (make TMPDIR=/path/to/folder names another):" \
        "free some space, then run make again";;
    *Retrying* | *"from versions: none"* | *ConnectionError* | *"timed out"* | *"Failed to fetch"*)
      stop "the package registry could not be reached: check the network, and pip's settings of index and proxy," \
        "then run make again";;
    *ResolutionImpossible* | *"No solution found"* | *"from versions: "[0-9]*)
      stop "the registry does not have what pyproject.toml and constraints.txt ask for (see above):" \
        "'make constraints' resolves them anew, then run make again";;
    *"Permission denied"* | *"Read-only file system"*)
      stop "a file could not be written (see above): make the folder writable for you, then run make again";;
    *) stop "$1 failed, and says above why: put that right, then run make again";;
  esac
}

install() {
  here=$(pwd -P)
  inspect
  if [[ $how == keep ]]; then return; fi
  case $here in *:* | *$'\n'*)
    stop "the name of $here has a colon or a line break, which no Python environment bears: rename it";;
  esac
  for name in . pyproject.toml .venv; do
    [[ -w $name || ! -e $name ]] ||
      stop "$here/$name cannot be written to: make it writable, or clone to a folder of yours, then run make again"
  done
  if command -v flock > /dev/null; then
    exec 9>> pyproject.toml
    flock -n 9 || { say "another make is installing into .venv: waiting for it"; flock 9 || true; }
    inspect
    if [[ $how == keep ]]; then return; fi
  fi
  if [[ $how == make ]]; then
    choose
    [[ ! -L .venv || -z $(ls -A .venv/ 2> /dev/null) ]] ||
      stop ".venv is a link to $(readlink .venv), which is not emptied from here ($why): remove it, then run make again"
    if [[ -n $why ]]; then say ".venv is made again: $why"; fi
    say "Python $version ($base): about 6 GB into .venv, 3 GB to download, some minutes"
    [[ $SPACE_MB =~ ^[0-9]+$ ]] || stop "SPACE_MB=$SPACE_MB is no number: give whole megabytes, or 0 to try at any rate"
    if (( SPACE_MB )); then "$base" -I -c "$room" "$SPACE_MB" || exit 1; fi
    rm -f .venv/installed
    show "$base" -m venv --clear .venv || explain "making the environment"
  else
    say ".venv is brought up to date: $why"
  fi
  : > .venv/installing || explain "making the environment"
  local python=$here/.venv/bin/python
  local pip=("$python" -m pip install --disable-pip-version-check -c constraints.txt)
  # pip compiles on one core, and what nobody imports here: tests, compilers, time series, dialects of databases.
  local unused='/(tests?|testing|pip|setuptools|_inductor|_vendor|tsa|lexers|physics|dialects|networkx/algorithms)/'
  show "${pip[@]}" setuptools wheel && show "${pip[@]}" --no-compile --no-build-isolation -e '.[dev]' &&
    { "$python" -m compileall -q -j 0 -x "$unused" .venv/lib &> /dev/null || :; } &&
    show "$python" -m ipykernel install --sys-prefix --name python3 > /dev/null || {
    if [[ $how == update ]] && record "an update failed"; then rm -f .venv/installing; fi
    explain "the installation"
  }
  record "$(files)" && rm -f .venv/installing || explain "the installation"
  say ".venv is ready"
}

constraints() {
  choose
  work=$(mktemp -d) || explain "making a folder for temporary files"
  trap 'rm -rf "$work"' EXIT
  show "$base" -m venv "$work/uv" || explain "making an environment for uv"
  show "$work/uv/bin/python" -m pip install --quiet --disable-pip-version-check uv || explain "the installation of uv"
  if [[ -e constraints.txt ]]; then cp constraints.txt "$work/"; fi
  show "$work/uv/bin/python" -m uv pip compile pyproject.toml --output-file "$work/constraints.txt" \
    --all-extras --universal --python-version "${PYTHONS##* }" --no-python-downloads \
    --annotation-style line --custom-compile-command "make constraints" > /dev/null || explain "uv"
  mv "$work/constraints.txt" constraints.txt
}

"$1"
endef
