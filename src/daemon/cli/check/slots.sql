-- Replication slots whose consumer is away: how old the rows are that they keep from vacuum (in
-- transactions, null where they keep none), and how much WAL they keep on the disk.
SELECT s.slot_name::text, age(s.xmin)::bigint,
       CASE WHEN NOT pg_is_in_recovery() THEN pg_wal_lsn_diff(pg_current_wal_lsn(), s.restart_lsn)::bigint END
FROM pg_replication_slots s
WHERE NOT s.active AND (s.xmin IS NOT NULL OR s.restart_lsn IS NOT NULL)
ORDER BY 1
