#!/bin/bash
# GeneMamba pretraining on 8 nodes with 8 ranks each, one SLURM task for each rank.
# Rendered by `gm-train launch`. The ranks read config.yaml in the same folder. To submit this script again:
#   sbatch /scratch/runs/genemamba-66m/launch/001/job.sh

#SBATCH --job-name=genemamba-66m
#SBATCH --partition=batch
#SBATCH --account=mylab
#SBATCH --nodes=8
#SBATCH --ntasks-per-node=8
#SBATCH --cpus-per-task=12
#SBATCH --gpus-per-node=8
#SBATCH --time=04:00:00
# USR1 comes this many seconds before the time limit, or up to a minute earlier. Without "B:" it goes to the ranks,
# not to this script: they agree on a step, save and leave.
#SBATCH --signal=USR1@300
# A job that is preempted or loses a node goes back into the queue under its number.
#SBATCH --requeue
# This script's own lines, those of its later starts below them. %j is the number of the job.
#SBATCH --output=/scratch/runs/genemamba-66m/logs/%j-batch.out
#SBATCH --open-mode=append

set -u # a variable that is not set is an error
run_dir=/scratch/runs/genemamba-66m
config=/scratch/runs/genemamba-66m/launch/001/config.yaml
max_requeues=100

say() { echo "[$(date '+%F %T')] $*"; }

: "${SLURM_JOB_ID:?this is a batch script: give it to sbatch}"
restart=${SLURM_RESTART_COUNT:-0} # how often the job was put back into the queue, by this script or by SLURM
say "job $SLURM_JOB_ID, start $((restart + 1)), on $SLURM_JOB_NODELIST"
if ((restart > max_requeues)); then
    say "more than $max_requeues restarts (cluster.max_requeues): find out why the job keeps ending, then launch again"
    exit 1
fi

# Environment variables of every rank: srun passes this script's environment on.
export PYTHONUNBUFFERED=1 # so that the log holds the last lines of a killed rank
# PyTorch's threads: the cores of one rank, not the node's, less one for each of its 4 loader workers.
export OMP_NUM_THREADS=$((SLURM_CPUS_PER_TASK > 4 ? SLURM_CPUS_PER_TASK - 4 : 1))
# Triton compiles kernels into a folder of each node: in a shared home, all ranks would write the same files.
export TRITON_CACHE_DIR="${TRITON_CACHE_DIR:-${TMPDIR:-/tmp}/triton-$UID}"
# If the launching shell has set these, they would take precedence over SLURM's own numbers.
unset RANK WORLD_SIZE LOCAL_RANK LOCAL_WORLD_SIZE
# cluster.env: what this site's network and libraries need.
export PYTORCH_ALLOC_CONF=expandable_segments:True

# The ranks meet on the first node, at the address that SLURM uses for it, or else at its name.
first=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
MASTER_ADDR=$(scontrol show node -o "$first" | sed -n 's/.*NodeAddr=\([^ ]*\).*/\1/p')
export MASTER_ADDR=${MASTER_ADDR:-$first}
# Ports 20000 to 29999 are below the range that Linux gives to clients. Two jobs on one node nearly always get
# different ports. So do two starts of one job: a process left over from the last start cannot answer this one.
export MASTER_PORT=$((20000 + SLURM_JOB_ID % 1000 * 10 + restart % 10))
say "rendezvous at $MASTER_ADDR:$MASTER_PORT"

command=(
    python3 -m gm_train.cli fit "$config"
)

# A task sees all GPUs of its node, because NCCL needs that for NVLink, and uses GPU number SLURM_LOCALID.
# USR1 would end a process that is still starting: a task ignores it until Python has installed its own handler.
# The folder of compiled kernels must be the user's own on every node, since what is in it is run.
task='trap "" USR1
mkdir -m 700 -p "$TRITON_CACHE_DIR"; [[ -O $TRITON_CACHE_DIR ]] || unset TRITON_CACHE_DIR
echo "== job $SLURM_JOB_ID.${SLURM_RESTART_COUNT:-0} on $SLURMD_NODENAME"
exec "$@"'

# --cpus-per-task: srun does not take it over from sbatch since SLURM 22.05.
# --kill-on-bad-exit: when one rank fails, end the others, which would only wait for it.
# --wait=0: when other ranks finish first, do not kill rank 0, which may still be writing.
# --export=ALL: the variables above reach the ranks even if the job was submitted with --export=NONE.
# --output: one log for each rank (%t); read rank 0's first. Later starts of the job append to the same logs.
# Then what this site needs (cluster.srun).
srun --ntasks=64 --ntasks-per-node=8 --cpus-per-task="$SLURM_CPUS_PER_TASK" \
    --kill-on-bad-exit=1 --wait=0 --export=ALL \
    --container-image=/scratch/images/gm-train.sqsh \
    --container-mounts=/scratch:/scratch \
    --no-container-mount-home \
    --mpi=none \
    --cpu-bind=cores \
    --output=/scratch/runs/genemamba-66m/logs/%j-%t.out --open-mode=append \
    bash -c "$task" rank "${command[@]}"
code=$?

# What happened. Ranks that were asked to leave and have saved exit with 85. But the code that srun reports is no proof:
# it differs when some ranks end before others, and it can be 85 although one rank has crashed. The proof is the marker
# that names this start of this job: rank 0 writes it once all ranks have agreed to leave and their checkpoint is whole.
# Nothing below runs after scancel, which also ends this shell: it catches no signals. Nor does it run after the loss of
# a node: srun waits for the ranks until SLURM notices the loss (SlurmdTimeout, often minutes). SLURM then ends this
# shell and requeues the job.
if ((code == 0)); then
    say "finished"
    exit 0
fi
if [[ $(cat "$run_dir/.preempted" 2>/dev/null) != "$SLURM_JOB_ID.$restart" ]]; then
    say "failed with exit code $code, not requeued: the reason is at the end of $run_dir/logs/$SLURM_JOB_ID-*.out"
    exit "$((code == 85 ? 1 : code))"
fi
if ((restart >= max_requeues)); then
    say "saved, and left; not requeued after $max_requeues restarts (cluster.max_requeues): launch again to continue"
    exit 85
fi
say "asked to leave (exit code $code) and saved: back into the queue, restart $((restart + 1)) of at most $max_requeues"
# SLURM ends this script once it has put the job back.
scontrol requeue "$SLURM_JOB_ID" || say "SLURM refused to requeue the job: launch again to continue"
exit 85
