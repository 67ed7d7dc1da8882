#!/bin/bash
#SBATCH --job-name=main-1-2
#SBATCH --output=/var/tmp/mlxjobs-stored/project/arrays/.arrays/1/%a/log.stdout
#SBATCH --error=/var/tmp/mlxjobs-stored/project/arrays/.arrays/1/%a/log.stderr
#SBATCH --open-mode=append
#SBATCH --requeue
#SBATCH --signal=B:USR2@60
#SBATCH --array=1-2

# Each task of the array becomes the script of its own run: its number is a link to the folder of that run.
trap '' USR1 USR2
run=/var/tmp/mlxjobs-stored/project/arrays/.arrays/1/"$SLURM_ARRAY_TASK_ID"
exec /bin/bash "$run/script.sh"
