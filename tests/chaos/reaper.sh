# Ends what a run has started, however the run itself ends. Standard input is a pipe from it:
# `+PID` says that a daemon was started, `-PID` that it has ended. When the pipe closes, the
# daemons that are left are killed, and the directory goes once no server runs in it.
# $1 the directory
trap "" INT TERM HUP
alive=" "
while read -r line; do
    pid=${line#?}
    case $line in
    +*) alive="$alive$pid " ;;
    -*) alive="${alive%% $pid *} ${alive#* $pid }" ;;
    esac
done
for pid in $alive; do kill -KILL "$pid"; done 2>/dev/null
server=$(head -n 1 "$1/pg/data/postmaster.pid" 2>/dev/null)
while [ -n "$server" ] && kill -0 "$server" 2>/dev/null; do sleep 0.1; done
rm -rf "$1"
