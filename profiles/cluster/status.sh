# The state of a PBS job: prints running, success or failed.
#
#     sh profiles/cluster/status.sh JOB
#
# -x: ended jobs too. If PBS says nothing about a job at the moment, the job counts as running.
qstat -x -f "$1" 2>/dev/null | awk '
    $1 == "job_state" { state = $3 }
    $1 == "Exit_status" { code = $3 }
    END {
        if (state != "F" && state != "C") print "running"
        else print (code == "0" ? "success" : "failed")
    }'
