-- Connections that may still be made: of the server's, the database's and the role's limit the
-- nearest, and which it is. -1 is no limit.
SELECT free, whose
FROM (
    SELECT current_setting('max_connections')::bigint - current_setting('superuser_reserved_connections')::bigint
           - sum(numbackends)::bigint AS free, 'max_connections' AS whose
    FROM pg_stat_database
    UNION ALL
    SELECT d.datconnlimit - s.numbackends, 'the connection limit of the database'
    FROM pg_database d JOIN pg_stat_database s ON s.datid = d.oid
    WHERE d.datname = current_database() AND d.datconnlimit >= 0
    UNION ALL
    SELECT r.rolconnlimit - (SELECT count(*) FROM pg_stat_activity a WHERE a.usename = r.rolname),
           'the connection limit of the role'
    FROM pg_roles r WHERE r.rolname = current_user AND r.rolconnlimit >= 0
) AS limits
ORDER BY free
LIMIT 1
