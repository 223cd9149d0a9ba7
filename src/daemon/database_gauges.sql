-- How full the notification queue is, and the age of the oldest transaction that holds back vacuum
-- here: one that writes, in any database of the server, because every snapshot taken here reaches
-- back to it; prepared ones are of these; or one that reads in this one. NaN where this role may
-- not see those of other roles: nothing is seen then, which is not the same as nothing being there.
-- How long a replica or a slot has kept its rows the server does not know; `taskbell check` looks.
SELECT pg_notification_queue_usage(),
       CASE WHEN pg_has_role('pg_read_all_stats', 'USAGE') THEN greatest(0, extract(epoch FROM now() - least(
           (SELECT min(a.xact_start) FROM pg_stat_activity a
            WHERE a.backend_type = 'client backend'
              AND (a.backend_xid IS NOT NULL OR (a.backend_xmin IS NOT NULL AND a.datname = current_database()))),
           (SELECT min(p.prepared) FROM pg_prepared_xacts p))))
       ELSE 'NaN' END::float8
