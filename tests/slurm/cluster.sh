#!/usr/bin/env bash
# Run a Slurm cluster of two nodes on this machine, for tests. `cluster.sh start DIR` needs root. It installs missing
# packages (on Debian and Ubuntu) and starts munged, slurmctld and one slurmd per node, with all keys, state and logs in
# DIR. `cluster.sh stop DIR` ends these programs. With SLURM_CONF=DIR/slurm.conf, the usual commands (sbatch, squeue,
# scontrol) use this cluster. A Slurm that is already installed keeps its configuration.
set -euo pipefail
PATH=$PATH:/usr/sbin
[[ ${1:-} =~ ^(start|stop)$ && $# == 2 ]] || { echo "usage: cluster.sh start|stop DIR" >&2; exit 2; }
mkdir -p "$2"
dir=$(realpath "$2")
export SLURM_CONF=$dir/slurm.conf

stop() {
  local pids pid
  pids=$(cat "$dir"/*.pid 2>/dev/null) || return 0
  for pid in $pids; do kill "$pid" 2>/dev/null || true; done
  for pid in $pids; do timeout 20 tail --pid="$pid" -f /dev/null || kill -9 "$pid"; done
  rm -f "$dir"/*.pid
}

[[ $1 == start ]] || { stop; exit; }
((EUID == 0)) || { echo "cluster.sh: slurmd and munged must be started as root" >&2; exit 1; }
if ! command -v slurmctld slurmd munged sbatch >/dev/null; then
  apt-get update -qq
  DEBIAN_FRONTEND=noninteractive apt-get install -qq --no-install-recommends slurm-wlm munge >"$dir/install.log"
fi

chmod 755 "$dir"
head -c 1024 /dev/urandom >"$dir/munge.key"
chmod 600 "$dir/munge.key"
port=$((20000 + RANDOM % 10000))
host=$(hostname -s) # names the first node, which is the coordinator's address; the second node's name need not resolve
# cred_expire is the time in seconds that a requeued job waits before it starts again (Slurm's default is 120).
cat >"$SLURM_CONF" <<CONF
ClusterName=test
SlurmctldHost=$host(127.0.0.1)
SlurmctldPort=$port
SlurmUser=root
AuthInfo=socket=$dir/munge.socket,cred_expire=5
StateSaveLocation=$dir/state
SlurmdSpoolDir=$dir/spool.%n
SlurmctldPidFile=$dir/slurmctld.pid
SlurmdPidFile=$dir/%n.pid
SlurmctldLogFile=$dir/slurmctld.log
SlurmdLogFile=$dir/%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SlurmdParameters=config_overrides
GresTypes=gpu
ReturnToService=2
KillWait=10
TaskProlog=$dir/prolog
NodeName=$host NodeAddr=127.0.0.1 Port=$((port + 1)) CPUs=32 Gres=gpu:4
NodeName=$host-2nd NodeHostname=$host NodeAddr=127.0.0.1 Port=$((port + 2)) CPUs=32 Gres=gpu:4
PartitionName=all Nodes=ALL Default=YES MaxTime=60
CONF
for i in {0..3}; do [[ -e $dir/gpu$i ]] || mknod "$dir/gpu$i" c 1 3; done
echo "Name=gpu File=$dir/gpu[0-3]" >"$dir/gres.conf" # copies of /dev/null that Slurm allocates as GPUs
cat >"$dir/prolog" <<'PROLOG'
#!/bin/sh
echo
PROLOG
chmod 755 "$dir/prolog"
mkdir -p "$dir/state"
trap stop ERR
munged --force --socket="$dir/munge.socket" --key-file="$dir/munge.key" --pid-file="$dir/munged.pid" \
  --log-file="$dir/munged.log" --seed-file="$dir/munge.seed"
slurmctld -c
slurmd -N "$host"
slurmd -N "$host-2nd"
for _ in {1..60}; do
  [[ $(sinfo -h -o %D -t idle 2>/dev/null) == 2 ]] && exit
  sleep 0.5
done
echo "cluster.sh: the two nodes did not become idle within 30 s; see $dir/*.log" >&2
false
