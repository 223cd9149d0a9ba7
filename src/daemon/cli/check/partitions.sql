-- Of each journal: the partitions of today and tomorrow that are missing, and whether rows stand
-- in the default one. By its size: nobody needs a grant on a partition.
SELECT j.parent,
       (SELECT string_agg(to_char(d.day, 'YYYY-MM-DD'), ', ')
        FROM generate_series(0, 1) AS n, LATERAL (SELECT (now() AT TIME ZONE 'UTC')::date + n AS day) d
        WHERE to_regclass('taskbell.' || j.parent || to_char(d.day, '_YYYYMMDD')) IS NULL),
       coalesce(pg_relation_size(to_regclass('taskbell.' || j.parent || '_default')) > 0, false)
FROM (VALUES ('transition'), ('attempt')) AS j(parent)
