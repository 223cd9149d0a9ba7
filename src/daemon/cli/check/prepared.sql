-- Prepared transactions older than $1 seconds; oldest first.
SELECT p.gid, p.owner::text, p.database::text, extract(epoch FROM clock_timestamp() - p.prepared)::float8
FROM pg_prepared_xacts p
WHERE p.prepared < clock_timestamp() - $1::float8 * interval '1 second'
ORDER BY p.prepared
LIMIT 10
