-- Transactions that have been open for longer than $1 seconds and hold back what vacuum may remove
-- here, or write; oldest first.
SELECT a.pid, a.usename::text, a.application_name, coalesce(host(a.client_addr), 'a socket'), a.state,
       extract(epoch FROM clock_timestamp() - a.xact_start)::float8
FROM pg_stat_activity a
WHERE a.pid <> pg_backend_pid() AND a.backend_type = 'client backend'
  AND a.xact_start < clock_timestamp() - $1::float8 * interval '1 second'
  AND (a.datname = current_database() OR a.backend_xid IS NOT NULL)
ORDER BY a.xact_start
LIMIT 10
