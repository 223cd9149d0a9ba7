# Runs one server, and stops it when standard input closes.
# $1 its directory, $2 `keep` or `remove`, $3 where the programs are, then the server's arguments.
trap "" INT TERM HUP
directory=$1 after=$2 bin=$3
shift 3
exec 3<&0 </dev/null

# Under another name first: a killed initdb leaves nothing that looks like a database.
if [ ! -e "$directory/data/PG_VERSION" ]; then
    rm -rf "$directory/data.new"
    "$bin/initdb" -U postgres -A trust -E UTF8 --locale=C --no-sync -D "$directory/data.new" \
        >"$directory/log" 2>&1 3<&- && mv "$directory/data.new" "$directory/data"
fi

if [ -e "$directory/data/PG_VERSION" ]; then
    "$bin/postgres" -D "$directory/data" "$@" >"$directory/log" 2>&1 3<&- &
    server=$!
    # Repeated, because a server that has only just begun does not listen to signals yet.
    {
        while read -r _; do :; done <&3
        while kill -INT "$server"; do sleep 1; done
    } >/dev/null 2>&1 &
    watcher=$!
    wait "$server"
    kill -KILL "$watcher"
    wait "$watcher"
fi

# For whoever waits for the start; nobody reads it after that.
tail -n 5 "$directory/log"
if [ "$after" = remove ]; then
    cd / && rm -rf "$directory"
fi
