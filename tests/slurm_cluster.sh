# Sourced: a SLURM cluster of one node on this machine, for tests; installs what is missing (Debian, as root).
# Usage: source tests/slurm_cluster.sh FOLDER; `slurm_stop` ends it.
slurm_folder=$1
if ! command -v slurmctld >/dev/null || ! command -v munged >/dev/null; then
    echo "installing SLURM"
    apt-get update -qq
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends slurm-wlm munge libpmix2 >/dev/null
fi
mkdir -p "$slurm_folder/state" "$slurm_folder/spool"
export SLURM_CONF="$slurm_folder/slurm.conf"
slurm_host=$(hostname -s)
slurm_memory=$(($(awk '/MemTotal/ {print $2}' /proc/meminfo) / 1024 - 1024))
cat >"$SLURM_CONF" <<CONF
ClusterName=tests
SlurmctldHost=$slurm_host(127.0.0.1)
SlurmctldPort=16817
SlurmdPort=16818
AuthType=auth/munge
AuthInfo=socket=$slurm_folder/munge.socket
CryptoType=crypto/munge
SlurmUser=root
SlurmdUser=root
StateSaveLocation=$slurm_folder/state
SlurmdSpoolDir=$slurm_folder/spool
SlurmctldPidFile=$slurm_folder/slurmctld.pid
SlurmdPidFile=$slurm_folder/slurmd.pid
SlurmctldLogFile=$slurm_folder/slurmctld.log
SlurmdLogFile=$slurm_folder/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
MpiDefault=none
ReturnToService=2
KillWait=15
OverTimeLimit=0
MinJobAge=300
JobRequeue=0
SchedulerParameters=sched_interval=1,batch_sched_delay=0
NodeName=$slurm_host NodeAddr=127.0.0.1 CPUs=2 RealMemory=$slurm_memory State=UNKNOWN
PartitionName=main Nodes=$slurm_host Default=YES MaxTime=INFINITE State=UP
CONF
# munged insists on folders and files that others cannot write, and on its own account for them.
dd if=/dev/urandom of="$slurm_folder/munge.key" bs=128 count=1 status=none
chmod 700 "$slurm_folder"; chmod 600 "$slurm_folder/munge.key"

slurm_stop() {
    scancel --user="$(id -un)" 2>/dev/null || true
    for name in slurmd slurmctld munged; do
        if [ -f "$slurm_folder/$name.pid" ]; then kill "$(cat "$slurm_folder/$name.pid")" 2>/dev/null || true; fi
    done
}

munged --force --key-file="$slurm_folder/munge.key" --socket="$slurm_folder/munge.socket" \
    --pid-file="$slurm_folder/munged.pid" --log-file="$slurm_folder/munged.log" --seed-file="$slurm_folder/munged.seed"
slurmctld -c
slurmd -c
for _ in $(seq 60); do
    if [ "$(sinfo --noheader --format=%T 2>/dev/null)" = idle ]; then return 0; fi
    sleep 0.5
done
echo "SLURM did not come up:" >&2
tail -n 20 "$slurm_folder"/*.log >&2
slurm_stop
return 1
