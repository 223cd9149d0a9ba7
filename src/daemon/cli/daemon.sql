-- Whether a daemon listens to this database, and whether one is awake. Sessions of other roles
-- hide their statements: one that calls itself taskbell is then taken for a daemon's. `check` rings
-- itself on a session of its own, which is none.
SELECT EXISTS (SELECT FROM pg_stat_activity s
               WHERE s.datname = current_database() AND s.application_name = 'taskbell' AND s.pid <> pg_backend_pid()
                 AND (s.query LIKE 'LISTEN taskbell%' OR s.query LIKE '%NOTIFY taskbell%'
                      OR s.query = '<insufficient privilege>')
                 AND s.query NOT LIKE '%NOTIFY taskbell, ''check %'),
       EXISTS (SELECT FROM pg_locks l JOIN pg_database d ON d.oid = l.database
               WHERE d.datname = current_database() AND l.locktype = 'advisory' AND l.objsubid = 1
                 AND l.mode = 'ExclusiveLock'
                 AND (l.classid::bigint << 32) | l.objid::bigint = 8386110886190083180)
